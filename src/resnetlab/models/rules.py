"""What cannot be combined: refused when a configuration is made, naming the fields and the remedy."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from resnetlab.core.errors import UserError
from resnetlab.models.config import BLOCKS, BOTTLENECK_FIELDS

if TYPE_CHECKING:
    from resnetlab.models.config import ResNetConfig


def refuse_combinations(config: ResNetConfig) -> None:
    """Raises `UserError` where fields contradict each other, or where one would be silently ignored."""
    _check_stages(config)
    _check_block(config)
    _check_shortcut(config)
    if "bottleneck_multiplier" in BLOCKS[config.block].fields:
        for width in config.widths:
            _check_inner_width(config, width)


def _check_stages(config: ResNetConfig) -> None:
    stages = len(config.depths)
    if stages != len(config.widths):
        raise UserError(
            f"depths has {stages} stages and widths {len(config.widths)}. Give both the same number of stages."
        )
    for name in ("dilate", "drop_block"):
        values = getattr(config, name)
        if values and len(values) != stages:
            raise UserError(
                f"{name} has {len(values)} entries and depths {stages} stages. Give one entry a stage, or () for none."
            )
    if isinstance(config.drop_path, tuple) and len(config.drop_path) != sum(config.depths):
        raise UserError(
            f"drop_path has {len(config.drop_path)} rates and depths {sum(config.depths)} blocks. Give one rate a "
            "block, or a single one, which rises to the last block."
        )
    if stages == 1:
        for name, means in (("avg_down", config.avg_down), ("stride_on", config.stride_on != "3x3")):
            if means:
                raise UserError(
                    f"{name}={getattr(config, name)!r} means nothing with one stage, which halves no resolution. "
                    f"Leave {name} out, or give more stages."
                )
    if config.dilate and config.dilate[0]:
        raise UserError(
            f"dilate={config.dilate} dilates the first stage, which halves no resolution: there is no stride to "
            "replace. Set its first entry to false."
        )
    if any(config.dilate) and config.avg_down:
        raise UserError(
            "avg_down=True pools where a stage halves the resolution, and dilate keeps some stages from halving it. "
            "Set avg_down=False, or leave dilate out."
        )


def _check_block(config: ResNetConfig) -> None:
    fields = BLOCKS[config.block].fields
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    for name in sorted(BOTTLENECK_FIELDS - fields - {"pointwise"}):
        if getattr(config, name) != defaults[name]:
            raise UserError(
                f"{name}={getattr(config, name)!r} means nothing with block={config.block!r}, which does not use it. "
                f"Leave {name} out, or choose block='bottleneck'."
            )
    if config.conv_bias == "pointwise" and "pointwise" not in fields:
        raise UserError(
            f"conv_bias='pointwise' means nothing with block={config.block!r}, whose branch has no 1x1 convolution. "
            "Choose conv_bias 'none' or 'all', or block='bottleneck'."
        )
    if config.group_width is not None:
        for name in ("groups", "width_per_group"):
            if getattr(config, name) != defaults[name]:
                raise UserError(
                    f"group_width={config.group_width} and {name}={getattr(config, name)} both set the groups of the "
                    f"3x3. Leave one of them out."
                )


def _check_shortcut(config: ResNetConfig) -> None:
    if config.shortcut == "none":
        if config.zero_init_residual:
            raise UserError(
                "zero_init_residual=True with shortcut='none' makes every block output zero, and nothing is learned. "
                "Set zero_init_residual=False, or choose shortcut 'A', 'B' or 'C'."
            )
        if any(config.path_rates):
            raise UserError(
                f"drop_path={config.drop_path} with shortcut='none' would drop the only path there is. "
                "Set drop_path=0, or choose shortcut 'A', 'B' or 'C'."
            )
    if config.shortcut in ("A", "none"):
        for name, value in (("shortcut_norm", False), ("avg_down", True)):
            if getattr(config, name) is value:
                raise UserError(
                    f"{name}={value} means nothing with shortcut={config.shortcut!r}, which has no projection. "
                    f"Leave {name} out, or choose shortcut 'B' or 'C'."
                )
    keeps_shape = len(config.depths) == 1 and config.stem_channels == config.output_width(config.widths[0])
    if config.shortcut == "B" and not config.shortcut_norm and keeps_shape:
        raise UserError(
            "shortcut_norm=False means nothing with shortcut='B' in a network of one shape, which projects nowhere. "
            "Leave shortcut_norm out, or choose shortcut='C'."
        )
    if config.shortcut == "A":
        outputs = [config.stem_channels, *(config.output_width(width) for width in config.widths)]
        if outputs != sorted(outputs):
            raise UserError(
                "shortcut='A' pads with zero channels and cannot narrow, but the channels of stem and stages are "
                f"{outputs}. Choose shortcut 'B' or 'C', or widths (and a stem_width) that do not fall."
            )


def _check_inner_width(config: ResNetConfig, width: int) -> None:
    inner = config.inner_width(width)
    if inner < 1:
        raise UserError(
            f"a stage of width {width} gets no channels from width_per_group={config.width_per_group} and "
            f"bottleneck_multiplier={config.bottleneck_multiplier}. Raise one of the three."
        )
    if config.group_width is not None and inner % config.group_width:
        raise UserError(
            f"group_width={config.group_width} does not divide the {inner} channels of the 3x3 in a stage of width "
            f"{width}. Choose a divisor, or another bottleneck_multiplier={config.bottleneck_multiplier}."
        )
