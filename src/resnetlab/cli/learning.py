"""`resnetlab learn`: lessons as notebooks, and exercises as files with gaps."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from resnetlab.core.console import notice

NAME = "learn"


def command(
    name: Annotated[
        str | None, typer.Argument(help="The lesson or exercise. Without it, all are listed.", show_default=False)
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="The file to write (.ipynb for a lesson, .py for an exercise), or a folder for it; default: "
            "NAME.ipynb or NAME.py. Nothing is overwritten."
        ),
    ] = None,
) -> None:
    """List lessons and exercises, or write one: a lesson as a notebook, an exercise as a Python file with gaps.

    `resnetlab check FILE` shows what is right in an exercise. For what is wrong, it shows the smallest input that
    fails, and a hint.

    resnetlab learn

    resnetlab learn photos-to-service

    resnetlab learn cross_entropy

    resnetlab check cross_entropy.py
    """
    from resnetlab.lessons.exercise import gaps_of
    from resnetlab.lessons.learn import KINDS, learn

    if name is None and out is None:
        for known, title in learn().items():
            typer.echo(f"{known:<{max(map(len, KINDS))}}  {KINDS[known]:<8}  {title}")
        notice("Write a lesson or an exercise: resnetlab learn NAME")
        return
    file = learn(name, out)  # type: ignore[call-overload]  # of out without a name, `learn` reports
    if file.suffix == ".ipynb":
        typer.echo(f"{file}  a notebook")
        notice("Open it with Jupyter, VS Code or Colab, and run its cells in order.")
        return
    gaps = len(gaps_of(file.read_text(encoding="utf-8")))
    typer.echo(f"{file}  {gaps} gaps to fill")
    notice(f"Fill the gaps, then: resnetlab check {shlex.quote(str(file))}")
