"""Times functions alternately, compares them with the limits of the machine, and judges claims by kind of machine.

Functions that take turns in one process are all affected when the speed of a machine drifts.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from resnetlab import summarize
from resnetlab.core.environment import processor_name

AMX, BFLOAT16 = "AMX", "bfloat16 without AMX"
"""The kinds of processors that bars of speed are set for; on others, results are printed without a bar."""
_ROWS = 2048
_COPIED = 2**28  # bytes


@dataclass(frozen=True, kw_only=True)
class Work:
    """What one call of a function has to do at least.

    Attributes:
        amount: floating-point (or integer) operations, two for each multiply-accumulate; for "memory", bytes read and
            written.
        limit: what limits it: "float32", "bfloat16", "int8" or "memory".
    """

    amount: float
    limit: str


@dataclass(frozen=True, kw_only=True)
class Timing:
    """What `medians` returns.

    Attributes:
        seconds: of one call, by name.
        shares: share of the machine's limit that a call reached, by name; only of functions whose work is known.
    """

    seconds: dict[str, float]
    shares: dict[str, float]


def kind_of_processor() -> str | None:
    """Returns the kind of this machine's processor; None if no bars were set for it."""
    if torch.cpu._is_amx_tile_supported():
        return AMX
    return BFLOAT16 if torch.cpu._is_avx512_bf16_supported() else None


def machine() -> str:
    """Returns the processor, its kind, the number of threads and the version of torch."""
    kind = kind_of_processor() or "no bars for this kind of processor"
    return f"{processor_name()} ({kind}), threads: {torch.get_num_threads()}, torch {torch.__version__}"


def on_known(bar: float) -> dict[str, float]:
    """Returns the same bar for every known kind of processor."""
    return dict.fromkeys((AMX, BFLOAT16), bar)


def judge(
    name: str,
    value: float,
    bar: float | Mapping[str, float],
    *,
    at_most: bool = False,
    decimals: int = 2,
    unit: str = "x",
) -> bool:
    """Prints a claim and its bar, and returns whether the claim holds.

    Args:
        name: of the claim.
        value: measured.
        bar: the value to reach; or one for each kind of processor, where a speed depends on it. Without one for this
            processor, the claim is printed and not judged.
        at_most: whether smaller values are better.
        decimals: of both values.
        unit: printed after both values.
    """
    wanted = bar.get(kind_of_processor() or "") if isinstance(bar, Mapping) else bar
    if wanted is None:
        print(f"{name}: {value:.{decimals}f}{unit} (no bar for this kind of processor)")
        return True
    print(f"{name}: {value:.{decimals}f}{unit} (bar {wanted:.{decimals}f}{unit}{', at most' if at_most else ''})")
    return value <= wanted if at_most else value >= wanted


def network_work(
    model: nn.Module, shape: Sequence[int], *, images: int, precision: str, training: bool = False
) -> Work:
    """Returns the work of one pass; a backward pass counts twice a forward pass.

    Args:
        model: a network.
        shape: of one image, (C, H, W).
        images: in one pass.
        precision: "float32", "bfloat16" or "int8".
        training: whether the pass is a training step.
    """
    macs = summarize(model, tuple(shape)).macs
    return Work(amount=2.0 * macs * images * (3 if training else 1), limit=precision)


def limit_rate(limit: str, rounds: int = 9) -> float:
    """Returns the machine's limit in operations or bytes per second, the median of some rounds."""
    amount, run = _limit(limit)
    run()
    return amount / statistics.median(_seconds(run) for _ in range(rounds))


def describe_share(name: str, work: Work, seconds: float, rate: float) -> float:
    """Prints the speed of a function next to the machine's limit, `rate`, and returns the share that it reached."""
    reached = work.amount / seconds
    is_memory = work.limit == "memory"
    unit, peak = ("GB/s", "a large copy") if is_memory else ("GFLOP/s", f"a large matrix product in {work.limit}")
    words = f"{reached / 1e9:.{int(is_memory)}f} {unit}, {reached / rate:.2f} of {peak} ({rate / 1e9:.0f} {unit})"
    print(f"{name}: {words}", flush=True)
    return reached / rate


def medians(
    runs: Mapping[str, Callable[[], object]],
    *,
    images: int,
    rounds: int,
    warmup: int,
    work: Mapping[str, Work] | None = None,
) -> Timing:
    """Runs each function in turn and returns its median seconds by name; prints every round and a summary.

    Args:
        runs: the functions to time, by name.
        images: number of images in one call, for the printed speeds.
        rounds: turns that count.
        warmup: turns before them that do not count.
        work: of one call, by name. The limits of the machine for this work are measured in the same turns.
    """
    work = work or {}
    print(machine())
    limits = {limit: _limit(limit) for limit in dict.fromkeys(each.limit for each in work.values())}
    times: dict[str, list[float]] = {name: [] for name in runs}
    limit_times: dict[str, list[float]] = {limit: [] for limit in limits}
    for turn in range(warmup + rounds):
        measured = {name: _seconds(run) for name, run in runs.items()}
        measured_limits = {limit: _seconds(run) for limit, (_, run) in limits.items()}
        if turn < warmup:
            continue
        for name, value in measured.items():
            times[name].append(value)
        for limit, value in measured_limits.items():
            limit_times[limit].append(value)
        speeds = ", ".join(f"{name} {images / value:.0f} img/s" for name, value in measured.items())
        print(f"round {turn - warmup + 1}/{rounds}: {speeds}", flush=True)
    for name, values in times.items():
        rates = sorted(images / value for value in values)
        print(f"{name}: median {statistics.median(rates):.0f} img/s, from {rates[0]:.0f} to {rates[-1]:.0f}")
    seconds = {name: statistics.median(values) for name, values in times.items()}
    rates = {limit: amount / statistics.median(limit_times[limit]) for limit, (amount, _) in limits.items()}
    shares = {name: describe_share(name, each, seconds[name], rates[each.limit]) for name, each in work.items()}
    return Timing(seconds=seconds, shares=shares)


def _limit(name: str) -> tuple[float, Callable[[], object]]:
    """Returns a function that only a limit of the machine slows down, and the work of one call."""
    return _copy() if name == "memory" else _product(getattr(torch, name))


def _product(dtype: torch.dtype) -> tuple[float, Callable[[], object]]:
    """Returns the operations of a large matrix product, and the product."""
    left, right = (torch.randint(-100, 100, (_ROWS, _ROWS)).to(dtype) for _ in range(2))
    multiply = torch.ops.aten._int_mm if dtype == torch.int8 else torch.mm
    return 2.0 * _ROWS**3, lambda: multiply(left, right)


def _copy() -> tuple[float, Callable[[], object]]:
    """Returns the bytes that a large copy reads and writes, and the copy."""
    source, target = torch.ones(_COPIED, dtype=torch.uint8), torch.empty(_COPIED, dtype=torch.uint8)
    return 2.0 * _COPIED, lambda: target.copy_(source)


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start
