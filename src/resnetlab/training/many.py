"""Many runs of one training: over seeds, and over a grid of settings."""

from __future__ import annotations

import itertools
import json
import os
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from resnetlab.core.checks import check_integer, check_number, check_shape
from resnetlab.core.console import notice
from resnetlab.core.errors import Interrupted, UserError, brief
from resnetlab.core.files import exclusive_lock, file_name, printable, read_toml, write_toml
from resnetlab.core.runs import Run, default_folder
from resnetlab.data.assemble import PhotoListing
from resnetlab.data.load import open_data
from resnetlab.data.storage.store import ImageData
from resnetlab.models.network import Architecture
from resnetlab.training.estimate import duration
from resnetlab.training.fit import check_outside, epoch_seconds, fit, resume
from resnetlab.training.prepare import open_model
from resnetlab.training.recipes import resolve_recipe

FILE = "grid.toml"
_LOCK = ".grid.lock"
_SHAPE = {"schema": int, "common": str, "runs": [str], "epochs?": range(1, 2**31)}


@dataclass(frozen=True, kw_only=True)
class _Member:
    """One run of a grid: its name, and what `fit` gets for it."""

    name: str
    seed: int
    model: str | Architecture
    recipe: Any
    overrides: Mapping[str, Any]
    changes: Mapping[str, Any]

    @property
    def arguments(self) -> dict[str, Any]:
        """What `fit` gets, except for the network and the data."""
        return {"seed": self.seed, "recipe": self.recipe, "overrides": self.overrides, **self.changes}


def fit_grid(
    model: str | Architecture,
    data: str | Path | ImageData | Callable[..., ImageData | PhotoListing],
    *,
    seeds: int | Sequence[int] = 1,
    grid: Mapping[str, Sequence[Any]] | None = None,
    out: str | Path | None = None,
    budget: float | None = None,
    overrides: Mapping[str, Any] | None = None,
    recipe: Any = "auto",
    load: Mapping[str, Any] | None = None,
    quiet: bool = False,
    **settings: Any,
) -> list[Run]:
    """Trains a network once for every seed and every combination of settings, all in one folder.

    A call that was stopped is continued by the same call with the same `out`: finished runs are kept, and an
    interrupted one is resumed. More seeds or values may be given then; any other change is refused.

    Args:
        model: as in `fit`, except for a module, which would be trained in place.
        data: as in `fit`.
        seeds: how many, from 0 on; or the seeds.
        grid: the values of each setting to vary: fields of the recipe ("lr", "augment.rotation"), fields of the network
            after "model." ("model.shortcut"), or "model" and "recipe" themselves.
        out: the folder of the runs: new, empty, or that of the call to continue. By default
            `runs/<data>-grid-<date and time>`.
        budget: minutes that all runs together may take. All get the same number of epochs, which follows from a
            measurement of a few steps of each combination; it is recorded, and kept when the call is continued.
        overrides: as in `fit`.
        recipe: as in `fit`.
        load: arguments of `load_data`, if `data` is a source.
        quiet: show no progress.
        **settings: further arguments of `fit`.

    Returns:
        The runs: all seeds of the first combination, then those of the next one.

    Raises:
        UserError: a setting or value does not exist, or the folder contains something else; nothing was trained.
        Interrupted: SIGINT, SIGTERM or SIGHUP arrived; the same call continues.
    """
    if isinstance(model, nn.Module):
        raise UserError(
            "expected a network by name, got a module, which would be trained in place. Give the name of a class or "
            'function that builds it, such as "FILE.py:NAME".'
        )
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("`seeds` and `grid` do not work with several processes. Start the command without torchrun.")
    members = _members(model, recipe, overrides or {}, _seeds(seeds), grid or {}, settings)
    budget = None if budget is None else check_number("budget", budget, 0, above=True)
    if budget is not None and any("epochs" in member.changes for member in members):
        raise UserError("`budget` and `epochs` both determine the number of epochs. Remove one of them.")
    if out is not None and isinstance(data, (str, Path)):
        check_outside(out, data)
    load = dict(load or {})
    common = {
        "model": model, "recipe": recipe, "overrides": dict(overrides or {}), "budget": budget,
        "data": data.fingerprint if isinstance(data, ImageData) else None if callable(data) else str(data),
        **{key: value for key, value in {**load, **settings}.items() if key not in _PLACES},
    }  # fmt: skip
    name = data.name if isinstance(data, ImageData) else "data" if callable(data) else Path(data).name
    if not isinstance(data, ImageData):
        data = _opened_once(data, load)
    folder = Path(out) if out is not None else default_folder(name, "grid")
    with _claimed(folder, _text(common)) as recorded:
        recorded["runs"] = list(dict.fromkeys([*recorded.get("runs", []), *(member.name for member in members)]))
        if budget is not None and "epochs" not in recorded:
            recorded["epochs"] = _epochs_within(budget, members, data)
        write_toml(folder / FILE, recorded)
        try:
            return list(_all(members, data, folder, recorded.get("epochs"), quiet))
        except Interrupted as stopped:
            command = f"the same command with --out {shlex.quote(str(folder))}"
            raise Interrupted(stopped.signal_number, folder, command=command) from None


def grid_runs(folder: str | Path) -> list[Path] | None:
    """Returns the runs in a folder that `fit_grid` made, as far as they were started; None if it is not one."""
    path = Path(folder) / FILE
    if not path.is_file():
        return None
    runs = [Path(folder) / file_name(name) for name in _read(path)["runs"]]
    return [run for run in runs if (run / "run.toml").is_file()]


def is_grid_file(path: Any) -> bool:
    """Whether a path is a file that a grid has next to its runs, which a pattern such as `runs/grid/*` names too."""
    return isinstance(path, (str, Path)) and Path(path).is_file() and (Path(path).parent / FILE).is_file()


def _all(
    members: Sequence[_Member], data: ImageData | Callable[..., Any], folder: Path, epochs: int | None, quiet: bool
) -> Iterator[Run]:
    """Trains the runs, continues them, or yields those that are complete; only the first one shows its progress."""
    seconds: list[float] = []
    for number, member in enumerate(members, 1):
        path = folder / member.name
        found = Run(path) if (path / "run.toml").is_file() else None
        is_done = found is not None and found.is_complete and found.is_evaluated
        start, is_quiet = time.monotonic(), quiet or bool(seconds) or is_done
        if not is_quiet:
            notice(f"run {number} of {len(members)}: {member.name}")
        run = _run(member, data, path, found, epochs, is_quiet)
        if not is_done:
            seconds.append(time.monotonic() - start)
        if not quiet:
            accuracy = "" if run.summary is None else f", accuracy {run.summary['top1']:.2%}"
            took = "trained before" if is_done else duration(seconds[-1])
            left = sum(seconds) / max(1, len(seconds)) * (len(members) - number)
            notice(
                f"run {number} of {len(members)}: {member.name}{accuracy}, {took}"
                f"{f', about {duration(left)} left' if left else ''}"
            )
        yield run


def _run(
    member: _Member,
    data: ImageData | Callable[..., Any],
    path: Path,
    found: Run | None,
    epochs: int | None,
    quiet: bool,
) -> Run:
    if found is not None and not found.is_untrained:
        own = isinstance(member.model, str) and ":" in member.model and not member.model.startswith("timm:")
        return resume(found, model=member.model if own else None, quiet=quiet)
    arguments = member.arguments if epochs is None else {**member.arguments, "epochs": epochs}
    return fit(member.model, data, out=path, quiet=quiet, **arguments)


def _members(
    model: str | Architecture, recipe: Any, overrides: Mapping[str, Any], seeds: Sequence[int],
    grid: Mapping[str, Sequence[Any]], settings: Mapping[str, Any],
) -> list[_Member]:  # fmt: skip
    """Returns all runs of a grid; raises `UserError` for settings that do not exist, before anything is trained."""
    for key, values in grid.items():
        if isinstance(values, str) or not isinstance(values, Sequence) or not values:
            raise UserError(f"grid: expected a list of values for {key}, got {brief(values)}.")
        if twice := [value for number, value in enumerate(values) if value in values[:number]]:
            raise UserError(f"grid: {key} has the value {brief(twice[0])} twice. Remove one of them.")
        if key in settings or key.removeprefix("model.") in (overrides if key.startswith("model.") else ()):
            raise UserError(f"grid: {key} is also set to one value. Remove one of the two.")
    members = []
    for values in itertools.product(*grid.values()):
        chosen = dict(zip(grid, values, strict=True))
        name = "-".join(f"{key.rpartition('.')[2]}-{value}" for key, value in chosen.items())
        network, used = chosen.pop("model", model), chosen.pop("recipe", recipe)
        inner = {key.removeprefix("model."): value for key, value in chosen.items() if key.startswith("model.")}
        changes = {key: value for key, value in chosen.items() if not key.startswith("model.")}
        resolve_recipe(used, **{key: value for key, value in {**settings, **changes}.items() if key not in _FOR_FIT})
        open_model(network, {**overrides, **inner})
        members += [
            _Member(
                name=file_name(f"{name}-seed-{seed}"), seed=seed, model=network, recipe=used,
                overrides={**overrides, **inner}, changes={**settings, **changes},
            )
            for seed in seeds
        ]  # fmt: skip
    if len({member.name.lower() for member in members}) < len(members):
        raise UserError("grid: two runs would have the same folder name. Vary one setting at a time.")
    return members


_PLACES = ("device", "data_root", "workers", "download")
"""Arguments that do not decide on the result."""
_FOR_FIT = ("pretrained", "device", "precision", "memory_format", "tensorboard", "keep_checkpoints")
"""The arguments of `fit` that are not fields of the recipe."""


def _seeds(seeds: int | Sequence[int]) -> list[int]:
    if isinstance(seeds, int):
        return list(range(check_integer("seeds", seeds, 1)))
    found = [check_integer("seeds", seed, 0) for seed in seeds]
    if not found or len(set(found)) < len(found):
        raise UserError(f"seeds: expected a number of seeds, or seeds without repeats, got {brief(list(seeds))}.")
    return found


def _epochs_within(minutes: float, members: Sequence[_Member], data: ImageData | Callable[..., Any]) -> int:
    """Returns how many epochs all runs can be trained in this time."""
    first, rest = members[0].seed, sum(member.seed == members[0].seed for member in members)
    seconds = [epoch_seconds(one.model, data, **one.arguments) for one in members if one.seed == first]
    return max(1, int(60 * minutes / sum(seconds) * rest / len(members)))


def _opened_once(data: Any, load: Mapping[str, Any]) -> Callable[..., ImageData | PhotoListing]:
    """Returns a function that opens the images once for each framing, which `fit` passes."""
    opened: dict[str, Any] = {}

    def open_once(**framing: Any) -> ImageData | PhotoListing:
        key = _text(framing)
        if key not in opened:
            opened[key] = data(**framing) if callable(data) else open_data(data, framing, **load)
        return opened[key]

    return open_once


@contextmanager
def _claimed(folder: Path, common: str) -> Iterator[dict[str, Any]]:
    """Creates or opens the folder of a grid, locks it, and yields what it records."""
    path = folder / FILE
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{printable(folder)} is a file. Choose another folder with --out (in Python out=).")
    _check_is_ours(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with exclusive_lock(folder / _LOCK, f"Another process trains in {printable(folder)}. Wait for it, or stop it."):
        _check_is_ours(folder)
        recorded = _read(path) if path.is_file() else {"schema": 1, "common": common, "runs": []}
        if recorded["common"] != common:
            raise UserError(
                f"{printable(folder)} contains runs with other settings ({_differing(recorded['common'], common)}); "
                "only seeds and the grid may change. Choose another folder with --out."
            )
        yield recorded


def _check_is_ours(folder: Path) -> None:
    if folder.is_dir() and not (folder / FILE).is_file() and any(one.name != _LOCK for one in folder.iterdir()):
        raise UserError(
            f"{printable(folder)} is not empty, and runs never overwrite anything. Choose another folder with --out "
            "(in Python out=)."
        )


def _read(path: Path) -> dict[str, Any]:
    values = read_toml(path)
    check_shape(printable(path), values, _SHAPE)
    return values


def _differing(recorded: str, given: str) -> str:
    """Returns the settings in which two calls differ, with both values."""
    try:
        before, now = json.loads(recorded), json.loads(given)
        changed = [name for name in {**before, **now} if before.get(name) != now.get(name)]
        return ", ".join(f"{name}: {brief(before.get(name))} before, {brief(now.get(name))} now" for name in changed)
    except (ValueError, TypeError, AttributeError):  # a file that was edited
        return f"recorded {brief(recorded)}"


def _text(settings: Mapping[str, Any]) -> str:
    """Returns settings as one text, to compare them."""
    known = {name: value for name, value in settings.items() if value not in (None, {}, False)}
    return json.dumps(known, sort_keys=True, default=lambda one: one.to_dict() if hasattr(one, "to_dict") else str(one))
