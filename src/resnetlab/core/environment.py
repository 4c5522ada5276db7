"""The machine that the program runs on: devices, memory, processes, versions."""

from __future__ import annotations

import ctypes
import functools
import importlib
import os
import platform
import signal
import sys
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resnetlab.core.errors import UserError

if TYPE_CHECKING:
    import torch

_PACKAGES = (
    "resnetlab", "torch", "torchvision", "numpy", "pillow", "safetensors", "pandas", "pyarrow", "scikit-learn",
)  # fmt: skip
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8  # of mallopt(3)
_LARGE = 2**30
_SET_PARENT_DEATH_SIGNAL = 1  # of prctl(2)


def resolve_device(name: str | torch.device = "auto") -> torch.device:
    """Returns the device called `name`; "auto" is a GPU if there is one, otherwise the CPU.

    Raises:
        UserError: `name` is not a device, or this machine does not have it.
    """
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        known = "" if reason.startswith("Expected one of") else f" ({reason})"
        raise UserError(
            f"device {str(name)!r} cannot be used on this machine{known}. "
            "Expected auto, cpu, or an accelerator that torch finds here, such as cuda or cuda:1."
        ) from error
    return device


def import_extra(module: str, extra: str = "", *, without: str = "") -> Any:
    """Returns a module of an optional package; raises `UserError` with the command that installs it, or its extra.

    Args:
        module: its name.
        extra: ResNetLab's extra that installs it.
        without: a package that it works without and that must not be imported with it, because it reports to its maker.
    """
    loaded: dict[str, Any] = sys.modules
    hidden = bool(without) and without not in loaded
    if hidden:
        loaded[without] = None
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        source = f"'resnetlab[{extra}]'" if extra else package
        raise UserError(f"this needs the package {package}, which is not installed: pip install {source}") from error
    finally:
        if hidden:
            del loaded[without]


def describe_environment() -> dict[str, Any]:
    """Returns the versions of Python and the packages, and the machine, ready for JSON."""
    import torch

    return {
        "schema": 1,
        "python": platform.python_version(),
        # Not platform.platform(), which starts the program uname: a fork counts this process's memory twice.
        "platform": "-".join([platform.system(), platform.release(), platform.machine()]),
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "accelerator": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
        "packages": {name: metadata.version(name) for name in _PACKAGES},
    }


def processor_name() -> str:
    """Returns the processor's name as the system reports it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def available_memory() -> int | None:
    """Returns the number of bytes that can be allocated without swapping; None if the system does not report it."""
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():
        return None  # outside Linux this would need a further dependency
    fields = dict(line.split(":", 1) for line in meminfo.read_text(encoding="ascii").splitlines())
    return int(fields["MemAvailable"].split()[0]) * 1024


@functools.cache
def keep_freed_memory() -> bool:
    """Makes the C library keep the memory of freed tensors, for the rest of the process.

    glibc returns blocks above 32 MiB to the system at once, and the next tensor of that size waits while the system
    clears its pages again; batches and activations are of that size at every step. The process keeps its peak memory
    instead. Without effect if the C library is not glibc.

    Returns:
        Whether it took effect.
    """
    kept = _mallopt(_MMAP_THRESHOLD, _LARGE) and _mallopt(_TRIM_THRESHOLD, 2**31 - 1)
    share_freed_memory()
    return kept


def share_freed_memory() -> bool:
    """Makes memory that one thread freed available to all, for the rest of the process, which takes less in total.

    glibc otherwise keeps it for threads that share an arena. Without effect if the C library is not glibc, and on
    threads that have allocated memory already.

    Returns:
        Whether it took effect.
    """
    return _mallopt(_ARENA_MAX, 1)


def end_with_parent() -> None:
    """On Linux, makes the system kill this process when the thread that started it ends, even if it crashes."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)


def _mallopt(option: int, value: int) -> bool:
    """Sets an option of glibc's allocator; returns whether it exists and has changed."""
    if sys.platform != "linux":
        return False
    try:
        return bool(ctypes.CDLL(None).mallopt(option, value))
    except (OSError, AttributeError):  # not glibc
        return False
