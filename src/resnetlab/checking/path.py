"""The main path of a recorded network as a list of layers, and how two such lists correspond.

At every sum the path follows the branch; the shortcut is a list of its own. Two lists are aligned with the smallest
total cost of differences (Needleman and Wunsch 1970), so that one missing layer is one difference.
"""

from __future__ import annotations

import heapq
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from resnetlab.checking.graph import Graph, Node

_DROPPED = ("view", "image")
_COMPARED = {
    "conv": ("kernel", "stride", "padding", "dilation", "groups", "out", "bias"),
    "norm": ("name", "affine", "eps"),
    "act": ("name",),
    "maxpool": ("kernel", "stride", "padding"),
    "avgpool": ("kernel", "stride"),
    "linear": ("out", "bias"),
    "other": ("name",),
}
_COSTS = {
    "kernel": 0.6, "stride": 0.35, "padding": 0.3, "dilation": 0.35, "groups": 0.4, "out": 0.7, "bias": 0.02,
    "name": 0.3, "affine": 0.1, "eps": 0.01, "in": 0.2,
}  # fmt: skip
_ALONE = {
    "conv": 1.6, "norm": 1.0, "act": 0.9, "add": 1.3, "maxpool": 1.2, "avgpool": 1.0, "gap": 1.2, "flatten": 0.4,
    "linear": 1.5, "softmax": 0.8, "log_softmax": 0.8, "dropout": 0.1, "gate": 1.0, "pad": 0.5, "slice": 0.5,
}  # fmt: skip
_POOLS = ("maxpool", "avgpool", "gap")


@dataclass(eq=False)
class Token:
    """One layer on a path.

    Attributes:
        node: what was recorded.
        kind, values: of the node.
        shortcut: of a sum or a gate, the layers of its other operand.
        fork: of a sum, the node where the shortcut leaves the path.
        label: "stem", "stage2.block1" or "head".
        role: "shortcut" within a shortcut, otherwise "branch".
    """

    node: Node
    kind: str
    values: dict[str, Any]
    shortcut: list[Token] = field(default_factory=list)
    fork: Node | None = None
    label: str = ""
    role: str = "branch"

    def __repr__(self) -> str:
        return f"{self.kind} {self.values} {self.label}"


@dataclass
class Edit:
    """One difference between a network and its reference.

    Attributes:
        kind: "missing", "extra", "differs", or for differences within them "shortcut" or "gate".
        expected: the reference's layer, if it has one.
        found: the network's layer, if it has one.
        changes: of a layer that differs, the expected and found values by name.
        label: "stem", "stage2.block1" or "head".
        before: the network's layer before this place; `after`: the one after it.
        inner: the differences of the shortcuts.
    """

    kind: str
    expected: Token | None = None
    found: Token | None = None
    changes: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    label: str = ""
    before: Token | None = None
    after: Token | None = None
    inner: list[Edit] = field(default_factory=list)
    position: int = 0

    @property
    def token(self) -> Token:
        """The layer that differs, of the network if it has it, else of the reference."""
        found = self.found or self.expected
        assert found is not None
        return found


def main_path(graph: Graph) -> list[Token]:
    """Returns the layers from the image to the output, in order."""
    end = graph.output or (graph.nodes[-1] if graph.nodes else None)
    if end is None:
        return []
    order = {id(node): number for number, node in enumerate(graph.nodes)}
    return _tidied(_walk(end, None, order, "branch"))


def reference_labels(tokens: Sequence[Token]) -> None:
    """Labels the layers of a ResNetLab network by stage and block."""
    inside = False
    for token in tokens:
        found = re.match(r"layer(\d+)\.(\d+)", token.node.path)
        inside = inside or found is not None
        label = f"stage{found[1]}.block{int(found[2]) + 1}" if found else "head" if inside else "stem"
        token.label = label
        for side in token.shortcut:
            side.label = label


def align(
    expected: Sequence[Token], found: Sequence[Token], *, is_cut: bool = False
) -> tuple[list[Edit], list[tuple[Token, Token]]]:
    """Returns the differences of a path from the reference's, and the pairs of layers that correspond.

    The layers of `found` get the labels of the reference's. With `is_cut`, `found` is the beginning of a path.
    """
    steps = steps_of(expected, found, is_cut)
    edits: list[Edit] = []
    pairs: list[tuple[Token, Token]] = []
    label = expected[0].label if expected else ""
    place = 0
    for position, (one, other) in enumerate(steps):
        if one is not None:
            label = one.label
        if other is not None:
            other.label = label
            if (
                one is None
                and (later := _next_pair(steps, position)) is not None
                and _belongs(other, place, found, later)
            ):
                other.label = later[0].label
            for side in other.shortcut:
                side.label = other.label
            place += 1
        if one is not None and other is not None:
            pairs.append((one, other))
            changes = differences(one, other)
            inner: list[Edit] = []
            if one.kind == other.kind and one.kind in ("add", "gate"):
                inner, inner_pairs = align(one.shortcut, other.shortcut)
                pairs += inner_pairs
            if changes:
                edits.append(Edit("differs", one, other, changes, label, position=position))
            if inner:
                kind = "shortcut" if one.kind == "add" else "gate"
                edits.append(Edit(kind, one, other, {}, label, inner=inner, position=position))
        else:
            kind, where = ("extra", other.label) if other is not None else ("missing", label)
            edits.append(Edit(kind, one, other, {}, where, position=position))
        if edits and edits[-1].position == position:
            edits[-1].before = found[place - 1 - (other is not None)] if place - (other is not None) > 0 else None
            edits[-1].after = found[place] if place < len(found) else None
    return edits, pairs


def _next_pair(steps: Sequence[tuple[Token | None, Token | None]], position: int) -> tuple[Token, Token] | None:
    return next(((one, other) for one, other in steps[position:] if one is not None and other is not None), None)


def _belongs(token: Token, place: int, found: Sequence[Token], later: tuple[Token, Token]) -> bool:
    """Whether a layer that the reference does not have ran in the module of the layer after it, not of that before."""
    before = found[place - 1].node.path if place else ""
    return _common(token.node.path, later[1].node.path) > _common(token.node.path, before)


def _common(one: str, other: str) -> int:
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one.split("."), other.split("."))))  # noqa: B905


def differences(one: Token, other: Token) -> dict[str, tuple[Any, Any]]:
    """Returns the values in which two layers of a kind differ: expected and found, by name."""
    if one.kind != other.kind:
        return {"kind": (one.kind, other.kind)}
    names = _COMPARED.get(one.kind, ())
    changed = {
        name: (one.values.get(name), other.values.get(name))
        for name in names
        if one.values.get(name) != other.values.get(name)
    }
    if "kernel" in changed and "padding" in changed and _keeps_size(one) and _keeps_size(other):
        del changed["padding"]  # it follows from the kernel
    if "dilation" in changed and "padding" in changed and _keeps_size(one) and _keeps_size(other):
        del changed["padding"]
    if one.kind == "norm" and "name" in changed:
        return {"name": changed["name"]}  # the others follow
    if one.kind == "norm" and "eps" in changed and abs(one.values["eps"] - other.values.get("eps", 0)) < 1e-9:
        del changed["eps"]
    if one.kind == "add" and _forked_at(one) != _forked_at(other):
        changed["fork"] = (_forked_at(one), _forked_at(other))
    return changed


def convolutions(tokens: Sequence[Token]) -> list[Token]:
    """Returns the convolutions of a path and its shortcuts."""
    found = []
    for token in tokens:
        found += convolutions(token.shortcut)
        if token.kind == "conv":
            found.append(token)
    return found


def _keeps_size(token: Token) -> bool:
    kernel, padding, dilation = (token.values.get(name, (1, 1)) for name in ("kernel", "padding", "dilation"))
    return all(2 * padding[axis] == dilation[axis] * (kernel[axis] - 1) for axis in (0, 1))


def _forked_at(token: Token) -> int:
    """Returns how many convolutions of the main path the shortcut of a sum goes around."""
    return int(token.values.get("around", 0))


def _walk(end: Node, stop: Node | None, order: dict[int, int], role: str) -> list[Token]:
    """Returns the layers from `stop`, exclusive, to `end`."""
    tokens: list[Token] = []
    node: Node | None = end
    while node is not None and node is not stop:
        known = [source for source in node.inputs if source is not None]
        token = Token(node, node.kind, dict(node.values), role=role)
        if node.kind in ("add", "gate") and len(known) == 2:
            fork = _fork(known[0], known[1], order)
            ways = [_walk(source, fork, order, role) for source in known]
            if node.kind == "add":
                main = 0 if _weight(ways[0]) >= _weight(ways[1]) else 1
            else:
                sizes = [_area(source) for source in known]
                main = 0 if sizes[0] >= sizes[1] else 1
            token.shortcut = _tidied(ways[1 - main])
            for side in token.shortcut:
                side.role = "shortcut" if node.kind == "add" else "gate"
            token.fork = fork
            token.values["around"] = sum(one.kind == "conv" for one in ways[main])
            tokens.append(token)
            tokens += ways[main][::-1]
            node = fork
            continue
        tokens.append(token)
        node = known[0] if known else None
    return tokens[::-1]


def _area(node: Node) -> int:
    product = 1
    for size in node.shape[2:]:
        product *= size
    return product


def _weight(way: Sequence[Token]) -> float:
    """Returns how much a path looks like a branch rather than a shortcut."""
    return sum(1 + 0.01 * token.values["kernel"][0] for token in way if token.kind == "conv") + 1e-3 * len(way)


def _fork(first: Node, second: Node, order: dict[int, int]) -> Node | None:
    """Returns the last node that both depend on."""
    marks = {id(first): 1}
    marks[id(second)] = marks.get(id(second), 0) | 2
    heap = [(-order[id(first)], id(first), first)]
    if second is not first:
        heap.append((-order[id(second)], id(second), second))
    heapq.heapify(heap)
    while heap:
        _, name, node = heapq.heappop(heap)
        mark = marks[name]
        if mark == 3:
            return node
        for source in node.inputs:
            if source is None:
                continue
            if id(source) not in marks:
                heapq.heappush(heap, (-order[id(source)], id(source), source))
            marks[id(source)] = marks.get(id(source), 0) | mark
    return None


def _tidied(tokens: Sequence[Token]) -> list[Token]:
    """Leaves out what does not compute, and merges explicit padding into the layer that it is for."""
    tidy: list[Token] = []
    for token in tokens:
        if token.kind in _DROPPED:
            continue
        last = tidy[-1] if tidy else None
        if token.kind == "flatten" and ((last is not None and last.kind == "gap") or _is_flat(token)):
            continue
        if last is not None and last.kind == "pad" and token.kind in ("conv", "maxpool"):
            amounts = last.values.get("amounts", ())
            if len(amounts) == 4 and len(set(amounts)) == 1:
                padding = tuple(size + amounts[0] for size in token.values["padding"])
                tidy.pop()
                token = replace(token, values={**token.values, "padding": padding})
        if token.kind == "conv" and token.values["kernel"] == (1, 1) and _is_flat(token):
            values = {name: token.values[name] for name in ("out", "in", "bias")}
            token = replace(token, kind="linear", values=values)  # of one value per channel
        tidy.append(token)
    return tidy


def _is_flat(token: Token) -> bool:
    source = token.node.inputs[0] if token.node.inputs else None
    return source is not None and _area(source) == 1


def steps_of(
    expected: Sequence[Token], found: Sequence[Token], is_cut: bool = False
) -> list[tuple[Token | None, Token | None]]:
    """Returns corresponding layers in order, None where one path has no layer; `align` explains `is_cut`."""
    start = 0
    while start < min(len(expected), len(found)) and _cost(expected[start], found[start]) == 0:
        start += 1
    end = 0
    while (
        not is_cut and end < min(len(expected), len(found)) - start and _cost(expected[-1 - end], found[-1 - end]) == 0
    ):
        end += 1
    one, other = expected[start : len(expected) - end], found[start : len(found) - end]
    middle = _aligned(one, other, is_cut)
    return [
        *zip(expected[:start], found[:start], strict=True),
        *middle,
        *(zip(expected[len(expected) - end :], found[len(found) - end :], strict=True) if end else ()),
    ]


def _aligned(one: Sequence[Token], other: Sequence[Token], is_cut: bool) -> list[tuple[Token | None, Token | None]]:
    width = len(other) + 1
    table = [[0.0] * width for _ in range(len(one) + 1)]
    for row in range(len(one) - 1, -1, -1):
        table[row][-1] = 0 if is_cut else table[row + 1][-1] + _alone(one[row])
    for column in range(len(other) - 1, -1, -1):
        table[-1][column] = table[-1][column + 1] + _alone(other[column])
    for row in range(len(one) - 1, -1, -1):
        for column in range(len(other) - 1, -1, -1):
            table[row][column] = min(
                table[row + 1][column + 1] + _cost(one[row], other[column]),
                table[row + 1][column] + _alone(one[row]),
                table[row][column + 1] + _alone(other[column]),
            )
    steps: list[tuple[Token | None, Token | None]] = []
    row = column = 0
    while column < len(other) or (row < len(one) and not is_cut):
        here = table[row][column]
        both = row < len(one) and column < len(other)
        if both and abs(here - table[row + 1][column + 1] - _cost(one[row], other[column])) < 1e-9:
            steps.append((one[row], other[column]))
            row, column = row + 1, column + 1
        elif row < len(one) and abs(here - table[row + 1][column] - _alone(one[row])) < 1e-9:
            steps.append((one[row], None))
            row += 1
        else:
            steps.append((None, other[column]))
            column += 1
    return steps


def _alone(token: Token) -> float:
    return _ALONE.get(token.kind, 0.6)


def _cost(one: Token, other: Token) -> float:
    if one.kind != other.kind:
        return 0.8 if one.kind in _POOLS and other.kind in _POOLS else 100.0
    cost = sum(_COSTS.get(name, 0.3) for name in differences(one, other))
    if one.kind in ("add", "gate"):
        cost += min(0.6, 0.2 * sum(1 for pair in steps_of(one.shortcut, other.shortcut) if _is_edit(pair)))
    return cost


def _is_edit(pair: tuple[Token | None, Token | None]) -> bool:
    one, other = pair
    return one is None or other is None or bool(differences(one, other))
