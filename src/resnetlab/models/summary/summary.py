"""Shapes, parameters, costs and shortcuts of a network, measured without running it."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text
from torch import nn

from resnetlab.core.checks import check_choice, check_integer
from resnetlab.core.errors import UserError
from resnetlab.models.config import ResNetConfig
from resnetlab.models.resnet import ResNet
from resnetlab.models.summary.drawing import draw
from resnetlab.models.summary.meta import without_memory
from resnetlab.models.summary.outline import shape_text
from resnetlab.models.summary.styles import gluon_table, trace_lines
from resnetlab.models.summary.table import summary_table
from resnetlab.models.summary.tracing import Layer, trace

if TYPE_CHECKING:
    import pandas as pd

STYLES = ("table", "gluon", "trace", "trace-gluon")
WIDTH = 100
"""Columns of a summary where nothing narrower is there."""


@dataclass(frozen=True, kw_only=True, repr=False)
class Summary:
    """What `summarize` found; `print` shows it in its style.

    Attributes:
        model: what the network is called; its class where nobody said.
        input_shape: (C, H, W).
        output_shape: what comes out for one image, with N = 1.
        layers: every call of a module in the order of their ends, a parent after its children; a module called
            twice is there twice.
        parameters: trainable parameters, each once.
        fixed: values that are saved with the network and not trained: running statistics, frozen parameters.
        macs: multiply-accumulates of convolutions and linear layers for one image, with no bias, normalization or
            activation counted: what He et al. call FLOPs.
        activation_bytes: memory in float32 of the outputs of all modules for one image. Training keeps about this
            for each image of a batch, because the backward pass reads it. An output that shares its memory with
            another, of an identity, an activation in place or a flattening, counts once; what is computed between
            modules and handed to the next at once, such as a sum before its activation, does not count.
        style: "table", for reading; "gluon", the table of Gluon's `summary`; "trace", a shape a line for what the
            network calls itself; "trace-gluon", the same under Gluon's names.
    """

    model: str
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    layers: tuple[Layer, ...]
    parameters: int
    fixed: int
    macs: int
    activation_bytes: int
    style: str = "table"

    @property
    def flops(self) -> int:
        """Floating-point operations of the same layers: two a multiply-accumulate, its multiplication and addition."""
        return 2 * self.macs

    def to_frame(self) -> pd.DataFrame:
        """Returns a row for every call of a module, in the order of `layers`.

        Columns: `name`, `kind` (its class), `depth`, `is_leaf`, `input_shape` and `output_shape` ("64x112x112",
        without N), `computes`, `shortcut` and `order` (see `Layer`), `parameters` (trainable, within it), `fixed`,
        `macs`, `flops`, `activation_bytes`. Containers and blocks hold the sums of what is within them, so that a
        column's total is that of the rows where `is_leaf`.
        """
        import pandas as pd

        return pd.DataFrame([self._row(layer) for layer in self.layers])

    def to_dict(self) -> dict[str, Any]:
        """Returns the totals and the rows of `to_frame`, ready for JSON."""
        names = ("parameters", "fixed", "macs", "flops", "activation_bytes")
        return {
            "model": self.model,
            "input_shape": list(self.input_shape),
            "output_shape": list(self.output_shape[1:]),
            "totals": {name: getattr(self, name) for name in names},
            "layers": [self._row(layer) for layer in self.layers],
        }

    def to_svg(self) -> str:
        """Returns a drawing of the architecture, its shortcuts as arcs, as one SVG document."""
        return draw(self)

    def trace(self, *, names: str = "own", counters: Mapping[str, int] | None = None) -> str:
        """Returns name and output shape of what the network calls itself, a line each.

        Args:
            names: "own", or "gluon": Gluon's kinds of layers, numbered.
            counters: the first number of each kind of layer, such as {"conv": 5}. Gluon numbers the layers of a whole
                process. The default reproduces the d2l notebook, which had built five convolutions, four
                normalizations and one sequence before this network.
        """
        check_choice("names", names, ("own", "gluon"))
        return trace_lines(self.layers, gluon=names == "gluon", counters=counters)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if self.style == "table":
            yield from summary_table(self, min(WIDTH, options.max_width))
        else:
            yield Text(str(self), no_wrap=True, overflow="ignore", end="\n")

    def __str__(self) -> str:
        if self.style == "gluon":
            return gluon_table(self)
        if self.style != "table":
            return self.trace(names="gluon" if self.style == "trace-gluon" else "own")
        page = io.StringIO()
        Console(file=page, width=WIDTH, color_system=None, force_terminal=False).print(self)
        return "\n".join(line.rstrip() for line in page.getvalue().rstrip().splitlines())

    __repr__ = __str__

    def _row(self, layer: Layer) -> dict[str, Any]:
        return {
            "name": layer.name,
            "kind": layer.kind,
            "depth": layer.depth,
            "is_leaf": layer.is_leaf,
            "input_shape": shape_text(layer.input_shape),
            "output_shape": shape_text(layer.output_shape),
            "computes": layer.computes,
            "shortcut": layer.shortcut,
            "order": layer.order,
            "parameters": layer.parameters,
            "fixed": layer.fixed,
            "macs": layer.macs,
            "flops": layer.flops,
            "activation_bytes": layer.activation_bytes,
        }


def summarize(
    model: nn.Module, input_shape: Sequence[int], *, style: str = "table", name: str | None = None
) -> Summary:
    """Returns the layers of `model` with shapes, parameters, costs, and what is added to what.

    Args:
        model: any network, of ours or not; it is neither run nor changed.
        input_shape: (C, H, W) of one image.
        style: how it is printed: "table", "gluon", "trace" or "trace-gluon"; see `Summary`.
        name: what to call the network; its class without it.

    Raises:
        UserError: `input_shape` is not three positive integers, or does not fit the network; an unknown style.
    """
    if not isinstance(model, nn.Module):
        raise UserError(f"summarize takes a network, got {model!r}. Build one with create_model.")
    if not isinstance(input_shape, Sequence) or isinstance(input_shape, str) or len(input_shape) != 3:
        raise UserError(f"input_shape must be (C, H, W), got {input_shape!r}.")
    check_choice("style", style, STYLES)
    shape = tuple(check_integer("every entry of input_shape", size, 1) for size in input_shape)
    *layers, network = trace(model, shape)
    return Summary(
        model=name or network.kind,
        input_shape=shape,
        output_shape=network.output_shape,
        layers=tuple(layers),
        parameters=network.parameters,
        fixed=network.fixed,
        macs=network.macs,
        activation_bytes=network.activation_bytes,
        style=style,
    )


def blueprint(config: ResNetConfig) -> ResNet:
    """Returns a network that has shapes and no values, for `summarize`: it costs no memory and draws nothing."""
    with without_memory():
        return ResNet(config)


def count(config: ResNetConfig, image_size: int) -> tuple[int, int]:
    """Returns the trainable parameters and multiply-accumulates of a network, without building all of it.

    The blocks of a stage are equal from the second on: two are built, and the second is counted for the rest. Nor
    does it matter what the layers are made of.
    """
    depths = config.depths
    short = dataclasses.replace(config, depths=tuple(min(2, depth) for depth in depths), parts="torch")
    summary = summarize(blueprint(short), (config.in_channels, image_size, image_size))
    parameters, macs = summary.parameters, summary.macs
    seconds = {layer.name: layer for layer in summary.layers}
    for number, depth in enumerate(depths, 1):
        if depth > 2:
            second = seconds[f"layer{number}.1"]
            parameters += (depth - 2) * second.parameters
            macs += (depth - 2) * second.macs
    return parameters, macs
