"""The laboratory of a study: its folder, its plan, its trainings, and what was worked out so far.

    study.toml          what was asked, of which images, with which plan: enough to go on
    runs/NAME/          the trainings, run folders as any other
    parts/NAME.parquet  what was measured on the trained networks
    result.json  table.parquet  published.parquet  *.png  study.html      what was found

A study that was interrupted finds in its folder what is done, and does the rest.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack

import pandas as pd

from resnetlab.core.checks import check_flag, check_integer, check_number, check_schema
from resnetlab.core.console import notice
from resnetlab.core.devices import resolve_device
from resnetlab.core.errors import UserError
from resnetlab.core.files import atomic, read_toml, write_toml
from resnetlab.core.runs import Run
from resnetlab.data.load import load_data
from resnetlab.data.storage.store import ImageData, Split
from resnetlab.evaluation.evaluate import default_split
from resnetlab.models.config import ResNetConfig
from resnetlab.models.resnet import ResNet
from resnetlab.studies.lab.outside import OutsideConfig
from resnetlab.studies.lab.outside_runs import train_outside
from resnetlab.studies.lab.plan import Cell, Plan, make_plan
from resnetlab.studies.lab.question import SCHEMA_VERSION, Question
from resnetlab.studies.lab.setup import BUDGET, SEEDS, SetUp, check_names, command_line
from resnetlab.studies.lab.views import at_size
from resnetlab.training.fit import fit, resume
from resnetlab.training.machine import choose_machine
from resnetlab.training.recipe import Recipe
from resnetlab.training.recipes import resolve_recipe
from resnetlab.weights.file import load

_STEPS = 64_000  # of the paper's protocol
_BATCH = 64
"""Images of a step: half of what is usual, because within minutes it is steps that are few."""


class Lab:
    """Where a study works.

    Attributes:
        question: what is asked.
        folder: the study's own.
        seeds: 0 to one less than were asked for.
        full: whether the paper's protocol was asked for.
    """

    def __init__(
        self, question: Question, data: str | Path | ImageData, options: Mapping[str, Any], **setup: Unpack[SetUp]
    ) -> None:
        check_names(question.name, setup, options)
        self.question = question
        self.seeds = range(check_integer("seeds", setup.get("seeds", SEEDS), 1))
        self.full = check_flag("full", setup.get("full", False))
        budget = setup.get("budget")
        if self.full and budget is not None:
            raise UserError("full is the paper's protocol, which takes what it takes. Leave the budget out.")
        self._minutes = check_number("budget", BUDGET if budget is None else budget, 0, above=True)
        self._quiet = setup.get("quiet", False)
        self._device, self._precision = setup.get("device", "auto"), setup.get("precision", "auto")
        resolve_device(self._device)
        self._source: dict[str, Any] | None = None
        if isinstance(data, ImageData):
            if setup.get("image_size") is not None or setup.get("data_root") is not None:
                raise UserError("image_size and data_root are for data that a study loads. Give them to load_data.")
            self._all = data
        else:
            self._source = {
                "source": str(data), "data_root": setup.get("data_root"), "image_size": setup.get("image_size"),
            }  # fmt: skip
            self._all = _load(self._source)
        self.folder = Path(setup.get("out") or Path("studies") / f"{question.name}-{self._all.name}")
        self._asked = {
            "study": question.name,
            "data": self._all.fingerprint,
            "seeds": len(self.seeds),
            "full": self.full,
            "budget": self._minutes,
            "precision": self._precision,
            "options": json.loads(json.dumps(dict(options))),
        }
        self.command = f"the same call of resnetlab.studies.{question.name}, with the same images"
        if self._source is not None:
            self.command = command_line(question.name, self._all, options, setup)
        self._settings = self._open()
        self._viewed: tuple[Any, ImageData] | None = None

    @property
    def image_size(self) -> int:
        """Height and width of the images, in pixels."""
        return self._all.image_size

    @property
    def device(self) -> str:
        """The device to work on, as torch names it."""
        return str(resolve_device(self._device))

    @property
    def minutes(self) -> float | None:
        """The budget; None where the paper's protocol was asked for, which has none."""
        return None if self.full else self._minutes

    @property
    def precision(self) -> str:
        """What was asked for: "auto", "float32", "bfloat16" or "float64"."""
        return self._precision

    @functools.cached_property
    def data(self) -> ImageData:
        """The images that the study works with: as many as the plan has."""
        plan, held_out = self.plan, len(self._held_out)
        is_whole = plan.images >= len(self._all.split("train")) and (plan.evaluated or held_out) >= held_out
        if self._source is None or is_whole:
            return self._all
        return _load(self._source, limit=plan.images, limit_held_out=plan.evaluated)

    @functools.cached_property
    def recipe(self) -> Recipe:
        """How every training of the study goes, but for its epochs and what a cell changes."""
        if self.full:
            return resolve_recipe("paper-cifar", **{"augment.flip": "auto"})  # digits are not mirrored
        return Recipe(name="study", lr=0.1, batch_size=_BATCH, clip_norm=1.0)

    @property
    def plan(self) -> Plan:
        """What every training gets; see `prepare`."""
        return Plan(**self._settings["plan"])

    @property
    def channels_and_classes(self) -> dict[str, int]:
        """The fields of `ResNetConfig` that the data decide."""
        return {"in_channels": self._all.channels, "num_classes": self._all.num_classes}

    def prepare(self, cells: Sequence[Cell], *, share: float = 1.0) -> Plan:
        """Plans all trainings of the study, once: what is planned stays when the study goes on.

        Args:
            cells: all of them.
            share: of the budget that is for them; the rest is for what is measured afterwards.
        """
        if "plan" not in self._settings:
            images = len(self._all.split("train"))
            machine = choose_machine(self._device, self._precision)
            if self.full:
                plan = Plan(images=images, epochs=round(_STEPS / -(-images // self.recipe.batch_size)), minutes=0.0)
            else:
                plan = make_plan(
                    cells, self.recipe, self._all.preprocessing, machine, images=images,
                    evaluated=len(self._held_out), minutes=self._minutes, share=share,
                    may_leave_out=self._source is not None,
                )  # fmt: skip
            # "auto" could choose otherwise when the study goes on, and networks of two precisions do not compare.
            self._settings |= {"trained_in": machine.precision, "plan": dataclasses.asdict(plan)}
            write_toml(self.folder / "study.toml", self._settings)
        plan = self.plan
        about = f", about {plan.minutes:g} minutes" if plan.minutes else ""
        self.tell(
            f"{self.question.name}: {len(cells)} trainings of {plan.epochs} epochs of {plan.images:,} images{about}, "
            f"into {self.folder}"
        )
        return plan

    def train(self, cells: Sequence[Cell]) -> list[Run]:
        """Trains the cells that are not trained yet, and returns the runs of all."""
        runs = []
        for number, cell in enumerate(cells, 1):
            start, folder = time.monotonic(), self.folder / "runs" / cell.name
            done = (folder / "model.safetensors").is_file() and (folder / "evaluation" / "summary.json").is_file()
            run = Run(folder) if done else self._train(cell, folder)
            summary = run.summary or {}
            took = "" if done else f", {time.monotonic() - start:.0f} s"
            self.tell(f"{number}/{len(cells)} {cell.name}: {summary['split']} top-1 {summary['top1']:.2%}{took}")
            runs.append(run)
        return runs

    def images_of(self, cell: Cell) -> ImageData:
        """Returns the images that a cell is trained and evaluated on."""
        key = (cell.view, cell.image_size)
        if self._viewed is None or self._viewed[0] != key:
            data = self.data if cell.view is None else cell.view(self.data)
            data = data if cell.image_size is None else at_size(data, cell.image_size)
            self._viewed = (key, data)  # of one view only: cells of a kind come one after the other
        return self._viewed[1]

    def network(self, run: Run) -> ResNet:
        """Returns the trained network of a run, in evaluation mode on the study's device."""
        return load(run).to(self.device).eval()

    def once(self, name: str, compute: Callable[[], pd.DataFrame]) -> pd.DataFrame:
        """Returns a table that was computed before by this name, or computes and keeps it."""
        path = self.folder / "parts" / f"{name}.parquet"
        if path.is_file():
            return pd.read_parquet(path)
        table = compute()
        path.parent.mkdir(exist_ok=True)
        with atomic(path) as temporary:
            table.to_parquet(temporary, index=False)
        return table

    def forget(self) -> None:
        """Takes the folder back where nothing was planned yet, so that the study can be asked for with other words."""
        if "plan" not in self._settings:
            (self.folder / "study.toml").unlink()
            self.folder.rmdir()

    def tell(self, words: str) -> None:
        """Tells the user how far the study is."""
        if not self._quiet:
            notice(words)

    def deviations(self) -> list[str]:
        """Returns where every study at this scale is not the paper's protocol, in sentences."""
        if "plan" not in self._settings:
            return [f"data: {self._all.name} at {self._all.image_size} pixels"]
        plan, total, recipe = self.plan, len(self._all.split("train")), self.recipe
        size = self._all.image_size
        steps = plan.epochs * -(-plan.images // recipe.batch_size)
        part = "all" if plan.images >= total else f"{plan.images:,} of"
        tested = len(self._held_out)
        taken = len(self.data.split(default_split(self.data)))
        evaluated = f"all {tested:,}" if taken == tested else f"{taken:,} of {tested:,}"
        seeds = "one seed" if len(self.seeds) == 1 else f"{len(self.seeds)} seeds"
        details = f"rate {recipe.lr:g}, weight decay {recipe.weight_decay:g}, gradients clipped to {recipe.clip_norm:g}"
        how = "" if self.full else f" ({details}; one cycle, where the papers divide the rate in steps)"
        return [
            f"data: {self._all.name} at {size}x{size} pixels, {part} {total:,} training images",
            f"training: {plan.epochs} epochs, {steps:,} steps of {recipe.batch_size} images, {seeds}, in "
            f"{self._settings['trained_in']}",
            f"recipe: {recipe.name}{how}",
            f"figures are of {evaluated} {default_split(self._all)} images, one view of each, the last weights",
        ]

    @property
    def _held_out(self) -> Split:
        """The images that networks are evaluated on, before any is left out."""
        return self._all.split(default_split(self._all))

    def _train(self, cell: Cell, folder: Path) -> Run:
        data = self.images_of(cell)
        begun = (folder / "run.toml").is_file() and any((folder / "checkpoints").glob("*"))
        if folder.exists() and not begun:
            shutil.rmtree(folder)  # it was stopped before anything was worth keeping
        images = None if cell.view is None else len(data.split("train"))
        epochs = self.plan.epochs_of(cell, images)
        # Where the images to evaluate on are those called "validation", once is enough: after the last epoch.
        recipe = self.recipe.changed(**{"epochs": epochs, "validate_every": epochs, **cell.changes})
        where = {"out": folder, "seed": cell.seed, "device": self._device, "precision": self._settings["trained_in"]}
        if isinstance(cell.network, OutsideConfig):
            return train_outside(cell.network, data, pretrained=cell.pretrained, recipe=recipe, **where)
        if begun:
            return resume(folder, data=data, quiet=True)
        return fit(cell.network, data, pretrained=cell.pretrained, recipe=recipe, quiet=True, **where)

    def _open(self) -> dict[str, Any]:
        """Makes the folder, or makes sure that what was begun in it is this study."""
        path = self.folder / "study.toml"
        if not path.is_file():
            if self.folder.exists() and (not self.folder.is_dir() or any(self.folder.iterdir())):
                raise UserError(f"{self.folder} is not empty and holds no study. Choose another folder with --out.")
            self.folder.mkdir(parents=True, exist_ok=True)
            write_toml(path, {"schema": SCHEMA_VERSION, "command": self.command, **self._asked})
        settings = read_toml(path)
        check_schema(path, settings.get("schema"), SCHEMA_VERSION)
        changed = [
            f"{key} was {settings.get(key)!r} and is {value!r}"
            for key, value in json.loads(json.dumps(self._asked)).items()
            if settings.get(key) != value
        ]
        if changed:
            raise UserError(
                f"{self.folder} holds a study that was asked for with other words: {'; '.join(changed)}. Choose "
                f"another folder with --out, or go on with it by: {settings.get('command')}"
            )
        return settings


def network(lab: Lab, **fields: Any) -> ResNetConfig:
    """Returns the architecture with these fields, for the channels and classes of the study's images."""
    return ResNetConfig(**{**fields, **lab.channels_and_classes})


def _load(source: Mapping[str, Any], **limits: Any) -> ImageData:
    """Loads images without a validation split, which no study looks at, where there are test images."""
    data = load_data(**source, validation_fraction=0.0, **limits)
    return data if set(data.splits) != {"train"} else load_data(**source, **limits)
