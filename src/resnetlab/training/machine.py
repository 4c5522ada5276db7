"""Device, precision and memory format of a training: what is fastest on this machine, recorded with the run."""

from __future__ import annotations

import functools
import statistics
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resnetlab.core.checks import check_choice, check_integer
from resnetlab.core.environment import resolve_device
from resnetlab.models.config import ResNetConfig
from resnetlab.models.parts import parts_for

PRECISIONS = ("float32", "bfloat16", "float64")
MEMORY_FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
_CANDIDATES = (("float32", "contiguous"), ("float32", "channels_last"), ("bfloat16", "channels_last"))
_ADVANTAGE = 1.15  # smaller differences are noise on a shared machine


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Where and how training computes.

    Attributes:
        device: a torch device.
        precision: of the forward and backward pass; "bfloat16" is autocast with float32 weights.
        memory_format: of images and convolution weights, "contiguous" (NCHW) or "channels_last" (NHWC).
        threads: torch's threads on the CPU; results are bit-equal only for the same number.
    """

    device: str
    precision: str
    memory_format: str
    threads: int

    def __post_init__(self) -> None:
        check_choice("precision", self.precision, PRECISIONS)
        check_choice("memory_format", self.memory_format, MEMORY_FORMATS)
        check_integer("threads", self.threads, 1)

    @property
    def dtype(self) -> torch.dtype:
        """Type of weights and input images."""
        return torch.float64 if self.precision == "float64" else torch.float32

    def place(self, model: nn.Module) -> nn.Module:
        """Moves a network to the device, type and memory format, in place, and returns it."""
        model.to(device=self.device, dtype=self.dtype)
        return model.to(memory_format=MEMORY_FORMATS[self.memory_format])  # type: ignore[call-overload]

    def arrange(self, images: Tensor) -> Tensor:
        """Returns images (N, C, H, W) in the memory format."""
        return images.contiguous(memory_format=MEMORY_FORMATS[self.memory_format])

    def autocast(self) -> AbstractContextManager[Any]:
        """Returns the context of the forward pass."""
        if self.precision == "bfloat16":
            return torch.autocast(torch.device(self.device).type, torch.bfloat16)
        return nullcontext()

    def __str__(self) -> str:
        return f"{self.device}, {self.precision}, {self.memory_format}, {self.threads} threads"

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as a file stores them."""
        return asdict(self)


def choose_machine(device: str = "auto", precision: str = "auto", *, parts: str = "torch") -> Machine:
    """Returns the settings with which a residual block trains fastest on this machine.

    Forward and backward passes of one block are timed in well under a second, in float32, in float32 with channels
    last, and in bfloat16 with channels last. A later candidate must be at least 1.15 times as fast as an earlier one,
    so that noise does not decide.

    Args:
        device: "auto", or a torch device.
        precision: "auto", or a precision to use instead of the fastest.
        parts: the kit of layers, as in `ResNetConfig`.
    """
    check_choice("precision", precision, ("auto", *PRECISIONS))
    name = str(resolve_device(device))
    if precision == "float64":
        measured = (precision, "contiguous")
    else:
        measured = _fastest(name, precision, torch.get_num_threads(), parts)
    return Machine(device=name, precision=measured[0], memory_format=measured[1], threads=torch.get_num_threads())


@functools.cache
def _fastest(device: str, precision: str, threads: int, parts: str) -> tuple[str, str]:
    candidates = [pair for pair in _CANDIDATES if precision in ("auto", pair[0])]
    machines = [
        Machine(device=device, precision=precision, memory_format=memory_format, threads=threads)
        for precision, memory_format in candidates
    ]
    best, best_time = machines[0], _seconds(machines[0], parts)
    for machine in machines[1:]:
        if (seconds := _seconds(machine, parts)) * _ADVANTAGE < best_time:
            best, best_time = machine, seconds
    return best.precision, best.memory_format


def _seconds(machine: Machine, parts: str, repeats: int = 7) -> float:
    """Returns the median time of a block's forward and backward pass."""
    with torch.random.fork_rng(devices=[]):
        make = parts_for(ResNetConfig(parts=parts))
        first, second = (make.convolution(64, 64, kernel_size=3, padding=1, bias=False) for _ in range(2))
        block = machine.place(nn.Sequential(first, make.normalization(64), make.activation(), second))
        images = machine.arrange(torch.randn(32, 64, 16, 16, dtype=machine.dtype).to(machine.device))
    times = []
    for _ in range(repeats + 2):
        start = time.perf_counter()
        with machine.autocast():
            output = block(images)
        F.mse_loss(output.float(), images.float()).backward()
        if images.device.type != "cpu":
            torch.accelerator.synchronize(images.device)
        times.append(time.perf_counter() - start)
    return statistics.median(times[2:])  # the first passes compile and allocate
