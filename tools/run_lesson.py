"""Runs one lesson as the site does, cell by cell in one process: `python tools/run_lesson.py docs/lessons/NAME.md`.

Prints the seconds of each slow cell and of the whole lesson, and the first error. `--show FOLDER` writes what the
reader sees: the printed output as text, and the figures. `--store` writes the outputs to docs/lessons/outputs, which
the site shows without running the lesson again.
"""

from __future__ import annotations

import argparse
import base64
import io
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from PIL import Image

from resnetlab.lessons.lesson import notebook_text, read_lesson

# A lesson's commands print as to a file: without colors and moving bars, and with lines that fit the page.
PLAIN = {"TERM": "dumb", "NO_COLOR": "1", "COLUMNS": "100", "MPLBACKEND": "module://matplotlib_inline.backend_inline"}
COLORS = 256
"""Figures are stored with a palette, which makes them less than half the size."""


def main() -> int:
    """Runs the lesson that the command line names; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lesson", type=Path)
    parser.add_argument("--show", type=Path, metavar="FOLDER", help="write printed output and figures here")
    parser.add_argument("--store", action="store_true", help="write the outputs that the site shows")
    options = parser.parse_args()
    notebook = nbformat.reads(notebook_text(read_lesson(options.lesson)), as_version=4)
    seconds, error = run(notebook)
    if options.show:
        show(notebook, options.show)
    if error:
        print(error)
        return 1
    print(f"{options.lesson.stem}: {seconds:.0f} s")
    if options.store:
        print(f"stored: {store(notebook, options.lesson)}")
    return 0


def run(notebook: Any) -> tuple[float, str]:
    """Executes a notebook in a folder that is deleted afterwards; returns the seconds and the error, or ""."""
    os.environ |= PLAIN
    os.environ["PATH"] = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    started: dict[int, float] = {}

    def on_cell_executed(cell: Any, cell_index: int, **_: Any) -> None:
        took = time.monotonic() - started[cell_index]
        if took >= 1:
            print(f"{took:6.1f} s  {cell.source.strip().splitlines()[0][:80]}", flush=True)

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        client = NotebookClient(
            notebook,
            timeout=600,
            resources={"metadata": {"path": folder}},
            on_cell_execute=lambda cell_index, **_: started.update({cell_index: time.monotonic()}),
            on_cell_executed=on_cell_executed,
        )
        start = time.monotonic()
        try:
            client.execute()
        except CellExecutionError as error:
            return time.monotonic() - start, str(error)
        return time.monotonic() - start, ""


def show(notebook: Any, folder: Path) -> None:
    """Writes the text outputs of all cells to output.txt, each after its code, and every figure to a PNG file."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = []
    for number, cell in enumerate(cell for cell in notebook.cells if cell.cell_type == "code"):
        parts.append("\n".join(f">>> {line}" for line in cell.source.splitlines()))
        for position, output in enumerate(cell.outputs):
            data = output.get("data", {})
            if "image/png" in data:
                file = folder / f"cell{number:02d}-{position}.png"
                file.write_bytes(base64.b64decode(data["image/png"]))
                parts.append(f"[{file.name}]")
            elif "image/svg+xml" in data:
                file = folder / f"cell{number:02d}-{position}.svg"
                file.write_text(data["image/svg+xml"], encoding="utf-8")
                parts.append(f"[{file.name}]")
            else:
                parts.append(output.get("text") or data.get("text/plain") or "\n".join(output.get("traceback", ())))
    (folder / "output.txt").write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def store(notebook: Any, lesson: Path) -> Path:
    """Writes code cells and outputs of an executed lesson, with small figures, and returns the file.

    The site takes them if sources and metadata are those of the lesson's page.
    """
    notebook = nbformat.from_dict(notebook)
    notebook.cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for cell in notebook.cells:
        cell.metadata = {"tags": cell.metadata["tags"]} if "tags" in cell.metadata else {}
        for output in cell.outputs:
            if "image/png" in output.get("data", {}):
                output.data["image/png"] = small(output.data["image/png"])
    notebook.metadata = {"kernelspec": {"display_name": "Python 3", "name": "python3"}}
    file = lesson.parent / "outputs" / f"{lesson.stem}.ipynb"
    file.parent.mkdir(exist_ok=True)
    file.write_text(nbformat.writes(notebook, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return file


def small(figure: str) -> str:
    """Returns a PNG figure in base64 with few colors."""
    with Image.open(io.BytesIO(base64.b64decode(figure))) as image:
        reduced = image.convert("RGB").quantize(COLORS, dither=Image.Dither.NONE)
    target = io.BytesIO()
    reduced.save(target, "PNG", optimize=True)
    return base64.b64encode(target.getvalue()).decode()


if __name__ == "__main__":
    sys.exit(main())
