"""Where a run was made: versions and machine, for the run folder and the report."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

_PACKAGES = (
    "resnetlab", "torch", "torchvision", "numpy", "pillow", "safetensors", "pandas", "pyarrow", "scikit-learn",
)  # fmt: skip


def describe_environment() -> dict[str, Any]:
    """Returns Python's, the packages' and the machine's description, ready for JSON."""
    import torch

    return {
        "schema": 1,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "accelerator": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
        "packages": {name: metadata.version(name) for name in _PACKAGES},
    }


def processor_name() -> str:
    """Returns the processor's name as the system tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
