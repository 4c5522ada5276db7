"""Steps of augmentation that change the pixels of a finished batch, and how they are called."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from resnetlab.core.errors import UserError
from resnetlab.core.randomness import Draws, torch_seeded
from resnetlab.core.registry import Call, taken_by


def invert(images: Tensor, generator: np.random.Generator, p: float = 0.1) -> Tensor:
    """Inverts all values of an image, with probability p."""
    chosen = torch.from_numpy(generator.random(len(images)) < p).to(images.device)
    return torch.where(chosen[:, None, None, None], 255 - images, images)


def noise(images: Tensor, generator: np.random.Generator, std: float = 8.0) -> Tensor:
    """Adds Gaussian noise to every value; `std` is on the scale from 0 to 255."""
    drawn = generator.standard_normal(tuple(images.shape), dtype=np.float32)
    return (images + std * torch.from_numpy(drawn).to(images.device)).clamp(0, 255)


def apply_step(step: Callable[..., Any], call: Call, images: Tensor, draws: Draws, part: int = 0) -> Tensor:
    """Returns images after one step.

    A step that takes one argument gets the images only; it may draw from torch's generator, which is seeded here.

    Args:
        step: the function.
        call: its name and options.
        images: float32 (N, C, H, W), values 0 to 255.
        draws: those of this step of the training.
        part: which part of the batch the images are; different parts have different draws.

    Raises:
        UserError: the result is not of the same shape.
    """
    stream = f"augment.steps.{call.name}" + (f" {part}" if part else "")
    taken = taken_by(step)
    generator = () if taken is not None and len(taken) == 1 else (draws.stream(stream),)
    with torch_seeded(draws.seed, stream, epoch=draws.epoch, step=draws.step, device=images.device):
        result = step(images, *generator, **call.options)
    if not isinstance(result, Tensor) or result.shape != images.shape:
        got = f"a tensor of shape {tuple(result.shape)}" if isinstance(result, Tensor) else type(result).__name__
        raise UserError(
            f"the augmentation {call.name!r} must return images of the shape {tuple(images.shape)}, got {got}."
        )
    return result.to(torch.float32)
