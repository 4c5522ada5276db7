"""Device, precision and memory format of a training: chosen by what the hardware offers, recorded with the run."""

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

from resnetlab.core.checks import MOST_THREADS, check_choice, check_integer
from resnetlab.core.environment import resolve_device
from resnetlab.core.errors import UserError
from resnetlab.models.config import ResNetConfig
from resnetlab.models.parts import avoid_faults, parts_for

PRECISIONS = ("float32", "bfloat16", "float16", "float64")
MEMORY_FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
PRECISION_CHOICES = ("auto", *PRECISIONS, "measured")
MEMORY_FORMAT_CHOICES = ("auto", *MEMORY_FORMATS)
_CANDIDATES = (("float32", "contiguous"), ("float32", "channels_last"), ("bfloat16", "channels_last"))
_ADVANTAGE = 1.15  # smaller differences are noise on a shared machine


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Where and how training computes.

    Attributes:
        device: a torch device.
        precision: of the forward and backward pass; "bfloat16" and "float16" are autocast with float32 weights, and
            "float16" scales the loss.
        memory_format: of images and convolution weights, "contiguous" (NCHW) or "channels_last" (NHWC).
        threads: torch's threads on the CPU; results are bit-equal only for the same number.
    """

    device: str
    precision: str
    memory_format: str
    threads: int

    def __post_init__(self) -> None:
        check_choice("precision", self.precision, PRECISIONS)
        check_integer("threads", self.threads, 1, MOST_THREADS)
        check_choice("memory_format", self.memory_format, MEMORY_FORMATS)

    @property
    def dtype(self) -> torch.dtype:
        """Type of weights and input images."""
        return torch.float64 if self.precision == "float64" else torch.float32

    def place(self, model: nn.Module) -> nn.Module:
        """Moves a network to the device, type and memory format, in place, and returns it."""
        model.to(device=self.device, dtype=self.dtype)
        if self.memory_format == "channels_last":
            avoid_faults(model)
        return model.to(memory_format=MEMORY_FORMATS[self.memory_format])  # type: ignore[call-overload]

    def arrange(self, images: Tensor) -> Tensor:
        """Returns images (N, C, H, W) in the memory format."""
        return images.contiguous(memory_format=MEMORY_FORMATS[self.memory_format])

    def autocast(self) -> AbstractContextManager[Any]:
        """Returns the context of the forward pass."""
        if self.precision in ("bfloat16", "float16"):
            return torch.autocast(torch.device(self.device).type, getattr(torch, self.precision))
        return nullcontext()

    def __str__(self) -> str:
        threads = f"{self.threads} thread{'s' if self.threads > 1 else ''}"
        return f"{self.device}, {self.precision}, {self.memory_format}, {threads}"

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as a file stores them."""
        return asdict(self)


def choose_machine(
    device: str = "auto", precision: str = "auto", memory_format: str = "auto", *, parts: str = "torch"
) -> Machine:
    """Returns the settings for a residual network on this machine, by the rule of `suitable`.

    Args:
        device: "auto", or a torch device.
        precision: a precision; "auto" for the rule's; or "measured" for the fastest in a short timing, which may differ
            from one call to the next on a busy machine.
        memory_format: a memory format, or "auto".
        parts: the kit of layers that "measured" times, as in `ResNetConfig`.
    """
    check_choice("precision", precision, PRECISION_CHOICES)
    check_choice("memory_format", memory_format, MEMORY_FORMAT_CHOICES)
    found, threads = resolve_device(device), torch.get_num_threads()
    if precision == "float16" and found.type == "cpu":
        raise UserError("precision float16 needs a GPU. Use bfloat16 or float32 on a CPU.")
    if precision == "measured":
        chosen = _fastest(str(found), memory_format, threads, parts)
    else:
        chosen = suitable(found.type, has_bfloat16(found), precision)
    if memory_format != "auto":
        chosen = chosen[0], memory_format
    return Machine(device=str(found), precision=chosen[0], memory_format=chosen[1], threads=threads)


def suitable(kind: str, bfloat16: bool, precision: str = "auto") -> tuple[str, str]:
    """Returns precision and memory format for training a residual network.

    A function of its arguments only, so that the same command gives the same numbers on the same kind of machine:

    - bfloat16 on hardware with instructions for it, otherwise float32;
    - channels_last on a CPU and in bfloat16 or float16, otherwise contiguous; float64 is always contiguous.

    On one core of an AMD EPYC with AVX512-BF16, a forward and backward pass takes, in milliseconds:

    | network, pixels, batch | float32, contiguous | float32, channels_last | bfloat16, channels_last |
    |---|---|---|---|
    | resnet20, 8, 128 | 61 | 52 | 48 |
    | resnet20 of scratch layers, 8, 64 | 46 | 44 | 37 |
    | quick_resnet, 28, 128 | 665 | 456 | 282 |
    | resnet18, 96, 16 | 518 | 548 | 239 |
    | resnet18, 224, 4 | 614 | 621 | 334 |
    | resnext50_32x4d, 64, 8 | 5,670 | 5,320 | 1,708 |

    Image size, number of channels, groups and the kit of layers therefore do not matter to the rule.

    Args:
        kind: the device's type, such as "cpu" or "cuda".
        bfloat16: whether the device has instructions for bfloat16, see `has_bfloat16`.
        precision: "auto", or the precision to use.
    """
    if precision == "auto":
        precision = "bfloat16" if bfloat16 else "float32"
    is_last = precision in ("bfloat16", "float16") or (precision == "float32" and kind == "cpu")
    return precision, "channels_last" if is_last else "contiguous"


def has_bfloat16(device: torch.device) -> bool:
    """Whether a device has instructions for bfloat16: AMX or AVX512-BF16 on a CPU, capability 8.0 or more on CUDA."""
    if device.type == "cpu":
        return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


@functools.cache
def _fastest(device: str, memory_format: str, threads: int, parts: str) -> tuple[str, str]:
    """Returns what is fastest for one block; a later candidate must be at least 1.15 times as fast as an earlier."""
    machines = [
        Machine(device=device, precision=precision, memory_format=candidate, threads=threads)
        for precision, candidate in _CANDIDATES
        if memory_format in ("auto", candidate)
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
