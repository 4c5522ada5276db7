"""Changes of pixel values: colors as one affine map of the channels, then effects in a fixed order.

**Colors.** Brightness, contrast, saturation and hue are composed into one affine map of a sample's channels, followed
by one clamp. Gray is the luma of ITU-R BT.601, 0.299 R + 0.587 G +
0.114 B. Contrast scales the distance from the image's mean gray, saturation that from each pixel's own
gray; both as torchvision has them, but for its rounding and clamping after each. Hue turns the chroma
plane (I, Q) of the YIQ space by a fraction of the circle and leaves the gray unchanged; torchvision instead
shifts the hue of the HSV hexagon, which changes the gray. Images of one channel have brightness and contrast.

**Effects.** Images are float32 (N, C, H, W), contiguous, values 0 to 255. Each function changes the images in place
and returns them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from resnetlab.data.augment.parameters import AugmentationParameters

_LUMA = np.array([0.299, 0.587, 0.114])
_YIQ = np.array([_LUMA, [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])


@dataclass(frozen=True)
class ColorMaps:
    """Affine maps of the channels of N samples.

    Attributes:
        weights: float32 (N, C, C).
        pull: float64 (N, C), what is added for each unit of the image's mean gray.
    """

    weights: Tensor
    pull: Tensor

    def __getitem__(self, rows: slice) -> ColorMaps:
        return ColorMaps(self.weights[rows], self.pull[rows])


def color_maps(samples: AugmentationParameters, channels: int, device: torch.device) -> ColorMaps:
    """Returns the maps that change the colors of images with this number of channels on a device."""
    weights, pull = _maps(samples, channels)
    return ColorMaps(torch.from_numpy(weights).to(device, torch.float32), torch.from_numpy(pull).to(device))


def change_colors(images: Tensor, maps: ColorMaps) -> Tensor:
    """Returns float32 (N, C, H, W), values 0 to 255, with the colors of each sample changed."""
    channels = images.shape[1]
    luma = torch.from_numpy(_LUMA if channels == 3 else np.full(channels, 1 / channels))
    means = images.mean((2, 3)).double() @ luma.to(images.device)
    shift = (maps.pull * means[:, None])[:, :, None].float()
    flat = images.reshape(*images.shape[:2], -1)
    changed = torch.addcmul(shift, flat, maps.weights) if channels == 1 else torch.baddbmm(shift, maps.weights, flat)
    return changed.reshape(images.shape).clamp_(0, 255)


def apply_effects(images: Tensor, samples: AugmentationParameters, *, blur_kernel: int, erase_fill: int) -> Tensor:
    """Changes the images in place, in the fixed order, and returns them."""

    def where(chosen: np.ndarray, effect: Callable[[Tensor, np.ndarray], Tensor]) -> None:
        (rows,) = np.nonzero(chosen)
        if not len(rows):
            return
        if images.device.type == "cpu":  # one image at a time stays in its cache, and needs no copy to be picked out
            for row in rows.tolist():
                effect(images[row : row + 1], np.array([row]))
        else:
            at = torch.from_numpy(rows).to(images.device)
            images[at] = effect(images[at], rows)

    def tensor(values: np.ndarray) -> Tensor:
        return torch.from_numpy(values).to(images.device, torch.float32)[:, None, None, None]

    where(samples.equalize, lambda part, rows: equalize(part))
    where(samples.bits < 8, lambda part, rows: posterize(part, tensor(samples.bits[rows])))
    where(samples.threshold <= 255, lambda part, rows: solarize(part, tensor(samples.threshold[rows])))
    where(samples.autocontrast, lambda part, rows: autocontrast(part))
    where(samples.sharpness != 1, lambda part, rows: sharpen(part, tensor(samples.sharpness[rows])))
    where(samples.sigma > 0, lambda part, rows: blur(part, tensor(samples.sigma[rows]), blur_kernel))
    for row in samples.hole[:, 2].nonzero()[0]:
        top, left, height, width = samples.hole[row].tolist()
        images[row, :, top : top + height, left : left + width] = erase_fill
    return images


def equalize(images: Tensor) -> Tensor:
    """Returns images each of whose channels has a flat histogram, as far as 256 values allow (Pillow's rule)."""
    count, channels, height, width = images.shape
    planes = images.round().long().reshape(count * channels, -1)
    offsets = torch.arange(len(planes), device=images.device)[:, None] * 256
    histograms = torch.bincount((planes + offsets).flatten(), minlength=256 * len(planes)).reshape(-1, 256)
    occupied = torch.where(histograms > 0, torch.arange(256, device=images.device), -1)
    last = histograms.gather(1, occupied.amax(1, keepdim=True))
    step = (height * width - last) // 255
    below = F.pad(histograms.cumsum(1), (1, -1))
    table = ((below + step // 2) // step.clamp(min=1)).clamp(max=255)
    table = torch.where(step == 0, torch.arange(256, device=images.device), table)
    return images.copy_(table.gather(1, planes).reshape(images.shape))


def posterize(images: Tensor, bits: Tensor) -> Tensor:
    """Returns images whose values keep their highest `bits` of 8 bits; bits (N, 1, 1, 1)."""
    step = 2 ** (8 - bits)
    return images.round_().div_(step).floor_().mul_(step)


def solarize(images: Tensor, threshold: Tensor) -> Tensor:
    """Returns images whose values from `threshold` (N, 1, 1, 1) on are inverted."""
    return images.copy_(torch.where(images >= threshold, 255 - images, images))


def autocontrast(images: Tensor) -> Tensor:
    """Returns images each of whose channels reaches from 0 to 255.

    A constant channel is unchanged, up to half a gray level of rounding.
    """
    low, high = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
    constant = high - low < 0.5
    scale = torch.where(constant, 1.0, 255 / (high - low).clamp(min=1e-6))
    return images.sub_(torch.where(constant, 0.0, low)).mul_(scale)


def sharpen(images: Tensor, factor: Tensor) -> Tensor:
    """Returns factor * image + (1 - factor) * smoothed, clamped; factor (N, 1, 1, 1).

    Smoothing is a 3x3 mean whose center counts five times; the outermost pixels are unchanged (Pillow's rule).
    """
    count, channels, height, width = images.shape
    if min(height, width) < 3:
        return images
    # As in `convolve`; what is added across the end of a row is on the outermost pixels, and is not taken.
    pixels = images.view(count, -1)
    rows = pixels[:, : -2 * width] + pixels[:, width:-width]
    rows += pixels[:, 2 * width :]
    smoothed = rows[:, :-2] + rows[:, 1:-1]
    smoothed += rows[:, 2:]
    # Of the thirteenths that the mean is made of, the center has four more than its neighbors.
    factor = factor[:, :, 0, 0]
    share = (1 - factor) / 13
    smoothed.mul_(share).addcmul_(pixels[:, width + 1 : -width - 1], factor + 4 * share).clamp_(0, 255)
    inside = (count, channels, height - 2, width - 2)
    images[:, :, 1:-1, 1:-1] = smoothed.as_strided(inside, (smoothed.stride(0), height * width, width, 1))
    return images


def blur(images: Tensor, sigma: Tensor, kernel_size: int) -> Tensor:
    """Returns images convolved with a Gaussian of `sigma` (N, 1, 1, 1) pixels, edges mirrored."""
    radius = min(kernel_size // 2, *(side - 1 for side in images.shape[2:]))  # mirrored edges reach no further
    taps = torch.exp(-0.5 * (torch.arange(radius + 1, device=images.device) / sigma[:, 0, 0]) ** 2)
    taps = taps / (2 * taps.sum(1, keepdim=True) - 1)  # the center's tap is 1 and counted once
    down = convolve(images, taps, 2, edges="mirror")
    return convolve(down, taps, 3, edges="mirror", out=images)


def convolve(images: Tensor, taps: Tensor, dimension: int, *, edges: str, out: Tensor | None = None) -> Tensor:
    """Returns images convolved along one dimension with a symmetric kernel for each.

    Neighbors along an axis are a fixed way apart in memory, so that whole images are added at once; what
    that brings together across the end of a line is put right afterwards.

    Args:
        images: float (N, C, H, W), contiguous.
        taps: (N, radius + 1), the center's first.
        dimension: 2 (down) or 3 (along the rows).
        edges: the values beyond the first and last pixel: "repeat" repeats these pixels,
            "mirror" mirrors the image about them, for a radius below its length.
        out: where the result goes, other memory than that of the images.
    """
    length, radius = images.shape[dimension], taps.shape[1] - 1
    pixels = images.view(len(images), -1)
    out = torch.empty_like(images) if out is None else out
    total = torch.mul(pixels, taps[:, :1], out=out.view(pixels.shape))
    for offset in range(1, radius + 1):
        way = offset * (images.shape[3] if dimension == 2 else 1)
        if offset < length:
            pair = pixels[:, : -2 * way] + pixels[:, 2 * way :]
            total[:, way:-way].addcmul_(pair, taps[:, offset, None])
    for place in {*range(min(radius, length)), *range(max(length - radius, 0), length)}:
        line = images.select(dimension, place) * taps[:, :1, None]
        for offset in range(1, radius + 1):
            ends = (_within(end, length, edges) for end in (place - offset, place + offset))
            both = torch.add(*(images.select(dimension, end) for end in ends))
            line.addcmul_(both, taps[:, offset, None, None])
        out.select(dimension, place).copy_(line)
    return out


def _maps(samples: AugmentationParameters, channels: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns maps (N, C, C), and (N, C): what is added for each unit of the image's mean gray."""
    count = len(samples)
    factor = samples.brightness * samples.contrast
    # After brightness b the mean gray is b * mean, and contrast c leaves (1 - c) of it.
    pull = samples.brightness * (1 - samples.contrast)
    if channels != 3:
        return factor[:, None, None] * np.eye(channels), np.repeat(pull[:, None], channels, axis=1)
    gray = np.tile(_LUMA, (3, 1))
    saturate = samples.saturation[:, None, None] * np.eye(3) + (1 - samples.saturation)[:, None, None] * gray
    turns = 2 * np.pi * samples.hue
    turn = np.zeros((count, 3, 3))
    turn[:, 0, 0] = 1
    turn[:, 1, 1] = turn[:, 2, 2] = np.cos(turns)
    turn[:, 1, 2], turn[:, 2, 1] = -np.sin(turns), np.sin(turns)
    # A gray has no chroma, so that the shift by the mean gray passes through both unchanged.
    maps = np.linalg.inv(_YIQ) @ turn @ _YIQ @ saturate * factor[:, None, None]
    return maps, np.repeat(pull[:, None], 3, axis=1)


def _within(place: int, length: int, edges: str) -> int:
    if edges == "repeat":
        return min(max(place, 0), length - 1)
    place = abs(place)
    return place if place < length else 2 * (length - 1) - place
