"""What came out, in a few numbers."""

from __future__ import annotations

import math
from html import escape
from pathlib import Path

from safetensors import SafetensorError, safe_open

from resnetlab.core.runs import Run
from resnetlab.report.evaluation_files import Results


def facts(run: Run, results: Results) -> str:
    """The run in a few numbers, as far as they were recorded."""
    history, machine, summary = run.history, run.settings.get("machine", {}), results.summary
    found = {}
    if len(results.names) > 5:  # among five classes the right one is always among the first five
        found["Top-5 accuracy"] = f"{summary['top5']:.2%}"
    if "mirrored_top1" in summary:
        found["Top-1 with mirror images"] = f"{summary['mirrored_top1']:.2%}"
    found["Cross-entropy"] = f"{summary['loss']:.4f}"
    if not math.isnan(summary["ece"]):
        found["Calibration error (ECE)"] = f"{summary['ece']:.2%}"
    if (parameters := count_parameters(run.weights)) is not None:
        found["Parameters"] = f"{parameters:,}"
    if len(history):
        found["Epochs"] = f"{len(history):,}"
        found["Training time"] = _duration(history["seconds"].iloc[-1])
        found["Images per second"] = f"{history['images_per_second'].median():,.0f}"
    if machine:
        found["Device"] = ", ".join(str(machine[key]) for key in ("device", "precision") if key in machine)
    return "".join(f"<div><dt>{name}</dt><dd>{escape(value)}</dd></div>" for name, value in found.items())


def count_parameters(path: Path) -> int | None:
    """Counts the learned numbers in a weights file from its header alone: buffers are left out."""
    try:
        with safe_open(path, framework="numpy") as tensors:
            names = list(tensors.keys())
            learned = [name for name in names if "running_" not in name and "num_batches" not in name]
            return sum(math.prod(tensors.get_slice(name).get_shape()) for name in learned)
    except (OSError, SafetensorError):
        return None


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    if minutes == 0:
        return f"{rest} s"
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
