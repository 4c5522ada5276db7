"""Comparing the answer of somebody's code with the right one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_TOLERANCE = 2e-4


def equal(found: Any, wanted: Any) -> bool:
    """Whether an answer has the wanted values up to rounding; shapes with equally many values count as equal."""
    if isinstance(wanted, (tuple, list)):
        return isinstance(found, (tuple, list)) and len(found) == len(wanted) and all(map(equal, found, wanted))
    if not isinstance(found, Tensor):
        try:
            found = torch.as_tensor(found)
        except (TypeError, ValueError, RuntimeError):
            return False
    if found.shape != wanted.shape and found.numel() != wanted.numel():
        return False
    found, wanted = found.detach().double().reshape(-1), wanted.detach().double().reshape(-1)
    scale = max(1e-6, float(wanted.abs().max())) if wanted.numel() else 1.0
    return bool(((found - wanted).abs() <= _TOLERANCE * scale).all())


def shown(value: Any) -> str:
    """Returns the first numbers of an answer."""
    if isinstance(value, (tuple, list)):
        return "; ".join(shown(one) for one in value if one is not None)[:160]
    if not isinstance(value, Tensor):
        return str(value)[:80]
    numbers = [f"{float(one):.4g}" for one in value.detach().reshape(-1)[:6]]
    more = ", ..." if value.numel() > 6 else ""
    return f"{'x'.join(map(str, value.shape)) or 'one value'}: {', '.join(numbers)}{more}"


def gradients(function: Callable[..., Tensor], *tensors: Tensor | None) -> list[Tensor]:
    """Returns the gradients of a fixed projection of a function's value with respect to tensors."""
    with torch.enable_grad():
        leaves = [None if one is None else one.detach().clone().requires_grad_() for one in tensors]
        value = function(*leaves)
        weights = torch.linspace(0.5, 1.5, value.numel(), dtype=value.dtype).reshape(value.shape)
        (value * weights).sum().backward()
    return [one.grad if one.grad is not None else torch.zeros_like(one) for one in leaves if one is not None]
