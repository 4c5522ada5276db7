"""Claims: a short training takes at most three times as long as its imports, and its end at most as long as them.

The script runs two commands alternately, each in a new process: `python -c "import torch, torchvision"` and
`python -m resnetlab train digits --limit 150 --epochs 1`, which trains, evaluates and writes the report with the map
of the embeddings and the diagnostics of the blocks. It compares the medians of the times. The page must be complete: no
section may lack data. The end of a run lasts from its last line in history.csv to the finished page.

The default is elapsed time, which needs a quiet machine. `--processor-time` compares user and system time of the
processes for the first claim, which other work on the machine changes less.
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

BAR, END_BAR = on_known(3.0), on_known(1.0)
_IMPORTS = ("-c", "import torch, torchvision")
_TRAINING = ("-m", "resnetlab", "train", "digits", "--limit", "150", "--epochs", "1")


def seconds(arguments: tuple[str, ...]) -> dict[str, float]:
    """Returns how long Python takes for a command line, elapsed time and processor time."""
    before, began = os.times(), time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
    elapsed, after = time.perf_counter() - began, os.times()
    used = after.children_user - before.children_user + after.children_system - before.children_system
    return {"elapsed": elapsed, "used": used}


def end_of(run: Path) -> float:
    """Returns the seconds from the last epoch of a run to its page."""
    return (run / "report.html").stat().st_mtime - (run / "history.csv").stat().st_mtime


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
    clock = "used" if options.processor_time else "elapsed"
    print(machine(), flush=True)
    rounds: list[dict[str, float]] = []
    for number in range(options.rounds + 1):
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "run"
            imports, training = seconds(_IMPORTS), seconds((*_TRAINING, "--out", str(out)))
            if not is_complete(out / "report.html"):
                print("the page is not complete")
                return 1
            end = end_of(out)
        measured = {"imports": imports[clock], "training": training[clock], "end": end}
        if number:
            rounds.append({**measured, "elapsed imports": imports["elapsed"]})
        words = ", ".join(f"{name} {value:.2f} s" for name, value in measured.items())
        print(f"round {number}/{options.rounds}: {words}", flush=True)
    medians = {name: statistics.median(each[name] for each in rounds) for name in rounds[0]}
    held = [
        judge("start", medians["training"] / medians["imports"], BAR, at_most=True),
        judge("end", medians["end"] / medians["elapsed imports"], END_BAR, at_most=True),
    ]
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main())
