"""`resnetlab study`: test a published claim on your own images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from resnetlab.cli.options import DataRoot, Device, Precision, read_assignments
from resnetlab.core.console import notice, output
from resnetlab.core.errors import UserError, unknown

NAME = "study"
ALL = "all"


class Command(TyperCommand):
    """Adds to the help of `resnetlab study NAME` the arguments of that study."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Keeps the words of the command line for the help, which is printed while they are parsed."""
        ctx.meta["words"] = list(args)
        return super().parse_args(ctx, args)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Prints the help, then the arguments of the study that is named."""
        super().format_help(ctx, formatter)
        if words := [word for word in ctx.meta["words"] if not word.startswith("-")]:
            _print_arguments(words[0])


def command(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="A study from `resnetlab list studies`, or all. `resnetlab study NAME --help` also lists the "
            "arguments that --set changes.",
        ),
    ],
    data: Annotated[str, typer.Argument(metavar="DATA", help="A data set, or a folder of images.")] = "digits",
    budget: Annotated[
        float | None,
        typer.Option(
            help="Approximate time in minutes; with NAME all, the time of all studies together.",
            show_default="a plan for about 4 minutes on one core, per study",
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(help="Number of seeds: how often each network is trained.")] = 3,
    full: Annotated[
        bool, typer.Option("--full", help="Ignore the budget and follow the paper's protocol: hours to days.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            help="The study's folder. If it contains an interrupted study, that study is continued.",
            show_default="studies/NAME-DATA",
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Change an argument of the study, such as depths=[20,44], or, for all its trainings, a field of the "
            "recipe (recipe.loss=focal) or of the network (model.activation=gelu).",
        ),
    ] = None,
    image_size: Annotated[int | None, typer.Option(help="Resize images to this many pixels.")] = None,
    data_root: DataRoot = None,
    device: Device = "auto",
    precision: Precision = "auto",
) -> None:
    """Test a published claim on your own images, and show the published results next to yours.

    resnetlab study degradation digits

    resnetlab study all fashion_mnist --budget 60

    To continue an interrupted study, run the same command again.
    """
    from resnetlab.studies import STUDIES, SetUp, study_all
    from resnetlab.studies.lab.setup import CHANGED

    if name not in (ALL, *STUDIES):
        raise unknown("study", name, [ALL, *STUDIES])
    setup: SetUp = {
        "out": out, "budget": budget, "seeds": seeds, "full": full, "image_size": image_size, "data_root": data_root,
        "device": device, "precision": precision,
    }  # fmt: skip
    options = read_assignments(settings or (), "depths=[20,44]")
    if changes := {key: options.pop(key) for key in list(options) if key.startswith(CHANGED)}:
        setup["changes"] = changes
    if name == ALL:
        if options:
            raise UserError(
                "--set works only with a single study, not with `study all`. Give the name of one study, or "
                "remove --set."
            )
        page = study_all(data, **setup)
    else:
        result = STUDIES[name](data, **{**setup, **options})
        output().print(result)
        page = result.folder / "study.html"
    notice(f"report  {page}")


def _print_arguments(name: str) -> None:
    """Prints the arguments of a study: values, default and meaning."""
    from rich.markup import escape
    from rich.table import Table

    from resnetlab.studies import STUDIES, fields_of

    if name not in STUDIES:
        return
    table = Table("argument", "default", "values", "meaning", box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for field in fields_of(name)[0]:
        shown = list(field.default) if isinstance(field.default, tuple) else field.default
        table.add_row(field.name, escape(str(shown)), escape(field.values), escape(field.description))
    console = output()
    console.print(f"Arguments of {name}, changed by --set ARGUMENT=VALUE:\n")
    console.print(table)
