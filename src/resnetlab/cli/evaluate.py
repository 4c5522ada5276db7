"""`resnetlab evaluate`: a run's network against labeled images."""

from __future__ import annotations

from typing import Annotated

import typer

from resnetlab.cli.options import DataRoot, Device, RunFolder, SkipUnreadable
from resnetlab.core.console import notice

NAME = "evaluate"


def command(
    run: RunFolder,
    data: Annotated[str | None, typer.Option(help="Other images than the run's: a data set or folder.")] = None,
    split: Annotated[str | None, typer.Option(help="train, validation or test; test where there is one.")] = None,
    data_root: DataRoot = None,
    device: Device = "auto",
    skip_unreadable: SkipUnreadable = False,
    mirrored: Annotated[
        bool, typer.Option("--mirrored", help="Tell in addition the accuracy of looking at mirror images too.")
    ] = False,
    explore: Annotated[
        bool, typer.Option("--explore/--no-explore", help="Map the embeddings and diagnose the blocks, too.")
    ] = True,
) -> None:
    """Measure a trained network and write the tables into its run folder."""
    from rich.console import Console

    from resnetlab.core.runs import Run
    from resnetlab.evaluation.evaluate import evaluate

    opened = Run(run)
    evaluation = evaluate(
        opened,
        data,
        split=split,
        device=device,
        data_root=data_root,
        skip_unreadable=skip_unreadable,
        mirrored=mirrored,
        explore=explore,
    )
    Console().print(evaluation)
    notice(f"tables  {evaluation.folder}")
