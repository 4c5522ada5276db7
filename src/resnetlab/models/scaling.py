"""Compound scaling of depth, width and resolution (Tan and Le 2019, EfficientNet)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable

import pandas as pd

from resnetlab.core.checks import check_integer, check_number
from resnetlab.core.errors import UserError, brief
from resnetlab.models.config import ResNetConfig
from resnetlab.models.summary import count

ALPHA, BETA, GAMMA = 1.2, 1.1, 1.15
"""EfficientNet's ratios of depth, width and resolution; alpha * beta^2 * gamma^2 is about 2 (1.92)."""

PUBLISHED = {
    0: (1.0, 1.0, 224),
    1: (1.1, 1.0, 240),
    2: (1.2, 1.1, 260),
    3: (1.4, 1.2, 300),
    4: (1.8, 1.4, 380),
    5: (2.2, 1.6, 456),
    6: (2.6, 1.8, 528),
    7: (3.1, 2.0, 600),
}
"""Depth, width and resolution of the released EfficientNet-B0 to B7, which are not exact powers."""

_WIDTH_STEP = 8


def compound_scale(
    config: ResNetConfig,
    phi: float,
    *,
    image_size: int,
    alpha: float = ALPHA,
    beta: float = BETA,
    gamma: float = GAMMA,
) -> tuple[ResNetConfig, int]:
    """Returns the configuration of a network scaled by phi, and its image size in pixels.

        depth = alpha^phi, width = beta^phi, resolution = gamma^phi

    Multiply-accumulates grow approximately by (alpha * beta^2 * gamma^2)^phi. As in EfficientNet, depths are rounded
    up, widths are rounded to a multiple of 8 that is at least 90 % of the exact width, and image sizes to a pixel.

    Args:
        config: the network for phi = 0.
        phi: the exponent; negative values give a smaller network.
        image_size: height and width of the images in pixels, for phi = 0.
        alpha: ratio of depth.
        beta: ratio of width.
        gamma: ratio of resolution.
    """
    if not isinstance(config, ResNetConfig):
        raise UserError(f"compound_scale expects a ResNetConfig, such as model.config, got {brief(config)}.")
    phi = check_number("phi", phi, -20, 20)
    size = check_integer("image_size", image_size, 1)
    ratios = {"alpha": alpha, "beta": beta, "gamma": gamma}
    depth, width, resolution = (check_number(name, ratio, 0, 10, above=True) ** phi for name, ratio in ratios.items())
    stem_width = None if config.stem_width is None else _scaled_width(config.stem_width, width)
    scaled = dataclasses.replace(
        config,
        depths=tuple(math.ceil(round(count * depth, 6)) for count in config.depths),
        widths=tuple(_scaled_width(channels, width) for channels in config.widths),
        stem_width=stem_width,
    )
    return scaled, max(1, round(size * resolution))


def scaling_table(config: ResNetConfig, *, image_size: int, phis: Iterable[int] = range(8)) -> pd.DataFrame:
    """Returns a table of a network scaled by each phi, with the published coefficients of EfficientNet.

    Columns: `phi`; the ratios `depth`, `width` and `resolution`; `depths`, `widths` and `image_size` of the scaled
    network; its `parameters`, `macs`, and `times_macs` relative to phi = 0; and `published`, the depth, width and image
    size of EfficientNet for this phi, or None.
    """
    rows = []
    _, macs_unscaled = count(config, image_size)
    for phi in phis:
        scaled, size = compound_scale(config, phi, image_size=image_size)
        parameters, macs = count(scaled, size)
        rows.append(
            {
                "phi": phi,
                "depth": ALPHA**phi,
                "width": BETA**phi,
                "resolution": GAMMA**phi,
                "depths": scaled.depths,
                "widths": scaled.widths,
                "image_size": size,
                "parameters": parameters,
                "macs": macs,
                "times_macs": macs / macs_unscaled,
                "published": PUBLISHED.get(phi),
            }
        )
    return pd.DataFrame(rows)


def _scaled_width(channels: int, ratio: float) -> int:
    """Returns the multiple of 8 nearest to channels * ratio that is at least 90 % of it; for ratio 1, `channels`."""
    if ratio == 1:
        return channels
    wanted = channels * ratio
    rounded = max(_WIDTH_STEP, int(wanted + _WIDTH_STEP / 2) // _WIDTH_STEP * _WIDTH_STEP)
    return rounded if rounded >= 0.9 * wanted else rounded + _WIDTH_STEP
