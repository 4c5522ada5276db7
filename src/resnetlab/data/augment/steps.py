"""Steps of augmentation that change the pixels of a finished batch, and how they are called."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from resnetlab.core.errors import UserError
from resnetlab.core.own_code import received
from resnetlab.core.randomness import Draws, torch_seeded
from resnetlab.core.registry import Call, Registry, taken_by


def invert(images: Tensor, generator: np.random.Generator, p: float = 0.1) -> Tensor:
    """Inverts all values of an image, with probability p."""
    chosen = torch.from_numpy(generator.random(len(images)) < p).to(images.device)
    return torch.where(chosen[:, None, None, None], 255 - images, images)


def noise(images: Tensor, generator: np.random.Generator, std: float = 8.0) -> Tensor:
    """Adds Gaussian noise to every value; `std` is on the scale from 0 to 255."""
    drawn = generator.standard_normal(tuple(images.shape), dtype=np.float32)
    return (images + std * torch.from_numpy(drawn).to(images.device)).clamp(0, 255)


def apply_step(steps: Registry, call: Call, images: Tensor, draws: Draws, part: int = 0) -> Tensor:
    """Returns images after one step.

    A step that takes one argument gets the images only; it may draw from torch's generator, which is seeded here.

    Args:
        steps: the functions by name.
        call: the name and options of the step.
        images: float32 (N, C, H, W), values 0 to 255.
        draws: those of this step of the training.
        part: which part of the batch the images are; different parts have different draws.

    Raises:
        UserError: the result is not of the same shape.
    """
    step = steps[call.name]
    stream = f"augment.steps.{call.name}" + (f" {part}" if part else "")
    taken = taken_by(step)
    generator = () if taken is not None and len(taken) == 1 else (draws.stream(stream),)
    seeded = torch_seeded(draws.seed, stream, epoch=draws.epoch, step=draws.step, device=images.device)
    with seeded, steps.calling(call.name):
        result = step(images, *generator, **call.options)
    fits = isinstance(result, Tensor) and result.shape == images.shape and result.device == images.device
    if not fits or result.dtype == torch.bool or result.is_complex():
        raise UserError(
            f"{steps.title(call.name)} must return images as a tensor of shape {tuple(images.shape)} and type float32, "
            f"got {received(result)}."
        )
    return result.detach().to(torch.float32)
