"""Claim: training for a moment, complete page included, takes at most three times as long as its imports.

The script runs two commands alternately, each in a new process: `python -c "import torch, torchvision"` and
`python -m resnetlab train digits --limit 150 --epochs 1`, which trains, evaluates and writes the report with the map
of the embeddings and the diagnostics of the blocks. It compares the medians of the times. The page must be complete: no
section may lack data.

The default is elapsed time, which needs a quiet machine. `--processor-time` compares user and system time of the
processes, which other work on the machine changes less.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from timing import judge, machine, on_known

BAR = on_known(3.0)
_IMPORTS = ("-c", "import torch, torchvision")
_TRAINING = ("-m", "resnetlab", "train", "digits", "--limit", "150", "--epochs", "1")


def seconds(arguments: tuple[str, ...], *, processor_time: bool) -> float:
    """Returns how long Python takes for a command line."""
    before, began = os.times(), time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
    elapsed, after = time.perf_counter() - began, os.times()
    used = after.children_user - before.children_user + after.children_system - before.children_system
    return used if processor_time else elapsed


def is_complete(page: Path) -> bool:
    """Whether the page has the map and the diagnostics, and no section that lacks data."""
    text = page.read_text(encoding="utf-8")
    return all(f'<section id="{name}"' in text for name in ("map", "residual")) and "data-missing=" not in text


def main() -> int:
    """Measures both commands, and prints the result and the claim."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="number of runs of each command, after one to warm up")
    parser.add_argument("--processor-time", action="store_true", help="compare processor time instead of elapsed time")
    options = parser.parse_args()
    print(machine(), flush=True)
    times: dict[str, list[float]] = {"imports": [], "training": []}
    for number in range(options.rounds + 1):
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "run"
            measured = {
                name: seconds(arguments, processor_time=options.processor_time)
                for name, arguments in (("imports", _IMPORTS), ("training", (*_TRAINING, "--out", str(out))))
            }
            if not is_complete(out / "report.html"):
                print("the page is not complete")
                return 1
        if number:
            for name, value in measured.items():
                times[name].append(value)
        words = ", ".join(f"{name} {value:.2f} s" for name, value in measured.items())
        print(f"round {number}/{options.rounds}: {words}", flush=True)
    medians = {name: statistics.median(values) for name, values in times.items()}
    ratio = medians["training"] / medians["imports"]
    return 0 if judge("start", ratio, BAR, at_most=True) else 1


if __name__ == "__main__":
    sys.exit(main())
