"""The arguments that every study takes, in addition to its own."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypedDict

from resnetlab.core.environment import resolve_device
from resnetlab.core.errors import UserError, unknown
from resnetlab.core.fields import check_fields, documented, setting
from resnetlab.data.storage.store import ImageData
from resnetlab.studies.lab.plan import Plan
from resnetlab.training.machine import PRECISION_CHOICES

BUDGET = 4.0
"""Minutes of a study without budget and plan, on the reference machine of `plan`."""


CHANGED = ("recipe.", "model.")
"""How the names in `changes` start."""


class SetUp(TypedDict, total=False):
    """The arguments that every study takes, in addition to its own; `Conditions` describes them."""

    out: str | Path | None
    budget: float | None
    seeds: int
    full: bool
    plan: Plan | Mapping[str, Any] | None
    image_size: int | None
    data_root: str | Path | None
    device: str
    precision: str
    changes: Mapping[str, Any]
    quiet: bool


def _check_changes(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping) or not all(str(key).startswith(CHANGED) for key in value):
        raise UserError(
            f"{name} must map fields to values, such as {{'recipe.loss': 'focal', 'model.activation': 'gelu'}}, got "
            f"{value!r}."
        )
    return dict(value)


def _check_path(name: str, value: Any) -> Path | None:
    if not isinstance(value, str | Path) or not str(value):
        raise UserError(f"{name} must be a path, got {value!r}.")
    return Path(value)


def _check_device(_: str, value: Any) -> str:
    resolve_device(value)
    return value


@documented
@dataclass(frozen=True, kw_only=True)
class Conditions:
    """The conditions under which a study runs: the arguments of `SetUp`, checked, with their defaults."""

    out: Path | None = setting(
        None, "folder of the study, studies/<name>-<data> by default; an unfinished study in it is continued",
        check=_check_path, accepts="path",
    )  # fmt: skip
    budget: float | None = setting(
        None,
        f"approximate minutes that the study may take on this machine; default: about {BUDGET:g} on one core",
        above=0,
    )
    seeds: int = setting(
        3, "trainings of each network, with different initial weights, order and augmentation", minimum=1
    )
    full: bool = setting(False, "the paper's protocol instead of a budget: all images, recipe `paper-cifar`")
    plan: Plan | None = setting(
        None, "training images and epochs of every training, instead of a budget", accepts="images and epochs"
    )
    image_size: int | None = setting(None, "height and width in pixels, if the study loads the data", minimum=1)
    data_root: Path | None = setting(
        None, "folder of the data sets, if the study loads the data", check=_check_path, accepts="path"
    )
    device: str = setting("auto", "device that trains, as torch names it", check=_check_device, accepts="text")
    precision: str = setting("auto", "precision of the training", choices=PRECISION_CHOICES)
    changes: Mapping[str, Any] = setting(
        {},
        "fields of the study's recipe (recipe.loss) and of all its networks (model.activation) to change",
        check=_check_changes,
        accepts="mapping from fields to values",
    )
    quiet: bool = setting(False, "print no progress")

    def __post_init__(self) -> None:
        check_fields(self)
        given = {"full": self.full, "budget": self.budget is not None, "plan": self.plan is not None}
        if sum(given.values()) > 1:
            names = " and ".join(name for name, is_given in given.items() if is_given)
            raise UserError(f"full, budget and plan cannot be combined, got {names}. Give only one of them.")

    def changed(self, start: str) -> dict[str, Any]:
        """Returns the changes whose names start with "recipe." or "model.", without that start."""
        return {key.removeprefix(start): value for key, value in self.changes.items() if key.startswith(start)}

    @property
    def minutes(self) -> float | None:
        """The budget, or its default; None with the paper's protocol or a given plan."""
        if self.full or self.plan is not None:
            return None
        return BUDGET if self.budget is None else self.budget


def check_names(what: str, setup: Mapping[str, Any], options: Mapping[str, Any] | None = None) -> None:
    """Raises `UserError` for an argument that is neither in `SetUp` nor one of a study's own `options`."""
    known = [*(options or ()), *SetUp.__annotations__]
    for name in setup:
        if name not in known:
            raise unknown(f"argument of {what}", name, known)


def command_line(name: str, data: ImageData, options: Mapping[str, Any], conditions: Conditions) -> str:
    """Returns the shell command that runs a study."""
    words = ["resnetlab", "study", name, str(data.arguments["source"])]
    defaults = asdict(Conditions())
    for key in ("out", "budget", "seeds", "image_size", "data_root", "device", "precision"):
        if (value := getattr(conditions, key)) != defaults[key]:
            words += [f"--{key.replace('_', '-')}", f"{value:g}" if isinstance(value, float) else str(value)]
    if conditions.full:
        words.append("--full")
    if conditions.plan:
        words += ["--set", f"plan={{images={conditions.plan.images}, epochs={conditions.plan.epochs}}}"]
    for key, value in {**options, **conditions.changes}.items():
        words += ["--set", f"{key}={json.dumps(value)}"]
    return shlex.join(words)
