"""What is neither geometry nor an affine map of colors: each function changes the images it is given, in place.

Images are float32 (N, C, H, W), contiguous, values 0 to 255. Each function returns them.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from resnetlab.data.augment.filters import convolve
from resnetlab.data.augment.parameters import Samples


def apply_effects(images: Tensor, samples: Samples, *, blur_kernel: int, erase_fill: int) -> Tensor:
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

    A channel that is constant stays as it is, up to half a gray level of rounding.
    """
    low, high = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
    constant = high - low < 0.5
    scale = torch.where(constant, 1.0, 255 / (high - low).clamp(min=1e-6))
    return images.sub_(torch.where(constant, 0.0, low)).mul_(scale)


def sharpen(images: Tensor, factor: Tensor) -> Tensor:
    """Returns factor * image + (1 - factor) * smoothed, clamped; factor (N, 1, 1, 1).

    Smoothing is a 3x3 mean whose center counts five times; the outermost pixels stay as they are (Pillow's rule).
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
