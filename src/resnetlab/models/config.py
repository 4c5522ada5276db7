"""One definition of the residual family: every axis is one field, every member is data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from resnetlab.core.checks import check_choice, check_flag, check_integer, check_number, set_checked
from resnetlab.core.errors import UserError, nearest
from resnetlab.scratch.normalization import RUNNING_VARIANCES

STEMS = ("imagenet", "deep", "cifar")
SHORTCUTS = ("A", "B", "C", "none")
STRIDES_ON = ("3x3", "1x1")
CONV_BIASES = ("none", "all", "pointwise")
ACTIVATIONS = ("relu", "leaky_relu", "prelu", "elu", "silu", "gelu")
INITS = ("he", "xavier", "torch")
PARTS = ("torch", "scratch")


@dataclass(frozen=True, kw_only=True)
class BlockTraits:
    """What a configuration must know of a kind of block.

    Attributes:
        expansion: output channels, as a multiple of the stage's width.
        fields: the fields of `ResNetConfig` that mean something to this kind of block only.
    """

    expansion: int
    fields: frozenset[str] = frozenset()


BOTTLENECK_FIELDS = frozenset(
    {"bottleneck_multiplier", "groups", "width_per_group", "group_width", "stride_on", "pointwise"}
)
"""What only a block with a narrow 3x3 between two 1x1 has; "pointwise" is a value of `conv_bias`."""

BLOCKS: dict[str, BlockTraits] = {
    "basic": BlockTraits(expansion=1),
    "bottleneck": BlockTraits(expansion=4, fields=BOTTLENECK_FIELDS),
}
"""The kinds of block by name; `register_block` adds to them."""


@dataclass(frozen=True, kw_only=True)
class ResNetConfig:
    """The architecture of one residual network.

    Attributes:
        block: "basic", two 3x3 convolutions; "bottleneck", 1x1 - 3x3 - 1x1 (He et al. 2016, Fig. 5); or a
            name given to `register_block`.
        depths: blocks in each of one to six stages. The first stage keeps the resolution of the stem,
            every later one halves it.
        widths: width of each stage: a basic block's channels; a quarter of a bottleneck's output
            channels.
        bottleneck_multiplier: channels of a bottleneck's 3x3, as a fraction of the block's output channels.
        groups: groups of a bottleneck's 3x3 (the cardinality of ResNeXt, Xie et al. 2017).
        width_per_group: channels of each of those groups where the stage's width is 64; 64 with one
            group is the plain bottleneck.
        group_width: channels of each of those groups in every stage, instead of `groups`; None leaves it to
            `groups`.
        stem: "imagenet", 7x7 convolution of stride 2 and 3x3 max pooling of stride 2; "deep", three 3x3
            convolutions for the 7x7 (He et al. 2019, "ResNet-C"); "cifar", one 3x3 convolution of stride 1.
        stem_width: output channels of the stem; None is the width of the first stage.
        stem_norm: whether normalization follows the stem's last convolution.
        stem_activation: whether an activation follows it.
        input_norm: whether a normalization of the images comes before the stem, as in Gluon's second zoo.
        shortcut: where the shape changes, "A" pads the identity with zero channels and "B" projects
            with a 1x1 convolution; "C" projects in every block; "none" adds nothing, which
            gives the plain twin of the network (He et al. 2016, sections 3.3 and 4.1).
        shortcut_norm: whether the projection is normalized.
        avg_down: average pooling of stride 2 and a projection of stride 1, instead of a projection of
            stride 2 (He et al. 2019, "ResNet-D").
        preactivation: normalization and activation before each convolution, and none after the sum
            (He et al. 2016b, "Identity Mappings"); the network ends in one more of both.
        stride_on: the convolution of a bottleneck that takes the stride: "3x3", as torchvision and most
            since ("v1.5"), or the first "1x1", as in the paper.
        conv_bias: the convolutions that have a bias: "none", "all", or "pointwise", those of the branch with
            kernel 1x1. Those of squeeze-and-excitation always have one.
        activation: "relu", "leaky_relu" (slope 0.01), "prelu" (one learned slope each), "elu", "silu" or
            "gelu" (exact).
        running_variance: the batch variance that the moving average takes: "unbiased" (divided by n - 1, as
            torch does) or "biased" (by n, as the paper, Gluon and Keras do).
        squeeze_excite: channel attention at the end of every branch, reduction 16 (Hu et al. 2018).
        zero_init_residual: start what ends every branch at 0, so that every block begins as its shortcut:
            the scale of the last normalization (Goyal et al. 2017), or with pre-activation the last
            convolution.
        init: start of convolutions: "he", normal with variance 2 / fan-out (He et al. 2015); "xavier",
            uniform with variance 2 / (fan-in + fan-out), of the head too (Glorot and Bengio 2010); "torch",
            what the layers start with.
        drop_path: rate at which the last block's branch is dropped in training; it rises from 0 at the first
            block (Huang et al. 2016). 0 is off. A sequence has the rate of every block, as after `deepen`.
        drop_block: (rate, block size in positions) of DropBlock in each stage (Ghiasi et al. 2018); () is off.
        dilate: for each stage, whether it dilates its convolutions instead of halving the resolution
            (Yu et al. 2017); () is nowhere.
        in_channels: channels of the images.
        num_classes: outputs of the head; 0 or less leaves the head out: a backbone whose output is
            the pooled embedding.
        parts: what the layers are made of: "torch", the layers of `torch.nn`, or "scratch", those of
            `resnetlab.scratch`, under the same parameter names.

    Raises:
        UserError: a value is out of range, or fields do not go together.
    """

    block: str = "basic"
    depths: tuple[int, ...] = (2, 2, 2, 2)
    widths: tuple[int, ...] = (64, 128, 256, 512)
    bottleneck_multiplier: float = 0.25
    groups: int = 1
    width_per_group: int = 64
    group_width: int | None = None
    stem: str = "imagenet"
    stem_width: int | None = None
    stem_norm: bool = True
    stem_activation: bool = True
    input_norm: bool = False
    shortcut: str = "B"
    shortcut_norm: bool = True
    avg_down: bool = False
    preactivation: bool = False
    stride_on: str = "3x3"
    conv_bias: str = "none"
    activation: str = "relu"
    running_variance: str = "unbiased"
    squeeze_excite: bool = False
    zero_init_residual: bool = False
    init: str = "he"
    drop_path: float | tuple[float, ...] = 0.0
    drop_block: tuple[tuple[float, int], ...] = ()
    dilate: tuple[bool, ...] = ()
    in_channels: int = 3
    num_classes: int = 1000
    parts: str = "torch"

    def __post_init__(self) -> None:
        if self.block not in list(BLOCKS):
            raise UserError(
                f"unknown block {self.block!r}. {nearest(self.block, BLOCKS)}Available: {', '.join(BLOCKS)}. "
                "A block of your own is made known by register_block, before a network of it is built or loaded."
            )
        choices = {
            "stem": STEMS,
            "shortcut": SHORTCUTS,
            "stride_on": STRIDES_ON,
            "conv_bias": CONV_BIASES,
            "activation": ACTIVATIONS,
            "running_variance": RUNNING_VARIANCES,
            "init": INITS,
            "parts": PARTS,
        }
        for name, known in choices.items():
            check_choice(name, getattr(self, name), known)
        for name, value in vars(self).items():
            if isinstance(ResNetConfig.__dataclass_fields__[name].default, bool):
                check_flag(name, value)
        for name in ("depths", "widths"):
            set_checked(self, **{name: _integers(name, getattr(self, name))})
        for name in ("groups", "width_per_group", "in_channels", "group_width", "stem_width"):
            if getattr(self, name) is not None:
                set_checked(self, **{name: check_integer(name, getattr(self, name), 1)})
        set_checked(
            self,
            bottleneck_multiplier=check_number("bottleneck_multiplier", self.bottleneck_multiplier, 0, above=True),
            num_classes=max(0, check_integer("num_classes", self.num_classes)),
            drop_path=_drop_path(self.drop_path),
            drop_block=_drop_block(self.drop_block),
            dilate=_flags("dilate", self.dilate),
        )
        from resnetlab.models.rules import refuse_combinations  # it names this class

        refuse_combinations(self)

    @property
    def expansion(self) -> int:
        """Output channels of a block, as a multiple of its stage's width."""
        return BLOCKS[self.block].expansion

    @property
    def stem_channels(self) -> int:
        """Output channels of the stem."""
        return self.widths[0] if self.stem_width is None else self.stem_width

    @property
    def embedding_width(self) -> int:
        """Length of the pooled embedding."""
        return self.output_width(self.widths[-1])

    @property
    def path_rates(self) -> tuple[float, ...]:
        """The rate at which each block's branch is dropped: p * i / (n - 1) of block i of n, or as configured."""
        blocks = sum(self.depths)
        if isinstance(self.drop_path, tuple):
            return self.drop_path
        if blocks == 1:
            return (self.drop_path,)
        return tuple(self.drop_path * index / (blocks - 1) for index in range(blocks))

    def output_width(self, width: int) -> int:
        """Output channels of the blocks of a stage of this width."""
        return width * self.expansion

    def inner_width(self, width: int) -> int:
        """Channels of a bottleneck's 3x3 in a stage of this width."""
        base = round(self.output_width(width) * self.bottleneck_multiplier)
        return base if self.group_width is not None else int(base * self.width_per_group / 64) * self.groups

    def inner_groups(self, width: int) -> int:
        """Groups of a bottleneck's 3x3 in a stage of this width."""
        return self.groups if self.group_width is None else self.inner_width(width) // self.group_width

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields that hold something, ready for a file: lists for tuples, and no None."""
        return {key: _plain(value) for key, value in asdict(self).items() if value is not None}


def _plain(value: Any) -> Any:
    return [_plain(entry) for entry in value] if isinstance(value, tuple) else value


def _is_sequence(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _integers(name: str, values: Any) -> tuple[int, ...]:
    if not _is_sequence(values) or not 1 <= len(values) <= 6:
        raise UserError(f"{name} must be a sequence of one to six integers, one a stage, got {values!r}.")
    return tuple(check_integer(f"every entry of {name}", value, 1) for value in values)


def _flags(name: str, values: Any) -> tuple[bool, ...]:
    if not _is_sequence(values):
        raise UserError(f"{name} must be a sequence of true and false, one a stage, got {values!r}.")
    return tuple(check_flag(f"every entry of {name}", value) for value in values)


def _drop_path(value: Any) -> float | tuple[float, ...]:
    if not _is_sequence(value):
        return check_number("drop_path", value, 0, 1, below=True)
    return tuple(check_number("every rate of drop_path", rate, 0, 1, below=True) for rate in value)


def _drop_block(values: Any) -> tuple[tuple[float, int], ...]:
    pairs = values if _is_sequence(values) else [values]
    if not all(_is_sequence(pair) and len(pair) == 2 for pair in pairs):
        raise UserError(
            "drop_block must be a (rate, block size) for each stage, such as ((0, 1), (0, 1), (0.05, 5), (0.1, 7)), "
            f"got {values!r}."
        )
    return tuple(
        (
            check_number("every rate of drop_block", rate, 0, 1, below=True),
            check_integer("every block size of drop_block", size, 1),
        )
        for rate, size in pairs
    )
