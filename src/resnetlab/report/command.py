"""The command that repeats a run, and its settings that differ from the defaults, from what its folder records."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping
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

    Options that the network's and recipe's names imply, and what `fit` chose itself, are left out.

    Args:
        settings: a run's settings.
        mirrors: whether the data may be mirrored, which decides what `augment.flip="auto"` means; None
            if the data are not available.
    """
    if settings["data"]["source"] == ARRAYS or settings["data"].get("limit_held_out"):
        return None
    pretrained, automatic = settings["model"].get("pretrained"), settings.get("automatic", [])
    model = "auto" if settings["model"]["name"] == PRETRAINED else settings["model"]["name"]
    try:
        return [
            ["resnetlab", "train", settings["data"]["source"]],
            *(["--import", entry["file"]] for entry in settings.get("imports", [])),
            *([] if "model" in automatic else [["--model", model]]),
            *([["--pretrained", pretrained]] if pretrained else []),
            *([] if "recipe" in automatic else [["--recipe", settings["recipe"]["name"]]]),
            *_recipe_options(settings, mirrors),
            *_model_options(settings),
            *_data_options(settings, SUGGESTED if pretrained else ()),
            *([["--seed", str(settings["seed"])]] if settings["seed"] else []),
            *(words for name, words in machine_options(settings).items() if name not in automatic),
        ]
    except (KeyError, UserError):  # a name or a setting that the command line does not have
        return None


def changed_settings(settings: Mapping[str, Any], *, mirrors: bool | None = None) -> list[tuple[str, Any, Any]]:
    """Returns name, value and default of the settings that differ from what the names of network and recipe imply.

    Those of a network or recipe without a known name are compared with a new `ResNetConfig` or `Recipe`.

    Args:
        settings: a run's settings.
        mirrors: see `train_command`.
    """
    model, recipe = settings["model"], settings["recipe"]
    try:
        named = _named_recipe(recipe, mirrors)
    except (KeyError, UserError):
        named = {**Recipe().to_dict(), "name": recipe["name"]}
    if mirrors is None:  # then nobody knows what "auto" meant
        named["augment"]["flip"] = recipe.get("augment", {}).get("flip")
    try:
        network = list(_network_differences(settings))
    except UserError:
        network = _differences(model["config"], _new_network(model["config"]))
    whole = {"pretrained": model.get("pretrained"), "frozen": model.get("frozen_sections")}
    return [
        *((f"recipe.{key}", *pair) for key, *pair in _chosen(_differences(recipe, named), settings)),
        *((f"network.{key}", *pair) for key, *pair in network),
        *((f"network.{key}", value, None) for key, value in whole.items() if value),
        *((f"data.{key}", *pair) for key, *pair in _data_differences(settings)),
        *([("seed", settings["seed"], 0)] if settings["seed"] else []),
    ]


def machine_options(settings: Mapping[str, Any]) -> dict[str, list[str]]:
    """Returns the options that set a run's precision and memory format, by setting."""
    recorded = settings.get("machine", {})
    names = [name for name in ("precision", "memory_format") if name in recorded]
    return {name: [f"--{name.replace('_', '-')}", recorded[name]] for name in names}


def _chosen(differences: Iterable[tuple[str, Any, Any]], settings: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Yields the differences in settings of the recipe that somebody set."""
    automatic = settings.get("automatic", [])
    for key, value, usual in differences:
        if not {f"recipe.{key}", f"recipe.{key.partition('.')[0]}"}.intersection(automatic):
            yield key, value, usual


def _recipe_options(settings: Mapping[str, Any], mirrors: bool | None) -> Iterator[list[str]]:
    recorded = settings["recipe"]
    named = _named_recipe(recorded, mirrors)
    differences = _differences(Recipe.from_dict(recorded).to_dict(), named)
    for key, value, _ in _settable(_chosen(differences, settings)):
        yield [_RECIPE_OPTIONS[key], str(value)] if key in _RECIPE_OPTIONS else _set(key, value)


def _named_recipe(recorded: Mapping[str, Any], mirrors: bool | None) -> dict[str, Any]:
    """Returns what the recipe's name implies, with the defaults of the optimizer and the loss that were chosen."""
    unchanged = RECIPES[recorded["name"]]()
    named = resolve_recipe(unchanged, optimizer=recorded["optimizer"], loss=recorded["loss"]).to_dict()
    if named["augment"]["flip"] == "auto":
        named["augment"]["flip"] = mirrors
    return {**named, "optimizer": unchanged.optimizer, "loss": unchanged.loss}


def _model_options(settings: Mapping[str, Any]) -> Iterator[list[str]]:
    yield from (_set(f"model.{key}", value) for key, value, _ in _settable(_network_differences(settings)))


def _network_differences(settings: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    name, recorded = settings["model"]["name"], settings["model"]["config"]
    if "library" in recorded:  # a network of timm, or your own
        yield from _differences(recorded.get("arguments", {}), {})
        return
    if name == PRETRAINED:  # the options describe the network in case its file is gone
        named = _new_network(recorded)
    else:
        image_size = settings["preprocessing"]["image_size"]
        named = config_for_data(name, image_size=image_size, **_ends(recorded)).to_dict()
    yield from _differences(from_mapping(ResNetConfig, recorded, "the network").to_dict(), named)


def _new_network(recorded: Mapping[str, Any]) -> dict[str, Any]:
    return {**ResNetConfig().to_dict(), **_ends(recorded)}


def _ends(recorded: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields of a network that the data decide."""
    usual = ResNetConfig()
    return {key: recorded.get(key, getattr(usual, key)) for key in ("in_channels", "num_classes")}


def _data_options(settings: Mapping[str, Any], always: Collection[str]) -> Iterator[list[str]]:
    for key, value, _ in _data_differences(settings, always):
        if value is None:
            continue
        option = f"--{key.replace('_', '-')}"
        yield [option] if value is True else [option, str(value)]


def _data_differences(settings: Mapping[str, Any], always: Collection[str] = ()) -> Iterator[tuple[str, Any, Any]]:
    recorded, automatic = settings["data"], settings.get("automatic", [])
    defaults = {name: field.default for name, field in LoadOptions.__dataclass_fields__.items() if name not in _TAKEN}
    for key, usual in defaults.items():
        value = recorded.get(key, usual)
        if (value != usual and f"data.{key}" not in automatic) or key in always:
            yield key, value, usual


def _differences(recorded: Mapping[str, Any], named: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Yields name, value and default of the settings that differ; a value that is missing is None."""
    # As in a file: lists instead of tuples, and no entry for None.
    ours, theirs = (dict(flatten(json.loads(json.dumps(values)))) for values in (recorded, named))
    for key in dict.fromkeys([*ours, *theirs]):
        if ours.get(key) != theirs.get(key):
            yield key, ours.get(key), theirs.get(key)


def _settable(differences: Iterable[tuple[str, Any, Any]]) -> Iterator[tuple[str, Any, Any]]:
    """Yields differences; raises `UserError` for a setting without value, since no option can unset it."""
    for key, value, usual in differences:
        if value is None:
            raise UserError(f"no option of the command line sets {key} to None.")
        yield key, value, usual


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
