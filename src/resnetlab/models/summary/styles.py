"""Gluon's summary table, and the trace of output shapes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from resnetlab.core.checks import check_integer
from resnetlab.core.errors import UserError, nearest
from resnetlab.models.catalog import D2L, TABLE1
from resnetlab.models.summary.layers import Architecture, Layer, is_activation, is_normalization, pooling
from resnetlab.models.summary.outline import steps, units

GLUON_COUNTERS = {"conv": 5, "batchnorm": 4, "sequential": 1}
"""The numbers of Gluon's first layers of each kind in the d2l notebook; see `Summary.trace`."""
_UNSEEN = ("Identity", "Flatten", "Sequential", "ModuleList", "Projection", "ZeroPaddedIdentity")
_RULE, _WIDTH = 80, (20, 44, 16)


def trace_lines(
    layers: Sequence[Layer], *, gluon: bool, counters: Mapping[str, int] | None, source: str = "", batch: int = 1
) -> str:
    """Returns one line for every step of the network: its name and its output shape.

    Args:
        layers: of the network.
        gluon: whether names are Gluon's.
        counters: where Gluon's numbers start.
        source: the text whose rows are printed, `D2L` or `TABLE1`; "" prints all steps by their own names.
        batch: the number of images, N.
    """
    if counters is not None and not gluon:
        raise UserError('the argument `counters` applies only to names="gluon". Set that, or omit `counters`.')
    found = steps(layers)
    form = "torch.Size([{}])" if source and not gluon else "({})"
    if gluon:
        found = [step for step in found if step.kind not in ("Flatten", "Identity")]
        names = _numbered([_gluon_prefix(step.kind) for step in found], counters)
    elif source == D2L:
        # The chapter builds the network from sequences: the stem, the stages and the head.
        stages = [place for place, step in enumerate(found) if step.kind == "Sequential"]
        found = [found[place] for place in (stages[0] - 1, *stages, len(found) - 1)]
        names = ["Sequential"] * len(found)
    elif source == TABLE1:
        # The notebook lists the layers of stem and head, and one sequence of all stages.
        last = [step for step in found if step.kind == "Sequential"][-1]
        found = [step for step in found if step is last or _torch_kind(step.kind)]
        names = [_torch_kind(step.kind) or step.kind for step in found]
    else:
        names = [step.name for step in found]
    shapes = (", ".join(map(str, (batch, *step.output_shape[1:]))) for step in found)
    return "\n".join(f"{name} output shape:\t {form.format(shape)}" for name, shape in zip(names, shapes, strict=True))


def _torch_kind(kind: str) -> str:
    """Returns torch's class for a layer that changes the shape, or ""."""
    pools = {"max": "MaxPool2d", "average": "AvgPool2d", "global": "AdaptiveAvgPool2d"}
    return pools.get(pooling(kind), kind if kind in ("Conv2d", "Linear", "Flatten") else "")


def gluon_table(summary: Architecture) -> str:
    """Returns the table that Gluon's `summary` prints for this network.

    As in Gluon, a block follows its layers and counts only the values that no layer in it counts; activations within
    a block and sequences have no row; and running statistics are non-trainable parameters.
    """
    inside = _names_inside_blocks(summary.layers)
    rows = [_gluon_row("Input", (1, *summary.input_shape), 0)]
    blocks = {layer.name for layer in units(summary.layers) if layer.shortcut}
    total = fixed = 0
    for layer, own, own_fixed in _own_values(summary.layers):
        total, fixed = total + own, fixed + own_fixed
        is_unseen = layer.kind in _UNSEEN or layer.is_container
        if is_unseen or (layer.name in inside and is_activation(layer.kind)):
            continue
        kind = "Residual" if layer.name in blocks else _gluon_kind(layer)
        rows.append(_gluon_row(f"{kind}-{len(rows)}", layer.output_shape, own))
    unique = summary.parameters + summary.fixed
    return "\n".join(
        [
            "-" * _RULE,
            "".join(f"{word:>{width}}" for word, width in zip(_HEADINGS, _WIDTH, strict=True)),
            "=" * _RULE,
            *rows,
            "=" * _RULE,
            "Parameters in forward computation graph, duplicate included",
            f"   Total params: {total}",
            f"   Trainable params: {total - fixed}",
            f"   Non-trainable params: {fixed}",
            f"Shared params in forward computation graph: {max(0, total - unique)}",
            f"Unique parameters in model: {unique}",
            "-" * _RULE,
        ]
    )


_HEADINGS = ("Layer (type)", "Output Shape", "Param #")


def _gluon_row(label: str, shape: tuple[int, ...], values: int) -> str:
    cells = (label, str(shape), str(values))
    return "".join(f"{cell:>{width}}" for cell, width in zip(cells, _WIDTH, strict=True))


def _own_values(layers: Sequence[Layer]) -> list[tuple[Layer, int, int]]:
    """Returns each layer with its own values, without those of its children: all, and those not trained."""
    found: list[tuple[Layer, int, int]] = []
    within: dict[int, list[int]] = {}
    for layer in layers:  # children come before their parent
        values, fixed = within.pop(layer.depth + 1, [0, 0])
        found.append((layer, layer.parameters + layer.fixed - values, layer.fixed - fixed))
        siblings = within.setdefault(layer.depth, [0, 0])
        siblings[0] += layer.parameters + layer.fixed
        siblings[1] += layer.fixed
    return found


def _names_inside_blocks(layers: Sequence[Layer]) -> set[str]:
    blocks = {layer.name for layer in units(layers) if not layer.is_leaf}
    names: set[str] = set()
    for layer in layers:
        parts = layer.name.split(".")
        if any(".".join(parts[:end]) in blocks for end in range(1, len(parts))):
            names.add(layer.name)
    return names


def _gluon_kind(layer: Layer) -> str:
    """Returns the name of Gluon's class for a layer, or of its own class if Gluon has none."""
    kind = layer.kind
    if pool := pooling(kind):
        return {"max": "MaxPool2D", "average": "AvgPool2D", "global": "GlobalAvgPool2D"}[pool]
    if kind == "Conv2d":
        return "Conv2D"
    if kind == "Linear":
        return "Dense"
    if is_activation(kind):
        return "Activation"
    return "BatchNorm" if "BatchNorm" in kind else kind


def _gluon_prefix(kind: str) -> str:
    """Returns the prefix of Gluon's names for a kind of layer."""
    if pooling(kind):
        return "pool"
    if is_normalization(kind):
        return "batchnorm"
    return {"Conv2d": "conv", "Linear": "dense"}.get(kind, kind.lower())


def _numbered(prefixes: Sequence[str], counters: Mapping[str, int] | None) -> list[str]:
    """Returns each prefix with a number, continuing from the counter of its kind."""
    for key, value in (counters or {}).items():
        if key not in _PREFIXES:
            raise UserError(f"unknown counter {key!r}. {nearest(key, _PREFIXES)}Available: {', '.join(_PREFIXES)}.")
        check_integer(f"the counter of {key}", value, 0)
    numbers = Counter(GLUON_COUNTERS if counters is None else counters)
    names = []
    for prefix in prefixes:
        names.append(f"{prefix}{numbers[prefix]}")
        numbers[prefix] += 1
    return names


_PREFIXES = ("conv", "batchnorm", "relu", "pool", "sequential", "dense")
