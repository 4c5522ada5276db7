"""What the verbs print on a terminal: no line is wider than 80 columns, except a path or a command to copy."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.cells import cell_len

pytest.importorskip("pty", reason="there are no pseudo-terminals on Windows")

_VERBS = """
import sys
from resnetlab.cli.main import main

for line in sys.stdin.read().splitlines():
    print(f"verb {line}", flush=True)
    try:
        main(line.split("|"))
    except SystemExit as stop:
        print(f"ended {stop.code or 0}", flush=True)
"""
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def _on_a_terminal(folder: Path, commands: list[str], columns: int) -> str:
    """Runs commands one after the other on a pseudo-terminal, and returns what it received."""
    import fcntl
    import pty
    import struct
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "TERMINAL_WIDTH")}
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", _VERBS],
        stdin=subprocess.PIPE, stdout=theirs, stderr=theirs, cwd=folder, env={**environment, "TERM": "xterm-256color"},
    )  # fmt: skip
    assert process.stdin is not None
    process.stdin.write("\n".join(commands).encode())
    process.stdin.close()
    os.close(theirs)
    received = b""
    try:
        while part := os.read(ours, 65536):
            received += part
    except OSError:  # how Linux says that the other end is closed
        pass
    os.close(ours)
    process.wait()
    return received.decode(errors="replace")


def _is_copied(line: str) -> bool:
    return any(part in line for part in ("run/", "photos/", "resnetlab "))


@pytest.mark.slow
def test_no_line_is_wider_than_80_columns_with_long_and_wide_class_names(tmp_path: Path):
    names = ("日本語の名前がついたとても長い種類の鳥" * 3, "a class with a rather long name of many words " * 2 + "end")
    for label, name in enumerate(names):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(20):
            pixels = np.random.default_rng(number).integers(0, 128, (24, 32, 3)) + 120 * label
            Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "photos" / name / f"{number}.png")
    commands = [
        "inspect|photos",
        "train|photos|--epochs|2|--out|run|--model|resnet20",
        "evaluate|run",
        f"predict|run|photos/{names[0]}/1.png|photos/{names[1]}/1.png",
        "summary|resnet50",
        "summary|run",
        "train|photos|--model|resnet20|--limit|1",
        "train",
    ]
    text = _on_a_terminal(tmp_path, commands, columns=200)
    ended = [int(code) for code in re.findall(r"^ended (\d+)", text, re.MULTILINE)]
    assert ended == [0] * 6 + [2, 2], text
    lines = [line.rstrip() for line in re.split(r"[\r\n]+", _CONTROL.sub("", text))]
    assert not [line for line in lines if cell_len(line) > 80 and not _is_copied(line) and not line.startswith("verb ")]
    assert re.search(r"epoch 1/2 +loss \d", text)  # the progress bar shows the loss within an epoch
    assert len(lines) - 1 - lines.index("verb train") - 1 == 3  # two lines and "ended 2"
