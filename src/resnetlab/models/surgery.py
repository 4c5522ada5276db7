"""Changes to a built network, each with a stated effect on the function that it computes.

`reset_head`, `adapt_input_channels`, `freeze`, `unfreeze` and `deepen` change the network in place and return it.
`without_block` and `fold_batch_norm` return a changed copy. `parameter_groups` gives each section of a network its own
learning rate.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from resnetlab.core.checks import check_integer, check_number
from resnetlab.core.errors import UserError, unknown
from resnetlab.models.blocks import ResidualBlock
from resnetlab.models.config import ResNetConfig
from resnetlab.models.configured import check_configured
from resnetlab.models.folding import fold_batch_norm
from resnetlab.models.network import AnyNetwork, Network, sections_of
from resnetlab.models.parts import is_convolution
from resnetlab.models.resnet import (
    ResNet,
    block_site,
    build_block,
    check_network,
    initialize_layer,
    zero_branch,
)
from resnetlab.models.shortcuts import Projection

__all__ = [
    "ShortcutOnly",
    "adapt_input_channels",
    "deepen",
    "fold_batch_norm",
    "freeze",
    "parameter_groups",
    "reset_head",
    "unfreeze",
    "without_block",
]


def reset_head(model: ResNet, num_classes: int) -> ResNet:
    """Replaces the head by a new one with `num_classes` outputs, or removes it for 0, and clears the class names.

    The backbone keeps its weights. A frozen head is unfrozen.
    """
    _check_family(model)
    model.reset_classifier(num_classes)
    return model


def adapt_input_channels(model: ResNet, in_channels: int) -> ResNet:
    """Adapts a network to images with another number of channels and keeps what its first convolution learned.

    For one channel the weights are summed over the colors, which equals copying the gray image to all of them. For
    other numbers the weights are repeated and scaled by old / new. The preprocessing is cleared.

    Raises:
        UserError: the network normalizes its input (`input_norm`), with statistics per channel.
    """
    _check_family(model)
    old, new = model.config.in_channels, check_integer("in_channels", in_channels, 1)
    if old == new:
        return model
    if model.config.input_norm:
        raise UserError(
            f"input_norm=True normalizes each of {old} channels by its own statistics, which do not fit {new} "
            f"channels. Build a network with in_channels={new} instead."
        )
    convolution = first_convolution(model)
    weight = convolution.get_parameter("weight").detach()
    adapted = adapted_kernel(weight, new)
    memory_format = _memory_format(weight)
    requires_grad = convolution.get_parameter("weight").requires_grad
    convolution.weight = nn.Parameter(adapted.contiguous(memory_format=memory_format), requires_grad)
    convolution.in_channels = new  # type: ignore[assignment]
    model.config = dataclasses.replace(model.config, in_channels=new)
    model.preprocessing = None
    return model


def adapted_kernel(weight: Tensor, in_channels: int) -> Tensor:
    """Returns the kernel of a first convolution, (out, in, h, w), adapted to images with `in_channels` channels."""
    old = weight.shape[1]
    if in_channels == 1:
        return weight.sum(1, keepdim=True)
    return weight[:, [channel % old for channel in range(in_channels)]] * (old / in_channels)


def first_convolution(model: ResNet) -> nn.Module:
    """Returns the convolution that takes the images."""
    return next(module for module in model.get_submodule("conv1").modules() if is_convolution(module))


def freeze(model: AnyNetwork, *names: str) -> AnyNetwork:
    """Freezes sections of a network: neither their weights nor their running statistics change.

    They stay in evaluation mode even if you call `train()` on the network or on a module that contains it.

    Args:
        model: the network.
        names: sections to freeze: "stem", "stage1", ..., "head".
    """
    if not names:
        raise UserError(f"freeze expects at least one section: {', '.join(sections_of(model))}.")
    return _set_frozen(model, names, True)


def unfreeze(model: AnyNetwork, *names: str) -> AnyNetwork:
    """Unfreezes the sections named, or all frozen sections if you name none."""
    return _set_frozen(model, names or sections_of(model).keys() & model.frozen, False)


def parameter_groups(
    model: Network,
    lr: float,
    *,
    rates: Mapping[str, float] | None = None,
    layer_decay: float | None = None,
    weight_decay: float = 0.0,
) -> list[dict[str, Any]]:
    """Returns the trainable parameters in groups that every torch optimizer accepts.

    Each section of the network ("stem", "stage1", ..., "head") has its own learning rate, in its group's "lr". Within a
    section, weights have `weight_decay`; scales, shifts and biases have none. Frozen parameters are omitted.

    Args:
        model: the network.
        lr: learning rate of the head, and of every section that `rates` does not name.
        rates: learning rates by section.
        layer_decay: ratio of the learning rate of each section to that of the next one, instead of `rates`: the last
            stage has lr * layer_decay, the stage before it lr * layer_decay^2, and so on to the stem.
        weight_decay: weight decay of parameters with two or more dimensions.

    Raises:
        UserError: a section is unknown, a rate is out of range, both `rates` and `layer_decay` are given, or everything
            is frozen.
    """
    given = section_rates(model, lr, rates=rates, layer_decay=layer_decay)
    groups = []
    for name, modules in model.sections().items():
        trained = [p for module in modules for p in module.parameters() if p.requires_grad]
        for suffix, decay, members in (
            ("", check_number("weight_decay", weight_decay, 0), [p for p in trained if p.ndim > 1]),
            (" scales and shifts", 0.0, [p for p in trained if p.ndim <= 1]),
        ):
            if members:
                group = {"params": members, "lr": given[name], "weight_decay": decay, "name": f"{name}{suffix}"}
                groups.append(group)
    if not groups:
        raise UserError("all sections of the network are frozen, so there is nothing to train. Unfreeze at least one.")
    return groups


def section_rates(
    model: Network, lr: float, *, rates: Mapping[str, float] | None = None, layer_decay: float | None = None
) -> dict[str, float]:
    """Returns the learning rate of each section, from "stem" to "head"; see `parameter_groups` for the arguments."""
    names = list(sections_of(model))
    lr = check_number("lr", lr, 0, above=True)
    if rates and layer_decay is not None:
        raise UserError("rates and layer_decay both set the learning rates of the sections. Give only one of them.")
    if layer_decay is not None:
        ratio = check_number("layer_decay", layer_decay, 0, 1, above=True)
        return {name: lr * ratio ** (len(names) - 1 - place) for place, name in enumerate(names)}
    for name, rate in (rates or {}).items():
        if name not in names:
            raise unknown("section", name, names)
        check_number(f"the learning rate of {name}", rate, 0, above=True)
    return {name: (rates or {}).get(name, lr) for name in names}


def deepen(
    model: ResNet, stage: int, block: int | None = None, *, optimizer: torch.optim.Optimizer | None = None
) -> ResNet:
    """Inserts a block that leaves the function of the network unchanged, so that you can continue training.

    The new block has the shape of its neighbors, an identity shortcut, and a branch that returns exactly 0: with
    post-activation, scale and shift of its last normalization are 0; with pre-activation, its last convolution is 0. So
    the logits are equal to the last bit, in evaluation mode and, if all drop rates are 0, in training mode. Every
    parameter of the new block can learn. Old blocks keep their drop rates; the new block has the rate of the block
    before it. Net2Net (Chen et al. 2016) and ReZero (Bachlechner et al. 2020) start in a similar way.

    Args:
        model: the network, changed in place.
        stage: number of the stage, from 1.
        block: number of the block, from 1, after which the new one is inserted; None for the stage's last.
        optimizer: the optimizer that trains the network. The new parameters join the groups of the block before, and
            the state of the old parameters is kept.

    Returns:
        The network; its configuration is one block deeper.

    Raises:
        UserError: the network has no identity shortcuts, has an activation other than ReLU after the sum, or has no
            such stage or block.
    """
    _check_family(model)
    config = model.config
    if config.shortcut not in ("A", "B"):
        reason = "every block projects" if config.shortcut == "C" else "blocks have no shortcut"
        raise UserError(
            f"deepen inserts a block with an identity shortcut, but with shortcut={config.shortcut!r} {reason}. "
            "Use a network with shortcut 'A' or 'B'."
        )
    if not config.preactivation and (config.activation != "relu" or config.norm == "frn"):
        used = "norm='frn'" if config.norm == "frn" else f"activation={config.activation!r}"
        raise UserError(
            f"with {used}, the block that deepen inserts would change the output of the "
            "network, because applying this activation twice differs from applying it once. Use a network with "
            "activation='relu' or preactivation=True."
        )
    if config.zeroes_standardized_kernels:
        raise UserError(
            "the block that deepen inserts has a last convolution of zeros, which weight_standardization=True would "
            "scale to full size in the first step. Use a network with weight_standardization=False."
        )
    blocks = _stage(model, stage)
    after = len(blocks) if block is None else _block_number(model, stage, block)
    if f"stage{stage}" in model.frozen:
        raise UserError(f"stage{stage} is frozen, so a new block in it could not learn. Call unfreeze first.")
    if optimizer is not None and not isinstance(optimizer, torch.optim.Optimizer):
        raise UserError(f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}.")
    before = blocks[after - 1]
    deeper = _one_block_deeper(config, stage, after)
    new = build_block(deeper, block_site(deeper, stage - 1, after))
    for layer in new.modules():
        initialize_layer(layer, config.init)
    zero_branch(new)
    like = before.get_submodule("conv1").weight
    new.to(device=like.device, dtype=like.dtype).train(model.training)  # type: ignore[arg-type]
    new.to(memory_format=_memory_format(*(p for p in before.parameters() if p.ndim == 4)))  # type: ignore[call-overload]
    if optimizer is not None:
        _join_optimizer(optimizer, new, before)
    blocks.insert(after, new)
    model.config = deeper
    return model


def without_block(model: ResNet, stage: int, block: int) -> ResNet:
    """Returns a copy of the network in which one block is reduced to its shortcut (Veit et al. 2016).

    The copy is not retrained and its statistics are not recomputed. A block with an identity shortcut becomes the
    identity. Any other block keeps its shortcut, activated as the sum was. The other blocks keep their numbers.

    Args:
        model: the network; it is not changed.
        stage: number of the stage, from 1.
        block: number of the block in its stage, from 1.

    Raises:
        UserError: the block does not exist, or it changes the shape and has no shortcut.
    """
    _block_number(check_network(model), stage, block)
    lesioned = copy.deepcopy(model)
    blocks = _stage(lesioned, stage)
    old = blocks[block - 1]
    if not isinstance(old, ResidualBlock):
        raise UserError(f"stage{stage}.block{block} is already reduced to its shortcut.")
    site = block_site(model.config, stage - 1, block - 1)
    keeps_shape = site.stride == 1 and site.in_channels == model.config.output_width(site.width)
    if old.downsample is None and not keeps_shape:
        raise UserError(
            f"stage{stage}.block{block} of a plain network changes the shape, so it cannot be removed. "
            "Choose a block that is not the first of its stage."
        )
    blocks[block - 1] = ShortcutOnly(old)
    lesioned.altered = f"stage{stage}.block{block} was reduced to its shortcut"
    return lesioned


class ShortcutOnly(nn.Module):
    """A block without its branch: the identity, or a shortcut that changes the shape."""

    def __init__(self, block: ResidualBlock) -> None:
        super().__init__()
        self.shortcut = block.downsample
        projects = isinstance(block.downsample, Projection)
        first = (block.get_submodule("bn1"), block.get_submodule("act1"))
        self.start = nn.Sequential(*first) if block.preactivation and projects else nn.Identity()
        self.finish = nn.Identity() if block.preactivation else block.last_activation

    def forward(self, x: Tensor) -> Tensor:
        """Returns the input, or its shortcut activated as the sum of the block was."""
        if self.shortcut is None or isinstance(self.shortcut, nn.Identity):
            return x
        return self.finish(self.shortcut(self.start(x)))


def _one_block_deeper(config: ResNetConfig, stage: int, after: int) -> ResNetConfig:
    """Returns the configuration with one more block, and with the drop rate of each block spelled out."""
    depths = tuple(depth + (number == stage) for number, depth in enumerate(config.depths, 1))
    drop_path = config.drop_path
    if drop_path:
        place = sum(config.depths[: stage - 1]) + after
        rates = config.path_rates
        drop_path = (*rates[:place], rates[place - 1], *rates[place:])
    return dataclasses.replace(config, depths=depths, drop_path=drop_path)


def _set_frozen(model: AnyNetwork, names: Iterable[str], frozen: bool) -> AnyNetwork:
    sections = sections_of(model)
    for name in names:
        if name not in list(sections):
            raise unknown("section", name, sections)
        for module in sections[name]:
            module.requires_grad_(not frozen)
    model.frozen = model.frozen.union(names) if frozen else model.frozen.difference(names)
    return model.train(model.training)


def _join_optimizer(optimizer: torch.optim.Optimizer, new: nn.Module, before: nn.Module) -> None:
    """Adds each parameter of the new block to the group of the same parameter of the block before."""
    namesakes = dict(before.named_parameters())
    groups = {parameter: group for group in optimizer.param_groups for parameter in group["params"]}
    homes = []
    for name, parameter in new.named_parameters():
        if namesakes[name] not in groups:
            raise UserError(
                "the new block uses the parameter group of the block before it, but the optimizer does not "
                f"train {name} of that block. Pass the optimizer that trains this network."
            )
        homes.append((groups[namesakes[name]], parameter))
    for group, parameter in homes:
        group["params"].append(parameter)


def _memory_format(*weights: Tensor) -> torch.memory_format:
    """Returns channels_last if all weights with more than one position have that memory format."""
    spatial = [weight for weight in weights if weight.shape[1] > 1 and weight.shape[-1] > 1]
    is_last = all(weight.is_contiguous(memory_format=torch.channels_last) for weight in spatial)
    return torch.channels_last if spatial and is_last else torch.contiguous_format


def _check_family(model: ResNet) -> None:
    check_configured(check_network(model))


def _stage(model: ResNet, stage: int) -> nn.Sequential:
    stage = check_integer("stage", stage, 1)
    if stage > len(model.stage_names):
        raise UserError(f"the network has no stage {stage}, only stages 1 to {len(model.stage_names)}.")
    blocks = model.get_submodule(model.stage_names[stage - 1])
    assert isinstance(blocks, nn.Sequential)
    return blocks


def _block_number(model: ResNet, stage: int, block: int) -> int:
    depth = len(_stage(model, stage))
    block = check_integer("block", block, 1)
    if block > depth:
        raise UserError(f"stage {stage} has no block {block}, only blocks 1 to {depth}.")
    return block
