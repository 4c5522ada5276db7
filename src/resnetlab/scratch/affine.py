"""The affine map of a fully connected layer."""

from __future__ import annotations

import torch
from torch import Tensor

from resnetlab.core.errors import UserError


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Returns the affine map y = x @ weight.T + bias along the last axis.

    Args:
        x: (..., D).
        weight: (O, D).
        bias: (O,), or None.

    Returns:
        (..., O).

    Raises:
        UserError: the shapes do not fit each other.
    """
    if weight.ndim != 2 or x.ndim < 1 or x.shape[-1] != weight.shape[1]:
        raise UserError(
            f"linear expects inputs (..., D) and a weight (O, D), got {tuple(x.shape)} and {tuple(weight.shape)}. "
            "Change in_features of the layer, or flatten the images before it."
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise UserError(f"linear expects a bias of shape ({weight.shape[0]},), got {tuple(bias.shape)}.")
    rows = x.reshape(-1, x.shape[-1])
    y = rows.mm(weight.t()) if bias is None else torch.addmm(bias, rows, weight.t())
    return y.view(*x.shape[:-1], weight.shape[0])
