"""The configuration of a residual network: every axis of the family is one field, every member is data."""

from __future__ import annotations

import dataclasses
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from resnetlab.core.checks import MOST_BLOCKS, MOST_CHANNELS, MOST_CLASSES, check_integer, check_number, set_checked
from resnetlab.core.errors import UserError, brief
from resnetlab.core.fields import Checked, documented, is_sequence, setting
from resnetlab.core.foreign import NETWORK
from resnetlab.core.registry import REGISTER
from resnetlab.models.attention import ATTENTIONS
from resnetlab.models.normalizations import NORMALIZATIONS
from resnetlab.scratch.activations import ACTIVATIONS
from resnetlab.scratch.normalization import RUNNING_VARIANCES


@dataclass(frozen=True, kw_only=True)
class BlockTraits:
    """What a configuration needs to know about a kind of block.

    Attributes:
        expansion: output channels, as a multiple of the stage's width.
        fields: the fields of `ResNetConfig` that only some kinds of block use, and this one does.
    """

    expansion: int
    fields: frozenset[str] = frozenset()


BOTTLENECK_FIELDS = frozenset(
    {"bottleneck_multiplier", "groups", "width_per_group", "group_width", "first_reduction", "stride_on", "pointwise"}
)
"""What only a block with a narrow 3x3 between two 1x1 uses; "pointwise" is a value of `conv_bias`."""

BLOCKS: dict[str, BlockTraits] = {
    "basic": BlockTraits(expansion=1),
    "bottleneck": BlockTraits(expansion=4, fields=BOTTLENECK_FIELDS),
}
"""The kinds of block by name; `register_block` adds to them."""


def _drop_block(name: str, values: Any) -> tuple[tuple[float, int], ...]:
    pairs = values if is_sequence(values) else [values]
    if not all(is_sequence(pair) and len(pair) == 2 for pair in pairs):
        raise UserError(
            f"{name} must be a (rate, block size) for each stage, such as ((0, 1), (0, 1), (0.05, 5), (0.1, 7)), "
            f"got {brief(values)}."
        )
    return tuple(
        (
            check_number(f"every rate of {name}", rate, 0, 1, below=True),
            check_integer(f"every block size of {name}", size, 1),
        )
        for rate, size in pairs
    )


@documented
@dataclass(frozen=True, kw_only=True)
class ResNetConfig(Checked):
    """The architecture of one residual network.

    Raises:
        UserError: a value is out of range, or fields do not go together.
    """

    KIND: ClassVar[str] = NETWORK

    block: str = setting(
        "basic",
        'kind of residual block. "basic": two 3x3 convolutions. "bottleneck": 1x1, 3x3 and 1x1 convolutions (He et al. '
        "2016, Fig. 5)",
        choices=BLOCKS,
        remedy=f"{REGISTER} `register_block` is short for it.",
    )
    depths: tuple[int, ...] = setting(
        (2, 2, 2, 2),
        "blocks in each stage. The first stage keeps the resolution of the stem, every later one halves it",
        minimum=1,
        maximum=MOST_BLOCKS,
        length=(1, 6),
        entries="one per stage",
    )
    widths: tuple[int, ...] = setting(
        (64, 128, 256, 512),
        "width of each stage: the output channels of a basic block, or a quarter of the output channels of a "
        "bottleneck",
        minimum=1,
        maximum=MOST_CHANNELS,
        length=(1, 6),
        entries="one per stage",
    )
    bottleneck_multiplier: float = setting(
        0.25,
        "channels of the 3x3 convolution of a bottleneck, as a fraction of its output channels",
        above=0,
        maximum=64,
    )
    groups: int = setting(
        1,
        "groups of the 3x3 convolution of a bottleneck: the cardinality of ResNeXt (Xie et al. 2017)",
        minimum=1,
        maximum=MOST_CHANNELS,
    )
    width_per_group: int = setting(
        64,
        "channels per group of a bottleneck's 3x3 convolution, in a stage of width 64; other stages scale "
        "with their width. 64 with groups=1 gives the standard bottleneck",
        minimum=1,
        maximum=MOST_CHANNELS,
    )
    group_width: int | None = setting(
        None,
        "channels per group, the same in all stages; set this instead of `groups` and `width_per_group`",
        minimum=1,
        maximum=MOST_CHANNELS,
    )
    first_reduction: int = setting(
        1,
        "divisor of the channels of a bottleneck's first 1x1 convolution; SENet-154 has 2",
        minimum=1,
        maximum=MOST_CHANNELS,
    )
    stem: str = setting(
        "imagenet",
        'first layers. "imagenet": a 7x7 convolution of stride 2 and 3x3 max pooling of stride 2. "deep": three 3x3 '
        "convolutions instead of the 7x7 one, the first two with half of the channels (He et al. 2019, "
        '"ResNet-C"). "tiered": like "deep", with 3/8 of the channels in the first. "cifar": one 3x3 convolution of '
        "stride 1",
        choices=("imagenet", "deep", "tiered", "cifar"),
    )
    stem_pool: str = setting(
        "max",
        'what halves the resolution after the convolutions of the stem. "max": 3x3 max pooling. "padded_max": max '
        'pooling of a map padded with zeros (BiT). "conv": a 3x3 convolution with normalization and activation '
        '(ResNet-RS). "none": nothing. The "cifar" stem never pools',
        choices=("max", "padded_max", "conv", "none"),
    )
    stem_width: int | None = setting(
        None, "output channels of the stem; None is the width of the first stage", minimum=1, maximum=MOST_CHANNELS
    )
    stem_norm: bool = setting(True, "whether normalization follows the stem's last convolution")
    stem_activation: bool = setting(True, "whether an activation follows the stem's last convolution")
    input_norm: bool = setting(
        False,
        "whether a normalization layer precedes the stem, as in the version 2 networks of Gluon's model zoo",
        group="compatibility",
    )
    shortcut: str = setting(
        "B",
        'what is added to the branch. Where the shape changes, "A" pads the identity with zero channels and "B" '
        'projects it with a 1x1 convolution; "C" projects in every block; "none" adds nothing, which gives the plain '
        "network (He et al. 2016, sections 3.3 and 4.1)",
        choices=("A", "B", "C", "none"),
    )
    shortcut_norm: bool = setting(True, "whether the projection is normalized")
    shortcut_kernel: int = setting(
        1, "kernel size of the projections that halve the resolution; SENet-154 has 3", choices=(1, 3)
    )
    avg_down: bool = setting(
        False,
        "downsample shortcuts with average pooling of stride 2 and a projection of stride 1, instead of a projection "
        "of stride 2 "
        '(He et al. 2019, "ResNet-D")',
    )
    preactivation: bool = setting(
        False,
        "put normalization and activation before each convolution, not after it, and no activation after the addition. "
        "One more normalization and activation follow the last block "
        '(He et al. 2016b, "Identity Mappings")',
    )
    stride_on: str = setting(
        "3x3",
        'the convolution of a bottleneck that has the stride: "3x3" as in torchvision ("v1.5"), or the first "1x1" '
        "as in the paper",
        choices=("3x3", "1x1"),
    )
    conv_bias: str = setting(
        "none",
        'the convolutions that have a bias: "none", "all", or "pointwise", the 1x1 convolutions of the '
        "branch. The convolutions of squeeze-and-excitation always have a bias",
        choices=("none", "all", "pointwise"),
        group="compatibility",
    )
    activation: str = setting(
        "relu",
        'activation function. "leaky_relu" has slope 0.01, "prelu" learns one slope for each layer, "gelu" is exact',
        choices=ACTIVATIONS,
        remedy=REGISTER,
    )
    norm: str = setting(
        "batch",
        'normalization. "batch": of each channel over the batch. "group": of groups of channels within an image (Wu '
        'and He 2018). "layer": of all channels of an image together. "frn": filter response normalization, with '
        'learned thresholds as activations (Singh and Krishnan 2020). "evonorm": EvoNorm-S0, normalization and '
        "activation in one (Liu et al. 2020); where no activation follows, only a scale and a shift. "
        '"none": nothing',
        choices=NORMALIZATIONS,
        remedy=REGISTER,
    )
    norm_groups: int = setting(
        32,
        'groups of "group" and "evonorm". Where they do not divide the channels, the greatest common divisor is used',
        minimum=1,
        maximum=MOST_CHANNELS,
    )
    weight_standardization: bool = setting(
        False, "standardize every kernel to mean 0 and variance 1 before it is applied (Qiao et al. 2019; BiT)"
    )
    running_variance: str = setting(
        "unbiased",
        'which batch variance updates the running variance: "unbiased" divides by n - 1, as torch does; "biased" '
        "divides by n, as the paper, Gluon and Keras do",
        choices=RUNNING_VARIANCES,
        group="compatibility",
    )
    antialias: str = setting(
        "none",
        'how the branch halves the resolution. With "blur" and "avg", a convolution of stride 2 gets stride 1, '
        'and a filter of stride 2 follows its activation. "blur": 3x3 binomial (Zhang 2019). "avg": 2x2 average '
        'pooling. The same happens to the max pooling of the stem. "none": the convolution has stride 2',
        choices=("none", "blur", "avg"),
    )
    attention: str = setting(
        "none",
        'channel attention at the end of every branch. "se": squeeze-and-excitation (Hu et al. 2018). "eca": one '
        "convolution along the channels (Wang et al. 2020)",
        choices=ATTENTIONS,
        remedy=REGISTER,
    )
    attention_ratio: float = setting(
        0.0625, "hidden channels of squeeze-and-excitation, as a fraction of its channels", above=0, maximum=64
    )
    attention_rounding: int = setting(
        8,
        "hidden channels of squeeze-and-excitation are rounded to a multiple of this, and never to 0",
        minimum=1,
        maximum=MOST_CHANNELS,
    )
    squeeze_excite: bool | None = setting(
        None, "true is short for attention='se'; false turns squeeze-and-excitation off"
    )
    zero_init_residual: bool = setting(
        False,
        "initialize the scale of the last normalization of every branch to 0, so that at first each block outputs only "
        "its shortcut (Goyal et al. 2017). With preactivation, or without normalization, the last "
        "convolution is initialized to 0 instead",
    )
    dropout: float = setting(
        0.0, "probability of dropping each value of the embedding before the head", minimum=0, below=1
    )
    init: str = setting(
        "he",
        'initialization of convolutions. "he": normal with variance 2 / fan_out (He et al. 2015). "xavier": uniform '
        'with variance 2 / (fan_in + fan_out), also for the head (Glorot and Bengio 2010). "torch": torch\'s default',
        choices=("he", "xavier", "torch"),
    )
    drop_path: float | tuple[float, ...] = setting(
        0.0,
        "probability of dropping the last block's branch in training; for the blocks before it the "
        "probability grows linearly with depth, from 0 for the first (Huang et al. 2016). A sequence sets the "
        "probability for each block, as `surgery.deepen` does",
        minimum=0,
        below=1,
    )
    drop_block: tuple[tuple[float, int], ...] = setting(
        (),
        "rate and block size (in positions of the feature map) of DropBlock (Ghiasi et al. 2018); () disables it",
        check=_drop_block,
        accepts="sequence of (rate, block size), one per stage",
    )
    dilate: tuple[bool, ...] = setting(
        (),
        "whether a stage dilates its convolutions instead of halving the resolution (Yu et al. 2017); () for no stage",
        entries="one per stage",
    )
    in_channels: int = setting(3, "channels of the images", minimum=1, maximum=MOST_CHANNELS)
    num_classes: int = setting(
        1000,
        "outputs of the head; 0 or less omits the head, and the network returns the pooled embedding",
        check=lambda name, value: max(0, check_integer(name, value, maximum=MOST_CLASSES)),
        accepts="integer",
    )
    parts: str = setting(
        "torch",
        'which implementation of the layers to use: "torch" for `torch.nn`, "scratch" for `resnetlab.scratch`. Both '
        "have the same parameter names",
        choices=("torch", "scratch"),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        _resolve_attention(self)
        _check_stages(self)
        _check_block(self)
        _check_shortcut(self)
        if "bottleneck_multiplier" in BLOCKS[self.block].fields:
            for width in self.widths:
                _check_inner_width(self, width)

    @property
    def expansion(self) -> int:
        """Output channels of a block, as a multiple of its stage's width."""
        return BLOCKS[self.block].expansion

    @property
    def zeroes_standardized_kernels(self) -> bool:
        """Whether a branch that starts as zero would need a standardized kernel of zeros, which cannot stay small."""
        return self.weight_standardization and (self.preactivation or self.norm == "none")

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
        """The drop rate of each block: p * i / (n - 1) for block i of n, or the sequence given as `drop_path`."""
        blocks = sum(self.depths)
        if isinstance(self.drop_path, tuple):
            return self.drop_path
        if blocks == 1:
            return (self.drop_path,)
        return tuple(self.drop_path * index / (blocks - 1) for index in range(blocks))

    def output_width(self, width: int) -> int:
        """Returns the output channels of the blocks in a stage of this width."""
        return width * self.expansion

    def inner_width(self, width: int) -> int:
        """Returns the channels of a bottleneck's 3x3 in a stage of this width."""
        base = round(self.output_width(width) * self.bottleneck_multiplier)
        return base if self.group_width is not None else int(base * self.width_per_group / 64) * self.groups

    def inner_groups(self, width: int) -> int:
        """Returns the groups of a bottleneck's 3x3 in a stage of this width."""
        return self.groups if self.group_width is None else self.inner_width(width) // self.group_width

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as plain values for a file: tuples become lists, and None is omitted."""
        return {key: _lists(value) for key, value in asdict(self).items() if value is not None}


def _lists(value: Any) -> Any:
    return [_lists(entry) for entry in value] if isinstance(value, tuple) else value


_USED_WITH = (
    ("attention_ratio", "attention", ("se",)),
    ("attention_rounding", "attention", ("se",)),
    ("norm_groups", "norm", ("group", "evonorm")),
    ("running_variance", "norm", ("batch",)),
)
"""Fields that only matter with some values of another field."""


def _resolve_attention(config: ResNetConfig) -> None:
    """Replaces `squeeze_excite`, the short form, by `attention`."""
    if config.squeeze_excite and config.attention == "eca":
        raise UserError("squeeze_excite=True and attention='eca' both set the channel attention. Omit one of them.")
    if config.squeeze_excite is not None and config.attention != "eca":
        set_checked(config, attention="se" if config.squeeze_excite else "none")
    set_checked(config, squeeze_excite=None)


def _check_stages(config: ResNetConfig) -> None:
    stages = len(config.depths)
    if stages != len(config.widths):
        raise UserError(
            f"depths has {stages} stages and widths has {len(config.widths)}. Give both the same number of stages."
        )
    for name in ("dilate", "drop_block"):
        values = getattr(config, name)
        if values and len(values) != stages:
            raise UserError(
                f"{name} has {len(values)} entries and depths has {stages}. Give one entry per stage, or () for none."
            )
    if config.norm == "frn" and config.activation != "relu":
        raise UserError(
            f"activation={config.activation!r} has no effect with norm='frn', which has learned thresholds as "
            "activations. Omit one of them."
        )
    for name, field, values in _USED_WITH:
        default = next(one.default for one in dataclasses.fields(config) if one.name == name)
        if getattr(config, name) != default and getattr(config, field) not in values:
            raise UserError(
                f"{name}={getattr(config, name)!r} has no effect with {field}={getattr(config, field)!r}. Set "
                f"{name}={default!r}, or choose {field} {' or '.join(map(repr, values))}."
            )
    if isinstance(config.drop_path, tuple) and len(config.drop_path) != sum(config.depths):
        raise UserError(
            f"drop_path has {len(config.drop_path)} rates and the network {sum(config.depths)} blocks. Give one rate "
            "per block, or a single rate, which rises linearly to the last block."
        )
    if stages == 1:
        for name, is_set in (
            ("avg_down", config.avg_down),
            ("stride_on", config.stride_on != "3x3"),
            ("shortcut_kernel", config.shortcut_kernel != 1),
        ):
            if is_set:
                raise UserError(
                    f"{name}={getattr(config, name)!r} has no effect with a single stage, which does not halve the "
                    f"resolution. Omit {name}, or use more stages."
                )
    if config.dilate and config.dilate[0]:
        raise UserError(
            f"dilate={config.dilate} dilates the first stage, which has no stride to replace. "
            "Set its first entry to False."
        )
    if any(config.dilate) and config.avg_down:
        raise UserError(
            "avg_down=True pools in stages that halve the resolution, and dilate stops some stages from halving it. "
            "Set avg_down=False, or omit dilate."
        )


def _check_block(config: ResNetConfig) -> None:
    fields = BLOCKS[config.block].fields
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    for name in sorted(BOTTLENECK_FIELDS - fields - {"pointwise"}):
        if getattr(config, name) != defaults[name]:
            raise UserError(
                f"{name}={getattr(config, name)!r} has no effect with block={config.block!r}. "
                f"Omit {name}, or choose block='bottleneck'."
            )
    if config.conv_bias == "pointwise" and "pointwise" not in fields:
        raise UserError(
            f"conv_bias='pointwise' has no effect with block={config.block!r}, whose branch has no 1x1 convolution. "
            "Choose conv_bias 'none' or 'all', or block='bottleneck'."
        )
    if config.group_width is not None:
        for name in ("groups", "width_per_group"):
            if getattr(config, name) != defaults[name]:
                raise UserError(
                    f"group_width={config.group_width} and {name}={getattr(config, name)} both set the groups of the "
                    "3x3. Omit one of them."
                )


def _check_shortcut(config: ResNetConfig) -> None:
    if config.zero_init_residual and config.zeroes_standardized_kernels:
        raise UserError(
            "zero_init_residual=True initializes the last convolution of every branch to 0, which "
            "weight_standardization=True would scale to full size in the first step. Omit one of them."
        )
    if config.shortcut == "none":
        if config.zero_init_residual:
            raise UserError(
                "zero_init_residual=True with shortcut='none' makes every block output zero, so the network cannot "
                "learn. Set zero_init_residual=False, or choose shortcut 'A', 'B' or 'C'."
            )
        if any(config.path_rates):
            raise UserError(
                f"drop_path={config.drop_path} with shortcut='none' would drop the only path of a block. "
                "Set drop_path=0, or choose shortcut 'A', 'B' or 'C'."
            )
    if config.shortcut in ("A", "none"):
        for name, value in (("shortcut_norm", False), ("avg_down", True), ("shortcut_kernel", 3)):
            if getattr(config, name) == value:
                raise UserError(
                    f"{name}={value} has no effect with shortcut={config.shortcut!r}, which has no projection. "
                    f"Omit {name}, or choose shortcut 'B' or 'C'."
                )
    if config.avg_down and config.shortcut_kernel != 1:
        raise UserError(
            f"shortcut_kernel={config.shortcut_kernel} has no effect with avg_down=True, whose pooling halves the "
            "resolution. Omit one of them."
        )
    keeps_shape = len(config.depths) == 1 and config.stem_channels == config.output_width(config.widths[0])
    if config.shortcut == "B" and not config.shortcut_norm and keeps_shape:
        raise UserError(
            "shortcut_norm=False has no effect with shortcut='B' if no block changes the shape, because nothing is "
            "projected. Omit shortcut_norm, or choose shortcut='C'."
        )
    if config.shortcut == "A":
        outputs = [config.stem_channels, *(config.output_width(width) for width in config.widths)]
        if outputs != sorted(outputs):
            raise UserError(
                "shortcut='A' can add channels, filled with zeros, but cannot remove any, and the channels of "
                f"stem and stages are {outputs}. Choose shortcut 'B' or 'C', or widths (and a stem_width) that "
                "never decrease."
            )


def _check_inner_width(config: ResNetConfig, width: int) -> None:
    inner = config.inner_width(width)
    if inner < 1:
        raise UserError(
            f"with width_per_group={config.width_per_group} and "
            f"bottleneck_multiplier={config.bottleneck_multiplier}, the 3x3 convolution of a stage of width "
            f"{width} would have 0 channels. Increase the width, width_per_group or bottleneck_multiplier."
        )
    if inner % config.first_reduction:
        raise UserError(
            f"first_reduction={config.first_reduction} does not divide the {inner} channels of the 3x3 in a stage of "
            f"width {width}. Choose a divisor."
        )
    if config.group_width is not None and inner % config.group_width:
        raise UserError(
            f"group_width={config.group_width} does not divide the {inner} channels of the 3x3 in a stage of width "
            f"{width}. Choose a divisor, or change bottleneck_multiplier={config.bottleneck_multiplier}."
        )
