"""The answers of an exported file from a new process that cannot import torch, as a deployment has none.

`python -m resnetlab.exporting.fresh MODEL IMAGES ANSWERS BATCH BATCH ...` is that process; IMAGES and ANSWERS are .npz.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

ABSENT = ("torch", "torchvision", "pandas", "pyarrow", "sklearn", "matplotlib", "onnx", "onnxscript")
"""Packages that the process cannot import."""


def fresh_answers(model: Path, images: np.ndarray, batches: Sequence[int]) -> list[dict[str, np.ndarray]]:
    """Returns all outputs for the first images, for each batch size; the images are uint8 (N, H, W, C).

    Raises:
        UserError: the process failed; the message has its last line.
    """
    from resnetlab.core.errors import UserError

    with tempfile.TemporaryDirectory() as folder:
        given, answers = Path(folder) / "images.npz", Path(folder) / "answers.npz"
        np.savez(given, images=images)
        command = [sys.executable, "-P", "-m", __spec__.name, model, given, answers, *batches]
        places = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, places))}
        done = subprocess.run(
            list(map(str, command)), env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True
        )
        if done.returncode:
            last = (done.stderr.strip().splitlines() or [f"it ended with code {done.returncode}"])[-1]
            raise UserError(f"the exported file gives no answers in a new process without torch: {last}")
        with np.load(answers) as found:
            return [
                {key.partition("/")[2]: found[key] for key in found if key.startswith(f"{batch}/")} for batch in batches
            ]


def _main(model: str, given: str, answers: str, *batches: str) -> None:
    modules: dict[str, Any] = sys.modules
    modules.update(dict.fromkeys(ABSENT))
    from resnetlab.exporting.session import open_exported

    exported = open_exported(model)
    with np.load(given) as file:
        images = file["images"]
    found = {}
    for batch in batches:
        outputs = exported.run(images[: int(batch)], exported.outputs)
        found |= {f"{batch}/{name}": value for name, value in outputs.items()}
    np.savez(answers, **found)  # type: ignore[arg-type]  # numpy's annotation has other keywords


if __name__ == "__main__":
    _main(*sys.argv[1:])
