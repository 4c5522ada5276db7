"""Block classes that were written for d2l or for torchvision, as blocks of a `ResNetConfig`."""

from __future__ import annotations

import inspect
from dataclasses import fields
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from resnetlab.core.errors import UserError
from resnetlab.models.config import ResNetConfig
from resnetlab.models.parts import Parts
from resnetlab.models.shortcuts import build_shortcut

_FORMS = (
    "(inplanes, planes, stride, downsample) as in torchvision, or ([in_channels,] num_channels, use_1x1conv, strides) "
    "as in d2l"
)
_USED = (
    "block", "depths", "widths", "stem", "stem_width", "stem_pool", "stem_norm", "stem_activation", "input_norm",
    "init", "dilate", "dropout", "in_channels", "num_classes",
)  # fmt: skip
"""The fields of `ResNetConfig` that apply to a network of such blocks."""
_OF_SHORTCUT = ("shortcut", "shortcut_norm", "shortcut_kernel", "avg_down", "conv_bias")
"""Those that also apply if the block takes its shortcut as `downsample`."""


class PlainBlock:
    """Makes blocks of a class that knows nothing of `ResNetConfig`.

    Args:
        name: of the registered block.
        kind: the class, a module with the arguments of torchvision's or d2l's blocks. Its attribute `expansion`, if it
            has one, is the ratio of output channels to width.

    Raises:
        UserError: the class has other arguments.
    """

    fields: tuple[str, ...] = ()

    def __init__(self, name: str, kind: type[nn.Module]) -> None:
        self.name, self.kind = name, kind
        self.expansion = getattr(kind, "expansion", 1)
        self._arguments = list(inspect.signature(kind).parameters)
        self._is_torchvisions = {"stride", "downsample"} <= set(self._arguments)
        if not self._is_torchvisions and not {"use_1x1conv", "strides"} <= set(self._arguments):
            raise UserError(
                f"{kind.__name__} must be a subclass of ResidualBlock, or take the arguments {_FORMS}, got "
                f"({', '.join(self._arguments)})."
            )

    def __call__(self, config: ResNetConfig, parts: Parts, site: Any) -> nn.Module:
        """Returns the block for a place in the network."""
        self._check(config)
        out = config.output_width(site.width)
        changes_shape = site.stride != 1 or site.in_channels != out
        if self._is_torchvisions:
            shortcut = build_shortcut(config, parts, site.in_channels, out, site.stride)
            options = {"stride": site.stride, "downsample": shortcut if changes_shape else None}
            if "dilation" in self._arguments:
                options["dilation"] = site.dilation
            return self.kind(site.in_channels, site.width, **options)
        takes_both = self._arguments[1] != "use_1x1conv"
        channels = (site.in_channels, out) if takes_both else (out,)
        block = self.kind(*channels, use_1x1conv=changes_shape, strides=site.stride)
        if any(is_lazy(parameter) for parameter in block.parameters()):
            with torch.no_grad():  # lazy layers take their channels from their first input
                block.eval()(torch.zeros(1, site.in_channels, 8, 8))
        return block.train()

    def _check(self, config: ResNetConfig) -> None:
        """Raises `UserError` for a field that the class would ignore."""
        used = {*_USED, *(_OF_SHORTCUT if self._is_torchvisions else ())}
        for field in fields(config):
            value = getattr(config, field.name)
            if field.name not in used and value != field.default:
                raise UserError(
                    f"block {self.name!r} is a class of your own, to which {field.name}={value!r} means nothing. Leave "
                    f"{field.name} out, or write the block as a subclass of ResidualBlock."
                )
        if config.shortcut == "none":
            raise UserError(f"block {self.name!r} always adds its shortcut. Leave shortcut='none' out.")
