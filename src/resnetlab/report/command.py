"""The command line that makes a run again, worked out of what its folder records."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from resnetlab.core.errors import UserError
from resnetlab.data.options import LoadOptions
from resnetlab.data.sources import ARRAYS
from resnetlab.models.catalog import config_for_data
from resnetlab.models.config import ResNetConfig
from resnetlab.training.prepare import PRETRAINED
from resnetlab.training.recipes import RECIPES

_RECIPE_OPTIONS = {"epochs": "--epochs", "batch_size": "--batch-size", "lr": "--lr"}
_DATA_OPTIONS = {
    "data_root": "--data-root",
    "image_size": "--image-size",
    "fit": "--fit",
    "detail": "--detail",
    "store": "--store",
    "split_seed": "--split-seed",
    "limit": "--limit",
}
_TAKEN = ("source", "class_names")  # the first is the argument; the second is what the images themselves say
_DATA_FLAGS = {"skip_unreadable": "--skip-unreadable", "follow_links": "--follow-links"}


def train_command(settings: Mapping[str, Any], *, mirrors: bool | None = None) -> list[list[str]] | None:
    """Returns the words of `resnetlab train ...`, every option with its value; None where Python is needed.

    What the names of network and recipe imply is left out; what differs from them is given.

    Args:
        settings: a run's settings.
        mirrors: whether the data may be mirrored, which decides what `augment.flip="auto"` means; None
            where the data are not at hand.
    """
    if settings["data"]["source"] == ARRAYS or settings["data"].get("limit_held_out"):
        return None
    pretrained = settings["model"].get("pretrained")
    try:
        return [
            ["resnetlab", "train", settings["data"]["source"]],
            ["--model", "auto" if settings["model"]["name"] == PRETRAINED else settings["model"]["name"]],
            *([["--pretrained", pretrained]] if pretrained else []),
            ["--recipe", settings["recipe"]["name"]],
            *_recipe_options(settings["recipe"], mirrors),
            *_model_options(settings),
            *_data_options(settings["data"]),
            ["--seed", str(settings["seed"])],
        ]
    except (KeyError, UserError):  # a name or a setting that the command line does not have
        return None


def _recipe_options(recorded: Mapping[str, Any], mirrors: bool | None) -> Iterator[list[str]]:
    # As a file holds them: no tuples, and nothing where there is None.
    named = dict(flatten(json.loads(json.dumps(RECIPES[recorded["name"]]().to_dict()))))
    for key, value in flatten(json.loads(json.dumps(recorded))):
        usual = None if key.startswith("rates.") else named[key]  # whose names are the network's parts
        if key == "augment.flip" and usual == "auto":
            usual = mirrors
        if key in _RECIPE_OPTIONS and (value != usual or key == "epochs"):
            yield [_RECIPE_OPTIONS[key], str(value)]
        elif value != usual:
            yield _set(key, value)


def _model_options(settings: Mapping[str, Any]) -> Iterator[list[str]]:
    name, recorded = settings["model"]["name"], settings["model"]["config"]
    taken = {key: recorded[key] for key in ("in_channels", "num_classes")}
    if name == PRETRAINED:  # its file says what it is; where it is gone, these say it
        named = {**ResNetConfig().to_dict(), **taken}
    else:
        named = config_for_data(name, image_size=settings["preprocessing"]["image_size"], **taken).to_dict()
    for key, value in recorded.items():
        if value != named[key]:
            yield _set(f"model.{key}", value)


def _data_options(recorded: Mapping[str, Any]) -> Iterator[list[str]]:
    defaults = {name: field.default for name, field in LoadOptions.__dataclass_fields__.items() if name not in _TAKEN}
    for key, usual in defaults.items():
        value = recorded.get(key, usual)
        if value == usual:
            continue
        if key in _DATA_FLAGS:
            yield [_DATA_FLAGS[key]]
        else:
            yield [_DATA_OPTIONS[key], str(value)]


def _set(key: str, value: Any) -> list[str]:
    # JSON writes what a recipe holds as TOML does, which is how --set reads it; text needs no quotes.
    return ["--set", f"{key}={value if isinstance(value, str) else json.dumps(value)}"]


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the innermost values of nested settings, by their keys joined by dots."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
