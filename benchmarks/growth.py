"""Claim: time and memory grow no faster than the work.

A small network is trained for a few steps on random images, evaluated and reported, in a process of its own for each
point. Each of these quantities grows while the others stay:

- `images`: images of 8x8 pixels in 10 classes, of which 72 % are for training;
- `classes`: of 100,000 images of 8x8 pixels; the work grows with the logits of the images held out: 28,000, and 40,000
  for 20,000 classes, since each class is in the validation split;
- `pixels`: side of 500 images; the work grows with its square;
- `depth`: layers of CIFAR's ResNet, on 500 images of 16x16 pixels;
- `ranks`: processes of one training on digits with torchrun; the work of starting them grows.

Measured are processor time and additional peak memory of these phases: `load` (arrays to splits), `build` (the
network), `start` (from `fit` to the end of the first step), `step` (each of the next three), `finish` (validation, test
and tables) and `page` (map, diagnostics and report). Costs at the smallest point are subtracted; of what remains, the
slope between the two largest points on logarithmic axes is the exponent. It must be at most 1.2, which leaves room for
sorting. Growth by less than a second or 100 MB, or to less than twice the smallest cost, is not judged. Memory is read
from /proc, so the script needs Linux.

    python benchmarks/growth.py                                  # the default points, at most 10 minutes on two cores
    python benchmarks/growth.py --only classes --points 2 200 20000
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from timing import judge, machine

BAR = 1.2
POINTS = {
    "images": (1_000, 10_000, 100_000, 1_000_000),
    "classes": (2, 200, 2_000, 20_000),
    "pixels": (16, 32, 64, 128),
    "depth": (20, 56, 110, 1202),
    "ranks": (1, 2),
}
FIXED = {
    "images": {"classes": 10, "pixels": 8, "depth": 20},
    "classes": {"images": 100_000, "pixels": 8, "depth": 20},
    "pixels": {"images": 500, "classes": 10, "depth": 20},
    "depth": {"images": 500, "classes": 10, "pixels": 16},
}
UNITS = {"seconds": 1.0, "megabytes": 100.0}
"""Smaller growth than this is not judged."""
Costs = dict[str, dict[str, float]]


class Meter:
    """Processor time and peak memory of phases of this process."""

    def __init__(self) -> None:
        self.costs: Costs = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Measures what happens in the context."""
        before, began = _restart_peak(), time.process_time()
        yield
        seconds = time.process_time() - began
        self.costs[name] = {"seconds": seconds, "megabytes": max(0.0, _peak() - before)}


def _restart_peak() -> float:
    """Makes the peak of this process's memory its present size, in megabytes, and returns it."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return _peak()


def _peak() -> float:
    """Returns the peak of this process's memory in megabytes."""
    lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024


def measure(images: int, classes: int, pixels: int, depth: int) -> Costs:
    """Returns the costs of every phase."""
    import numpy as np

    import resnetlab
    from resnetlab.training.callbacks import CallbackState

    draw, meter = np.random.default_rng(0), Meter()
    labels = np.arange(images) % classes
    pictures = draw.integers(0, 256, (images, pixels, pixels), dtype=np.uint8)
    pictures[:, 0, : pixels // 2] = labels[:, None] % 251  # something to learn
    with meter.phase("load"):
        data = resnetlab.load_data((pictures, labels))
    with meter.phase("build"):
        resnetlab.create_model(f"resnet{depth}", in_channels=1, num_classes=classes)
    marks: list[tuple[float, float]] = []

    def on_step(state: CallbackState) -> None:
        marks.append((time.process_time(), _peak()))
        if len(marks) == min(4, state.steps):
            state.stop()
            _restart_peak()

    with tempfile.TemporaryDirectory() as folder:
        base, began = _restart_peak(), time.process_time()
        run = resnetlab.fit(
            f"resnet{depth}", data, out=Path(folder) / "run", epochs=1, batch_size=32, quiet=True, on_step=on_step
        )
        ended, (first, memory), (last, _) = time.process_time(), marks[0], marks[-1]
        meter.costs["start"] = {"seconds": first - began, "megabytes": memory - base}
        meter.costs["step"] = {"seconds": (last - first) / max(1, len(marks) - 1), "megabytes": marks[-1][1] - base}
        meter.costs["finish"] = {"seconds": ended - last, "megabytes": max(0.0, _peak() - base)}
        with meter.phase("page"):
            page = resnetlab.write_report(run, data)
        meter.costs["page"]["size"] = page.stat().st_size / 2**20
    return meter.costs


def measure_ranks(ranks: int) -> Costs:
    """Returns the processor time and the memory of a training with some processes."""
    with tempfile.TemporaryDirectory() as folder:
        training = ["-m", "resnetlab", "train", "digits", "--epochs", "2", "--out", str(Path(folder) / "run")]
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
        subprocess.run([sys.executable, *launcher, *training], check=True, capture_output=True)
    resource: Any = import_module("resource")  # not annotated for Windows
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    whole = {"seconds": used.ru_utime + used.ru_stime, "megabytes": used.ru_maxrss / 1024}
    return {"training": whole}


def point(axis: str, value: int) -> Costs:
    """Returns the costs at one point, measured in a process of its own."""
    command = [sys.executable, __file__, "--only", axis, "--points", str(value), "--child"]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def _work(axis: str, value: int) -> float:
    """Returns what the work at a point grows with."""
    if axis == "pixels":
        return float(value**2)
    if axis == "classes":
        images = FIXED["classes"]["images"]
        return float(value * (images // 5 + max(images * 8 // 100, value)))
    return float(value)


def exponent(work: Sequence[float], costs: Sequence[float], least: float) -> float | None:
    """Returns the slope between the two largest points on logarithmic axes, without the costs of the smallest point.

    Args:
        work: at least two values, increasing.
        costs: of the same points.
        least: smaller increments are noise.

    Returns:
        The exponent, or None if the costs hardly grow. With only two points, no constant is subtracted.
    """
    if costs[-1] - costs[0] < least or costs[-1] < 2 * costs[0]:
        return None
    if len(work) == 2:
        return math.log(costs[1] / max(costs[0], least)) / math.log(work[1] / work[0])
    before, last = max(least, costs[-2] - costs[0]), costs[-1] - costs[0]
    return math.log(last / before) / math.log((work[-1] - work[0]) / (work[-2] - work[0]))


def draw_figure(found: dict[str, dict[int, Costs]], path: Path) -> None:
    """Draws time and memory of every phase against every quantity."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.4 * len(found), 6.4), layout="constrained")
    grid = figure.subplots(2, len(found), squeeze=False)
    for column, (axis, costs) in enumerate(found.items()):
        for row, unit in enumerate(UNITS):
            axes = grid[row, column]
            for name in next(iter(costs.values())):
                values = [max(cost[name][unit], 1e-3 if row == 0 else 1.0) for cost in costs.values()]
                axes.loglog(list(costs), values, "o-", markersize=3, label=name)
            axes.set_xlabel(axis)
            axes.grid(alpha=0.3)
            if not column:
                axes.set_ylabel(("processor time in seconds", "additional memory in MB")[row])
        grid[0, column].legend(fontsize=7)
    figure.savefig(path, dpi=120)


def main() -> int:
    """Measures all points, draws them, and judges each phase."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=POINTS, default=list(POINTS), help="quantities (default: all)")
    parser.add_argument("--points", nargs="+", type=int, help="values of the quantity that --only names")
    parser.add_argument("--out", type=Path, default=Path("growth.png"), help="the figure (default growth.png)")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.points and len(options.only) > 1:
        parser.error("--points needs --only with one quantity")
    if options.child:
        axis, value = options.only[0], options.points[0]
        print(json.dumps(measure_ranks(value) if axis == "ranks" else measure(**FIXED[axis], **{axis: value})))
        return 0
    print(f"{machine()}, {os.cpu_count()} processors", flush=True)
    found: dict[str, dict[int, Costs]] = {}
    for axis in options.only:
        for value in options.points or POINTS[axis]:
            costs = found.setdefault(axis, {})[value] = point(axis, value)
            words = [f"{name} {cost['seconds']:.2f} s {cost['megabytes']:.0f} MB" for name, cost in costs.items()]
            print(f"{axis} {value:,}: {', '.join(words)}", flush=True)
    draw_figure(found, options.out)
    print(f"figure: {options.out}")
    held = True
    for axis, costs in found.items():
        work = [_work(axis, value) for value in costs]
        for name in next(iter(costs.values())):
            for unit, least in UNITS.items():
                value = exponent(work, [cost[name][unit] for cost in costs.values()], least)
                if value is not None:
                    held &= judge(f"{axis}_{name}_{unit}", value, BAR, at_most=True, unit="")
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
