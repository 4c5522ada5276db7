"""What every study takes beside its own arguments."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypedDict

from resnetlab.core.errors import unknown
from resnetlab.data.storage.store import ImageData

BUDGET, SEEDS = 4.0, 3
"""Minutes, and trainings of each kind, where nothing else is asked for."""


class SetUp(TypedDict, total=False):
    """What every study takes beside its own arguments.

    Attributes:
        out: its folder; without it studies/<name>-<data>. A study that was begun there is gone on with.
        budget: minutes that it may take on this machine, about; 4 without it.
        seeds: trainings of each kind, with other weights, order and augmentation; 3 without it.
        full: the paper's protocol instead of a budget: all images, `paper-cifar`.
        image_size: in pixels, where `data` is loaded here.
        data_root: where the data sets are, where `data` is loaded here.
        device: "auto", or a device of torch.
        precision: "auto", "float32", "bfloat16" or "float64".
        quiet: tell nothing while it runs.
    """

    out: str | Path | None
    budget: float | None
    seeds: int
    full: bool
    image_size: int | None
    data_root: str | Path | None
    device: str
    precision: str
    quiet: bool


def check_names(what: str, setup: Mapping[str, Any], options: Iterable[str] = ()) -> None:
    """Raises `UserError` for an argument that is neither one of `SetUp` nor one of a study's own `options`."""
    known = [*options, *SetUp.__annotations__]
    for name in setup:
        if name not in known:
            raise unknown(f"argument of {what}", name, known)


def command_line(name: str, data: ImageData, options: Mapping[str, Any], setup: SetUp) -> str:
    """Returns the line of the shell that conducts a study."""
    given: Mapping[str, Any] = {**setup, "seeds": None if setup.get("seeds") == SEEDS else setup.get("seeds")}
    words = ["resnetlab", "study", name, str(data.arguments["source"])]
    for key in ("out", "budget", "seeds", "image_size", "data_root", "device", "precision"):
        if (value := given.get(key)) not in (None, "auto"):
            words += [f"--{key.replace('_', '-')}", str(value)]
    if given.get("full"):
        words.append("--full")
    for key, value in options.items():
        words += ["--set", f"{key}={json.dumps(value)}"]
    return shlex.join(words)
