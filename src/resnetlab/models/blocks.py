"""The residual blocks: a branch, a shortcut, and the activation of their sum.

    y = activation(branch(x) + shortcut(x))          (He et al. 2016, equation 2)
    y = branch(x) + shortcut(x)                      with pre-activation (He et al. 2016b)

A kind of block lists the convolutions of its branch; normalization, activation and shortcut are the same for all kinds.
Parameters have the names that torchvision uses.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from torch import Tensor, nn

from resnetlab.core.checks import check_integer
from resnetlab.core.errors import UserError, brief
from resnetlab.core.fields import is_sequence
from resnetlab.core.own_code import part_of, received
from resnetlab.core.registry import Registry
from resnetlab.models.attention import ATTENTIONS
from resnetlab.models.config import BLOCKS, BOTTLENECK_FIELDS, BlockTraits, ResNetConfig
from resnetlab.models.parts import Parts
from resnetlab.models.plain_blocks import PlainBlock
from resnetlab.models.shortcuts import Projection, build_shortcut
from resnetlab.models.stochastic import DropBlock, DropPath


@dataclass(frozen=True, kw_only=True)
class Site:
    """The place of one block in the network.

    Attributes:
        in_channels: channels of the block's input.
        width: width of the stage.
        stride: 2 if the block halves the resolution, else 1.
        dilation: dilation of the convolutions larger than 1x1.
        first_dilation: dilation of the convolution that would otherwise have the stride. In the first block of a
            dilated stage it is still that of the stage before.
        drop_path: rate at which the branch is dropped in training.
        drop_block: rate and block size of DropBlock.
    """

    in_channels: int
    width: int
    stride: int = 1
    dilation: int = 1
    first_dilation: int = 1
    drop_path: float = 0.0
    drop_block: tuple[float, int] = (0.0, 1)


@dataclass(frozen=True, kw_only=True)
class Convolution:
    """One convolution of a branch, padded so that only its stride changes the size."""

    out_channels: int
    kernel_size: int
    stride: int = 1
    dilation: int = 1
    groups: int = 1

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            check_integer(f"{name} of a Convolution", value, 1)


class Flow(NamedTuple):
    """The tensors that one block computes; in a plain block `shortcut` is None and the sum is the branch."""

    branch: Tensor
    shortcut: Tensor | None
    sum: Tensor
    output: Tensor


class ResidualBlock(nn.Module):
    """The base class of all blocks; a subclass says which convolutions its branch has.

    Post-activation: convolution, normalization, activation, ..., without an activation after the last normalization;
    then the sum is activated. Pre-activation: normalization, activation, convolution, ...; the sum is not activated,
    and a projection takes the output of the first activation, as the branch does.

    With `antialias`, a filter after the activation has the stride instead of the convolution. DropBlock follows every
    convolution of the branch (after its activation) and the shortcut. Channel attention and then DropPath end the
    branch.

    Shapes: (N, in_channels, H, W) -> (N, expansion * width, ceil(H / stride), ceil(W / stride)).
    """

    expansion: ClassVar[int] = 1
    fields: ClassVar[Iterable[str]] = ()
    """The fields of `ResNetConfig` that this kind of block uses and others do not."""

    def __init__(self, config: ResNetConfig, parts: Parts, site: Site) -> None:
        super().__init__()
        layout = self.layout(config, site)
        _check_layout(type(self), layout, config, site)
        self.convolutions = len(layout)
        self.preactivation = config.preactivation
        self.steps: list[list[str]] = []
        """The names of the layers of the branch, in the order in which they run: one list for each convolution. With
        pre-activation, the first normalization and activation come before them."""
        channels, smoothing = site.in_channels, []
        for number, convolution in enumerate(layout, 1):
            out, stride = convolution.out_channels, convolution.stride
            smoothed = stride > 1 and config.antialias != "none"
            if smoothed:
                convolution = dataclasses.replace(convolution, stride=1)
            layer = _convolution(config, parts, channels, convolution)
            is_last = number == len(layout)
            norm, act, conv, aa = (f"{name}{number}" for name in ("bn", "act", "conv", "aa"))
            if config.preactivation:
                normalization, activation = parts.normalized_activation(channels)
                self._add(**{norm: normalization, act: activation, conv: layer})
                names = [norm, act, *smoothing, conv] if number > 1 else [conv]
            elif is_last:
                self._add(**{conv: layer, norm: parts.normalization(out)})
                names = [conv, norm]
            else:
                normalization, activation = parts.normalized_activation(out)
                self._add(**{conv: layer, norm: normalization, act: activation})
                names = [conv, norm, act]
            smoothing = []
            if smoothed:
                self._add(**{aa: parts.antialias(stride)})
                if config.preactivation and not is_last:
                    smoothing = [aa]  # after the next activation
                else:
                    names.append(aa)
            self.steps.append(names)
            channels = out
        self.se = ATTENTIONS[config.attention](
            parts, channels, ratio=config.attention_ratio, multiple=config.attention_rounding
        )
        self.downsample = build_shortcut(config, parts, site.in_channels, channels, site.stride)
        if not config.preactivation:
            self.add_module(f"act{len(layout)}", parts.sum_activation(channels))
        self.drop_path = DropPath(site.drop_path) if site.drop_path else None
        places = self.convolutions + (self.downsample is not None)
        drops = [DropBlock(*site.drop_block) for _ in range(places)] if site.drop_block[0] else []
        self.drop_blocks = nn.ModuleList(drops)

    def _add(self, **layers: nn.Module) -> None:
        for name, layer in layers.items():
            self.add_module(name, layer)

    @classmethod
    def layout(cls, config: ResNetConfig, site: Site) -> Sequence[Convolution]:
        """Returns the convolutions of the branch, in order."""
        raise NotImplementedError

    @property
    def last_convolution(self) -> nn.Module:
        """The convolution that ends a pre-activation branch."""
        return self.get_submodule(f"conv{self.convolutions}")

    @property
    def last_normalization(self) -> nn.Module:
        """The normalization that ends a post-activation branch."""
        return self.get_submodule(f"bn{self.convolutions}")

    @property
    def last_activation(self) -> nn.Module:
        """The activation of a post-activation block's sum."""
        return self.get_submodule(f"act{self.convolutions}")

    def flow(self, x: Tensor) -> Flow:
        """Returns all tensors that the block computes."""
        start = self.get_submodule("act1")(self.get_submodule("bn1")(x)) if self.preactivation else x
        branch = self._branch(start)
        if self.downsample is None:
            return Flow(branch, None, branch, self._finish(branch))
        shortcut = self.downsample(start if isinstance(self.downsample, Projection) else x)
        if self.drop_blocks:
            shortcut = self.drop_blocks[-1](shortcut)
        total = branch + shortcut
        return Flow(branch, shortcut, total, self._finish(total))

    def forward(self, x: Tensor) -> Tensor:
        """Returns the sum of branch and shortcut, activated unless the block uses pre-activation."""
        return checked_flow(self, x).output

    def _branch(self, x: Tensor) -> Tensor:
        for place, names in enumerate(self.steps):
            for name in names:
                x = self.get_submodule(name)(x)
            if self.drop_blocks:
                x = self.drop_blocks[place](x)
        if self.se is not None:
            x = self.se(x)
        return x if self.drop_path is None else self.drop_path(x)

    def _finish(self, total: Tensor) -> Tensor:
        return total if self.preactivation else self.last_activation(total)


def checked_flow(block: ResidualBlock, x: Tensor) -> Flow:
    """Returns the tensors that a block computes; raises `UserError` if a block of yours returns anything else."""
    flow = block.flow(x)
    if not isinstance(flow, Flow):
        raise UserError(
            f"{part_of(block) or type(block).__name__} must return Flow(branch, shortcut, sum, output) from its method "
            f"`flow`, got {received(flow)}."
        )
    return flow


class BasicBlock(ResidualBlock):
    """Two 3x3 convolutions (He et al. 2016, Fig. 5 left)."""

    @classmethod
    def layout(cls, config: ResNetConfig, site: Site) -> Sequence[Convolution]:
        """Returns the two 3x3 convolutions."""
        out = config.output_width(site.width)
        return (
            Convolution(out_channels=out, kernel_size=3, stride=site.stride, dilation=site.first_dilation),
            Convolution(out_channels=out, kernel_size=3, dilation=site.dilation),
        )


class Bottleneck(ResidualBlock):
    """1x1 - 3x3 - 1x1, the 3x3 narrow and possibly grouped (He et al. 2016, Fig. 5 right; Xie et al. 2017)."""

    expansion = 4
    fields = BOTTLENECK_FIELDS

    @classmethod
    def layout(cls, config: ResNetConfig, site: Site) -> Sequence[Convolution]:
        """Returns the 1x1, the 3x3 and the 1x1 convolution."""
        inner, groups = config.inner_width(site.width), config.inner_groups(site.width)
        on_3x3 = config.stride_on == "3x3"
        return (
            Convolution(
                out_channels=inner // config.first_reduction, kernel_size=1, stride=1 if on_3x3 else site.stride
            ),
            Convolution(
                out_channels=inner,
                kernel_size=3,
                stride=site.stride if on_3x3 else 1,
                dilation=site.first_dilation if on_3x3 else site.dilation,
                groups=groups,
            ),
            Convolution(out_channels=config.output_width(site.width), kernel_size=1),
        )


class _Blocks(Registry):
    """The classes of blocks; `BLOCKS` has what a configuration needs to know about them."""

    def add(self, name: str, part: Any) -> None:
        super().add(name, part)
        BLOCKS[name] = BlockTraits(expansion=self[name].expansion, fields=frozenset(self[name].fields))

    def remove(self, name: str) -> None:
        super().remove(name)
        del BLOCKS[name]


def _checked_block(name: str, block: Any) -> type[ResidualBlock] | PlainBlock:
    """Returns what makes the blocks of a class that can be registered, or raises `UserError`."""
    if not isinstance(block, type) or not issubclass(block, nn.Module):
        raise UserError(f"the block {name!r} must be a subclass of ResidualBlock, got {brief(block)}.")
    if not issubclass(block, ResidualBlock):
        plain = PlainBlock(name, block)
        check_integer(f"the expansion of {block.__name__}", plain.expansion, 1)
        return plain
    if block.layout.__func__ is ResidualBlock.layout.__func__:  # type: ignore[attr-defined]
        raise UserError(
            f"{block.__name__} has no layout. Define a class method `layout` that returns its convolutions."
        )
    if block.forward is not ResidualBlock.forward:
        raise UserError(
            f"{block.__name__} overrides the method `forward`. Override `flow` instead, which `forward` and `features` "
            "both call."
        )
    check_integer(f"the expansion of {block.__name__}", block.expansion, 1)
    if unknown_fields := set(block.fields) - BOTTLENECK_FIELDS:
        names = ", ".join(sorted(BOTTLENECK_FIELDS))
        raise UserError(
            f"the fields of {block.__name__} must be among {names}, got {', '.join(sorted(unknown_fields))}."
        )
    return block


BLOCK_CLASSES = _Blocks("block", {"basic": BasicBlock, "bottleneck": Bottleneck}, prepare=_checked_block)


def register_block(name: str, block: type[nn.Module]) -> None:
    """Registers your own block, so that `ResNetConfig(block=name)` builds networks of it.

    The same as `resnetlab.register("block", name, block)`.

    Args:
        name: the block's name in configurations. A weights file contains the name and not the code, so register the
            block before you load the file.
        block: a subclass of `ResidualBlock` whose `layout` returns the convolutions of the branch. The last one has
            `config.output_width(site.width)` channels, and the product of all strides is `site.stride`. `expansion` is
            the ratio of output channels to width; `fields` are the bottleneck fields that the block uses. To change
            what the block computes, override `flow`, which `forward` and `ResNet.features` share. If you define the
            same class again, for example by running a notebook cell twice, the new class replaces the old one.

            Or a plain class with the arguments of torchvision's blocks (inplanes, planes, stride, downsample), or of
            d2l's ([in_channels,] num_channels, use_1x1conv, strides). Fields that it would ignore are refused, and
            features inside the block, such as its branch, are not available.

    Raises:
        UserError: another block has this name, or `block` is not a valid block class.
    """
    BLOCK_CLASSES.add(name, block)


def _check_layout(block: type, layout: Sequence[Convolution], config: ResNetConfig, site: Site) -> None:
    """Raises `UserError` if a branch would not fit its shortcut or ignores the stride or dilation of its place."""
    of_block = f"the layout of {block.__name__}"
    if not is_sequence(layout) or not layout or not all(isinstance(one, Convolution) for one in layout):
        raise UserError(f"{of_block} must be a sequence of at least one Convolution, got {brief(layout)}.")
    got = layout[-1].out_channels, math.prod(convolution.stride for convolution in layout)
    wanted = config.output_width(site.width), site.stride
    if got != wanted:
        raise UserError(
            f"the branch of {block.__name__} has {got[0]} channels and stride {got[1]}, but its shortcut has "
            f"{wanted[0]} channels and stride {wanted[1]}. Use config.output_width(site.width) and site.stride in its "
            "layout."
        )
    arriving = site.in_channels
    for convolution in layout:
        if convolution.kernel_size % 2 == 0:
            raise UserError(f"{of_block} has the even kernel size {convolution.kernel_size}. Choose an odd one.")
        if arriving % convolution.groups or convolution.out_channels % convolution.groups:
            raise UserError(
                f"{of_block} has {convolution.groups} groups, which do not divide {arriving} input channels and "
                f"{convolution.out_channels} output channels. Choose a divisor of both."
            )
        if convolution.kernel_size > 1 and convolution.dilation not in (site.first_dilation, site.dilation):
            raise UserError(
                f"{of_block} ignores dilate: a convolution has dilation {convolution.dilation} instead of "
                f"{site.dilation}. Use site.first_dilation for the one with the stride, site.dilation for the others."
            )
        arriving = convolution.out_channels


def _convolution(config: ResNetConfig, parts: Parts, in_channels: int, convolution: Convolution) -> nn.Module:
    pointwise = convolution.kernel_size == 1
    return parts.convolution(
        in_channels,
        convolution.out_channels,
        kernel_size=convolution.kernel_size,
        stride=convolution.stride,
        padding=convolution.dilation * (convolution.kernel_size - 1) // 2,
        dilation=convolution.dilation,
        groups=convolution.groups,
        bias=config.conv_bias == "all" or (config.conv_bias == "pointwise" and pointwise),
    )
