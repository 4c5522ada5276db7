"""Shapes, parameters, costs and shortcuts of a network, measured without running it."""

from __future__ import annotations

import dataclasses
import functools
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text
from torch import nn

from resnetlab.core.checks import check_choice, check_integer, known_arguments
from resnetlab.core.errors import UserError, brief, unknown
from resnetlab.core.foreign import SUMMARY
from resnetlab.models.attention import ATTENTIONS
from resnetlab.models.blocks import BLOCK_CLASSES
from resnetlab.models.catalog import TABLE1, source_of
from resnetlab.models.config import ResNetConfig
from resnetlab.models.normalizations import NORMALIZATIONS
from resnetlab.models.resnet import ResNet
from resnetlab.models.summary.block_drawing import draw_block
from resnetlab.models.summary.drawing import draw
from resnetlab.models.summary.layers import Architecture, Layer
from resnetlab.models.summary.outline import main_layers, named_blocks, projections, shape_text
from resnetlab.models.summary.shapes import without_memory
from resnetlab.models.summary.styles import gluon_table, trace_lines
from resnetlab.models.summary.table import summary_table
from resnetlab.models.summary.tracing import trace
from resnetlab.scratch.activations import ACTIVATIONS

if TYPE_CHECKING:
    import pandas as pd

STYLES = ("table", "gluon", "trace", "trace-gluon")
WIDTH = 100
"""The largest width of a summary, in columns."""


class Drawing(str):
    """An SVG document; the last line of a notebook's cell displays it."""

    def _repr_svg_(self) -> str:
        return str(self)


@dataclass(frozen=True, kw_only=True, repr=False)
class Summary(Architecture):
    """What `summarize` returns; `print` shows it in its style.

    Attributes:
        model, input_shape, output_shape, layers, parameters, fixed, macs, activation_bytes: see `Architecture`.
        style: "table", for reading; "gluon", the table that Gluon's `summary` prints; "trace", one line with the output
            shape of each layer that the network calls itself; "trace-gluon", the same with Gluon's names.
        source: the teaching text that built this network, whose rows a trace prints; "" for other networks.
    """

    style: str = "table"
    source: str = ""

    @property
    def depth(self) -> int:
        """Convolutions and linear layers on the main path, as papers count them: ResNet-18 has 18."""
        return main_layers(self.layers)

    @property
    def projections(self) -> int:
        """Convolutions on shortcuts, which papers do not count."""
        return projections(self.layers)

    def to_frame(self) -> pd.DataFrame:
        """Returns one row for every call of a module, in the order of `layers`.

        Columns: `name`, `kind` (its class), `depth`, `is_leaf`, `input_shape` and `output_shape` ("64x112x112",
        without N), `computes`, `shortcut` and `order` (see `Layer`), `parameters` (trainable), `fixed`,
        `macs`, `flops`, `activation_bytes`. The figures of a container or block include those of its children, so the
        total of a column is the sum over rows with `is_leaf`.
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
            "depth": self.depth,
            "projections": self.projections,
            "totals": {name: getattr(self, name) for name in names},
            "layers": [self._row(layer) for layer in self.layers],
        }

    def to_svg(self, block: str | None = None) -> Drawing:
        """Returns a drawing of the architecture, with its shortcuts, as one SVG document, which notebooks display.

        Args:
            block: draw only this block, with every layer, next to the same block without its shortcut: "stage2.block1",
                or the name of its module, such as "layer2.0".

        Raises:
            UserError: the block does not exist.
        """
        if block is None:
            return Drawing(draw(self))
        blocks = named_blocks(self.layers)
        found = blocks.get(block) or next((layer for layer in blocks.values() if layer.name == block), None)
        if found is None:
            raise unknown("block", block, blocks)
        return Drawing(draw_block(self.model, block, found))

    def trace(self, *, names: str = "own", counters: Mapping[str, int] | None = None, batch: int | None = None) -> str:
        """Returns name and output shape of what the network calls itself, a line each.

        The networks of d2l and of the Table 1 notebook are traced as there: with the same rows, names and batch.

        Args:
            names: "own", or "gluon": Gluon's kinds of layers, numbered.
            counters: the first number of each kind of layer, such as {"conv": 5}. Gluon numbers the layers of a whole
                process. The default reproduces the d2l notebook, which had built five convolutions, four
                normalizations and one sequence before this network.
            batch: the number of images, N; by default that of the text, or 1.
        """
        check_choice("names", names, ("own", "gluon"))
        gluon = names == "gluon"
        usual = 5 if self.source == TABLE1 and not gluon else 1
        images = usual if batch is None else check_integer("batch", batch, 1)
        return trace_lines(self.layers, gluon=gluon, counters=counters, source=self.source, batch=images)

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


@known_arguments(SUMMARY)
def summarize(
    model: nn.Module, input_shape: Sequence[int], *, style: str = "table", name: str | None = None
) -> Summary:
    """Returns the layers of `model` with shapes, parameters, costs and shortcuts.

    Args:
        model: any `nn.Module`; it is neither run nor changed.
        input_shape: (C, H, W) of one image.
        style: how `print` shows it: "table", "gluon", "trace" or "trace-gluon"; see `Summary`.
        name: name of the network; by default its class.

    Raises:
        UserError: `input_shape` is not three positive integers or does not fit the network, or the style is unknown.
    """
    if not isinstance(model, nn.Module):
        named = repr(model) if isinstance(model, str) else "NAME"
        raise UserError(
            f"summarize expects a network (nn.Module), got {brief(model)}. Build one with create_model({named})."
        )
    if not isinstance(input_shape, Sequence) or isinstance(input_shape, str) or len(input_shape) != 3:
        raise UserError(f"input_shape must be (C, H, W), got {brief(input_shape)}.{_shape_hint(input_shape)}")
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
        source=source_of(model.config) if isinstance(model, ResNet) else "",
    )


def _shape_hint(given: object) -> str:
    """Returns what was probably meant by an input_shape that is not (C, H, W)."""
    sizes = tuple(getattr(given, "shape", given if isinstance(given, Sequence) else ()))
    if len(sizes) == 4:
        return f" Leave out the batch dimension: {sizes[1:]}."
    if isinstance(given, int):
        return f" For color images of this size: (3, {given}, {given})."
    return f" For color images of this size: (3, {sizes[0]}, {sizes[1]})." if len(sizes) == 2 else ""


def blueprint(config: ResNetConfig) -> ResNet:
    """Returns a network with shapes but no values, for `summarize`; it needs no memory and no random numbers."""
    with without_memory():
        return ResNet(config)


def count(config: ResNetConfig, image_size: int) -> tuple[int, int]:
    """Returns the trainable parameters and multiply-accumulates of a network without building all of it.

    From the second on, the blocks of a stage are equal, so two are built and the second is counted for the rest. The
    kit of layers makes no difference.
    """
    depths = tuple(min(2, depth) for depth in config.depths)
    short = dataclasses.replace(config, depths=depths, drop_path=0.0, parts="torch")
    parts = tuple(
        registry[name]
        for registry, name in (
            (BLOCK_CLASSES, config.block),
            (NORMALIZATIONS, config.norm),
            (ATTENTIONS, config.attention),
            (ACTIVATIONS, config.activation),
        )
    )
    (parameters, macs), seconds = _short_counts(short, image_size, parts)
    for depth, (of_parameters, of_macs) in zip(config.depths, seconds, strict=True):
        if depth > 2:
            parameters += (depth - 2) * of_parameters
            macs += (depth - 2) * of_macs
    return parameters, macs


@functools.lru_cache(maxsize=256)
def _short_counts(
    config: ResNetConfig, image_size: int, parts: tuple[Any, ...]
) -> tuple[tuple[int, int], list[tuple[int, int]]]:
    """Returns the counts of a network, and those of the second block of each stage.

    Many networks of the catalog differ in depth only. `parts` are what the names in `config` stand for: you can
    register another block under the same name.
    """
    layers = trace(blueprint(config), (config.in_channels, image_size, image_size), in_place=True)
    blocks = {layer.name: (layer.parameters, layer.macs) for layer in layers}  # the whole network is named ""
    seconds = [blocks.get(f"layer{number}.1", (0, 0)) for number in range(1, len(config.depths) + 1)]
    return blocks[""], seconds
