"""A trained network with blocks taken out or put in another order; nothing is trained again (Veit et al. 2016)."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from torch import nn

from resnetlab.models.blocks import ResidualBlock
from resnetlab.models.resnet import ResNet, block_site
from resnetlab.models.surgery import ShortcutOnly


def alike(model: ResNet) -> list[list[str]]:
    """Returns the names of the blocks that keep the shape and have nothing on their shortcut, a list a stage.

    Taken out, such a block is the identity, and those of a stage can stand in each other's place. All others, with
    a projection or a padded shortcut, are left out.
    """
    found: list[list[str]] = [[] for _ in model.stage_names]
    for (name, block), (stage, index) in zip(model.blocks(), _places(model), strict=True):
        site = block_site(model.config, stage, index)
        keeps_shape = site.stride == 1 and site.in_channels == model.config.output_width(site.width)
        if keeps_shape and isinstance(block, ResidualBlock) and isinstance(block.downsample, nn.Identity | None):
            found[stage].append(name)
    return found


def without_blocks(model: ResNet, names: Iterable[str]) -> ResNet:
    """Returns a copy in which blocks are reduced to their shortcut, or, in a plain network, to the identity.

    Args:
        model: the network; it is not changed.
        names: of `alike`, or others that have a shortcut.
    """
    whole = {name: block for name, block in model.blocks() if isinstance(block, ResidualBlock)}
    return _with_blocks(model, {name: ShortcutOnly(whole[name]) for name in names}, "some of its blocks are out")


def reordered(model: ResNet, order: Mapping[str, str]) -> ResNet:
    """Returns a copy in which the block of another place stands in each place that `order` names."""
    blocks = dict(model.blocks())
    return _with_blocks(model, {place: blocks[name] for place, name in order.items()}, "its blocks changed places")


def swapped(exchangeable: Sequence[Sequence[str]], swaps: int, draws: np.random.Generator) -> dict[str, str]:
    """Returns which block stands in which place after random swaps of two that can stand in each other's place.

    Args:
        exchangeable: names of blocks, those of a list being of one shape; see `alike`.
        swaps: how many, one after the other; each pair is as likely as any.
        draws: the random numbers.
    """
    order = {name: name for names in exchangeable for name in names}
    pairs = [pair for names in exchangeable for pair in itertools.combinations(names, 2)]
    for first, second in draws.choice(pairs, swaps):
        order[first], order[second] = order[second], order[first]
    return order


def kendall_tau(order: Sequence[int]) -> float:
    """Returns Kendall's rank correlation of a permutation with the ascending order: 1 if it is that, -1 reversed.

    tau = 1 - 4 inversions / (n (n - 1))
    """
    count = len(order)
    inversions = sum(first > second for first, second in itertools.combinations(order, 2))
    return 1 - 4 * inversions / (count * (count - 1))


def _places(model: ResNet) -> list[tuple[int, int]]:
    return [(stage, index) for stage, depth in enumerate(model.config.depths) for index in range(depth)]


def _with_blocks(model: ResNet, blocks: Mapping[str, nn.Module], why: str) -> ResNet:
    changed = copy.deepcopy(model)
    for (name, _), (stage, index) in zip(model.blocks(), _places(model), strict=True):
        if name in blocks:
            changed.get_submodule(model.stage_names[stage])[index] = copy.deepcopy(blocks[name])  # type: ignore[operator]
    changed.altered = why
    return changed
