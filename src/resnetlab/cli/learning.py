"""`resnetlab learn`: exercises, as files with gaps."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from resnetlab.core.console import notice

NAME = "learn"


def command(
    name: Annotated[
        str | None, typer.Argument(help="The exercise. Without it, all exercises are listed.", show_default=False)
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="The file to write (.py), or a folder for it; default: NAME.py. Nothing is overwritten."),
    ] = None,
) -> None:
    """List exercises, or write one as a Python file with gaps.

    `resnetlab check FILE` shows what is right. For what is wrong, it shows the smallest input that fails, and a hint.

    resnetlab learn

    resnetlab learn cross_entropy

    resnetlab check cross_entropy.py
    """
    from resnetlab.lessons.exercise import EXERCISES, gaps_of, learn

    if name is None and out is None:
        for known, title in learn().items():
            typer.echo(f"{known:<{max(map(len, EXERCISES))}}  {title}")
        notice("Write an exercise: resnetlab learn NAME")
        return
    file = learn(name, out)  # type: ignore[call-overload]  # of out without a name, `learn` reports
    gaps = len(gaps_of(file.read_text(encoding="utf-8")))
    typer.echo(f"{file}  {gaps} gaps to fill")
    notice(f"Fill the gaps, then: resnetlab check {shlex.quote(str(file))}")
