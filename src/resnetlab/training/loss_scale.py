"""Loss scaling: small gradients survive float16, and large ones lower the scale (Micikevicius et al. 2018)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from resnetlab.training.machine import Machine

START, GROWTH_STEPS = 2.0**16, 2000
"""The first scale, and the number of steps without overflow after which the scale doubles."""


class LossScale:
    """The factor of the loss in the backward pass. It stays on the device, so nothing waits for it.

    Attributes:
        scale: a scalar, the factor.
        steps: a scalar, the steps since the scale changed.
    """

    def __init__(self, device: torch.device | str) -> None:
        self.scale = torch.full((), START, device=device)
        self.steps = torch.zeros((), dtype=torch.int64, device=device)

    def unscale(self, parameters: Iterable[nn.Parameter]) -> None:
        """Divides all gradients by the scale, in place."""
        factor = 1 / self.scale
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad.mul_(factor)

    def update(self, finite: Tensor) -> None:
        """Halves the scale after an overflow, and doubles it after `GROWTH_STEPS` steps without one."""
        grows = finite & (self.steps + 1 >= GROWTH_STEPS)
        factor = torch.where(finite, torch.where(grows, 2.0, 1.0), 0.5)
        self.scale.mul_(factor)
        self.steps.copy_(torch.where(finite & ~grows, self.steps + 1, 0))

    def is_lost(self, finite: Tensor) -> Tensor:
        """Whether a step that is not finite means more than a scale that was too large."""
        return ~finite & (self.scale < 1)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint contains."""
        return {"scale": self.scale, "steps": self.steps}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Sets the state to that of a checkpoint."""
        for name, value in self.tensors.items():
            value.copy_(tensors[name])


def scaling_for(machine: Machine) -> LossScale | None:
    """Returns the loss scaling that a precision needs, or None."""
    return LossScale(machine.device) if machine.precision == "float16" else None
