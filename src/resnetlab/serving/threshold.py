"""From which score on an answer is trusted, by a run's held-out images; the page says "Not sure" below it.

Another process reads the table, `python -m resnetlab.serving.threshold RUN`, so that the service itself does without
pyarrow.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np

UNSURE_BELOW = 0.5
"""The threshold without held-out images, and the lowest otherwise."""
RIGHT = 0.95
"""The share of trusted answers that are to be right."""
_HIGHEST = 0.95
_TABLE = "evaluation/per_image.parquet"


def lowest_trusted(confidence: np.ndarray, correct: np.ndarray) -> float:
    """Returns the lowest threshold, of 0.50, 0.55, ... 0.95, above which at least 95 % of the answers are right.

    Args:
        confidence: (N,), of the predictions on held-out images, from 0 to 1.
        correct: (N,), whether each prediction is right.
    """
    steps = np.arange(round(100 * UNSURE_BELOW), round(100 * _HIGHEST), 5) / 100
    for step in steps.tolist():
        trusted = correct[confidence >= step]
        if len(trusted) and trusted.mean() >= RIGHT:
            return step
    return _HIGHEST


def threshold_of(run: Path) -> float:
    """Returns the threshold of a run, or the default if it was not evaluated."""
    if not (run / _TABLE).is_file():
        return UNSURE_BELOW
    command = [sys.executable, "-m", __name__, str(run)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return float(done.stdout) if done.returncode == 0 else UNSURE_BELOW


def main() -> None:
    """Prints the threshold of the run that the command line names."""
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(Path(sys.argv[1]) / _TABLE, columns=["label", "prediction", "confidence"])
    columns = table.to_pydict()
    correct = np.array([label == found for label, found in zip(columns["label"], columns["prediction"], strict=True)])
    sys.stdout.write(f"{lowest_trusted(np.array(columns['confidence']), correct)}\n")


if __name__ == "__main__":
    main()
