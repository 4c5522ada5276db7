"""One definition of the residual family: every axis is one field, every member is data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from resnetlab.core.checks import check_choice, check_flag, check_integer, check_number, set_checked
from resnetlab.core.errors import UserError

STEMS = ("imagenet", "cifar")
SHORTCUTS = ("A", "B", "C", "none")
STRIDES_ON = ("3x3", "1x1")
EXPANSION = {"basic": 1, "bottleneck": 4}
"""Output channels of a block, as a multiple of its stage's width."""


@dataclass(frozen=True, kw_only=True)
class ResNetConfig:
    """The architecture of one residual network.

    Attributes:
        block: "basic", two 3x3 convolutions, or "bottleneck", 1x1 - 3x3 - 1x1 (He et al. 2016, Fig. 5).
        depths: blocks in each of one to six stages. The first stage keeps the resolution of the stem,
            every later one halves it.
        widths: width of each stage: a basic block's channels; a quarter of a bottleneck's output
            channels.
        bottleneck_multiplier: channels of a bottleneck's 3x3, as a fraction of the block's output channels.
        groups: groups of a bottleneck's 3x3 (the cardinality of ResNeXt, Xie et al. 2017).
        width_per_group: channels of each of those groups where the stage's width is 64; 64 with one
            group is the plain bottleneck.
        stem: "imagenet", 7x7 convolution of stride 2 and 3x3 max pooling of stride 2, or "cifar", one
            3x3 convolution of stride 1.
        shortcut: where the shape changes, "A" pads the identity with zero channels and "B" projects
            with a normalised 1x1 convolution; "C" projects in every block; "none" adds nothing, which
            gives the plain twin of the network (He et al. 2016, sections 3.3 and 4.1).
        stride_on: the convolution of a bottleneck that takes the stride: "3x3", as torchvision and most
            since ("v1.5"), or the first "1x1", as in the paper.
        zero_init_residual: start the last normalisation of every branch at 0, so that every block
            begins as its shortcut (Goyal et al. 2017).
        in_channels: channels of the images.
        num_classes: outputs of the head; 0 or less leaves the head out: a backbone whose output is
            the pooled embedding.

    Raises:
        UserError: a value is out of range, or fields do not go together.
    """

    block: str = "basic"
    depths: tuple[int, ...] = (2, 2, 2, 2)
    widths: tuple[int, ...] = (64, 128, 256, 512)
    bottleneck_multiplier: float = 0.25
    groups: int = 1
    width_per_group: int = 64
    stem: str = "imagenet"
    shortcut: str = "B"
    stride_on: str = "3x3"
    zero_init_residual: bool = False
    in_channels: int = 3
    num_classes: int = 1000

    def __post_init__(self) -> None:
        check_choice("block", self.block, EXPANSION)
        check_choice("stem", self.stem, STEMS)
        check_choice("shortcut", self.shortcut, SHORTCUTS)
        check_choice("stride_on", self.stride_on, STRIDES_ON)
        for name in ("depths", "widths"):
            set_checked(self, **{name: _stages(name, getattr(self, name))})
        for name in ("groups", "width_per_group", "in_channels"):
            set_checked(self, **{name: check_integer(name, getattr(self, name), 1)})
        multiplier = check_number("bottleneck_multiplier", self.bottleneck_multiplier, 0, above=True)
        num_classes = check_integer("num_classes", self.num_classes)
        set_checked(self, bottleneck_multiplier=multiplier, num_classes=max(0, num_classes))
        check_flag("zero_init_residual", self.zero_init_residual)
        self._check_combinations()

    def _check_combinations(self) -> None:
        if len(self.depths) != len(self.widths):
            raise UserError(
                f"depths has {len(self.depths)} stages and widths {len(self.widths)}. Give both the same number."
            )
        if self.block == "basic":
            defaults = ResNetConfig.__dataclass_fields__
            for name in ("bottleneck_multiplier", "groups", "width_per_group", "stride_on"):
                if getattr(self, name) != defaults[name].default:
                    raise UserError(
                        f"{name}={getattr(self, name)!r} means nothing with block='basic', which has no 1x1 "
                        f"convolutions and no groups. Leave {name} out, or choose block='bottleneck'."
                    )
        if self.zero_init_residual and self.shortcut == "none":
            raise UserError(
                "zero_init_residual=True with shortcut='none' makes every block output zero, and nothing is learned. "
                "Set zero_init_residual=False, or choose shortcut 'A', 'B' or 'C'."
            )
        if self.shortcut == "A":
            outputs = [self.stem_width, *(self.output_width(width) for width in self.widths)]
            if outputs != sorted(outputs):
                raise UserError(
                    f"shortcut='A' pads with zero channels and cannot narrow, but widths={self.widths} does. "
                    "Choose shortcut 'B' or 'C', or widths that do not fall."
                )
        for width in self.widths:
            self.inner_width(width)

    @property
    def expansion(self) -> int:
        """Output channels of a block, as a multiple of its stage's width."""
        return EXPANSION[self.block]

    @property
    def stem_width(self) -> int:
        """Output channels of the stem."""
        return self.widths[0]

    @property
    def embedding_width(self) -> int:
        """Length of the pooled embedding."""
        return self.output_width(self.widths[-1])

    def output_width(self, width: int) -> int:
        """Output channels of the blocks of a stage of this width."""
        return width * self.expansion

    def inner_width(self, width: int) -> int:
        """Channels of a bottleneck's 3x3 in a stage of this width."""
        base = round(self.output_width(width) * self.bottleneck_multiplier)
        inner = int(base * self.width_per_group / 64) * self.groups
        if inner < 1:
            raise UserError(
                f"a stage of width {width} gets no channels from width_per_group={self.width_per_group} and "
                f"bottleneck_multiplier={self.bottleneck_multiplier}. Raise one of the three."
            )
        return inner

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields, ready for a file."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}


def _stages(name: str, values: Sequence[int]) -> tuple[int, ...]:
    if not isinstance(values, Sequence) or isinstance(values, str) or not 1 <= len(values) <= 6:
        raise UserError(f"{name} must be a sequence of one to six integers, one a stage, got {values!r}.")
    return tuple(check_integer(f"every entry of {name}", value, 1) for value in values)
