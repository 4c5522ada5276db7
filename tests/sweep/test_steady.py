"""A long training takes no more memory, threads, open files and temporary files in its last epoch than in its 20th."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

EPOCHS, FIRST = 200, 20
TRAINING = """
import json, os, sys
from pathlib import Path
import resnetlab
from resnetlab.core.runs import Run
from resnetlab.models.config import ResNetConfig

out, folder, rows = Path(sys.argv[1]), Path(sys.argv[2]), []
write = Run.write_history
def measured(run, history):
    write(run, history)
    memory = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    files = sum(1 for path in [*out.rglob("*"), *folder.rglob("*")] if path.is_file())
    rows.append((memory, len(os.listdir("/proc/self/task")), len(os.listdir("/proc/self/fd")), files))
Run.write_history = measured
config = ResNetConfig(depths=(1, 1), widths=(4, 8), stem="cifar", shortcut="A", in_channels=1, num_classes=10)
data = resnetlab.load_data("digits", limit=100, limit_held_out=40)
resnetlab.fit(config, data, out=out, epochs=int(sys.argv[3]), batch_size=50, average=0.9, precision="float32")
sys.stdout.write(json.dumps(rows))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_long_training_takes_no_more_at_its_end(tmp_path: Path):
    (tmp_path / "temporary").mkdir()
    command = [sys.executable, "-c", TRAINING, str(tmp_path / "run"), str(tmp_path / "temporary"), str(EPOCHS)]
    environment = {**os.environ, "TMPDIR": str(tmp_path / "temporary"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)[:EPOCHS]  # after these, the end of the training writes it once more
    memory = np.array([row[0] for row in rows[FIRST:]]) / 2**20
    growth = 100 * np.polyfit(range(len(memory)), memory, 1)[0]
    sys.stdout.write(f"{growth:.3f} MiB of memory in 100 epochs, from {memory[0]:.0f} MiB\n")
    assert growth < 1
    for what, counts in zip(
        ("threads", "open files", "files"), zip(*(row[1:] for row in rows), strict=True), strict=True
    ):
        assert max(counts[FIRST:]) <= max(counts[:FIRST]), what
