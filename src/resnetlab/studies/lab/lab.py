"""The lab of a study: its folder, plan, trainings and measurements.

    study.toml                 question, arguments, data and plan: enough to continue
    runs/NAME/                 the trainings, ordinary run folders
    measurements/NAME.parquet  what was measured on the trained networks
    result.json  table.parquet  published.parquet  *.png  study.html      the result
    .study.lock                locked by the process that conducts the study, until it is finished

A study that was interrupted continues with what its folder does not contain yet.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Unpack

import pandas as pd

from resnetlab.core.checks import check_schema
from resnetlab.core.console import notice
from resnetlab.core.environment import resolve_device
from resnetlab.core.errors import UserError
from resnetlab.core.files import atomic, exclusive_lock, make_folder, read_toml, remove_leftovers, write_toml
from resnetlab.core.runs import Run
from resnetlab.core.tables import read_table
from resnetlab.data.load import load_data
from resnetlab.data.storage.store import ImageData, Split
from resnetlab.evaluation.evaluate import default_split
from resnetlab.models.adapters import ModuleConfig
from resnetlab.models.network import Network
from resnetlab.models.resnet import ResNet, check_network
from resnetlab.studies.lab.plan import Cell, Plan, make_plan, seconds_per_image
from resnetlab.studies.lab.question import SCHEMA_VERSION, Question, is_finished
from resnetlab.studies.lab.setup import Conditions, SetUp, check_names, command_line
from resnetlab.studies.lab.views import at_size
from resnetlab.training.fit import fit, resume
from resnetlab.training.machine import choose_machine
from resnetlab.training.recipe import Recipe
from resnetlab.training.recipes import resolve_recipe
from resnetlab.weights.file import load

_STEPS = 64_000  # of the paper's protocol
_BATCH = 64
"""Half of the usual batch size, because a budget of minutes allows few steps."""
_LOCK = ".study.lock"


@contextmanager
def study_lock(folder: Path) -> Iterator[None]:
    """Makes a folder for a study, or takes an unfinished or finished one, and locks it for this process.

    What was made is removed if the block ends without a study in it.

    Raises:
        UserError: the folder contains something else, cannot be made, or another process conducts a study in it.
    """
    try:
        _check_free(folder)
        made = make_folder(folder)
    except OSError as error:
        raise UserError(f"cannot make the folder {folder}: {error.strerror}. Choose another one with --out.") from error
    busy = f"{folder} is used by another process, which conducts a study in it. Wait for it, or choose another --out."
    with exclusive_lock(folder / _LOCK, busy):
        remove_leftovers(folder)
        try:
            yield
        finally:
            if is_finished(folder) or not (folder / "study.toml").exists():
                with suppress(OSError):  # Windows keeps a locked file; it does no harm
                    (folder / _LOCK).unlink()
                    for each in made:
                        each.rmdir()


def needs_lock(folder: Path) -> bool:
    """Whether there is something to do in a folder: its study is not finished, or was killed right before its end."""
    return not is_finished(folder) or (folder / _LOCK).exists()


def _check_free(folder: Path) -> None:
    """Raises `UserError` if a folder has other contents than a study, or what a killed process left of one."""
    if (folder / "study.toml").is_file():
        return
    is_free = not folder.exists() or (
        folder.is_dir()
        and all(
            path.name == _LOCK or (path.name.startswith(".study.toml.") and path.suffix == ".part")
            for path in folder.iterdir()
        )
    )
    if not is_free:
        raise UserError(
            f"{folder} is not empty and contains no study. Choose another folder with --out (in Python out=)."
        )


class Lab:
    """The lab that a study works in.

    Attributes:
        question: of the study.
        folder: of the study.
        seeds: numbers from 0, one for each training of a network.
        full: whether the study follows the paper's protocol.
    """

    def __init__(
        self, question: Question, data: str | Path | ImageData, options: Mapping[str, Any], **setup: Unpack[SetUp]
    ) -> None:
        check_names(question.name, setup, options)
        options = {name: value for name, value in options.items() if value is not None}
        self._conditions = given = Conditions(**setup)  # type: ignore[arg-type]  # paths and plans are converted
        self.question, self.seeds, self.full = question, range(given.seeds), given.full
        self._source: dict[str, Any] | None = None
        if isinstance(data, ImageData):
            if given.image_size is not None or given.data_root is not None:
                raise UserError(
                    "image_size and data_root apply only if the study loads the data. Pass them to load_data instead."
                )
            self._all = data
        else:
            self._source = {"source": str(data), "data_root": given.data_root, "image_size": given.image_size}
            self._all = _load(self._source)
        self._check_plan()
        self.folder = given.out or Path("studies") / f"{question.name}-{self._all.name}"
        arguments = {
            "study": question.name,
            "data": self._all.fingerprint,
            "seeds": given.seeds,
            "full": given.full,
            "budget": given.budget,
            "precision": given.precision,
            "options": options,
            "given_plan": given.plan and str(given.plan),
            **({"changes": given.changes} if given.changes else {}),
        }
        self._arguments = json.loads(json.dumps(arguments))  # as they are read from study.toml
        self.command = f"the same call of resnetlab.studies.{question.name} with the same images"
        if self._source is not None:
            self.command = command_line(question.name, self._all, options, given)
        self._settings = self._open()
        self._viewed: tuple[Any, ImageData] | None = None

    @property
    def image_size(self) -> int:
        """Height and width of the images, in pixels."""
        return self._all.image_size

    @property
    def device(self) -> str:
        """The device to work on, as torch names it."""
        return str(resolve_device(self._conditions.device))

    @property
    def minutes(self) -> float | None:
        """The budget or its default; None if the study follows the paper's protocol or a given plan."""
        return self._conditions.minutes

    @property
    def is_timed(self) -> bool:
        """Whether a budget is given: only then may measured time decide what the study computes."""
        return self._conditions.budget is not None

    @property
    def precision(self) -> str:
        """The precision as given, such as "auto" or "float32"."""
        return self._conditions.precision

    @property
    def trained_in(self) -> str:
        """The precision that the networks are trained in; see `prepare`."""
        return self._settings["trained_in"]

    @functools.cached_property
    def data(self) -> ImageData:
        """The images that the study works with, limited to those of the plan."""
        plan, held_out = self.plan, len(self._held_out)
        is_whole = plan.images >= len(self._all.split("train")) and (plan.evaluated or held_out) >= held_out
        if self._source is None or is_whole:
            return self._all
        return _load(self._source, limit=plan.images, limit_held_out=plan.evaluated)

    @functools.cached_property
    def recipe(self) -> Recipe:
        """The recipe of every training, except for its epochs and the changes of a cell."""
        recipe = Recipe(name="study", lr=0.1, batch_size=_BATCH, clip_norm=1.0)
        if self.full:
            recipe = resolve_recipe("paper-cifar", **{"augment.flip": "auto"})  # digits must not be mirrored
        return resolve_recipe(recipe, **self._conditions.changed("recipe."))

    @property
    def plan(self) -> Plan:
        """The images and epochs of every training; see `prepare`."""
        return Plan(**self._settings["plan"])

    @property
    def channels_and_classes(self) -> dict[str, int]:
        """The fields of `ResNetConfig` that the data determine."""
        return {"in_channels": self._all.channels, "num_classes": self._all.num_classes}

    @property
    def model_changes(self) -> dict[str, Any]:
        """The fields of `ResNetConfig` to change in all networks, except those that the study compares."""
        return self._conditions.changed("model.")

    def prepare(
        self, cells: Sequence[Cell], *, fraction: float = 1.0, measure: Callable[..., float] = seconds_per_image
    ) -> Plan:
        """Plans all trainings of the study, once: a study that is continued keeps its plan.

        Args:
            cells: all of them.
            fraction: of the budget, for the trainings; the rest is for the measurements after them.
            measure: see `make_plan`; it is called only if a budget is given.
        """
        if "plan" not in self._settings:
            images = len(self._all.split("train"))
            machine = choose_machine(self._conditions.device, self._conditions.precision)
            plan = self._conditions.plan
            if self.full:
                plan = Plan(images=images, epochs=round(_STEPS / -(-images // self.recipe.batch_size)))
            elif plan is None:
                assert self.minutes is not None
                plan = make_plan(
                    cells, self.recipe, self._all.preprocessing, machine, images=images,
                    evaluated=len(self._held_out), minutes=self.minutes, fraction=fraction,
                    may_leave_out=self._source is not None, measure=measure if self.is_timed else None,
                )  # fmt: skip
            # Another machine could choose another precision, and networks of two precisions are not comparable.
            self._settings |= {"trained_in": machine.precision, "plan": dataclasses.asdict(plan)}
            write_toml(self.folder / "study.toml", self._settings)
        plan = self.plan
        about = ""
        if plan.minutes:
            about = f", about {plan.minutes:g} minutes{'' if self.is_timed else ' on one core'}"
        if self.is_timed and plan.minutes > (self.minutes or 0):
            about += f", more than the budget of {self.minutes:g}: this is the smallest plan, and the machine is slow"
        self.log(
            f"{self.question.name}: {len(cells)} trainings, each {plan.epochs} epochs of {plan.images:,} "
            f"images{about}; folder {self.folder}"
        )
        return plan

    def train(self, cells: Sequence[Cell]) -> list[Run]:
        """Trains the cells that are not trained yet, and returns the runs of all cells."""
        runs = []
        for number, cell in enumerate(cells, 1):
            start, folder = time.monotonic(), self.folder / "runs" / cell.name
            found = Run(folder) if _has_weights(folder) else None
            done = found is not None and found.is_complete and found.is_evaluated
            # Resuming a complete run removes what a killed process left of it.
            run = resume(found, quiet=True) if found is not None and done else self._train(cell, folder)
            summary = run.summary or {}
            took = "" if done else f", {time.monotonic() - start:.0f} s"
            self.log(f"{number}/{len(cells)} {cell.name}: {summary['split']} top-1 {summary['top1']:.2%}{took}")
            runs.append(run)
        return runs

    def images_of(self, cell: Cell) -> ImageData:
        """Returns the images that a cell is trained and evaluated on."""
        key = (cell.view, cell.image_size)
        if self._viewed is None or self._viewed[0] != key:
            data = self.data if cell.view is None else cell.view(self.data)
            data = data if cell.image_size is None else at_size(data, cell.image_size)
            self._viewed = (key, data)  # only the last view: cells with the same view follow each other
        return self._viewed[1]

    def network(self, run: Run) -> ResNet:
        """Returns the trained ResNet of a run, in evaluation mode on the study's device."""
        return check_network(load(run)).to(self.device).eval()

    def network_of(self, cell: Cell, run: Run) -> Network:
        """Returns the trained network of a cell's run, of any kind, in evaluation mode on the study's device."""
        return load(run, model=_own_code(cell)).to(self.device).eval()

    def measured(self, name: str, compute: Callable[[], pd.DataFrame]) -> pd.DataFrame:
        """Returns the table of this name from the folder, or computes and saves it."""
        path = self.folder / "measurements" / f"{name}.parquet"
        if path.is_file():
            return read_table(path)
        table = compute()
        path.parent.mkdir(exist_ok=True)
        with atomic(path) as temporary:
            table.to_parquet(temporary, index=False)
        return table

    def discard(self) -> None:
        """Removes the folder if nothing is planned yet, so that the study can be started with other arguments."""
        if "plan" not in self._settings:
            (self.folder / "study.toml").unlink()
            with suppress(OSError):  # it contains the lock
                self.folder.rmdir()

    def log(self, text: str) -> None:
        """Prints progress, unless the study is quiet."""
        if not self._conditions.quiet:
            notice(text)

    def deviations(self) -> list[str]:
        """Returns how every study differs from the paper's protocol, one text per aspect."""
        if "plan" not in self._settings:
            return [f"data: {self._all.name} at {self._all.image_size} pixels"]
        plan, total, recipe = self.plan, len(self._all.split("train")), self.recipe
        size = self._all.image_size
        steps = plan.epochs * -(-plan.images // recipe.batch_size)
        count = "all" if plan.images >= total else f"{plan.images:,} of"
        tested = len(self._held_out)
        taken = len(self.data.split(default_split(self.data)))
        evaluated = f"all {tested:,}" if taken == tested else f"{taken:,} of {tested:,}"
        seeds = "one seed" if len(self.seeds) == 1 else f"{len(self.seeds)} seeds"
        details = f"learning rate {recipe.lr:g}, weight decay {recipe.weight_decay:g}, gradient norm clipped to "
        details += f"{recipe.clip_norm:g}; one-cycle schedule, where the papers divide the learning rate in steps"
        return [
            f"data: {self._all.name} at {size}x{size} pixels, {count} {total:,} training images",
            f"training: {plan.epochs} epochs, {steps:,} steps of {recipe.batch_size} images, {seeds}, in "
            f"{self.trained_in}",
            f"recipe: {recipe.name}" + ("" if self.full else f" ({details})"),
            f"evaluation: {evaluated} {default_split(self._all)} images, one view of each, final weights",
        ]

    @property
    def _held_out(self) -> Split:
        """All images that networks could be evaluated on, before any are left out."""
        return self._all.split(default_split(self._all))

    def _train(self, cell: Cell, folder: Path) -> Run:
        data = self.images_of(cell)
        images = None if cell.view is None else len(data.split("train"))
        epochs = self.plan.epochs_of(cell, images)
        # If the held-out images are the validation split, evaluating once is enough: after the last epoch.
        recipe = self.recipe.changed(**{"epochs": epochs, "validate_every": epochs, **cell.changes})
        where = {
            "out": folder,
            "seed": cell.seed,
            "device": self._conditions.device,
            "precision": self.trained_in,
        }
        if _has_weights(folder):
            return resume(folder, model=_own_code(cell), data=data, quiet=True)
        return fit(cell.network, data, pretrained=cell.pretrained, recipe=recipe, quiet=True, **where)

    def _check_plan(self) -> None:
        """Raises `UserError` for a given plan that does not fit the images."""
        plan, images = self._conditions.plan, len(self._all.split("train"))
        if plan is None:
            return
        if plan.images > images or (plan.images < images and self._source is None):
            raise UserError(
                f"the plan has {plan.images:,} training images and {self._all.name} has {images:,}. Plan at "
                f"most {images:,} images. If you pass loaded data, the study uses all of its training images, so plan "
                f"exactly {images:,}."
            )

    def _open(self) -> dict[str, Any]:
        """Creates the folder, or checks that it contains the same study."""
        path = self.folder / "study.toml"
        if not path.is_file():
            _check_free(self.folder)
            make_folder(self.folder)
            write_toml(path, {"schema": SCHEMA_VERSION, "command": self.command, **self._arguments})
        settings = read_toml(path)
        check_schema(path, settings.get("schema"), SCHEMA_VERSION)
        changed = [
            f"{key} was {settings.get(key)!r}, now {value!r}"
            for key, value in self._arguments.items()
            if settings.get(key) != value
        ]
        if changed:
            raise UserError(
                f"{self.folder} contains this study with different arguments: {'; '.join(changed)}. Choose another "
                f"folder with --out, or continue that study with: {settings.get('command')}"
            )
        return settings


def _has_weights(folder: Path) -> bool:
    """Whether a run's folder has a network or a checkpoint."""
    return (folder / "model.safetensors").is_file() or any((folder / "checkpoints").glob("step-*"))


def _own_code(cell: Cell) -> ModuleConfig | None:
    """Returns the architecture of a cell if it is the user's own code, which the study may run because it was named."""
    return cell.architecture if isinstance(cell.architecture, ModuleConfig) else None


def _load(source: Mapping[str, Any], **limits: Any) -> ImageData:
    """Loads images; without a validation split, which no study uses, if there are test images."""
    data = load_data(**source, validation_fraction=0.0, **limits)
    return data if set(data.splits) != {"train"} else load_data(**source, **limits)
