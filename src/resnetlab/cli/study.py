"""`resnetlab study`: a question of the papers, answered on one's own images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from resnetlab.cli.options import DataRoot, Device, read_assignments
from resnetlab.core.console import notice
from resnetlab.core.errors import UserError, unknown

NAME = "study"
ALL = "all"


def command(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The study, all for every one, or list to see them.")],
    data: Annotated[str, typer.Argument(metavar="DATA", help="A data set, or a folder of images.")] = "digits",
    budget: Annotated[
        float | None,
        typer.Option(help="Minutes to take, about: 4 a study without it; with all, for all together."),
    ] = None,
    seeds: Annotated[int, typer.Option(help="Trainings of each kind.")] = 3,
    full: Annotated[bool, typer.Option("--full", help="The paper's protocol, no budget: hours to days.")] = False,
    out: Annotated[
        Path | None,
        typer.Option(help="Its folder; studies/NAME-DATA without it. What was begun there goes on."),
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change an argument, such as depths=[20,44].")
    ] = None,
    image_size: Annotated[int | None, typer.Option(help="Height and width of the images, in pixels.")] = None,
    data_root: DataRoot = None,
    device: Device = "auto",
    precision: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float64.")] = "auto",
) -> None:
    """Answer a question of the papers on your own images, the published figures beside yours.

    resnetlab study list

    resnetlab study degradation digits

    resnetlab study all fashion_mnist --budget 60

    A study that is stopped goes on where it was when the same command is given again.
    """
    from rich.console import Console

    from resnetlab.studies import STUDIES, SetUp, study_all
    from resnetlab.studies.lab.listing import list_studies

    console = Console()
    if name == "list":
        console.print(list_studies())
        return
    if name not in (ALL, *STUDIES):
        raise unknown("study", name, ["list", ALL, *STUDIES])
    setup: SetUp = {
        "out": out, "budget": budget, "seeds": seeds, "full": full, "image_size": image_size, "data_root": data_root,
        "device": device, "precision": precision,
    }  # fmt: skip
    options = read_assignments(settings or (), "depths=[20,44]")
    if name == ALL:
        if options:
            raise UserError("--set changes an argument of one study. Name the study, or leave --set out.")
        page = study_all(data, **setup)
    else:
        study = STUDIES[name]
        known = study.__kwdefaults__ or {}
        for key in options:
            if key not in known:
                raise unknown(f"argument of {name}", key, known)
        result = study(data, **options, **setup)
        console.print(result)
        page = result.folder / "study.html"
    notice(f"page    {page}")
