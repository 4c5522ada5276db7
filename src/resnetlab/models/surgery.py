"""Changes to a network that say what they do to its function.

`reset_head`, `adapt_input_channels`, `freeze`, `unfreeze` and `deepen` change the network in place and return it;
`without_block` and `fold_batch_norm` return a changed copy.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from resnetlab.core.checks import check_integer
from resnetlab.core.errors import UserError, unknown
from resnetlab.models.blocks import ResidualBlock
from resnetlab.models.config import ResNetConfig
from resnetlab.models.folding import fold_batch_norm
from resnetlab.models.network import AnyNetwork, sections_of
from resnetlab.models.parts import is_convolution
from resnetlab.models.resnet import (
    ResNet,
    block_site,
    build_block,
    build_head,
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
    "reset_head",
    "unfreeze",
    "without_block",
]


def reset_head(model: ResNet, num_classes: int) -> ResNet:
    """Gives a network a fresh head of `num_classes` outputs, or none for 0, and forgets its class names.

    The backbone keeps its weights. A frozen head is unfrozen.
    """
    _check_family(model)
    model.config = dataclasses.replace(model.config, num_classes=num_classes)
    if "head" in model.frozen:
        unfreeze(model, "head")
    like = next(model.parameters())
    model.fc = build_head(model.config).to(device=like.device, dtype=like.dtype)
    initialize_layer(model.fc, model.config.init)
    model.class_names = None
    return model.train(model.training)


def adapt_input_channels(model: ResNet, in_channels: int) -> ResNet:
    """Makes a network take images of other channels and keep what its first convolution has learned.

    For one channel its weights are summed over the colors, which equals showing the gray image in all of them;
    for others they are repeated and scaled by old / new. The preprocessing is forgotten.

    Raises:
        UserError: the network normalizes its input (`input_norm`), whose statistics belong to its channels.
    """
    _check_family(model)
    old, new = model.config.in_channels, check_integer("in_channels", in_channels, 1)
    if old == new:
        return model
    if model.config.input_norm:
        raise UserError(
            f"input_norm=True normalizes each of the {old} channels by statistics of its own, which {new} channels do "
            "not have. Build a network with other in_channels instead."
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
    """Returns the kernel of a first convolution, (out, in, h, w), for images of other channels."""
    old = weight.shape[1]
    if in_channels == 1:
        return weight.sum(1, keepdim=True)
    return weight[:, [channel % old for channel in range(in_channels)]] * (old / in_channels)


def first_convolution(model: ResNet) -> nn.Module:
    """Returns the layer that sees the images."""
    return next(module for module in model.get_submodule("conv1").modules() if is_convolution(module))


def freeze(model: AnyNetwork, *names: str) -> AnyNetwork:
    """Stops the training of parts of a network: neither their weights nor their running statistics change.

    They stay in evaluation mode whatever `train()` is called on the network, or on what holds it.

    Args:
        model: the network.
        names: of "stem", "stage1", ..., "head".
    """
    if not names:
        raise UserError(f"say what to freeze: one or more of {', '.join(sections_of(model))}.")
    return _set_frozen(model, names, True)


def unfreeze(model: AnyNetwork, *names: str) -> AnyNetwork:
    """Undoes `freeze`, for the parts named or, without names, for all that are frozen."""
    return _set_frozen(model, names or sections_of(model).keys() & model.frozen, False)


def deepen(
    model: ResNet, stage: int, block: int | None = None, *, optimizer: torch.optim.Optimizer | None = None
) -> ResNet:
    """Inserts a block without changing the function of the network, ready to be trained on.

    The new block has the shape of its neighbors, an identity shortcut, and a branch that gives exactly 0: in
    post-activation scale and shift of its last normalization are 0, in pre-activation its last convolution is.
    So the logits stay the same to the last bit, in evaluation mode and, with drop rates of 0, in training mode,
    and every parameter of the new block can learn. Old blocks keep their drop rates; the new one has that of
    the block before it. (Net2Net, Chen et al. 2016, and ReZero, Bachlechner et al. 2020, begin alike.)

    Args:
        model: the network, changed in place.
        stage: number of the stage, from 1.
        block: number of the block after which the new one comes, from 1; the stage's last when None.
        optimizer: one that trains the network: it gets the new parameters, in the groups of those of the block
            before, and keeps its state of the old ones.

    Returns:
        The network; its configuration is one block deeper.

    Raises:
        UserError: the network has no identity shortcut, an activation other than ReLU after the sum, or no such
            stage or block.
    """
    _check_family(model)
    config = model.config
    if config.shortcut not in ("A", "B"):
        reason = "projects in every block" if config.shortcut == "C" else "has no shortcut"
        raise UserError(
            f"deepen inserts a block with an identity shortcut, and a network of shortcut={config.shortcut!r} "
            f"{reason}. It needs shortcut 'A' or 'B'."
        )
    if not config.preactivation and config.activation != "relu":
        raise UserError(
            f"the output of a block with activation={config.activation!r} is changed by another such activation, so "
            "that deepen cannot keep the function. It needs activation='relu' or preactivation=True."
        )
    blocks = _stage(model, stage)
    after = len(blocks) if block is None else _block_number(model, stage, block)
    if f"stage{stage}" in model.frozen:
        raise UserError(f"stage{stage} is frozen, and a new block in it could not learn. Call unfreeze first.")
    if optimizer is not None and not isinstance(optimizer, torch.optim.Optimizer):
        raise UserError(f"optimizer must be an optimizer of torch, got {type(optimizer).__name__}.")
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

    Nothing is trained again and no statistics are moved. With an identity shortcut the block then is the identity:
    it hands on what arrives. Any other keeps its shortcut, activated as the sum was. The other blocks keep their
    numbers.

    Args:
        model: the network; it is not changed.
        stage: number of the stage, from 1.
        block: number of the block in its stage, from 1.

    Raises:
        UserError: there is no such block, or a plain block changes the shape and has no shortcut to be
            reduced to.
    """
    _block_number(check_network(model), stage, block)
    lesioned = copy.deepcopy(model)
    blocks = _stage(lesioned, stage)
    old = blocks[block - 1]
    if not isinstance(old, ResidualBlock):
        raise UserError(f"stage{stage}.block{block} has been reduced to its shortcut already.")
    site = block_site(model.config, stage - 1, block - 1)
    keeps_shape = site.stride == 1 and site.in_channels == model.config.output_width(site.width)
    if old.downsample is None and not keeps_shape:
        raise UserError(
            f"stage{stage}.block{block} of a plain network changes the shape, so that nothing can stand in for it. "
            "Choose a block that is not the first of its stage."
        )
    blocks[block - 1] = ShortcutOnly(old)
    lesioned.altered = f"stage{stage}.block{block} was reduced to its shortcut"
    return lesioned


class ShortcutOnly(nn.Module):
    """What is left of a block without its branch: the identity, or a shortcut that changes the shape."""

    def __init__(self, block: ResidualBlock) -> None:
        super().__init__()
        self.shortcut = block.downsample
        projects = isinstance(block.downsample, Projection)
        first = (block.get_submodule("bn1"), block.get_submodule("act1"))
        self.start = nn.Sequential(*first) if block.preactivation and projects else nn.Identity()
        self.finish = nn.Identity() if block.preactivation else block.last_activation

    def forward(self, x: Tensor) -> Tensor:
        """Returns the input, or the shortcut that it needs, activated as the block's sum would be."""
        if self.shortcut is None or isinstance(self.shortcut, nn.Identity):
            return x
        return self.finish(self.shortcut(self.start(x)))


def _one_block_deeper(config: ResNetConfig, stage: int, after: int) -> ResNetConfig:
    """Returns the configuration with one block more, the drop rates of the old ones spelled out."""
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
            raise unknown("part of the network", name, sections)
        for module in sections[name]:
            module.requires_grad_(not frozen)
    model.frozen = model.frozen.union(names) if frozen else model.frozen.difference(names)
    return model.train(model.training)


def _join_optimizer(optimizer: torch.optim.Optimizer, new: nn.Module, before: nn.Module) -> None:
    """Puts each parameter of the new block into the group that its namesake in the block before is in."""
    namesakes = dict(before.named_parameters())
    groups = {parameter: group for group in optimizer.param_groups for parameter in group["params"]}
    homes = []
    for name, parameter in new.named_parameters():
        if namesakes[name] not in groups:
            raise UserError(
                f"the optimizer does not train {name} of the block before the new one, so the new block has no group "
                "to join. Give the optimizer that trains this network."
            )
        homes.append((groups[namesakes[name]], parameter))
    for group, parameter in homes:
        group["params"].append(parameter)


def _memory_format(*weights: Tensor) -> torch.memory_format:
    """Returns channels_last when the weights, with more than one position, lie so."""
    spatial = [weight for weight in weights if weight.shape[1] > 1 and weight.shape[-1] > 1]
    is_last = all(weight.is_contiguous(memory_format=torch.channels_last) for weight in spatial)
    return torch.channels_last if spatial and is_last else torch.contiguous_format


def _check_family(model: ResNet) -> None:
    if check_network(model).altered:
        raise UserError(f"{model.altered}: it is no longer a network of the family. Take the one it was made from.")


def _stage(model: ResNet, stage: int) -> nn.Sequential:
    stage = check_integer("stage", stage, 1)
    if stage > len(model.stage_names):
        raise UserError(f"there is no stage {stage}: the network has stages 1 to {len(model.stage_names)}.")
    blocks = model.get_submodule(model.stage_names[stage - 1])
    assert isinstance(blocks, nn.Sequential)
    return blocks


def _block_number(model: ResNet, stage: int, block: int) -> int:
    depth = len(_stage(model, stage))
    block = check_integer("block", block, 1)
    if block > depth:
        raise UserError(f"there is no block {block} in stage {stage}, which has blocks 1 to {depth}.")
    return block
