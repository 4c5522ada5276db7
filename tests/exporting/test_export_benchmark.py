"""The benchmark of an export: what it measures and recommends."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import resnetlab
from resnetlab.core.runs import Run
from resnetlab.exporting.benchmark import Pass, measure, write_benchmark
from resnetlab.exporting.session import open_exported, relative_difference


def answers(seconds: float) -> Pass:
    """Answers with the class that the first pixel names, after some time."""

    def run(images: np.ndarray) -> np.ndarray:
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            pass
        return np.eye(4, dtype=np.float32)[images[:, 0, 0, 0]]

    return run


def test_rows_and_recommendation(tmp_path: Path):
    passes = {
        "torch float32": (answers(0.004), 4.0),
        "ONNX Runtime float32": (answers(0.002), 4.0),
        "ONNX Runtime int8": (answers(0.001), 1.0),
    }
    images = np.arange(4, dtype=np.uint8)[:, None, None, None]
    labels = np.array([0, 1, 2, 0])
    rows = measure(passes, images, (images, labels), batches=(1, 2), seconds=0.05)
    assert [(row.variant, row.batch) for row in rows] == [(name, batch) for batch in (1, 2) for name in passes]
    assert all(row.top1 == 0.75 and row.p50 <= row.p99 for row in rows)
    assert rows[0].images_per_second == pytest.approx(1000 / rows[0].p50)
    text = write_benchmark(tmp_path, rows)
    record = json.loads((tmp_path / "benchmark.json").read_text())
    assert "model-int8.onnx" in record["recommendation"] and record["recommendation"] in text
    assert record["rows"][0]["variant"] == "torch float32" and record["threads"] >= 1
    with Image.open(tmp_path / "benchmark.png") as picture:
        assert picture.width > 500


@pytest.mark.slow
def test_of_a_run_of_any_size_and_for_openvino(digits_run: Run, tmp_path: Path):
    written = resnetlab.export(digits_run, out=tmp_path / "onnx", any_size=True, benchmark=True)
    names = {"torch float32", "ONNX Runtime float32", "ONNX Runtime int8"}
    rows = json.loads((written.path.parent / "benchmark.json").read_text())["rows"]
    assert names <= {row["variant"] for row in rows} and {row["batch"] for row in rows} == {1, 16, 128}
    exported = open_exported(written.path)
    assert exported.takes_any_size and written.record is not None
    assert written.record["gate"]["any_size_difference"] < 0.02
    photo = np.random.default_rng(0).integers(0, 256, (31, 20, 1), dtype=np.uint8)
    whole, framed = (exported.run(image[None], ["logits"])["logits"] for image in (photo, exported.frame(photo)))
    assert relative_difference(whole, framed) < 0.02
    pytest.importorskip("openvino")
    written = resnetlab.export(digits_run, "openvino", out=tmp_path / "openvino", int8=True, accept_loss=5)
    files = {path.name for path in written.path.parent.iterdir()}
    assert {"model.xml", "model.bin", "model-int8.xml", "model.onnx"} <= files
