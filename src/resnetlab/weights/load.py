"""`load_weights` and `create_model`: pretrained weights into a network, with a report on every tensor."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from resnetlab.core.checks import check_number
from resnetlab.core.errors import UserError
from resnetlab.core.files import printable
from resnetlab.core.foreign import TIMM_ALIASES
from resnetlab.core.preprocessing import Preprocessing
from resnetlab.core.runs import Run
from resnetlab.models.adapters import AdaptedNetwork
from resnetlab.models.catalog import model_config
from resnetlab.models.config import ResNetConfig
from resnetlab.models.network import Architecture, Network, sections_of
from resnetlab.models.resnet import ResNet
from resnetlab.models.surgery import adapted_kernel, first_convolution
from resnetlab.weights.maps import COUNTERS, KeyMap
from resnetlab.weights.report import (
    ADAPTED,
    IGNORED,
    LOADED,
    REINITIALIZED,
    LoadedTensor,
    LoadReport,
    collapsed,
    listed,
)
from resnetlab.weights.sources import Source, key_map, open_weights
from resnetlab.weights.structure import match_structure, saved_key_map
from resnetlab.weights.tensors import shown

_FEW_NAMES = 0.1
"""With fewer than this share of the network's names in a file, the message does not list the missing ones."""

_SHOWN = 10
"""A message lists up to this many tensors of another shape."""


def load_weights(
    model: Network,
    source: str | Path | Run,
    *,
    class_names: Sequence[str] | None = None,
    min_match: float = 1.0,
    match: str | Path | Mapping[str, str] = "names",
) -> LoadReport:
    """Loads weights into a network, in place, and reports on every tensor.

    All tensors before the head must match, in the network and in the file. A head of another size or for other
    classes is re-initialized. The first convolution is adapted to the network's input channels: for one channel its
    weights are summed over the colors, for other numbers they are repeated and scaled. If the source states its
    preprocessing or classes, the network gets them.

    Args:
        model: the network.
        source: a run or its folder; a file of ResNetLab, torchvision, timm, CIFAR training scripts or Gluon; or a
            name: "torchvision:IMAGENET1K_V2", "timm:resnet50.a1_in1k", "timm:DEFAULT" for a network of timm, or
            "hub:USER/NAME" for a repository of a model hub.
        class_names: what the network's outputs will mean; a head for other classes is re-initialized even if it fits.
        min_match: fraction of the tensors before the head, in network and file, that must match. Below 1, the rest
            is re-initialized or ignored.
        match: how tensors of the file are found: "names" for files of the programs above; "structure" for a network of
            the same structure and other names, as you wrote it yourself; or a key map, {name in the file: name in the
            network} or the path of a JSON file with it, as `resnetlab check --map` writes it.

    Raises:
        UserError: the weights cannot be read or do not match; the network was not changed.
    """
    check_number("min_match", min_match, 0, 1, above=True)
    sections_of(model)
    return load_source(model, open_weights(source, model.config), class_names, min_match, match)


def load_source(
    model: Network,
    found: Source,
    class_names: Sequence[str] | None = None,
    min_match: float = 1.0,
    match: str | Path | Mapping[str, str] = "names",
) -> LoadReport:
    """Does what `load_weights` does, with weights that `open_weights` read."""
    state = model.saved_module.state_dict()
    names = _matched(model, found, state, match)
    given = names.to_ours(found.tensors)
    firsts, heads = _first_weights(model), {name for name in (*state, *given) if _is_of_head(model, name)}
    keeps_head = class_names is None or found.class_names is None or tuple(class_names) == found.class_names
    rows = [_row(name, value, given.get(name), firsts, heads, keeps_head) for name, value in state.items()]
    rows = [row for row in rows if row is not None]
    left = [_left(name, found.tensors[name]) for name in names.leftovers(found.tensors)]
    counted = [row for row in left if row.name.startswith(names.prefix)]  # others are not of this network
    _check_match(found, model.config, names, rows, counted, heads, min_match)
    report = LoadReport(
        source=found.where,
        form="resnetlab" if found.config is not None and match == "names" else names.form,
        rows=(*rows, *left, *(LoadedTensor(name, IGNORED, None, None, "no weights") for name in found.others)),
        key_map={theirs: ours for ours, theirs in names.names.items() if theirs in found.tensors},
    )
    _take(model, given, report)
    model.temperature = 1.0  # was fitted to other weights
    if found.class_names is not None and not heads.intersection(report.reinitialized):
        model.class_names = found.class_names if model.config.num_classes else None
    if found.preprocessing is not None:
        model.preprocessing = for_channels(found.preprocessing, model.config.in_channels)
    return report


def create_model(
    name: str | ResNetConfig = "",
    *,
    pretrained: str | Path | Run | None = None,
    image_size: int | None = None,
    **overrides: Any,
) -> ResNet:
    """Builds a network of the catalog, with pretrained weights or initialized from torch's global generator.

    Args:
        name: a name that `list_models` returns, or a configuration.
        pretrained: weights to start from, as `load_weights` takes them.
        image_size: height and width of the images in pixels; only `stem="auto"` needs it.
        **overrides: fields of `ResNetConfig` to change, such as `num_classes=10, in_channels=1`. timm's names
            `in_chans`, `drop_rate` and `drop_path_rate` are accepted too.
            `stem="auto"` means "cifar" for images of at most 64 pixels; for larger ones the published stem,
            "imagenet" or "deep".

    Raises:
        UserError: the name is missing, a name or field is unknown (the message has the nearest known one), fields do
            not go together, or weights do not fit.
    """
    for theirs, ours in TIMM_ALIASES.items():
        if theirs in overrides and ours not in overrides:
            overrides[ours] = overrides.pop(theirs)
    model = ResNet(model_config(name, overrides, image_size=image_size))
    if pretrained is not None:
        load_weights(model, pretrained)
    return model


def for_channels(preprocessing: Preprocessing, channels: int) -> Preprocessing:
    """Returns the preprocessing for another number of channels; one channel gets the mean over all colors."""
    if channels == preprocessing.channels:
        return preprocessing
    taken = {}
    for name in ("mean", "std"):
        values = getattr(preprocessing, name)
        one = sum(values) / len(values)
        taken[name] = (one,) if channels == 1 else tuple(values[at % len(values)] for at in range(channels))
    return dataclasses.replace(preprocessing, channels=channels, **taken)


def _matched(
    model: Network, found: Source, state: Mapping[str, Tensor], match: str | Path | Mapping[str, str]
) -> KeyMap:
    """Returns the map from the network's tensors to those of the file."""
    if match == "names":
        return key_map(found, model.config, list(state))
    if match == "structure":
        if not isinstance(model, ResNet):
            raise UserError(
                "match='structure' needs a network of create_model, got another one. Use match='names' or a key map."
            )
        return match_structure(found.tensors, state, found.where)
    return saved_key_map(match, state)


def _first_weights(model: Network) -> tuple[str, ...]:
    """Returns the names of the kernels that see the images."""
    if isinstance(model, AdaptedNetwork):
        return tuple(f"{name}.weight" for name in model.first_convolutions)
    assert isinstance(model, ResNet)
    layer = first_convolution(model)
    return tuple(f"{name}.weight" for name, module in model.named_modules() if module is layer)


def _is_of_head(model: Network, name: str) -> bool:
    return model.is_of_head(name) if isinstance(model, AdaptedNetwork) else name.startswith("fc.")


def _row(
    name: str, here: Tensor, there: Tensor | None, firsts: Sequence[str], heads: Collection[str], keeps_head: bool
) -> LoadedTensor | None:
    """Returns what happens to one of the network's tensors; a missing tensor that is needed has no status."""
    shape, found = tuple(here.shape), None if there is None else tuple(there.shape)
    if name.endswith(COUNTERS) and there is None:
        return None
    if name in heads and (found != shape or not keeps_head):
        why = "trained for other classes" if found == shape else _two_sizes(found, shape)
        return LoadedTensor(name, REINITIALIZED, shape, found, "not in the file" if found is None else why)
    if found == shape:
        return LoadedTensor(name, LOADED, shape, found)
    if name in firsts and found and (shape[0], *shape[2:]) == (found[0], *found[2:]):
        why = "summed over" if shape[1] == 1 else f"repeated for {shape[1]} channels from"
        return LoadedTensor(name, ADAPTED, shape, found, f"{why} the {found[1]} channels in the file")
    return LoadedTensor(name, "", shape, found)


def _left(name: str, there: Tensor) -> LoadedTensor:
    return LoadedTensor(name, IGNORED, None, tuple(there.shape), "the network has no such tensor")


def _check_match(
    source: Source, config: Architecture, names: KeyMap, rows: list[LoadedTensor], left: list[LoadedTensor],
    heads: Collection[str], min_match: float,
) -> None:  # fmt: skip
    """Raises `UserError` unless enough tensors match; marks the others as re-initialized."""
    backbone = [row for row in rows if row.name not in heads and not row.name.endswith(COUNTERS)]
    bad = [row for row in backbone if not row.status]
    # The head in the file has its own name if the network has no head, or another form of names.
    left = [row for row in left if not _is_head(row.name.removeprefix(names.prefix))]
    matched = len(backbone) - len(bad)
    misshapen = [row for row in bad if row.there]
    share = min(matched / len(backbone), matched / (matched + len(misshapen) + len(left)) if matched else 0)
    if share < min_match:
        missing = [row.name for row in bad if not row.there]
        if source.config is None and matched + len(misshapen) < _FEW_NAMES * len(backbone):
            ours, theirs = (", ".join(list(each)[:3]) for each in ([row.name for row in backbone], source.tensors))
            raise UserError(
                f"{printable(source.where)} is of another network, or in a form that is not known: of the network's "
                f"{len(backbone)} tensors before the head, the file has {matched + len(misshapen)}. The file's names "
                f"are {shown(theirs)}, ...; the network's are {ours}, .... Build the network that the weights belong "
                f"to{f' ({source.network})' if source.network else ''}, or rename the tensors."
            )
        wrong = [f"{row.name}: {_two_sizes(row.there, row.here)}" for row in misshapen[:_SHOWN]]
        wrong += [f"and {len(misshapen) - _SHOWN} more"] if len(misshapen) > _SHOWN else []
        where, train = source.where, " (train without --model does)"
        if source.config is None:
            where, train = f"{where} (read as {names.form})", ""
        raise UserError(
            f"{where} does not fit this network{_difference(source, config)}. Of the network's {len(backbone)} tensors "
            f"before the head, {matched} match, {len(missing)} are missing in the file and {len(misshapen)} have "
            f"another shape. The file has {len(left)} other tensors. Use the network of the weights"
            f"{f', {source.network}' if source.network else ''}{train}. In Python, min_match=0.5 loads only what "
            "matches. If only the names differ, use match='structure' in Python, or convert the file with `resnetlab "
            "export FILE --to resnetlab`."
            + listed("missing in the file", collapsed(missing, [row.name for row in rows if row.there]))
            + listed("of another shape", wrong)
            + listed("only in the file", collapsed([row.name for row in left], [row.name for row in rows]))
        )
    for place, row in enumerate(rows):
        if not row.status:
            why = _two_sizes(row.there, row.here) if row.there else "not in the file"
            rows[place] = dataclasses.replace(row, status=REINITIALIZED, why=why)


def _difference(source: Source, config: Architecture) -> str:
    """Returns how the networks of the weights and of the user differ first, as the end of a sentence; "" if unknown."""
    theirs, name = source.config, source.network or "a network"
    if not isinstance(theirs, ResNetConfig) or not isinstance(config, ResNetConfig):
        return ""
    if len(theirs.depths) != len(config.depths):
        return f": the weights are of {name} with {len(theirs.depths)} stages, and the network has {len(config.depths)}"
    fields = (field.name for field in dataclasses.fields(config) if field.name not in ("in_channels", "num_classes"))
    for field in fields:
        there, here = getattr(theirs, field), getattr(config, field)
        if there != here:
            return f": the weights are of {name} with {field} {there}, and the network has {here}"
    return ""


def _is_head(name: str) -> bool:
    return name.split(".")[0] in ("fc", "linear", "head", "output", "classifier") and name.count(".") <= 2


@torch.no_grad()
def _take(model: Network, given: Mapping[str, Tensor], report: LoadReport) -> None:
    state = model.saved_module.state_dict()
    fresh = model.rebuilt().saved_module.state_dict() if report.reinitialized else {}
    for name in report.reinitialized:
        state[name].copy_(fresh[name])
    for name in report.loaded:
        state[name].copy_(given[name])
    for name in report.adapted:
        state[name].copy_(adapted_kernel(given[name].to(state[name].dtype), state[name].shape[1]))


def _two_sizes(there: tuple[int, ...] | None, here: tuple[int, ...] | None) -> str:
    return f"{_sizes(there)} in the file, {_sizes(here)} in the network"


def _sizes(shape: tuple[int, ...] | None) -> str:
    return "x".join(map(str, shape)) if shape else "none"
