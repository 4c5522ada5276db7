"""Int8 is compared image by image: when it is refused, and what the refusal says."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import resnetlab
from resnetlab.exporting.quantize import check_loss, compare
from resnetlab.exporting.stem import widen_stem


class Answers:
    """A stand-in for an exported file, with given answers."""

    def __init__(self, classes: np.ndarray) -> None:
        self.logits = np.eye(3, dtype=np.float32)[classes]

    def run(self, images: np.ndarray, outputs: Any) -> dict[str, np.ndarray]:
        return {"logits": self.logits[images[:, 0, 0, 0].astype(int) + 256 * images[:, 0, 0, 1].astype(int)]}


def compared(n: int, lost: int, won: int, other: int = 0) -> dict[str, Any]:
    """Both answer class 0 correctly, except that int8 loses, wins, or answers otherwise but as wrong."""
    labels, before, after = (np.zeros(n, dtype=int) for _ in range(3))
    after[:lost] = 1
    before[lost : lost + won] = 1
    before[lost + won : lost + won + other], after[lost + won : lost + won + other] = 1, 2
    numbers = np.arange(n)
    images = np.stack([numbers % 256, numbers // 256], 1).astype(np.uint8)[:, None, None, :]
    return compare(Answers(before), Answers(after), images, labels)  # type: ignore[arg-type]  # what it uses of them


def test_what_is_counted():
    result = compared(4000, 12, 5, 3)
    assert (result["lost"], result["won"], result["images"], result["proven"]) == (12, 5, 4000, True)
    assert result["agreement"] == 1 - 20 / 4000
    assert result["loss"] == pytest.approx(100 * 7 / 4000)
    low, high = result["loss_interval"]
    assert low < result["loss"] < high
    assert result["top1"] - result["top1_int8"] == pytest.approx(7 / 4000)


@pytest.mark.parametrize(
    ("counts", "accept", "refused"),
    [
        ((10_000, 32, 32), None, False),  # noise
        ((10_000, 90, 20), None, True),  # 0.7 points, surely more than 0.3
        ((10_000, 90, 20), 1.0, False),
        ((10_000, 50, 15), None, False),  # 0.35 points, but not surely more than 0.3
        ((10_000, 80, 80), None, True),  # no loss, but too many other answers
        ((10_000, 80, 80), 0.3, False),
        ((360, 1, 0), None, False),
        ((360, 30, 0), None, True),
    ],
)
def test_when_it_is_refused(counts: tuple[int, ...], accept: float | None, refused: bool):
    result = compared(*counts)
    if not refused:
        check_loss(result, accept, list)
        return
    with pytest.raises(resnetlab.UserError, match=r"--keep-float layer1\.0\.conv1.*--accept-loss"):
        check_loss(result, accept, lambda: ["layer1.0.conv1"])


def test_few_images_prove_nothing(capsys: pytest.CaptureFixture[str]):
    check_loss(compared(1999, 0, 0), None, list)
    assert "unproven" in capsys.readouterr().err
    assert compared(2000, 0, 0)["proven"] and not compared(1999, 0, 0)["proven"]


def stem(channels: int, kernel: int, stride: int, pad: int, size: int, group: int = 1) -> onnx.ModelProto:
    """Normalization and the first convolution, as an export has them."""
    draws = np.random.default_rng(0)
    values = {
        "scale": np.tile(draws.random((1, channels)), (size, 1)),
        "shift": np.tile(draws.random((1, channels)), (size, 1)),
        "weights": draws.standard_normal((6, channels // group, kernel, kernel)),
    }
    options: dict[str, Any] = {"strides": [stride] * 2, "pads": [pad] * 4, "dilations": [1, 1], "group": group}
    nodes = [
        helper.make_node("Cast", ["images"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["floats", "scale"], ["scaled"]),
        helper.make_node("Add", ["scaled", "shift"], ["normalized"]),
        helper.make_node("Transpose", ["normalized"], ["batch"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["batch", "weights"], ["maps"], kernel_shape=[kernel] * 2, **options),
    ]
    images = helper.make_tensor_value_info("images", TensorProto.UINT8, ["N", size, size, channels])
    maps = helper.make_tensor_value_info("maps", TensorProto.FLOAT, ["N", 6, None, None])
    weights = [numpy_helper.from_array(value.astype(np.float32), name) for name, value in values.items()]
    graph = helper.make_graph(nodes, "stem", [images], [maps], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


@pytest.mark.parametrize(
    ("form", "widened"),
    [
        ((3, 7, 2, 3, 12), 12),
        ((3, 3, 2, 1, 12), 12),
        ((3, 4, 2, 1, 12), 12),
        ((3, 3, 2, 0, 12), 12),
        ((1, 7, 2, 3, 12), 4),
        ((1, 3, 1, 1, 9), 4),
        ((3, 7, 2, 3, 13), 3),  # 2x2 pixels do not fit
        ((3, 3, 1, 1, 12), 3),
        ((3, 3, 2, 1, 12, 3), 1),
    ],
)
def test_the_first_convolution_is_widened_and_computes_the_same(form: Any, widened: int):
    model = stem(*form)
    pixels = np.random.default_rng(1).integers(0, 256, (2, form[4], form[4], form[0]), dtype=np.uint8)

    def maps() -> np.ndarray:
        session = onnxruntime.InferenceSession(model.SerializeToString())
        return np.asarray(session.run(None, {"images": pixels})[0])

    expected = maps()
    widen_stem(model)
    weights = next(value for value in model.graph.initializer if value.name == "weights")
    assert weights.dims[1] == widened
    found = maps()
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= 1e-6 * np.abs(expected).max()
