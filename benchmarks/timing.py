"""Times several functions alternately in one process, so that a machine whose speed drifts favors none of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

import torch

from resnetlab.core.environment import processor_name


def medians(runs: Mapping[str, Callable[[], object]], *, images: int, rounds: int, warmup: int) -> dict[str, float]:
    """Runs each function in turn and returns its median seconds by name; prints every round and a summary.

    Args:
        runs: the functions to time, by name.
        images: number of images in one call, for the printed speeds.
        rounds: turns that count.
        warmup: turns before them that do not count.
    """
    print(f"{processor_name()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(warmup + rounds):
        measured = {name: _seconds(run) for name, run in runs.items()}
        if turn < warmup:
            continue
        for name, value in measured.items():
            times[name].append(value)
        speeds = ", ".join(f"{name} {images / value:.0f} img/s" for name, value in measured.items())
        print(f"round {turn - warmup + 1}/{rounds}: {speeds}", flush=True)
    for name, values in times.items():
        rates = sorted(images / value for value in values)
        print(f"{name}: median {statistics.median(rates):.0f} img/s, from {rates[0]:.0f} to {rates[-1]:.0f}")
    return {name: statistics.median(values) for name, values in times.items()}


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start
