"""The first convolution of an int8 file, in a form for which ONNX Runtime has a fast kernel.

The kernel needs a multiple of 4 input channels, and images have 3 or 1. A convolution with stride 2 becomes one with
stride 1 on blocks of 2x2 pixels, of which each is a pixel of 4 C channels (space to depth, as in Ridnik et al. 2021,
TResNet; here the weights are rearranged, so that the network stays the same). A gray image becomes one of 4 channels,
of which three are 0.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from resnetlab.core.environment import import_extra

_CHANNELS = 4


def widen_stem(model: Any) -> None:
    """Gives the first convolution 4 or 4 C input channels, in place, if the graph begins as `ExportedGraph` does.

    Args:
        model: an `onnx.ModelProto` in float32 whose first nodes are Cast, Mul, Add, Transpose and Conv.
    """
    onnx = import_extra("onnx", "export")
    graph = model.graph
    values = {entry.name: entry for entry in graph.initializer}
    path = _path(graph)
    if path is None or any(path[place].input[1] not in values for place in (1, 2, 4)):
        return
    cast, multiply, add, _, convolution = path
    constants = {name: onnx.numpy_helper.to_array(values[name]) for name in (multiply.input[1], add.input[1])}
    weights = onnx.numpy_helper.to_array(values[convolution.input[1]])
    height, width, channels = (place.dim_value for place in graph.input[0].type.tensor_type.shape.dim[1:])
    if any(value.shape != (width, channels) for value in constants.values()):
        return
    options = {entry.name: entry for entry in convolution.attribute}
    if not options.keys() >= {"group", "dilations", "strides", "pads", "kernel_shape"}:
        return
    is_plain = options["group"].i == 1 and set(options["dilations"].ints) == {1}
    if is_plain and list(options["strides"].ints) == [2, 2] and not (height % 2 or width % 2):
        weights, pads = _blocks(weights, list(options["pads"].ints), (height, width))
        constants = {name: np.tile(value[: width // 2], 4) for name, value in constants.items()}
        # Two pixels of the upper row come before two of the lower one; a Gather is twice as fast as a Transpose.
        order = np.arange(width).reshape(2, width // 2).T.ravel()
        shapes = [0, height // 2, width, 2 * channels], [0, height // 2, width // 2, 4 * channels]
        for name, value in (("stem_halves", shapes[0]), ("stem_order", order), ("stem_deep", shapes[1])):
            graph.initializer.append(onnx.numpy_helper.from_array(np.array(value, dtype=np.int64), name))
        make = onnx.helper.make_node
        nodes = [
            make("Reshape", ["images", "stem_halves"], ["stem_rows"]),
            make("Gather", ["stem_rows", "stem_order"], ["stem_blocks"], axis=2),
            make("Reshape", ["stem_blocks", "stem_deep"], ["stem_pixels"]),
        ]
        at = list(graph.node).index(cast)
        for node in reversed(nodes):
            graph.node.insert(at, node)
        cast.input[0] = "stem_pixels"
        for name, numbers in (("pads", pads), ("strides", [1, 1]), ("kernel_shape", weights.shape[2:])):
            options[name].ints[:] = numbers
    elif is_plain and channels == 1:
        constants = {name: np.pad(value, ((0, 0), (0, _CHANNELS - 1))) for name, value in constants.items()}
        weights = np.pad(weights, ((0, 0), (0, _CHANNELS - 1), (0, 0), (0, 0)))
    else:
        return
    for name, value in {**constants, convolution.input[1]: weights}.items():
        values[name].CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(value), name))


def _path(graph: Any) -> list[Any] | None:
    """Returns the nodes from the images to the first convolution; None if they are others than usual."""
    path, name = [], "images"
    for kind in ("Cast", "Mul", "Add", "Transpose", "Conv"):
        node = next((node for node in graph.node if node.op_type == kind and node.input[0] == name), None)
        if node is None:
            return None
        path.append(node)
        name = node.output[0]
    used = [value for node in graph.node for value in node.input]
    alone = [*(node.output[0] for node in path[:-1]), *(path[place].input[1] for place in (1, 2, 4))]
    return path if all(used.count(name) == 1 for name in alone) else None


def _blocks(weights: np.ndarray, pads: list[int], size: tuple[int, int]) -> tuple[np.ndarray, list[int]]:
    """Returns weights and padding (top, left, bottom, right) for blocks of 2x2 pixels.

    A row of weights of which the first lies on an odd pixel gets a 0 before it, and then one of odd length a 0 at its
    end.
    """
    begins, ends, places = [], [], [(0, 0), (0, 0)]
    for length, kernel, begin, end in zip(size, weights.shape[2:], pads[:2], pads[2:], strict=True):
        wide = -(-(kernel + begin % 2) // 2)
        places.append((begin % 2, 2 * wide - kernel - begin % 2))
        begins.append(-(-begin // 2))
        ends.append((length + begin + end - kernel) // 2 - length // 2 - begins[-1] + wide)
    padded = np.pad(weights, places)
    number, channels, height, width = padded.shape
    blocks = padded.reshape(number, channels, height // 2, 2, width // 2, 2).transpose(0, 3, 5, 1, 2, 4)
    return blocks.reshape(number, 4 * channels, height // 2, width // 2), [*begins, *ends]
