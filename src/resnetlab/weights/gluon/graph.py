"""The graph that Gluon's `export` writes with its weights: which layer uses which tensor, in which order."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from resnetlab.core.errors import UserError
from resnetlab.core.files import printable
from resnetlab.weights.tensors import DamagedFileError

_NORMALIZATION = "BatchNorm"
_OPERATORS = {
    "Convolution": ("weight", "bias"),
    _NORMALIZATION: ("weight", "bias", "running_mean", "running_var"),
    "FullyConnected": ("weight", "bias"),
}
"""The inputs of each operator with weights after its data, by our names."""
_EPSILON = 1e-5
"""What normalizations add to the variance, in ResNetLab and by default in Gluon."""

_MOST_NODES = 10_000
"""Seven times those of the deepest network of the zoo; the work grows with their square."""


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A layer with weights.

    Attributes:
        name: what it is called.
        kind: "3x3 convolution", "normalization" or "dense layer".
        tensors: the names of its tensors, by our parts: "weight", "bias", "running_mean", "running_var".
        fixed_scale: whether its scale is 1 whatever the file says.
    """

    name: str
    kind: str
    tensors: Mapping[str, str]
    fixed_scale: bool = False


def read_graph(path: Path, names: Iterable[str]) -> list[Layer]:
    """Returns the layers of a graph in the order of execution, the shortcut last in its block.

    Args:
        path: NAME-symbol.json.
        names: of the tensors in the file of weights, which start with "arg:" or "aux:" there, but not in the graph.

    Raises:
        DamagedFileError: the file is not a graph of MXNet.
        UserError: a normalization has another eps.
    """
    stored = {re.sub("^(arg|aux):", "", name): name for name in names}
    try:
        graph = json.loads(path.read_text(encoding="utf-8"))
        nodes = graph["nodes"]
        return [_layer(path, nodes, place, stored) for place in _execution(nodes, graph["heads"][0][0])]
    except UserError:
        raise
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError, OSError) as error:
        raise DamagedFileError(
            f"{printable(path)} is not a network graph of MXNet ({type(error).__name__}: {error}). Use another "
            "copy, or remove this file: without it, the order of the tensors in the weights file is used."
        ) from error


def kind_of_convolution(kernel: Iterable[int | str]) -> str:
    """Returns what a convolution with this kernel is called: "3x3 convolution"."""
    return f"{'x'.join(map(str, kernel))} convolution"


def _execution(nodes: list[dict[str, Any]], head: int) -> tuple[int, ...]:
    """Returns the places of the nodes with weights through which the images come to the head.

    Where two ways meet, in the sum of a block, the longer one counts first: the branch before the shortcut, whichever
    of the two the graph has first.
    """
    if len(nodes) > _MOST_NODES:
        raise ValueError(f"{len(nodes)} nodes, and a network has at most {_MOST_NODES}")
    ways: list[tuple[int, ...]] = []
    for place, node in enumerate(nodes):
        arriving = sorted((ways[entry[0]] for entry in node["inputs"]), key=len, reverse=True)
        way = tuple(dict.fromkeys(chain.from_iterable(arriving)))
        ways.append((*way, place) if node["op"] in _OPERATORS else way)
    return ways[head]


def _layer(path: Path, nodes: list[dict[str, Any]], place: int, stored: Mapping[str, str]) -> Layer:
    node = nodes[place]
    name, operator, attributes = node["name"], node["op"], node.get("attrs", {})
    taken = [nodes[entry[0]]["name"] for entry in node["inputs"][1:]]
    kind = "dense layer"
    if operator == "Convolution":
        kind = kind_of_convolution(re.findall(r"\d+", attributes["kernel"]))
    elif operator == _NORMALIZATION:
        kind = "normalization"
        if not math.isclose(epsilon := float(attributes.get("eps", 1e-3)), _EPSILON):
            raise UserError(
                f"{printable(path)} has the normalization layer {name!r} with eps={epsilon:g}. The layers of "
                f"ResNetLab have eps={_EPSILON:g} and would compute other values, so these weights cannot be "
                "used."
            )
    return Layer(
        name=name,
        kind=kind,
        tensors={part: stored.get(tensor, tensor) for part, tensor in zip(_OPERATORS[operator], taken, strict=False)},
        fixed_scale=operator == _NORMALIZATION and attributes.get("fix_gamma", "True") == "True",
    )
