"""The command that repeats a run, from the settings in its folder."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from resnetlab.core.checks import from_mapping
from resnetlab.core.errors import UserError
from resnetlab.data.load import ARRAYS
from resnetlab.data.options import LoadOptions
from resnetlab.models.catalog import config_for_data
from resnetlab.models.config import ResNetConfig
from resnetlab.training.prepare import PRETRAINED, SUGGESTED
from resnetlab.training.recipe import Recipe
from resnetlab.training.recipes import RECIPES, resolve_recipe

_RECIPE_OPTIONS = {"epochs": "--epochs", "batch_size": "--batch-size", "lr": "--lr"}
_TAKEN = ("source", "class_names")  # the first is the argument; the second comes from the images


def train_command(settings: Mapping[str, Any], *, mirrors: bool | None = None) -> list[list[str]] | None:
    """Returns the words of `resnetlab train ...`, every option with its value; None where Python is needed.

    Options that the network's and recipe's names imply are left out.

    Args:
        settings: a run's settings.
        mirrors: whether the data may be mirrored, which decides what `augment.flip="auto"` means; None
            if the data are not available.
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
            *_data_options(settings["data"], SUGGESTED if pretrained else ()),
            ["--seed", str(settings["seed"])],
            *_machine_options(settings.get("machine", {})),
        ]
    except (KeyError, UserError):  # a name or a setting that the command line does not have
        return None


def _machine_options(recorded: Mapping[str, Any]) -> Iterator[list[str]]:
    for name in ("precision", "memory_format"):
        if name in recorded:
            yield [f"--{name.replace('_', '-')}", recorded[name]]


def _recipe_options(recorded: Mapping[str, Any], mirrors: bool | None) -> Iterator[list[str]]:
    unchanged = RECIPES[recorded["name"]]()
    # Choosing an optimizer also changes the learning rate and other defaults.
    named = {
        **resolve_recipe(unchanged, optimizer=recorded["optimizer"]).to_dict(),
        **{"optimizer": unchanged.optimizer, "epochs": None},
    }
    if named["augment"]["flip"] == "auto":
        named["augment"]["flip"] = mirrors
    for key, value in _differences(Recipe.from_dict(recorded).to_dict(), named):
        yield [_RECIPE_OPTIONS[key], str(value)] if key in _RECIPE_OPTIONS else _set(key, value)


def _model_options(settings: Mapping[str, Any]) -> Iterator[list[str]]:
    name, recorded = settings["model"]["name"], settings["model"]["config"]
    taken = {key: recorded[key] for key in ("in_channels", "num_classes")}
    if "library" in recorded:  # a network of timm, or your own
        yield from (_set(f"model.{key}", value) for key, value in recorded.get("arguments", {}).items())
        return
    if name == PRETRAINED:  # the options describe the network in case its file is gone
        named = {**ResNetConfig().to_dict(), **taken}
    else:
        named = config_for_data(name, image_size=settings["preprocessing"]["image_size"], **taken).to_dict()
    for key, value in _differences(from_mapping(ResNetConfig, recorded, "the network").to_dict(), named):
        yield _set(f"model.{key}", value)


def _data_options(recorded: Mapping[str, Any], always: Collection[str]) -> Iterator[list[str]]:
    defaults = {name: field.default for name, field in LoadOptions.__dataclass_fields__.items() if name not in _TAKEN}
    for key, usual in defaults.items():
        value = recorded.get(key, usual)
        if value is None or (value == usual and key not in always):
            continue
        option = f"--{key.replace('_', '-')}"
        yield [option] if value is True else [option, str(value)]


def _differences(recorded: Mapping[str, Any], named: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yields the settings that differ from what the name implies.

    Raises:
        UserError: a setting is None that the name sets: no option can unset it.
    """
    # As in a file: lists instead of tuples, and no entry for None.
    ours, theirs = (dict(flatten(json.loads(json.dumps(values)))) for values in (recorded, named))
    if missing := [key for key, value in theirs.items() if ours.get(key) is None and value is not None]:
        raise UserError(f"no option of the command line sets {', '.join(missing)} to None.")
    yield from ((key, value) for key, value in ours.items() if value is not None and value != theirs.get(key))


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
