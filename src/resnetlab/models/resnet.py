"""The residual network: stem, stages of blocks, pooling, head."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any, Literal, overload

import torch.fx
from torch import Tensor, nn

from resnetlab.core.checks import check_integer
from resnetlab.core.errors import UserError, brief, unknown
from resnetlab.core.own_layers import check_outputs
from resnetlab.models.blocks import BLOCK_CLASSES, ResidualBlock, Site, checked_flow
from resnetlab.models.config import ResNetConfig
from resnetlab.models.network import Network
from resnetlab.models.network_html import network_html
from resnetlab.models.parts import parts_for
from resnetlab.models.stems import build_stem
from resnetlab.models.stochastic import DropBlock, Dropout
from resnetlab.scratch.initialization import he_normal_, xavier_uniform_

_BLOCK_FIELDS = (
    "bottleneck_multiplier", "groups", "width_per_group", "group_width", "first_reduction", "shortcut", "shortcut_norm",
    "shortcut_kernel", "avg_down", "preactivation", "stride_on", "conv_bias", "activation", "norm", "norm_groups",
    "weight_standardization", "running_variance", "antialias", "attention", "attention_ratio", "attention_rounding",
    "squeeze_excite", "zero_init_residual", "init", "parts",
)  # fmt: skip
"""The fields of `ResNetConfig` that concern a single block, besides those that `block` takes by other names."""


class ResNet(Network):
    """A residual network, or a plain network without shortcuts, built from its configuration.

    Parameters have torchvision's names if torchvision has the same network.

    Attributes:
        config: the architecture.
        class_names, preprocessing, temperature, frozen, altered: as of every `Network`; surgery that leaves the family,
            such as folding, sets `altered`.
    """

    config: ResNetConfig

    def __init__(self, config: ResNetConfig) -> None:
        super().__init__()
        if not isinstance(config, ResNetConfig):
            raise UserError(
                f"ResNet expects a ResNetConfig, got {brief(config)}. To build a network by name, use create_model."
            )
        self.config = config

        parts = parts_for(config)
        stem = build_stem(config, parts)
        self.stem_names = tuple(stem)
        for name, layer in stem.items():
            self.add_module(name, layer)
        self.stage_names = tuple(f"layer{number}" for number in range(1, len(config.depths) + 1))
        for stage, name in enumerate(self.stage_names):
            sites = [block_site(config, stage, index) for index in range(config.depths[stage])]
            blocks = [build_block(config, site) for site in sites]
            self.add_module(name, nn.Sequential(*blocks))
        if config.preactivation:
            self.norm, self.act = parts.normalized_activation(config.embedding_width)
        self.avgpool = parts.global_pool()
        if config.dropout:
            self.dropout = Dropout(config.dropout)
        self.fc = build_head(config)
        _initialize(self)

    @overload
    def forward(self, images: Tensor, return_features: Literal[False] = False) -> Tensor: ...
    @overload
    def forward(self, images: Tensor, return_features: Literal[True]) -> tuple[Tensor, Tensor]: ...
    def forward(self, images: Tensor, return_features: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """Returns the logits, and with `return_features` also the pooled embedding.

        Args:
            images: (N, in_channels, H, W), floating point, normalized.
            return_features: return `(logits, embedding)`.

        Returns:
            Logits (N, num_classes), or `(logits, embedding)` with the embedding (N, D). Without a head
            (`num_classes` 0) the embedding is returned in place of the logits.
        """
        embedding = self.forward_head(self.forward_features(images), pre_logits=True)
        logits = self._head(embedding)
        return (logits, embedding) if return_features is True else logits  # torch.fx passes a Proxy

    def features(self, images: Tensor) -> dict[str, Tensor]:
        """Returns the intermediate tensors of a forward pass, by names that are the same for every network.

        The names are "stem"; for block b of stage s, both counted from 1, "stage<s>.block<b>" and its
        "stage<s>.block<b>.branch", ".shortcut" (not in a plain network) and ".sum", before the activation; "final", the
        tensor that is pooled; "embedding" (N, D); and "logits" (N, num_classes). All others are (N, C, H, W). No tensor
        is detached or changed in place, so you can take gradients at each. Hooks on layers run as in a forward pass;
        hooks on a whole block or stage do not.

        Args:
            images: (N, in_channels, H, W), floating point, normalized.
        """
        x = self._stem(images)
        taps = {"stem": x}
        for name, block in self.blocks():
            if isinstance(block, ResidualBlock):
                flow = checked_flow(block, x)
                taps[f"{name}.branch"] = flow.branch
                if flow.shortcut is not None:
                    taps[f"{name}.shortcut"] = flow.shortcut
                taps[f"{name}.sum"] = flow.sum
                x = flow.output
            else:  # a block replaced by surgery
                x = block(x)
            taps[name] = x
        taps["final"] = self._end(x)
        taps["embedding"] = self.avgpool(taps["final"]).flatten(1)
        taps["logits"] = self._head(taps["embedding"])
        return taps

    @property
    def num_features(self) -> int:
        """Length of the pooled embedding, under timm's name."""
        return self.config.embedding_width

    @property
    def feature_info(self) -> list[dict[str, Any]]:
        """The maps of the stem and of each stage as timm describes them: `num_chs`, `reduction` and `module`.

        The stem's map is the one before pooling. `reduction` is the ratio of the image's size to the map's.
        """
        config = self.config
        *_, stem = (name for name in self.stem_names if name != "maxpool")
        reduction = 1 if config.stem == "cifar" else 2
        found: list[dict[str, Any]] = [{"num_chs": config.stem_channels, "reduction": reduction, "module": stem}]
        reduction *= 2 if "maxpool" in self.stem_names else 1
        for stage, name in enumerate(self.stage_names):
            reduction *= block_site(config, stage, 0).stride
            found.append({"num_chs": config.output_width(config.widths[stage]), "reduction": reduction, "module": name})
        return found

    def forward_features(self, images: Tensor) -> Tensor:
        """Returns the map that is pooled, (N, D, H, W), as timm's networks do; `features` returns all maps."""
        x = self._stem(images)
        for name in self.stage_names:
            x = self.get_submodule(name)(x)
        return self._end(x)

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """Returns the logits for the map of `forward_features`, or with `pre_logits` the pooled embedding (N, D)."""
        embedding = self.avgpool(features).flatten(1)
        return embedding if pre_logits else self._head(embedding)

    def reset_classifier(self, num_classes: int) -> None:
        """Replaces the head by a new one, or removes it for 0; `surgery.reset_head` checks the network first."""
        self.config = dataclasses.replace(self.config, num_classes=num_classes)
        if "head" in self.frozen:
            self.frozen -= {"head"}
            for module in self.sections()["head"]:
                module.requires_grad_(True)
        like = next(self.parameters())
        self.fc = build_head(self.config).to(device=like.device, dtype=like.dtype)
        initialize_layer(self.fc, self.config.init)
        self.class_names, self.temperature = None, 1.0
        self.train(self.training)

    def blocks(self) -> list[tuple[str, nn.Module]]:
        """Returns the blocks in order, with the names of `features`: "stage1.block1", "stage1.block2", ..."""
        return [
            (f"stage{stage}.block{number}", block)
            for stage, name in enumerate(self.stage_names, 1)
            for number, block in enumerate(self.get_submodule(name).children(), 1)
        ]

    def sections(self) -> dict[str, list[nn.Module]]:
        """Returns all layers by section: "stem", "stage1", ..., "head"."""
        sections = {"stem": [self.get_submodule(name) for name in self.stem_names]}
        for number, name in enumerate(self.stage_names, 1):
            sections[f"stage{number}"] = [self.get_submodule(name)]
        closing = [self.norm, self.act] if self.config.preactivation else []
        dropout = [self.dropout] if self.config.dropout else []
        sections["head"] = [*closing, self.avgpool, *dropout, self.fc]
        return sections

    def rebuilt(self) -> ResNet:
        """Returns a freshly initialized network of the same architecture."""
        return ResNet(self.config)

    def set_drop_progress(self, share: float) -> None:
        """Sets the fraction of the training that is done, with which the rate of DropBlock rises linearly from 0."""
        for module in self.modules():
            if isinstance(module, DropBlock):
                module.progress = share

    def _repr_html_(self) -> str:
        """Returns the view in a notebook: one row per section, with its parameters."""
        config, notes = self.config, [self.altered] if self.altered else []
        if self.frozen:
            notes.insert(0, f"frozen: {', '.join(sorted(self.frozen))}")
        usual = 32 if config.stem == "cifar" else 224
        return network_html(
            self.sections(),
            channels=config.in_channels,
            classes=max(0, config.num_classes),
            image_size=usual if self.preprocessing is None else self.preprocessing.image_size,
            notes=notes,
        )

    def _stem(self, images: Tensor) -> Tensor:
        images = _checked(images, self.config.in_channels)
        for name in self.stem_names:
            images = self.get_submodule(name)(images)
        return images

    def _end(self, x: Tensor) -> Tensor:
        return self.act(self.norm(x)) if self.config.preactivation else x

    def _head(self, embedding: Tensor) -> Tensor:
        return self.fc(self.dropout(embedding) if self.config.dropout else embedding)


def check_network(model: nn.Module) -> ResNet:
    """Returns the network; raises `UserError` for anything but a `ResNet`."""
    if not isinstance(model, ResNet):
        raise UserError(f"expected a ResNet, as create_model builds it, got {type(model).__name__}.")
    return model


def build_head(config: ResNetConfig) -> nn.Module:
    """Returns the linear head (N, D) -> (N, num_classes), or the identity without classes, before `_initialize`."""
    if not config.num_classes:
        return nn.Identity()
    return parts_for(config).linear(config.embedding_width, config.num_classes)


def block(
    kind: str,
    *,
    in_channels: int,
    width: int,
    stride: int = 1,
    dilation: int = 1,
    drop_path: float = 0.0,
    drop_block: tuple[float, int] = (0.0, 1),
    **fields: Any,
) -> ResidualBlock:
    """Returns one residual block with its shortcut, initialized and ready to train.

    Shapes: (N, in_channels, H, W) -> (N, expansion * width, ceil(H / stride), ceil(W / stride)).

    Args:
        kind: "basic", "bottleneck", or a name registered with `register_block`.
        in_channels: channels of the block's input.
        width: width of the block. The output has `expansion` times as many channels: 1 for "basic", 4 for "bottleneck"
            unless `bottleneck_multiplier` changes it.
        stride: factor by which the block reduces height and width.
        dilation: dilation of the convolutions larger than 1x1.
        drop_path: rate at which the branch is dropped in training.
        drop_block: rate and block size of DropBlock.
        **fields: fields of `ResNetConfig` that concern a block, such as `shortcut="C"`, `preactivation=True`,
            `activation="gelu"`, `groups=32` or `parts="scratch"`.

    Raises:
        UserError: a value is out of range, or fields do not go together.
    """
    for name in fields:
        if name not in _BLOCK_FIELDS:
            raise unknown("field of a block", name, _BLOCK_FIELDS)
    in_channels = check_integer("in_channels", in_channels, 1)
    stride, dilation = check_integer("stride", stride, 1), check_integer("dilation", dilation, 1)
    config = ResNetConfig(  # two stages, since in a single one no block changes the shape
        block=kind,
        stem_width=in_channels,
        depths=(1, 1),
        widths=(width, width),
        drop_path=(drop_path, drop_path),
        drop_block=(drop_block, drop_block) if drop_block[0] else (),
        **fields,
    )
    site = Site(
        in_channels=in_channels,
        width=config.widths[0],
        stride=stride,
        dilation=dilation,
        first_dilation=dilation,
        drop_path=config.path_rates[0],
        drop_block=config.drop_block[0] if config.drop_block else (0.0, 1),
    )
    made = build_block(config, site)
    for layer in made.modules():
        initialize_layer(layer, config.init)
    if config.zero_init_residual:
        zero_branch(made)
    return made


def build_block(config: ResNetConfig, site: Site) -> ResidualBlock:
    """Returns the block for one place in the network, before `initialize_layer`.

    A block of yours raises `UserError` in its forward pass if its output does not have the channels of its place.
    """
    name = config.block
    with BLOCK_CLASSES.calling(name):
        made = BLOCK_CLASSES[name](config, parts_for(config), site)
    if name in BLOCK_CLASSES.added:
        check_outputs(made, BLOCK_CLASSES.title(name), partial(_output_shape, config.output_width(site.width)))
    return made


def _output_shape(channels: int, shape: tuple[int, ...]) -> tuple[int | None, ...]:
    return (shape[0], channels, None, None)


def block_site(config: ResNetConfig, stage: int, index: int) -> Site:
    """Returns the place of block `index` of stage `stage`, both counted from 0."""
    halves = [number > 0 and not (config.dilate and config.dilate[number]) for number in range(len(config.depths))]
    dilation = 2 ** sum(1 for number in range(1, stage + 1) if not halves[number])
    before = 2 ** sum(1 for number in range(1, stage) if not halves[number])
    width = config.widths[stage]
    arriving = config.stem_channels if stage == 0 else config.output_width(config.widths[stage - 1])
    number = sum(config.depths[:stage]) + index
    first = index == 0
    return Site(
        in_channels=arriving if first else config.output_width(width),
        width=width,
        stride=2 if first and halves[stage] else 1,
        dilation=dilation,
        first_dilation=before if first else dilation,
        drop_path=config.path_rates[number],
        drop_block=config.drop_block[stage] if config.drop_block else (0.0, 1),
    )


def initialize_layer(layer: nn.Module, init: str) -> None:
    """Initializes one layer as `ResNetConfig.init` says; layers without parameters or on the meta device are unchanged.

    "he" keeps the head's default initialization, uniform within 1 / sqrt(D), as torchvision does; "torch" keeps the
    default of every layer.
    """
    weight, bias = getattr(layer, "weight", None), getattr(layer, "bias", None)
    # On the meta device, torch would draw nothing, and import sympy for it.
    if init == "torch" or not isinstance(weight, Tensor) or weight.is_meta:
        return
    if weight.ndim == 4 and init == "he":
        he_normal_(weight, mode="fan_out")
    elif weight.ndim >= 2 and init == "xavier":
        xavier_uniform_(weight)
    if isinstance(bias, Tensor) and weight.ndim == 4:
        nn.init.zeros_(bias)


def _initialize(model: ResNet) -> None:
    for module in model.modules():
        initialize_layer(module, model.config.init)
    if model.config.zero_init_residual:
        for _, block in model.blocks():
            zero_branch(block)


def zero_branch(block: nn.Module) -> None:
    """Makes the branch of a block return exactly 0, so that it can still learn.

    With post-activation, scale and shift of the last normalization become 0. With pre-activation, the last convolution
    becomes 0: after a normalization of 0, the input of the ReLU would be exactly 0, where it has no gradient. Without
    normalization, the last convolution becomes 0 too.
    """
    if not isinstance(block, ResidualBlock):
        raise TypeError(f"{type(block).__name__} is not a ResidualBlock")
    has_scale = not block.preactivation and any(True for _ in block.last_normalization.parameters())
    layer = block.last_normalization if has_scale else block.last_convolution
    for parameter in layer.parameters(recurse=False):
        nn.init.zeros_(parameter)


def _checked(images: Tensor, channels: int) -> Tensor:
    """Returns the images; raises `UserError` if the network cannot take them."""
    if images.ndim != 4 or images.shape[1] != channels:
        raise UserError(
            f"expected images of shape (N, {channels}, H, W), got {tuple(images.shape)}. "
            "Build the network with in_channels equal to the images' channels, or convert the images."
        )
    if not images.is_floating_point():
        raise UserError(
            f"expected normalized images of a floating-point type, got {images.dtype}. Normalize them first; for a "
            "network trained with ResNetLab use model.preprocessing.normalize(images)."
        )
    return images


torch.fx.wrap("_checked")  # torch.fx records the call, and does not look inside
