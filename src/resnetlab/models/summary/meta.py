"""Networks on torch's meta device: all of their structure, none of their memory."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from resnetlab.core.errors import UserError
from resnetlab.models.summary.shape_rules import ShapesOnly


@contextmanager
def without_memory() -> Iterator[None]:
    """Networks made in this context have shapes and no values: thousands of layers take no time and draw nothing."""
    with torch.device("meta"), ShapesOnly():
        yield


def structure_of(model: nn.Module) -> nn.Module:
    """Returns a copy of a network's structure: tensors have shapes and no values, and nobody's hooks are there.

    Raises:
        UserError: the network has layers that wait for a first batch to know their shapes.
    """
    copies: dict[int, Any] = {}
    for module in model.modules():
        for name, value in vars(module).items():
            if isinstance(value, OrderedDict) and "_hooks" in name:
                copies[id(value)] = OrderedDict()
            elif isinstance(value, Tensor):  # neither a parameter nor a buffer
                copies[id(value)] = _without_values(value)
    for tensor in [*model.parameters(), *model.buffers()]:
        if nn.parameter.is_lazy(tensor):
            raise UserError(
                f"{type(model).__name__} has layers whose shapes are not known yet. Run it once on a batch of images."
            )
        copies[id(tensor)] = _without_values(tensor)
    return copy.deepcopy(model, memo=copies)


def _without_values(tensor: Tensor) -> Tensor:
    dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
    twin = torch.empty(tensor.shape, dtype=dtype, device="meta")
    return nn.Parameter(twin, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else twin
