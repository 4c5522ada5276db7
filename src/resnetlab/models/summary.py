"""Shapes, parameters and multiply-accumulates of a network, measured without running it.

The forward pass runs on torch's meta device, over a copy that shares the structure and none of
the memory: no arithmetic is done, and mode, buffers and random state of the network stay as
they are.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from torch import Tensor, nn

from resnetlab.core.checks import check_integer
from resnetlab.core.console import render
from resnetlab.core.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One row of a summary.

    Attributes:
        name: the module's name in the network.
        kind: its class.
        output_shape: what it returns, with N = 1.
        parameters: trainable parameters within it.
        macs: multiply-accumulates of the convolutions and linear layers within it, for one image.
        is_leaf: whether it holds no other module.
    """

    name: str
    kind: str
    output_shape: tuple[int, ...]
    parameters: int
    macs: int
    is_leaf: bool


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What `summarize` found.

    Attributes:
        model: the network's class.
        input_shape: (C, H, W).
        layers: every module in the order of execution, a parent after its children.
        parameters: trainable parameters.
        macs: multiply-accumulates of convolutions and linear layers for one image, with no bias or
            normalisation counted: one FLOP in the sense of He et al., half of what profilers that
            count additions apart report.
    """

    model: str
    input_shape: tuple[int, ...]
    layers: tuple[Layer, ...]
    parameters: int
    macs: int

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        shape = "x".join(map(str, self.input_shape))
        table = Table(title=f"{self.model}, input {shape}", title_justify="left", show_footer=True)
        table.add_column("layer", "total")
        table.add_column("kind")
        table.add_column("output", justify="right")
        table.add_column("parameters", f"{self.parameters:,}", justify="right")
        table.add_column("MACs", f"{self.macs:,}", justify="right")
        for layer in self._shown():
            output = "x".join(map(str, layer.output_shape[1:]))
            table.add_row(layer.name, layer.kind, output, f"{layer.parameters:,}", f"{layer.macs:,}")
        yield table

    def _shown(self) -> list[Layer]:
        """The blocks, and the layers that belong to none: a screen, not a scroll."""
        containers = ("Sequential", "Identity")
        shown: list[Layer] = []
        for layer in reversed(self.layers):
            inside = any(layer.name.startswith(f"{block.name}.") for block in shown)
            if not inside and layer.kind not in containers:
                shown.append(layer)
        return shown[::-1]

    def __str__(self) -> str:
        return render(self)

    __repr__ = __str__


def summarize(model: nn.Module, input_shape: Sequence[int]) -> Summary:
    """Returns the layers of `model` with shapes, parameters and multiply-accumulates.

    Args:
        model: any network; it is not run and not changed.
        input_shape: (C, H, W) of one image.

    Raises:
        UserError: `input_shape` is not three positive integers, or does not fit the network.
    """
    if not isinstance(model, nn.Module):
        raise UserError(f"summarize takes a network, got {model!r}. Build one with create_model.")
    if not isinstance(input_shape, Sequence) or len(input_shape) != 3:
        raise UserError(f"input_shape must be (C, H, W), got {input_shape!r}.")
    shape = tuple(check_integer("every entry of input_shape", size, 1) for size in input_shape)
    twin = _meta_twin(model)
    layers: list[Layer] = []
    names = {module: name for name, module in twin.named_modules() if name}

    def record(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        children = [layer for layer in layers if layer.name.startswith(f"{names[module]}.")]
        is_leaf = not any(module.children())
        layers.append(
            Layer(
                name=names[module],
                kind=type(module).__name__,
                output_shape=tuple(output.shape),
                parameters=_parameters(module),
                macs=_macs(module, output) if is_leaf else sum(child.macs for child in children if child.is_leaf),
                is_leaf=is_leaf,
            )
        )

    for module in names:
        module.register_forward_hook(record)
    with torch.no_grad():
        twin.eval()(torch.empty(1, *shape, device="meta"))
    return Summary(
        model=type(model).__name__,
        input_shape=shape,
        layers=tuple(layers),
        parameters=_parameters(model),
        macs=sum(layer.macs for layer in layers if layer.is_leaf),
    )


def _meta_twin(model: nn.Module) -> nn.Module:
    """Returns a copy of the structure whose tensors have shapes and no memory."""
    tensors: dict[int, Tensor] = {}
    for parameter in model.parameters():
        tensors[id(parameter)] = nn.Parameter(parameter.to("meta").float(), requires_grad=parameter.requires_grad)
    for buffer in model.buffers():
        tensors[id(buffer)] = buffer.to("meta")
    twin = copy.deepcopy(model, memo=dict(tensors))
    for module in twin.modules():
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
    return twin


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


def _macs(module: nn.Module, output: Tensor) -> int:
    """Every output value of a convolution or linear layer sums the products with one filter."""
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor) or weight.ndim < 2:
        return 0
    return output[0].numel() * math.prod(weight.shape[1:])
