"""Networks on torch's meta device: their structure and the shapes of their tensors, without memory.

torch's own shape rules for the meta device are written in Python. A batch normalization takes them one or two
milliseconds, and the first convolution imports a compiler, which takes seconds. The rules here cover the few operations
that networks of this family use. Any other operation or unusual argument, and every error, is left to torch.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from resnetlab.core.errors import UserError
from resnetlab.core.own_layers import checks_output

_aten = torch.ops.aten
_IN_PLACE = {_aten.add_, _aten.copy_, _aten.fill_, _aten.mul_, _aten.normal_, _aten.relu_, _aten.uniform_, _aten.zero_}


@contextmanager
def without_memory() -> Iterator[None]:
    """A context in which new networks have shapes but no values, so that thousands of layers are built at once."""
    with torch.device("meta"), ShapesOnly():
        yield


def structure_of(model: nn.Module) -> nn.Module:
    """Returns a copy of a network on the meta device, without hooks but those that check the output of a layer.

    Raises:
        UserError: the network has lazy layers, whose shapes are unknown before the first batch.
    """
    copies: dict[int, Any] = {}
    for module in model.modules():
        for name, value in vars(module).items():
            if isinstance(value, OrderedDict) and "_hooks" in name:
                copies[id(value)] = OrderedDict((key, hook) for key, hook in value.items() if checks_output(hook))
            elif isinstance(value, Tensor):  # neither a parameter nor a buffer
                copies[id(value)] = _without_values(value)
    for tensor in [*model.parameters(), *model.buffers()]:
        if nn.parameter.is_lazy(tensor):
            raise UserError(
                f"{type(model).__name__} has lazy layers without known shapes. Run it once on a batch of images."
            )
        copies[id(tensor)] = _without_values(tensor)
    return copy.deepcopy(model, memo=copies)


def _without_values(tensor: Tensor) -> Tensor:
    dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
    twin = torch.empty(tensor.shape, dtype=dtype, device="meta")
    return nn.Parameter(twin, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else twin


class ShapesOnly(TorchDispatchMode):
    """A context in which operations on meta tensors use the shape rules of this module."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # otherwise the first operation imports the compiler

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """Returns meta tensors with the shapes of the results."""
        return run_on_shapes(func, args, kwargs or {})


def run_on_shapes(operation: Any, args: tuple, kwargs: dict) -> Any:
    """Runs one operation: by a rule of this module if there is one and its first tensor is meta, else by torch."""
    first = args[0] if args else None
    if isinstance(first, list) and first:  # of tensors to concatenate
        first = first[0]
    if isinstance(first, Tensor) and first.is_meta and not kwargs:
        if operation.overloadpacket in _IN_PLACE:
            return first
        rule = _RULES.get(operation)
        shape = None if rule is None else rule(*args)
        if shape is not None:
            output = torch.empty(shape, dtype=first.dtype, device="meta")
            # The statistics of a normalization and the indices of a pooling are not used, so any tensor will do.
            return (output,) * _OUTPUTS[operation] if operation in _OUTPUTS else output
    return operation(*args, **kwargs)


def _same(x: Tensor, *rest: Any) -> Sequence[int]:
    return x.shape


def _normalization(x: Tensor, *statistics: Any) -> Sequence[int] | None:
    known = [tensor.shape for tensor in statistics if isinstance(tensor, Tensor)]
    return x.shape if all(shape == x.shape[1:2] for shape in known) else None


def _group_normalization(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, images: int, channels: int, pixels: int, groups: int, *_: Any
) -> Sequence[int] | None:
    return None if channels % groups else _normalization(x, weight, bias)


def _broadcast(first: Tensor, second: Any) -> Sequence[int] | None:
    if isinstance(second, (int, float)):  # unless the sum has another type
        keeps = first.is_floating_point() or (type(second) is int and first.dtype == torch.int64)
        return first.shape if keeps else None
    if not isinstance(second, Tensor) or first.dtype != second.dtype or first.ndim != second.ndim:
        return None
    pairs = list(zip(first.shape, second.shape, strict=True))
    return [max(pair) for pair in pairs] if all(a == b or 1 in (a, b) for a, b in pairs) else None


def _of_real(x: Tensor, *rest: Any) -> Sequence[int] | None:
    return x.shape if x.is_floating_point() else None


def _quotient(first: Tensor, second: Any) -> Sequence[int] | None:
    return _broadcast(first, second) if first.is_floating_point() else None


def _convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> Sequence[int] | None:
    if transposed or x.ndim != weight.ndim or x.shape[1] != weight.shape[1] * groups:
        return None
    return _windows(x, weight.shape[0], weight.shape[2:], stride, padding, dilation, False)


def _pool(
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    ceil: bool = False,
) -> Sequence[int] | None:
    return _windows(x, x.shape[1], kernel, stride or kernel, padding, dilation, ceil)


def _average_pool(
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0, 0),
    ceil: bool = False,
    *rest: Any,
) -> Sequence[int] | None:
    return _pool(x, kernel, stride, padding, (1, 1), ceil)


def _windows(
    x: Tensor,
    channels: int,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil: bool,
) -> Sequence[int] | None:
    """Returns the shape of a map with one position per window, or None to leave it to torch."""
    axes = x.ndim - 2
    if axes < 1 or any(len(sizes) != axes for sizes in (kernel, stride, padding, dilation)):
        return None
    places = []
    for axis in range(axes):
        size, step = x.shape[axis + 2], stride[axis]
        free = size + 2 * padding[axis] - dilation[axis] * (kernel[axis] - 1) - 1
        count = -(-free // step) if ceil else free // step
        if ceil and count * step >= size + padding[axis]:  # a window must start on the map or in its leading padding
            count -= 1
        if free < 0:
            return None
        places.append(count + 1)
    return (x.shape[0], channels, *places)


def _affine(bias: Tensor, x: Tensor, weight: Tensor) -> Sequence[int] | None:
    both = x.ndim == weight.ndim == 2 and x.shape[1] == weight.shape[0]
    return (x.shape[0], weight.shape[1]) if both and bias.shape == weight.shape[1:] else None


def _mean(x: Tensor, axes: Sequence[int] | None, keep: bool = False) -> Sequence[int] | None:
    if not axes or not keep:
        return None
    averaged = {axis % x.ndim for axis in axes}
    return [1 if axis in averaged else size for axis, size in enumerate(x.shape)]


def _concatenated(tensors: Sequence[Tensor], axis: int = 0) -> Sequence[int] | None:
    shape = list(tensors[0].shape)
    others = [list(tensor.shape) for tensor in tensors[1:]]
    is_axis = -len(shape) <= axis < len(shape)
    if not is_axis or any(tensor.dtype != tensors[0].dtype or tensor.ndim != len(shape) for tensor in tensors):
        return None
    axis %= len(shape)
    if any(other[:axis] + other[axis + 1 :] != shape[:axis] + shape[axis + 1 :] for other in others):
        return None
    shape[axis] += sum(other[axis] for other in others)
    return shape


def _pad(x: Tensor, padding: Sequence[int], value: float = 0) -> Sequence[int]:
    shape = list(x.shape)
    for axis, (before, after) in enumerate(zip(padding[::2], padding[1::2], strict=True), 1):
        shape[-axis] += before + after
    return shape


_RULES: dict[Any, Callable[..., Sequence[int] | None]] = {
    _aten.add.Tensor: _broadcast,
    _aten.mul.Tensor: _broadcast,
    _aten.sub.Tensor: _broadcast,
    _aten.div.Tensor: _quotient,
    _aten.maximum.default: _broadcast,
    _aten.pow.Tensor_Scalar: _of_real,
    _aten.neg.default: _same,
    _aten.exp.default: _of_real,
    _aten.sqrt.default: _of_real,
    _aten.reciprocal.default: _of_real,
    _aten.relu.default: _same,
    _aten.sigmoid.default: _same,
    _aten.silu.default: _same,
    _aten.gelu.default: _same,
    _aten.elu.default: _same,
    _aten.leaky_relu.default: _same,
    _aten.native_batch_norm.default: _normalization,
    _aten.native_group_norm.default: _group_normalization,
    _aten.convolution.default: _convolution,
    _aten.max_pool2d_with_indices.default: _pool,
    _aten.avg_pool2d.default: _average_pool,
    _aten.mean.dim: _mean,
    _aten.addmm.default: _affine,
    _aten.cat.default: _concatenated,
    _aten.constant_pad_nd.default: _pad,
}
_OUTPUTS = {
    _aten.native_batch_norm.default: 3,
    _aten.native_group_norm.default: 3,
    _aten.max_pool2d_with_indices.default: 2,
}
