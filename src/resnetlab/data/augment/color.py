"""All color of a sample as one affine map of its channels, then one clamp.

The order is brightness, contrast, saturation, hue. Gray is the luma of ITU-R BT.601, 0.299 R + 0.587 G +
0.114 B. Contrast scales the distance from the image's mean gray, saturation that from each pixel's own
gray; both as torchvision has them, but for its rounding and clamping after each. Hue turns the chroma
plane (I, Q) of the YIQ space by a share of the circle and leaves the gray as it is; torchvision instead
shifts the hue of the HSV hexagon, which changes the gray. Images of one channel have brightness and contrast.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from resnetlab.data.augment.parameters import Samples

_LUMA = np.array([0.299, 0.587, 0.114])
_YIQ = np.array([_LUMA, [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])


def change_colors(images: Tensor, samples: Samples) -> Tensor:
    """Returns float32 (N, C, H, W), values 0 to 255, with the colors of each sample changed."""
    channels = images.shape[1]
    luma = torch.from_numpy(_LUMA if channels == 3 else np.full(channels, 1 / channels))
    maps, pull = _maps(samples, channels)
    means = images.mean((2, 3)).double() @ luma.to(images.device)
    weights, shift = (torch.from_numpy(values).to(images.device) for values in (maps, pull))
    shift = (shift * means[:, None])[:, :, None].float()
    flat = images.reshape(*images.shape[:2], -1)
    if channels == 1:
        changed = torch.addcmul(shift, flat, weights.float())
    else:
        changed = torch.baddbmm(shift, weights.float(), flat)
    return changed.reshape(images.shape).clamp_(0, 255)


def _maps(samples: Samples, channels: int) -> tuple[np.ndarray, np.ndarray]:
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
