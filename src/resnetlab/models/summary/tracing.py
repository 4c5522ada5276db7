"""Follows one forward pass through a network on torch's meta device and records every layer.

Meta tensors have shapes but no memory, so nothing is computed, and the pass runs through a copy of the network's
structure. Every tensor is traced back to the layers that made it. So the branch and the shortcut of a block are
observed instead of assumed, for any network.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from resnetlab.core.errors import UserError
from resnetlab.models.summary.layers import (
    NONE,
    PREACTIVATION,
    Layer,
    Ways,
    Word,
    gate_word,
    is_activation,
    layer_word,
    multiply_accumulates,
    path_words,
)
from resnetlab.models.summary.shapes import ShapesOnly, run_on_shapes, structure_of

BYTES = 4
"""Bytes of a float32 value."""

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_aten = torch.ops.aten
_ADDITIONS = (_aten.add.Tensor, _aten.add_.Tensor)
_PRODUCTS = (_aten.mul.Tensor, _aten.mul_.Tensor)
_RELUS = (_aten.relu.default, _aten.relu_.default)


def trace(model: nn.Module, input_shape: Sequence[int], *, in_place: bool = False) -> tuple[Layer, ...]:
    """Returns every call of a module for one image, in the order in which the calls return.

    The last entry is the network itself, with the name "" and depth 0.

    Args:
        model: any network; it is neither run nor changed.
        input_shape: (C, H, W) of the image.
        in_place: trace the network itself, which is on the meta device and not used afterwards, instead of a copy.

    Raises:
        UserError: the network does not accept an image of this shape.
    """
    twin = (model if in_place else structure_of(model)).eval()
    tracer = _Tracer(twin)
    image = torch.empty(1, *input_shape, device="meta")
    try:
        with torch.no_grad(), tracer:
            tracer.begin(image)
            twin(image)
    except UserError as error:
        raise UserError(f"{error}{_swapped(input_shape)}") from error
    except (RuntimeError, NotImplementedError, ValueError, TypeError, IndexError) as error:
        shape = "x".join(map(str, input_shape))
        raise UserError(
            f"{type(model).__name__} does not accept an image of {shape}: {error}\n"
            f"Pass the (C, H, W) of the images that the network expects.{_swapped(input_shape)}"
        ) from error
    return tuple(tracer.layers)


def _swapped(shape: Sequence[int]) -> str:
    """Returns the shape (C, H, W), if (H, W, C) was probably given."""
    height, width, channels = shape
    is_last = channels in (1, 3) and height > 3
    return f" The shape is (C, H, W), such as ({channels}, {height}, {width})." if is_last else ""


class _Step:
    """One step of the path from the image to a tensor: the layer that made it, and the previous step."""

    __slots__ = ("before", "depth", "word")

    def __init__(self, word: Word, before: _Step | None) -> None:
        self.word = word
        self.before = before
        self.depth = 0 if before is None else before.depth + 1


_IMAGE, _SUM, _RELU = Word("", "image"), Word("", "sum"), Word("ReLU", "activation")


class _Sum(NamedTuple):
    """A sum of two paths: the step where they separate, the layers of each, and the step of the sum."""

    fork: _Step | None
    branch: list[Word]
    shortcut: list[Word]
    step: _Step


@dataclass(slots=True)
class _Call:
    """A module that is running, and what was observed of it so far."""

    module: nn.Module
    is_leaf: bool
    start: _Step | None
    input_shape: tuple[int, ...]
    macs: int = 0
    activation_bytes: int = 0
    words: list[Word] = field(default_factory=list)
    sums: list[_Sum] = field(default_factory=list)
    projections: int = 0
    has_sums_within: bool = False


class _Tracer(ShapesOnly):
    """Follows one forward pass: calls of modules through hooks, and tensors through every operation."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.layers: list[Layer] = []
        self._names = {module: name for name, module in network.named_modules()}
        self._parameters: dict[nn.Module, tuple[int, int]] = {}
        _count_within(network, self._parameters)
        self._running: list[_Call] = []
        self._steps: dict[int, _Step] = {}
        self._counted: set[int] = set()
        self._alive: dict[int, torch.UntypedStorage] = {}  # keeps storages alive, so that an address stays unique
        for module in self._names:
            module.register_forward_pre_hook(self._enter)
            module.register_forward_hook(self._leave)

    def begin(self, image: Tensor) -> None:
        """Takes note of the image, where every way starts."""
        self._steps[self._memory(image)] = _Step(_IMAGE, None)
        self._counted.add(self._memory(image))

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        output = run_on_shapes(func, args, kwargs or {})
        if not self._running or self._running[-1].is_leaf:
            return output  # a leaf is one step, whatever operations it runs
        for result in tensors_in(output):
            self._follow(func, args, result)
        return output

    def _follow(self, operation: Any, args: tuple, result: Tensor) -> None:
        """Records where the result of an operation between layers comes from."""
        inputs = [(tensor, self._steps.get(self._memory(tensor))) for tensor in tensors_in(args)]
        known = [(tensor, step) for tensor, step in inputs if step is not None]
        if not known:
            return
        step = max((step for _, step in known), key=lambda step: step.depth)
        if len(known) == 2 and operation in _ADDITIONS and _are_alike(known[0][0], known[1][0]):
            step = self._add(known[0][1], known[1][1])
        elif len(known) == 2 and operation in _PRODUCTS and known[0][0].numel() != known[1][0].numel():
            step = _Step(gate_word(self._running[-1].module), max(known, key=lambda pair: pair[0].numel())[1])
        elif operation in _RELUS:
            step = _Step(_RELU, step)
        elif self._memory(result) in self._steps:
            return  # a view
        self._steps[self._memory(result)] = step

    def _add(self, first: _Step, second: _Step) -> _Step:
        """Records a sum: of the two paths from their common origin, the one with fewer weights is the shortcut."""
        fork = _fork_of(first, second)
        # If both have the same number of layers with weights, the order `branch + shortcut` decides.
        shortcut, branch = sorted((_way_between(fork, second), _way_between(fork, first)), key=_weights_on)
        step = _Step(_SUM, max(first, second, key=lambda step: step.depth))
        self._running[-1].sums.append(_Sum(fork, branch, shortcut, step))
        self._running[-1].projections += _weights_on(shortcut)
        for call in self._running[:-1]:
            call.has_sums_within = True
        self._running[-1].words.append(_SUM)
        return step

    def _enter(self, module: nn.Module, inputs: tuple) -> None:
        tensor = next(tensors_in(inputs), None)
        start = None if tensor is None else self._steps.get(self._memory(tensor))
        is_leaf = next(module.children(), None) is None
        self._running.append(_Call(module, is_leaf, start, () if tensor is None else tuple(tensor.shape)))

    def _leave(self, module: nn.Module, inputs: tuple, output: Any) -> None:
        call = self._running.pop()
        result, given = next(tensors_in(output), None), next(tensors_in(inputs), None)
        word = None
        if result is not None and (call.is_leaf or not call.words):  # attention calls none of its own layers
            word = layer_word(module, result.ndim - 2)._replace(name=self._names[module])
            call.macs = 0 if given is None else multiply_accumulates(module, given, result)
            call.words.append(word)
            changes = given is not None and self._memory(given) != self._memory(result)
            if changes or word.role in ("note", "activation"):
                self._steps[self._memory(result)] = _Step(word, call.start)
        if result is not None and self._memory(result) not in self._counted:
            self._counted.add(self._memory(result))
            call.activation_bytes += result.numel() * BYTES
        self.layers.append(self._layer(call, word, result))
        if self._running:
            parent = self._running[-1]
            parent.macs += call.macs
            parent.activation_bytes += call.activation_bytes
            parent.words += call.words

    def _layer(self, call: _Call, word: Word | None, result: Tensor | None) -> Layer:
        module = call.module
        is_container = not call.is_leaf and not call.sums and (call.has_sums_within or _strings_blocks(module))
        step = None if result is None or is_container else self._steps.get(self._memory(result))
        way = [] if step is None else _way_between(call.start, step)
        computes, shortcut, ways, order = "", "", None, ""
        if word is not None:
            computes = word.text
        elif call.sums:
            computes = "; ".join(path_words(each.branch) for each in call.sums)
            shortcut, order = "; ".join(path_words(each.shortcut) for each in call.sums), _order(call.words)
            ways = _ways(call.start, call.sums, step)
        elif not is_container and result is not None:
            computes = path_words(way) if way else type(module).__name__
            if not isinstance(module, nn.Sequential) and any(word.role == "weights" for word in way):
                shortcut, order = NONE, _order(call.words)
                ways = Ways((), tuple(way), None, ())
        trainable, fixed = self._parameters[module]
        return Layer(
            name=self._names[module],
            kind=type(module).__name__,
            depth=len(self._running),
            is_leaf=call.is_leaf,
            is_container=is_container,
            input_shape=call.input_shape,
            output_shape=() if result is None else tuple(result.shape),
            computes=computes,
            shortcut=shortcut,
            ways=ways,
            order=order,
            weighted=_weights_on([word] if word is not None else way),
            projections=call.projections,
            parameters=trainable,
            fixed=fixed,
            macs=call.macs,
            activation_bytes=call.activation_bytes,
        )

    def _memory(self, tensor: Tensor) -> int:
        storage = tensor.untyped_storage()
        self._alive.setdefault(storage._cdata, storage)
        return storage._cdata


def _are_alike(first: Any, second: Any) -> bool:
    both = isinstance(first, Tensor) and isinstance(second, Tensor)
    return both and first.shape == second.shape and first.dtype == second.dtype


def _count_within(module: nn.Module, counts: dict[nn.Module, tuple[int, int]]) -> dict[int, Tensor]:
    """Counts trained values and values that are only saved, in a module and its children; tied tensors count once."""
    saved = {
        id(tensor): tensor for tensor in (*module._parameters.values(), *module._buffers.values()) if tensor is not None
    }
    for child in module.children():
        saved |= _count_within(child, counts)
    trainable = sum(tensor.numel() for tensor in saved.values() if tensor.requires_grad)
    values = sum(tensor.numel() for tensor in saved.values() if tensor.is_floating_point())
    counts[module] = trainable, values - trainable
    return saved


def _strings_blocks(module: nn.Module) -> bool:
    """Whether a module without a sum only runs modules that contain others, as a stage does."""
    has_more = any(next(child.children(), None) is not None for child in module.children())
    return isinstance(module, _CONTAINERS) and has_more


def _order(words: Sequence[Word]) -> str:
    """Returns the `order` of a block, given the notation of all its layers and sums in order."""
    roles = [word.role for word in words]
    if next((role for role in roles if role in ("activation", "weights")), "") == "activation":
        return PREACTIVATION
    after = words[len(roles) - roles[::-1].index("sum") :] if "sum" in roles else ()
    return next((f"then {word.text}" for word in after if is_activation(word.text)), "")


def tensors_in(values: Any) -> Iterator[Tensor]:
    """Yields the tensors among arguments or results, in order."""
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, (tuple, list)):
        for value in values:
            yield from tensors_in(value)
    elif isinstance(values, dict):
        for value in values.values():
            yield from tensors_in(value)


def _fork_of(first: _Step, second: _Step) -> _Step | None:
    """Returns the last step that two paths have in common."""
    one: _Step | None = first
    other: _Step | None = second
    while one is not other and one is not None and other is not None:
        if one.depth >= other.depth:
            one = one.before
        else:
            other = other.before
    return one if one is other else None


def _way_between(start: _Step | None, end: _Step) -> list[Word]:
    """Returns the layers after one step, up to and including another."""
    words = []
    step: _Step | None = end
    while step is not None and step is not start:
        words.append(step.word)
        step = step.before
    return words[::-1]


def _ways(start: _Step | None, sums: Sequence[_Sum], end: _Step | None) -> Ways | None:
    """Returns the layers of a block with one sum."""
    if len(sums) != 1 or end is None:
        return None
    fork, branch, shortcut, total = sums[0]
    before = [] if fork is None else _way_between(start, fork)
    return Ways(tuple(before), tuple(branch), tuple(shortcut), tuple(_way_between(total, end)))


def _weights_on(way: Sequence[Word]) -> int:
    """Returns the number of layers with weights on a path."""
    return sum(word.role == "weights" for word in way)
