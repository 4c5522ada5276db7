"""Networks made larger to a given cost: deeper, wider, of larger images, or all three."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from resnetlab.models.config import ResNetConfig
from resnetlab.models.summary import count

_HALVINGS = 7


@dataclass(frozen=True, kw_only=True)
class Larger:
    """A network made larger.

    Attributes:
        config: the network.
        image_size: height and width of its images in pixels.
        macs: multiply-accumulates of one image.
        depth: blocks, as a multiple of the original's.
        width: likewise of channels.
        resolution: likewise of pixels on a side.
    """

    config: ResNetConfig
    image_size: int
    macs: int
    depth: float
    width: float
    resolution: float


def scaled(config: ResNetConfig, image_size: int, *, depth: float, width: float, resolution: float) -> Larger:
    """Returns a network with so many times the depth, width and resolution, each rounded to whole blocks and so on.

    Blocks are shared out over the stages as they were.

    Args:
        config: the original.
        image_size: of its images in pixels.
        depth: ratio of blocks.
        width: ratio of channels.
        resolution: ratio of pixels on a side.
    """
    depths, total = config.depths, round(sum(config.depths) * depth)
    shares = [total * blocks / sum(depths) for blocks in depths]
    found = [max(1, math.floor(share)) for share in shares]
    for stage in sorted(range(len(depths)), key=lambda stage: found[stage] - shares[stage]):
        found[stage] += sum(found) < total
    larger = dataclasses.replace(
        config,
        depths=tuple(found),
        widths=tuple(max(1, round(channels * width)) for channels in config.widths),
    )
    size = max(1, round(image_size * resolution))
    return Larger(
        config=larger,
        image_size=size,
        macs=count(larger, size)[1],
        depth=sum(found) / sum(depths),
        width=larger.widths[0] / config.widths[0],
        resolution=size / image_size,
    )


def at_cost(
    config: ResNetConfig, image_size: int, macs: float, *, depth: float, width: float, resolution: float
) -> Larger:
    """Returns the network whose cost is nearest to `macs`, grown in given proportions.

        depth^phi, width^phi, resolution^phi, for the phi that costs about `macs`

    Args:
        config: the original.
        image_size: of its images in pixels.
        macs: multiply-accumulates of one image, wanted.
        depth: ratio of blocks at phi = 1; 1 keeps the depth.
        width: likewise of channels.
        resolution: likewise of pixels on a side.
    """
    original = count(config, image_size)[1]
    # Multiply-accumulates grow about with depth * width^2 * resolution^2; the rest is rounding.
    about = math.log(macs / original) / math.log(depth * width**2 * resolution**2)
    low, high, tried = 0.5 * about, 1.5 * about, []
    for _ in range(_HALVINGS):
        phi = (low + high) / 2
        ratios = {"depth": depth**phi, "width": width**phi, "resolution": resolution**phi}
        tried.append(scaled(config, image_size, **ratios))
        low, high = (low, phi) if tried[-1].macs > macs else (phi, high)
    return min(tried, key=lambda larger: abs(math.log(larger.macs / macs)))
