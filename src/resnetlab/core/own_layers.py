"""Layers of yours within a network: each says what it returned if that does not fit the layers around it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from resnetlab.core.errors import UserError
from resnetlab.core.own_code import calling, definition, mark, received

Shape = tuple[int, ...]
Wanted = tuple[int | None, ...]
"""A shape in which None stands for any number."""


def checked_layer(kind: str, name: str, part: Any, *arguments: Any) -> nn.Module:
    """Returns the layer that a part of yours makes, which must return its input's shape, or raises `UserError`.

    Args:
        kind: such as "activation".
        name: of the part.
        part: the class or function.
        *arguments: it is called with these.
    """
    what = f"the {kind} {name!r}{definition(part)}"
    with calling(lambda: what):
        layer = part(*arguments)
    if not isinstance(layer, nn.Module):
        raise UserError(f"{what} must return an nn.Module, got {received(layer)}.")
    check_outputs(layer, what, same_shape)
    return layer


def check_outputs(layer: nn.Module, part: str, shape: Callable[[Shape], Wanted]) -> None:
    """Makes a layer raise `UserError` if it does not return a tensor of the expected shape and of its input's type.

    Args:
        layer: it is marked as `part`, too.
        part: which part of yours it is.
        shape: returns the expected shape for the shape of an input.
    """
    mark(layer, part)
    layer.register_forward_hook(partial(_check, part, shape))


def checks_output(hook: object) -> bool:
    """Whether a hook of a layer is one of `check_outputs`."""
    return isinstance(hook, partial) and hook.func is _check


def same_shape(shape: Shape) -> Wanted:
    """Returns the shape of the input."""
    return shape


def _check(part: str, shape: Callable[[Shape], Wanted], _: nn.Module, inputs: tuple[Any, ...], output: object) -> None:
    x = inputs[0] if inputs else None
    if not isinstance(x, Tensor) or torch.compiler.is_compiling():
        return
    expected = shape(tuple(x.shape))
    mixed = x.device.type != "meta" and torch.is_autocast_enabled(x.device.type)
    if (
        not isinstance(output, Tensor)
        or len(output.shape) != len(expected)
        or any(size not in (None, got) for size, got in zip(expected, output.shape, strict=True))
        or output.device != x.device
        or not (output.dtype == x.dtype or (mixed and output.is_floating_point()))
    ):
        sizes = ", ".join("any" if size is None else str(size) for size in expected)
        raise UserError(
            f"{part} must return a tensor of shape ({sizes}) and type {str(x.dtype).removeprefix('torch.')} on the "
            f"device of its input, got {received(output)}."
        )
