"""8-bit integers: a smaller and faster file, which is compared image by image with the network in float32.

Convolutions and the head multiply uint8 activations by int8 weights, with a scale per output channel. Scales come from
the smallest and largest values on training images. The form is QDQ: quantization is written as operators of ONNX.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from resnetlab.core.console import notice
from resnetlab.core.environment import import_extra
from resnetlab.core.errors import UserError, unknown
from resnetlab.evaluation.metrics import wilson_interval
from resnetlab.evaluation.pairs import difference_interval
from resnetlab.exporting.graph import finished
from resnetlab.exporting.session import INT8, Exported
from resnetlab.exporting.stem import widen_stem

LARGEST_LOSS, LEAST_AGREEMENT, ENOUGH = 0.3, 0.99, 2000
"""Percentage points of accuracy, the share of equal answers, and the images that prove both."""
_BATCH = 16
_NAMED = 3
_SAMPLE = 32
_WEIGHTED = ("Conv", "Gemm", "MatMul")


def quantize(
    model: Path,
    destination: Path,
    calibration: np.ndarray,
    metadata: Mapping[str, Any],
    keep_float: Collection[str] = (),
) -> None:
    """Writes the int8 form of an exported file.

    Args:
        model: the file in float32.
        destination: the file to write.
        calibration: training images, uint8 (N, H, W, C).
        metadata: that of the file in float32.
        keep_float: layers that stay in float32, see `layers_of`.

    Raises:
        UserError: a package is missing, or there is no such layer.
    """
    onnx = import_extra("onnx", "export")
    quantization = import_extra("onnxruntime.quantization", "export")

    class Reader(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self.batches = iter(np.array_split(calibration, -(-len(calibration) // _BATCH)))

        def get_next(self) -> dict[str, np.ndarray] | None:
            batch = next(self.batches, None)
            return None if batch is None else {"images": batch}

    widened = onnx.load(str(model), load_external_data=False)
    widen_stem(widened)
    graph = widened.graph
    layers = layers_of(graph)
    for name in keep_float:
        if name not in layers:
            raise unknown("layer", name, layers)
    kept = {layers[name] for name in keep_float}
    with _silenced(), tempfile.TemporaryDirectory() as folder:
        written = Path(folder) / "int8.onnx"
        quantization.quantize_static(
            widened,
            str(written),
            Reader(),
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=True,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            calibrate_method=quantization.CalibrationMethod.MinMax,
            nodes_to_quantize=[node.name for node in _between(graph) if node.name not in kept],
        )
        quantized = onnx.load(str(written))
    destination.write_bytes(finished(quantized, {**metadata, "precision": INT8}).SerializeToString())


def layers_of(graph: Any) -> dict[str, str]:
    """Returns the name of the node of each layer, by names such as "layer1.0.conv1"."""
    weights = {initializer.name for initializer in graph.initializer}
    found = {}
    for node in graph.node:
        if node.op_type in _WEIGHTED and (named := [name for name in node.input[1:] if name in weights]):
            found[named[0].removeprefix("network.").removeprefix("network.").removesuffix(".weight")] = node.name
    return found


def compare(float32: Exported, int8: Exported, images: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Returns what export.json says about int8: the same images, answered by both files.

    Args:
        float32: the file in float32.
        int8: the file in int8.
        images: uint8 (N, H, W, C), of no training image.
        labels: int64 (N,).

    Returns:
        images; top1 and top1_int8 (0 to 1); lost and won, the images that only the first or only the second answers
        correctly; loss, in percentage points, and its 95 % interval; agreement (0 to 1) and its 95 % interval; proven.
    """
    before, after = (_classes(file, images) for file in (float32, int8))
    lost = int(((before == labels) & (after != labels)).sum())
    won = int(((before != labels) & (after == labels)).sum())
    same, n = int((before == after).sum()), len(labels)
    low, high = difference_interval(lost, won, n)
    return {
        "images": n,
        "top1": float((before == labels).mean()),
        "top1_int8": float((after == labels).mean()),
        "lost": lost,
        "won": won,
        "loss": 100 * (lost - won) / n,
        "loss_interval": [-100 * high, -100 * low],
        "agreement": same / n,
        "agreement_interval": list(wilson_interval(same, n)),
        "proven": n >= ENOUGH,
    }


def check_loss(result: Mapping[str, Any], accept_loss: float | None, worst: Callable[[], Sequence[str]]) -> None:
    """Raises `UserError` if int8 answers worse than allowed; says if there were too few images for a proof.

    Args:
        result: what `compare` returned.
        accept_loss: accept this loss of accuracy, in percentage points, and any agreement.
        worst: returns the layers that lose most, for the message.
    """
    loss, agreement = result["loss_interval"][0], result["agreement_interval"][1]
    limit = LARGEST_LOSS if accept_loss is None else accept_loss
    problems = []
    if loss > limit:
        problems.append(f"it loses {result['loss']:.2f} points of accuracy (at least {loss:.2f}, allowed {limit:g})")
    if agreement < LEAST_AGREEMENT and accept_loss is None:
        problems.append(f"it agrees on {result['agreement']:.2%} of the images (expected {LEAST_AGREEMENT:.0%})")
    if problems:
        options = " ".join(f"--keep-float {name}" for name in worst())
        raise UserError(
            f"int8 answers worse than float32 on {result['images']:,} images: {' and '.join(problems)}. Keep the "
            f"layers that lose most in float32: {options}. "
            f"Or accept it: --accept-loss {max(limit, result['loss']):.2f}"
        )
    if not result["proven"]:
        notice(
            f"int8 was compared on {result['images']:,} images; a proof needs {ENOUGH:,}. export.json marks it as "
            "unproven."
        )


def worst_layers(float32: Path, int8: Path, images: np.ndarray, count: int = _NAMED) -> list[str]:
    """Returns the layers after which the relative error of int8 grows most, the worst first."""
    onnx = import_extra("onnx", "export")
    graph = onnx.load(str(float32), load_external_data=False).graph
    layers = layers_of(graph)
    outputs = {node.name: node.output[0] for node in graph.node}
    used = {node.input[0]: node.output[0] for node in reversed(graph.node) if node.input}
    shared = {name for node in onnx.load(str(int8), load_external_data=False).graph.node for name in node.output}
    # Quantization includes an activation in the layer before it, so that only the output of the activation is left.
    either = {layer: (outputs[node], used.get(outputs[node], "")) for layer, node in layers.items()}
    places = {layer: names[names[0] not in shared] for layer, names in either.items() if shared & set(names)}
    before, after = (_values(path, list(places.values()), images[:_SAMPLE]) for path in (float32, int8))
    errors = [float(np.linalg.norm(a - b) / (np.linalg.norm(b) or 1.0)) for a, b in zip(after, before, strict=True)]
    growth = np.diff(errors, prepend=0.0)
    return [list(places)[place] for place in np.argsort(-growth)[:count]]


def _values(path: Path, names: list[str], images: np.ndarray) -> list[np.ndarray]:
    """Returns tensors within a file's graph, by making them outputs of a copy."""
    onnx, onnxruntime = import_extra("onnx", "export"), import_extra("onnxruntime", "export")
    model = onnx.load(str(path), load_external_data=False)
    for name in names:
        if name not in {output.name for output in model.graph.output}:
            model.graph.output.append(onnx.ValueInfoProto(name=name))
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(names, {"images": images})


def _classes(exported: Exported, images: np.ndarray) -> np.ndarray:
    parts = np.array_split(images, -(-len(images) // _BATCH))
    return np.concatenate([exported.run(part, ["logits"])["logits"].argmax(1) for part in parts])


def _between(graph: Any) -> Iterator[Any]:
    """Yields the nodes from the first convolution to the logits: not normalization, probabilities and attention."""
    after: set[str] = set()
    for node in graph.node:
        if node.op_type == "Conv" or any(name in after for name in node.input):
            after.update(node.output)
    before = {"logits"}
    for node in reversed(graph.node):
        if any(name in before for name in node.output):
            before.update(node.input)
            if node.output[0] in after:
                yield node


@contextmanager
def _silenced() -> Iterator[None]:
    """Hides the advice of onnxruntime's tools, which goes to the root logger."""
    level = logging.root.level
    logging.root.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logging.root.setLevel(level)
