"""`resnetlab summary`: shapes, parameters, costs and shortcuts of a network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from resnetlab.cli.options import read_assignments
from resnetlab.core.console import notice
from resnetlab.core.errors import UserError

if TYPE_CHECKING:
    from rich.table import Table

    from resnetlab.models.config import ResNetConfig
    from resnetlab.models.summary import Summary

NAME = "summary"
_BY_SUFFIX = {".svg": "svg", ".json": "json"}


def command(
    name: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A name that `resnetlab models` lists, a run folder, or a weights file (./NAME for one that is "
            "called like a network).",
        ),
    ],
    image_size: Annotated[int | None, typer.Option(help="In pixels; without it, what it was published for.")] = None,
    channels: Annotated[int | None, typer.Option(help="Of the images; without it, what it was published for.")] = None,
    classes: Annotated[int | None, typer.Option(help="Outputs; 0 is a backbone.")] = None,
    stem: Annotated[str | None, typer.Option(help="imagenet, deep, cifar, or auto by image size.")] = None,
    shortcut: Annotated[str | None, typer.Option(help="A, B, C or none.")] = None,
    assign: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Change any field of ResNetConfig, such as groups=32, depths=[3,4,6,3] or parts=scratch. "
            "May be repeated.",
        ),
    ] = None,
    phi: Annotated[
        float | None,
        typer.Option(help="Scale depth, width and image size by EfficientNet's rule; the table shows the steps too."),
    ] = None,
    style: Annotated[
        str | None,
        typer.Option(
            help="table; gluon, Gluon's table; trace, a shape a line; trace-gluon, that under Gluon's names "
            "(numbered as after the five convolutions and four normalizations of its tutorial).",
        ),
    ] = None,
    svg: Annotated[bool, typer.Option("--svg", help="Draw the architecture, as an SVG document.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Totals and a row for every layer, as JSON.")] = False,
    out: Annotated[
        Path | None,
        typer.Option(help="Write to this file instead; one called .svg or .json gets that without being asked."),
    ] = None,
) -> None:
    """Show the layers of a network with shapes, parameters and costs, and what is added to what.

    resnetlab summary resnet50

    resnetlab summary resnet18 --stem auto --image-size 32 --set groups=1

    resnetlab summary resnet152 --out resnet152.svg
    """
    kind = _kind(style, svg, as_json, out)
    _check_writable(out)
    given = {"in_channels": channels, "num_classes": classes, "stem": stem, "shortcut": shortcut}
    given = {key: value for key, value in given.items() if value is not None}
    changes = read_assignments(assign or [], "shortcut=C")
    if twice := sorted(set(changes) & set(given)):
        raise UserError(f"{', '.join(twice)} is given twice, by its option and by --set. Leave one out.")
    style = kind if kind not in ("svg", "json") else "table"
    summary, scaling = _summary(name, image_size, {**given, **changes}, style, phi)
    if kind == "table" and out is None:
        from rich.console import Console

        console = Console()
        console = console if console.is_terminal else Console(width=100)
        console.print(summary)
        if scaling is not None:
            console.print(scaling)
        return
    shown = {"svg": summary.to_svg, "json": lambda: json.dumps(summary.to_dict(), indent=2)}
    text = shown.get(kind, summary.__str__)()
    if out is None:
        typer.echo(text)
    else:
        from resnetlab.core.files import write_text

        write_text(out, f"{text}\n")
        notice(f"{summary.model}  {out}")


def _summary(
    name: str, image_size: int | None, overrides: dict[str, Any], style: str, phi: float | None
) -> tuple[Summary, Table | None]:
    """Returns the summary, and with `phi` the table of what scaling does."""
    from resnetlab.models.catalog import CATALOG, model_config
    from resnetlab.models.summary import blueprint, summarize

    if name not in CATALOG and Path(name).exists():
        given = [*overrides, *(["phi"] if phi is not None else [])]
        if given:
            raise UserError(
                f"{name} is a trained network and stays what it is, got {', '.join(sorted(given))}. "
                "Leave that out, or give the name of a network."
            )
        from resnetlab.weights.file import load

        model = load(name)
        known = model.preprocessing.image_size if model.preprocessing else _usual_size(model.config.stem)
        size = image_size if image_size is not None else known
        return summarize(model, (model.config.in_channels, size, size), style=style, name=name), None
    size = image_size if image_size is not None or name not in CATALOG else CATALOG[name].image_size
    config = model_config(name, overrides, image_size=size)  # an unknown name ends here
    size = _usual_size(config.stem) if size is None else size
    scaling = None
    if phi is not None:
        from resnetlab.models.scaling import compound_scale

        scaling = _scaling_table(config, size)
        config, size = compound_scale(config, phi, image_size=size)
        name = f"{name}, phi {phi:g}"
    return summarize(blueprint(config), (config.in_channels, size, size), style=style, name=name), scaling


def _scaling_table(config: ResNetConfig, image_size: int) -> Table:
    """Returns the steps of compound scaling, EfficientNet's own coefficients beside them."""
    from rich.table import Table

    from resnetlab.models.scaling import ALPHA, BETA, GAMMA, scaling_table

    title = f"\nCompound scaling: depth {ALPHA}^phi, width {BETA}^phi, resolution {GAMMA}^phi"
    table = Table(title=title, title_justify="left", title_style="", box=None, pad_edge=False, header_style="bold")
    headings = ("phi", "depth", "width", "resolution", "blocks", "pixels", "parameters", "M MACs", "x", "EfficientNet")
    for heading in headings:
        table.add_column(heading, justify="right")
    for row in scaling_table(config, image_size=image_size).to_dict("records"):
        phi, (depth, width, pixels) = row["phi"], row["published"]
        table.add_row(
            *(str(phi), f"{row['depth']:.2f}", f"{row['width']:.2f}", f"{row['resolution']:.2f}"),
            *("-".join(map(str, row["depths"])), str(row["image_size"]), f"{row['parameters']:,}"),
            *(f"{row['macs'] / 1e6:,.0f}", f"{row['times_macs']:.1f}", f"B{phi} {depth} {width} {pixels}"),
        )
    table.caption = "EfficientNet: depth, width and pixels as released (Tan and Le 2019), which are no exact powers"
    table.caption_justify = "left"
    return table


def _usual_size(stem: str) -> int:
    return 32 if stem == "cifar" else 224


def _kind(style: str | None, svg: bool, as_json: bool, out: Path | None) -> str:
    """Returns what to show: "svg", "json", or a style."""
    asked = [
        *([f"--style {style}"] if style is not None else []),
        *(["--svg"] if svg else []),
        *(["--json"] if as_json else []),
    ]
    if len(asked) > 1:
        raise UserError(f"expected one of --style, --svg and --json, got {' and '.join(asked)}. Leave one out.")
    if asked:
        return "svg" if svg else "json" if as_json else str(style)
    return _BY_SUFFIX.get(out.suffix.lower(), "table") if out is not None else "table"


def _check_writable(out: Path | None) -> None:
    if out is not None and out.is_dir():
        raise UserError(f"{out} is a folder. Name a file to write, such as {out / 'summary.svg'}.")
    if out is not None and not out.resolve().parent.is_dir():
        raise UserError(f"there is no folder {out.resolve().parent} to write {out.name} to. Make it first.")
