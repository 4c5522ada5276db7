"""The outline of a network: its steps, its blocks, and runs of equal blocks."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from resnetlab.models.summary.layers import IDENTITY, NONE, ZERO_PADDED, Layer


class Step(NamedTuple):
    """One step of the network's own forward pass: a layer, a stage, a flattening."""

    name: str
    kind: str
    output_shape: tuple[int, ...]


def steps(layers: Iterable[Layer]) -> list[Step]:
    """Returns the modules that the network itself calls, in order, and flattenings between them."""
    found: list[Step] = []
    for layer in (layer for layer in layers if layer.depth == 1):
        before = found[-1].output_shape if found else layer.input_shape
        given = layer.input_shape
        if len(given) < len(before) and math.prod(given) == math.prod(before):
            found.append(Step("flatten", "Flatten", given))
        found.append(Step(layer.name, layer.kind, layer.output_shape))
    return found


def units(layers: Sequence[Layer]) -> list[Layer]:
    """Returns the blocks, and the layers outside of blocks, in order."""
    found: list[Layer] = []
    inside = math.inf  # depth of the unit whose children are skipped
    for layer in reversed(layers):  # a parent before its children
        if layer.depth == 0 or layer.depth > inside:
            continue
        inside = math.inf if layer.is_container else layer.depth
        if not layer.is_container:
            found.append(layer)
    return found[::-1]


def named_blocks(layers: Sequence[Layer]) -> dict[str, Layer]:
    """Returns the blocks by the names that `features` uses: "stage1.block1", "stage1.block2", ..."""
    stages: dict[str, list[Layer]] = {}
    for layer in units(layers):
        if layer.shortcut and stage_of(layer):
            stages.setdefault(stage_of(layer), []).append(layer)
    return {
        f"stage{stage}.block{number}": layer
        for stage, found in enumerate(stages.values(), 1)
        for number, layer in enumerate(found, 1)
    }


def main_layers(layers: Sequence[Layer]) -> int:
    """Returns the convolutions and linear layers on the main path, as papers count them: ResNet-18 has 18."""
    return sum(layer.weighted for layer in units(layers))


def projections(layers: Sequence[Layer]) -> int:
    """Returns the convolutions on shortcuts, which papers do not count."""
    return sum(layer.projections for layer in units(layers))


def runs(found: Iterable[Layer], shortest: int = 2) -> list[tuple[Layer, ...]]:
    """Groups units into runs of equal blocks of one stage; a run shorter than `shortest` is split."""
    grouped: list[tuple[Layer, ...]] = []
    for _, group in itertools.groupby(found, key=_likeness):
        run = tuple(group)
        grouped += [run] if len(run) >= shortest else [(layer,) for layer in run]
    return grouped


def run_name(run: Sequence[Layer]) -> str:
    """Returns "layer3.1 to layer3.22" for a run, and the name of a single unit."""
    return run[0].name if len(run) == 1 else f"{run[0].name} to {run[-1].name}"


def stage_of(layer: Layer) -> str:
    """Returns the module that contains a unit: "layer3" for "layer3.1", "" for a layer of the network itself."""
    return layer.name.rpartition(".")[0]


def shortcut_kind(layer: Layer) -> str:
    """Returns "identity", "zero-padded" or "projection" for a block with a shortcut, and "" for anything else."""
    if layer.shortcut in ("", NONE):
        return ""
    for kind in (ZERO_PADDED, IDENTITY):
        if all(kind in way.split(", ") for way in layer.shortcut.split("; ")):
            return kind
    return "projection"


def shape_text(shape: Sequence[int]) -> str:
    """Returns "64x112x112" for (1, 64, 112, 112)."""
    return "x".join(map(str, shape[1:]))


def _likeness(layer: Layer) -> tuple:
    if layer.is_leaf:
        return (layer.name, id(layer))
    words = (layer.kind, layer.computes, layer.shortcut, layer.order)
    return (
        stage_of(layer),
        *words,
        layer.output_shape,
        layer.parameters,
        layer.fixed,
        layer.macs,
        layer.activation_bytes,
    )
