"""`load_weights`: somebody else's weights into a network, with an account of every tensor."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from resnetlab.core.checks import check_number
from resnetlab.core.errors import UserError
from resnetlab.core.preprocessing import Preprocessing
from resnetlab.core.runs import Run
from resnetlab.models import catalog
from resnetlab.models.config import ResNetConfig
from resnetlab.models.resnet import ResNet, check_network
from resnetlab.models.surgery import adapted_kernel, first_convolution
from resnetlab.weights.maps.keymap import COUNTERS
from resnetlab.weights.report import ADAPTED, IGNORED, LOADED, REINITIALIZED, LoadedTensor, LoadReport, listed
from resnetlab.weights.sources import Source, key_map, open_weights

_HEAD = "fc."


def load_weights(
    model: ResNet,
    source: str | Path | Run,
    *,
    class_names: Sequence[str] | None = None,
    min_match: float = 1.0,
) -> LoadReport:
    """Loads weights into a network, in place, and tells what became of every tensor.

    All before the head must fit, in the network and in the file. A head of another size, or for other classes,
    begins anew. The first convolution is fitted to the network's input channels: for one channel its weights are
    summed over the colors, for others they are repeated and scaled. Where the source tells its preprocessing or its
    classes, the network gets them.

    Args:
        model: the network.
        source: a run or its folder; a file: ours, of torchvision, timm, CIFAR training scripts or Gluon; or a name:
            "torchvision:IMAGENET1K_V2", "timm:resnet50.a1_in1k".
        class_names: what the network's outputs will mean: a head for other classes is not taken even where it fits.
        min_match: share of the tensors before the head, of network and file, that must match. Below 1 the rest
            begins anew or is ignored.

    Raises:
        UserError: the weights cannot be read or do not match; the network was not changed.
    """
    check_number("min_match", min_match, 0, 1, above=True)
    return load_source(model, open_weights(source, check_network(model).config), class_names, min_match)


def load_source(
    model: ResNet, found: Source, class_names: Sequence[str] | None = None, min_match: float = 1.0
) -> LoadReport:
    """Does what `load_weights` does with weights that were read."""
    state = model.state_dict()
    names = key_map(found, model.config, list(state))
    given = names.to_ours(found.tensors)
    first = f"{_name_of(model, first_convolution(model))}.weight"
    keeps_head = class_names is None or found.class_names is None or tuple(class_names) == found.class_names
    rows = [_row(name, value, given.get(name), first, keeps_head) for name, value in state.items()]
    rows = [row for row in rows if row is not None]
    left = [_left(name, found.tensors[name]) for name in names.leftovers(found.tensors)]
    _check_match(found, names.form, rows, left, min_match)
    report = LoadReport(
        source=found.where,
        form="resnetlab" if found.config is not None else names.form,
        rows=(*rows, *left, *(LoadedTensor(name, IGNORED, None, None, "no weights") for name in found.others)),
    )
    _take(model, given, report, first)
    if found.class_names is not None and not any(name.startswith(_HEAD) for name in report.reinitialized):
        model.class_names = found.class_names if model.config.num_classes else None
    if found.preprocessing is not None:
        model.preprocessing = for_channels(found.preprocessing, model.config.in_channels)
    return report


def create_model(
    name: str | ResNetConfig,
    *,
    pretrained: str | Path | Run | None = None,
    image_size: int | None = None,
    **overrides: Any,
) -> ResNet:
    """Builds a network of the catalog, freshly initialized from torch's global generator, or with weights.

    Args:
        name: a name that `list_models` gives, or a configuration.
        pretrained: weights to begin with, as `load_weights` takes them.
        image_size: height and width of the images in pixels; only `stem="auto"` looks at it.
        **overrides: fields of `ResNetConfig` to change, such as `num_classes=10, in_channels=1`.
            `stem="auto"` is "cifar" for images of at most 64 pixels; above that "imagenet", or "deep" where
            that was published.

    Raises:
        UserError: an unknown name or field, with the nearest known one, values that do not go together, or
            weights that do not fit.
    """
    model = catalog.create_model(name, image_size=image_size, **overrides)
    if pretrained is not None:
        load_weights(model, pretrained)
    return model


def for_channels(preprocessing: Preprocessing, channels: int) -> Preprocessing:
    """Returns the preprocessing for images of other channels: of one, mean and deviation are those of all colors."""
    if channels == preprocessing.channels:
        return preprocessing
    taken = {}
    for name in ("mean", "std"):
        values = getattr(preprocessing, name)
        one = sum(values) / len(values)
        taken[name] = (one,) if channels == 1 else tuple(values[at % len(values)] for at in range(channels))
    return dataclasses.replace(preprocessing, channels=channels, **taken)


def _row(name: str, here: Tensor, there: Tensor | None, first: str, keeps_head: bool) -> LoadedTensor | None:
    """Returns what becomes of one of the network's tensors; one that is missing and needed has no status."""
    shape, found = tuple(here.shape), None if there is None else tuple(there.shape)
    if name.endswith(COUNTERS) and there is None:
        return None
    if name.startswith(_HEAD) and (found != shape or not keeps_head):
        why = "trained for other classes" if found == shape else f"{_sizes(found)} there, {_sizes(shape)} here"
        return LoadedTensor(name, REINITIALIZED, shape, found, "not in the file" if found is None else why)
    if found == shape:
        return LoadedTensor(name, LOADED, shape, found)
    if name == first and found and (shape[0], *shape[2:]) == (found[0], *found[2:]):
        why = "summed over" if shape[1] == 1 else f"repeated for {shape[1]} channels from"
        return LoadedTensor(name, ADAPTED, shape, found, f"{why} the {found[1]} channels there")
    return LoadedTensor(name, "", shape, found)


def _left(name: str, there: Tensor) -> LoadedTensor:
    return LoadedTensor(name, IGNORED, None, tuple(there.shape), "the network has no such tensor")


def _check_match(
    source: Source, form: str, rows: list[LoadedTensor], left: list[LoadedTensor], min_match: float
) -> None:
    """Raises unless enough matched; else what did not begins anew."""
    backbone = [row for row in rows if not row.name.startswith(_HEAD) and not row.name.endswith(COUNTERS)]
    bad = [row for row in backbone if not row.status]
    # A file's head is under a name of its own where the network has none, or one that another form calls so.
    left = [row for row in left if not _is_head(row)]
    matched = len(backbone) - len(bad)
    misshapen = [row for row in bad if row.there]
    share = min(matched / len(backbone), matched / (matched + len(misshapen) + len(left)) if matched else 0)
    if share < min_match:
        missing = [row.name for row in bad if not row.there]
        wrong = [f"{row.name}: {_sizes(row.there)} there, {_sizes(row.here)} here" for row in misshapen]
        raise UserError(
            f"{source.where} does not fit this network: of the {len(backbone)} tensors before its head {matched} match "
            f"(read as {form}), {len(missing)} are missing and {len(wrong)} have another shape; the file has "
            f"{len(left)} that the network has not. Build the network that the weights are of"
            f"{f' ({source.network})' if source.network else ''}, or begin with what matches by a lower min_match."
            + listed("missing in the file", missing)
            + listed("of another shape", wrong)
            + listed("in the file only", [row.name for row in left])
        )
    for place, row in enumerate(rows):
        if not row.status:
            why = f"{_sizes(row.there)} there, {_sizes(row.here)} here" if row.there else "not in the file"
            rows[place] = dataclasses.replace(row, status=REINITIALIZED, why=why)


def _is_head(row: LoadedTensor) -> bool:
    return row.name.split(".")[0] in ("fc", "linear", "head", "output", "classifier") and row.name.count(".") <= 2


@torch.no_grad()
def _take(model: ResNet, given: Mapping[str, Tensor], report: LoadReport, first: str) -> None:
    state = model.state_dict()
    fresh = ResNet(model.config).state_dict() if report.reinitialized else {}
    for name in report.reinitialized:
        state[name].copy_(fresh[name])
    for name in report.loaded:
        state[name].copy_(given[name])
    for name in report.adapted:
        state[name].copy_(adapted_kernel(given[name].to(state[name].dtype), state[first].shape[1]))


def _name_of(model: ResNet, layer: torch.nn.Module) -> str:
    return next(name for name, module in model.named_modules() if module is layer)


def _sizes(shape: tuple[int, ...] | None) -> str:
    return "x".join(map(str, shape)) if shape else "none"
