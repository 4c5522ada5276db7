"""The residual network: stem, stages of blocks, pooling, head."""

from __future__ import annotations

from typing import Literal, overload

from torch import Tensor, nn

from resnetlab.core.errors import UserError
from resnetlab.core.preprocessing import Preprocessing
from resnetlab.models.blocks import BLOCKS, BasicBlock, Bottleneck, Site
from resnetlab.models.config import ResNetConfig
from resnetlab.models.parts import TORCH, Parts
from resnetlab.models.stems import build_stem


class ResNet(nn.Module):
    """A residual network, or its plain twin, as its configuration says.

    Names of parameters are torchvision's wherever torchvision has the same network.

    Attributes:
        config: the architecture.
        class_names: what the outputs mean, once the network was trained on data.
        preprocessing: what the images went through in training, likewise.
    """

    def __init__(self, config: ResNetConfig, parts: Parts = TORCH) -> None:
        super().__init__()
        if not isinstance(config, ResNetConfig):
            raise UserError(f"ResNet takes a ResNetConfig, got {config!r}. To build by name, use create_model.")
        self.config = config
        self.class_names: tuple[str, ...] | None = None
        self.preprocessing: Preprocessing | None = None

        stem = build_stem(config, parts)
        self.stem_names = tuple(stem)
        for name, layer in stem.items():
            self.add_module(name, layer)
        channels = config.stem_width
        self.stage_names = tuple(f"layer{number}" for number in range(1, len(config.depths) + 1))
        for number, name in enumerate(self.stage_names):
            stage = _build_stage(config, parts, number, channels)
            self.add_module(name, stage)
            channels = config.output_width(config.widths[number])
        self.avgpool = parts.global_pool()
        self.fc = parts.linear(channels, config.num_classes) if config.num_classes else nn.Identity()
        _initialize(self, parts)

    @overload
    def forward(self, images: Tensor, return_features: Literal[False] = False) -> Tensor: ...
    @overload
    def forward(self, images: Tensor, return_features: Literal[True]) -> tuple[Tensor, Tensor]: ...
    def forward(self, images: Tensor, return_features: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """Returns the logits, and with `return_features` the pooled embedding too.

        Args:
            images: (N, in_channels, H, W), floating point, normalised.
            return_features: give `(logits, embedding)`.

        Returns:
            Logits (N, num_classes), or `(logits, embedding)` with the embedding (N, D). Without a head
            (`num_classes` 0) the embedding stands for the logits.
        """
        if images.ndim != 4 or images.shape[1] != self.config.in_channels:
            raise UserError(
                f"expected images of shape (N, {self.config.in_channels}, H, W), got {tuple(images.shape)}. "
                "Build the network with in_channels equal to the images' channels, or convert the images."
            )
        if not images.is_floating_point():
            raise UserError(
                f"expected normalised images of a floating-point type, got {images.dtype}. Normalise them first, "
                "with model.preprocessing.normalize(images) if the network was trained here."
            )
        x = images
        for name in (*self.stem_names, *self.stage_names):
            x = self.get_submodule(name)(x)
        embedding = self.avgpool(x).flatten(1)
        logits = self.fc(embedding)
        return (logits, embedding) if return_features else logits


def _build_stage(config: ResNetConfig, parts: Parts, number: int, in_channels: int) -> nn.Sequential:
    width = config.widths[number]
    blocks = []
    for index in range(config.depths[number]):
        stride = 2 if index == 0 and number > 0 else 1
        site = Site(in_channels=in_channels, width=width, stride=stride)
        blocks.append(BLOCKS[config.block](config, parts, site))
        in_channels = config.output_width(width)
    return nn.Sequential(*blocks)


def _initialize(model: ResNet, parts: Parts) -> None:
    """He et al. 2015: normal weights of variance 2 / fan-out for convolutions, 1 and 0 for normalisation.

    The head keeps its layer's own start, uniform within 1 / sqrt(D), as torchvision's does.
    """
    for module in model.modules():
        if isinstance(module, parts.convolution):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")  # type: ignore[arg-type]
        elif isinstance(module, parts.normalization):
            nn.init.ones_(module.weight)  # type: ignore[arg-type]
            nn.init.zeros_(module.bias)  # type: ignore[arg-type]
    if model.config.zero_init_residual:
        for module in model.modules():
            if isinstance(module, (BasicBlock, Bottleneck)):
                nn.init.zeros_(module.last_normalization.weight)  # type: ignore[arg-type]
