"""How fast an exported network answers on this machine, next to torch and OpenVINO, in one process.

The variants take turns, so that a machine that becomes slower slows all of them alike.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from rich.table import Table

from resnetlab.core.console import notice, render
from resnetlab.core.environment import import_extra, processor_name
from resnetlab.core.errors import UserError
from resnetlab.core.files import write_json
from resnetlab.core.pictures import LIGHT, Picture, add_legend, on_axes, save_png, style_axes
from resnetlab.evaluation.forward import answer, trained_on
from resnetlab.exporting.session import MODEL, MODEL_INT8, open_exported, usable_threads
from resnetlab.models.network import Network

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BATCHES = (1, 16, 128)
_SECONDS, _FEWEST, _MOST = 4.0, 3, 300
"""Time of a variant at one batch size, and the passes that it makes in that time."""
_MEASURED = 1000  # images for the accuracy
_AT_ONCE = 16
_LEAST_GAIN = 1.05

Pass = Callable[[np.ndarray], np.ndarray]
"""Returns the logits (N, classes) of images, uint8 (N, H, W, C)."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One variant at one batch size.

    Attributes:
        variant: its name, such as "ONNX Runtime int8".
        batch: images per pass.
        p50, p99: milliseconds of a pass, the median and the 99th percentile.
        images_per_second: batch / p50.
        top1: accuracy, 0 to 1; None without labeled images.
        megabytes: size of its file.
    """

    variant: str
    batch: int
    p50: float
    p99: float
    images_per_second: float
    top1: float | None
    megabytes: float


def variants(folder: Path, network: Network) -> dict[str, tuple[Pass, float]]:
    """Returns the pass and the size in megabytes of every variant that this machine can run.

    Raises:
        UserError: an exported file fails its self-test here.
    """
    threads = usable_threads()
    preprocessing, _ = trained_on(network)
    if network.channels_last:  # once, and not at every pass
        network = copy.deepcopy(network).to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def with_torch(images: np.ndarray) -> np.ndarray:
        return answer(network, torch.from_numpy(images.transpose(0, 3, 1, 2)), preprocessing).logits.numpy()

    size = sum(value.numel() * value.element_size() for value in network.state_dict().values())
    found: dict[str, tuple[Pass, float]] = {"torch float32": (with_torch, size / 1e6)}
    files = {"float32": folder / MODEL, "int8": folder / MODEL_INT8}
    files = {precision: path for precision, path in files.items() if path.is_file()}
    for precision, path in files.items():
        exported = open_exported(path, threads=threads)
        exported.selftest()
        found[f"ONNX Runtime {precision}"] = (_of(exported), path.stat().st_size / 1e6)
    try:
        openvino = import_extra("openvino", without="openvino_telemetry")
    except UserError:
        notice("OpenVINO is not measured, because it is not installed: pip install openvino")
        return found
    hints = {"float32": ("float32", "f32"), "bfloat16": ("float32", "bf16"), "int8": ("int8", "f32")}
    for precision, (kind, hint) in hints.items():
        if kind in files:
            options = {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": threads}
            compiled = openvino.Core().compile_model(str(files[kind]), "CPU", options)
            found[f"OpenVINO {precision}"] = (_of_openvino(compiled), files[kind].stat().st_size / 1e6)
    return found


def measure(
    passes: Mapping[str, tuple[Pass, float]],
    images: np.ndarray,
    held_out: tuple[np.ndarray, np.ndarray] | None = None,
    *,
    batches: Sequence[int] = BATCHES,
    seconds: float = _SECONDS,
) -> list[Measured]:
    """Returns latency, throughput, accuracy and size of all variants.

    Args:
        passes: what `variants` returned.
        images: uint8 (N, H, W, C), repeated where a batch is larger.
        held_out: images and labels for the accuracy, of which at most 1,000 are used.
        batches: images per pass.
        seconds: time of a variant at one batch size.
    """
    accuracy: dict[str, float | None] = dict.fromkeys(passes)
    if held_out is not None:
        some, labels = (part[:_MEASURED] for part in held_out)
        parts = np.array_split(some, -(-len(some) // _AT_ONCE))
        for name, (run, _) in passes.items():
            accuracy[name] = float((np.concatenate([run(part).argmax(1) for part in parts]) == labels).mean())
    rows = []
    for batch in batches:
        given = np.resize(images, (batch, *images.shape[1:]))
        for name, times in _times({name: run for name, (run, _) in passes.items()}, given, seconds).items():
            p50, p99 = (1e3 * float(np.percentile(times, share)) for share in (50, 99))
            rate = 1e3 * batch / p50
            rows.append(
                Measured(
                    variant=name, batch=batch, p50=p50, p99=p99, images_per_second=rate, top1=accuracy[name],
                    megabytes=passes[name][1],
                )
            )  # fmt: skip
    return rows


def recommendation(rows: Sequence[Measured]) -> str:
    """Returns which variant to use, in one or two sentences."""
    single = {row.variant: row for row in rows if row.batch == min(one.batch for one in rows)}
    first = single["torch float32"]
    ours = {name: row for name, row in single.items() if name.startswith("ONNX Runtime")}
    best, other = (min(some.values(), key=lambda row: row.p50) for some in (ours, single))
    loss = ""
    if best.top1 is not None and first.top1 is not None:
        lost = 100 * (first.top1 - best.top1)
        loss = f", with {abs(lost):.2f} points {'less' if lost > 0 else 'more'} accuracy" if lost else ""
    name = MODEL_INT8 if best.variant.endswith("int8") else MODEL
    text = f"Use {name} with ONNX Runtime: {first.p50 / best.p50:.1f} times as fast as torch for single images{loss}."
    if other.p50 * _LEAST_GAIN < best.p50:
        text += f" {other.variant} is {best.p50 / other.p50:.1f} times as fast as that."
    return text


def write_benchmark(folder: Path, rows: Sequence[Measured]) -> str:
    """Writes benchmark.json and benchmark.png; returns the table and the recommendation as text."""
    machine = {"processor": processor_name(), "threads": usable_threads()}
    advice = recommendation(rows)
    record = {"schema": 1, **machine, "recommendation": advice, "rows": [asdict(row) for row in rows]}
    write_json(folder / "benchmark.json", record)
    title = f"{machine['processor']}, {machine['threads']} threads"
    save_png(folder / "benchmark.png", picture(rows, title))
    return f"{render(_table(rows, title))}\n{advice}"


def picture(rows: Sequence[Measured], title: str) -> Picture:
    """Returns bars of the images per second of every variant, by batch size."""
    names = list(dict.fromkeys(row.variant for row in rows))
    batches = sorted({row.batch for row in rows})

    def draw(axes: Axes) -> None:
        height = 0.8 / len(batches)
        for place, batch in enumerate(batches):
            values = [row.images_per_second for row in rows if row.batch == batch]
            at = [number + (place - (len(batches) - 1) / 2) * height for number in range(len(names))]
            bars = axes.barh(at, values, height, color=LIGHT[f"class-{place}"], label=f"batch {batch}")
            axes.bar_label(bars, fmt="{:,.0f}", padding=2, fontsize=7)
        axes.set_yticks(range(len(names)), names)
        axes.invert_yaxis()
        axes.margins(x=0.12)
        style_axes(axes, xlabel="images per second")
        axes.grid(visible=False, axis="y")
        add_legend(axes, columns=len(batches))

    words = ". ".join(f"{row.variant}, batch {row.batch}: {row.images_per_second:,.0f} images a second" for row in rows)
    return Picture(title=title, words=words, draw=on_axes(draw), size=(7.0, 0.8 + 0.62 * len(names)))


def _table(rows: Sequence[Measured], title: str) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("variant")
    for name in ("batch", "p50 ms", "p99 ms", "images/s", "top-1", "MB"):
        table.add_column(name, justify="right")
    for row in rows:
        top1 = "" if row.top1 is None else f"{row.top1:.2%}"
        figures = (f"{row.p50:.2f}", f"{row.p99:.2f}", f"{row.images_per_second:,.0f}", top1, f"{row.megabytes:.2f}")
        table.add_row(row.variant, str(row.batch), *figures)
    return table


def _times(passes: Mapping[str, Pass], images: np.ndarray, seconds: float) -> dict[str, list[float]]:
    """Returns the seconds of the passes of each variant, which take turns."""
    for run in passes.values():
        run(images)
    first = {name: _seconds(run, images) for name, run in passes.items()}
    rounds = int(min(_MOST, max(_FEWEST, seconds / max(first.values()))))
    times: dict[str, list[float]] = {name: [] for name in passes}
    for _ in range(rounds):
        for name, run in passes.items():
            times[name].append(_seconds(run, images))
    return times


def _seconds(run: Pass, images: np.ndarray) -> float:
    start = time.perf_counter()
    run(images)
    return time.perf_counter() - start


def _of(exported: Any) -> Pass:
    return lambda images: exported.run(images, ["logits"])["logits"]


def _of_openvino(compiled: Any) -> Pass:
    request, output = compiled.create_infer_request(), compiled.output("logits")
    return lambda images: request.infer({"images": images})[output]
