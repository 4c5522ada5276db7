"""`resnetlab summary`: the layers of a network, and the contents of a weights file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from resnetlab.cli.files import check_file
from resnetlab.cli.options import OwnModel, add_options, read_assignments
from resnetlab.core.console import notice, output
from resnetlab.core.errors import UserError

if TYPE_CHECKING:
    from rich.table import Table

    from resnetlab.models.config import ResNetConfig
    from resnetlab.models.summary import Summary

NAME = "summary"
_REFERENCE = "resnet50"
_BY_SUFFIX = {".svg": "svg", ".json": "json"}


def command(
    name: Annotated[
        str,
        typer.Argument(
            metavar="X",
            help="A name from `resnetlab list models`; timm:NAME; your own class, as FILE.py:NAME (the file is "
            "executed) or package.module:NAME; a run folder, a weights file (also of torchvision, timm or Gluon), or a "
            "packaged network (digits, fashion_mnist). "
            "Write ./NAME for a file that has the name of a network.",
        ),
    ],
    image_size: Annotated[int | None, typer.Option(help="In pixels; default: as published, or as trained.")] = None,
    channels: Annotated[int | None, typer.Option(help="Channels of the images; default: as published.")] = None,
    classes: Annotated[int | None, typer.Option(help="Number of outputs; 0 leaves out the head.")] = None,
    stem: Annotated[str | None, typer.Option(help="imagenet, deep, cifar, or auto (by image size).")] = None,
    shortcut: Annotated[str | None, typer.Option(help="A, B, C or none.")] = None,
    assign: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Change a field of the network, such as groups=32, depths=[3,4,6,3] or parts=scratch. Can be "
            "repeated.",
        ),
    ] = None,
    phi: Annotated[
        float | None,
        typer.Option(
            help="Scale depth, width and image size by EfficientNet's compound scaling rule, and show each step."
        ),
    ] = None,
    tensors: Annotated[bool, typer.Option("--tensors", help="List every tensor of a weights file.")] = False,
    style: Annotated[
        str | None,
        typer.Option(
            help="table (default); gluon: a table like Gluon's; trace: one line per layer with its output shape "
            "(d2l_* and table1_*: as the book and the notebook print them); trace-gluon: like trace, with Gluon's "
            "layer names (numbered as in its tutorial).",
        ),
    ] = None,
    svg: Annotated[bool, typer.Option("--svg", help="Draw the architecture, as an SVG document.")] = False,
    block: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Draw one block with every layer, next to the same block without its shortcut, such as "
            "stage2.block1; implies --svg.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Totals and one row per layer, as JSON.")] = False,
    model: OwnModel = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Write to this file; a name that ends in .svg or .json implies --svg or --json."
        ),
    ] = None,
) -> None:
    """Show the layers of a network with shapes, parameters and costs, or the contents of a weights file.

    resnetlab summary resnet50

    resnetlab summary resnet18 --stem auto --image-size 32 --set groups=1

    resnetlab summary runs/photos

    resnetlab summary resnet18 --block stage2.block1 --out block.svg

    resnetlab summary mynet.py:SmallNet --image-size 32 --classes 10

    resnetlab summary resnet50-11ad3fa6.pth --tensors
    """
    kind = _kind(style, svg or block is not None, as_json, out)
    check_file(out, "--out", "summary.svg")
    changes = add_options(
        read_assignments(assign or [], "shortcut=C"),
        in_channels=channels,
        num_classes=classes,
        stem=stem,
        shortcut=shortcut,
    )
    shows_contents = style is None and kind == "table" and out is None
    if _is_file(name):
        _refuse_changes(name, {**changes, "phi": phi})
        if shows_contents and not _show_contents(name, tensors, model):
            return
    if tensors and not (_is_file(name) and shows_contents):
        raise UserError(
            "--tensors needs a weights file or a run, and cannot be combined with --style, --svg, --json or "
            "--out. Remove --tensors."
        )
    style = kind if kind not in ("svg", "json") else "table"
    if model is not None and not _is_file(name):
        raise UserError(
            f"--model is for a run or file of your own network. To show a network: resnetlab summary {model}"
        )
    summary, scaling, differences = _summary(name, image_size, changes, style, phi, model)
    if kind == "table" and out is None:
        console = output()
        console.print(summary)
        if differences:
            fields = ", ".join(f"{key}={value!r}" for key, value in differences.items())
            console.print(f"\ndiffers from {_REFERENCE}: {fields}", highlight=False)
        if scaling is not None:
            console.print(scaling)
        return
    described = {**summary.to_dict(), **({f"differs_from_{_REFERENCE}": differences} if differences else {})}
    shown = {"svg": lambda: summary.to_svg(block), "json": lambda: json.dumps(described, indent=2)}
    text = shown.get(kind, summary.__str__)()
    if out is None:
        typer.echo(text)
    else:
        from resnetlab.core.files import write_text

        write_text(out, f"{text}\n")
        notice(f"{summary.model}  {out}")


def _is_file(name: str) -> bool:
    """Whether this is a run, a file, or a packaged or published network; a catalog name comes first."""
    from resnetlab.core.hub import is_hub_name
    from resnetlab.core.packaged import packaged_weights
    from resnetlab.models.catalog import CATALOG

    return name not in CATALOG and (Path(name).exists() or is_hub_name(name) or packaged_weights(name) is not None)


def _refuse_changes(name: str, changes: dict[str, Any]) -> None:
    if given := sorted(key for key, value in changes.items() if value is not None):
        raise UserError(
            f"{name} is already trained and cannot be changed, got {', '.join(given)}. Remove these options, or give "
            "the name of a network."
        )


def _show_contents(name: str, tensors: bool, model: str | None) -> bool:
    """Prints what a weights file contains; returns whether its layers can be shown too."""
    from resnetlab.weights import inspect_weights

    contents = inspect_weights(name, tensors=tensors)
    output().print(contents)
    is_network = contents.description is not None and "config" in contents.description
    if tensors or not is_network or not contents.digest_matches:
        return False
    config = contents.description["config"]  # type: ignore[index]
    if model is None and isinstance(config, dict) and config.get("library") == "module":
        notice(f"To show the layers, name your class: resnetlab summary {name} --model FILE.py:NAME")
        return False
    output().print()
    return True


def _summary(
    name: str, image_size: int | None, overrides: dict[str, Any], style: str, phi: float | None, own: str | None
) -> tuple[Summary, Table | None, dict[str, Any]]:
    """Returns the summary, with `phi` the table of scaling steps, and the fields that differ from those of ResNet-50.

    The fields are those of a network of the catalog, apart from the number of classes and channels.
    """
    from resnetlab.models.architectures import is_path_to_network
    from resnetlab.models.catalog import CATALOG, differences, model_config
    from resnetlab.models.summary import blueprint, summarize

    if _is_file(name):
        from resnetlab.weights.file import load

        model = load(name, model=own)
        stem = getattr(model.config, "stem", "imagenet")
        known = model.preprocessing.image_size if model.preprocessing else _usual_size(stem)
        size = image_size if image_size is not None else known
        shown = model.saved_module
        return summarize(shown, (model.config.in_channels, size, size), style=style, name=name), None, {}
    if is_path_to_network(name):
        if phi is not None:
            raise UserError(f"--phi scales a network of the catalog, and {name} is not one. Remove --phi.")
        return _summary_of_other(name, image_size or _usual_size(""), overrides, style), None, {}
    size = image_size if image_size is not None or name not in CATALOG else CATALOG[name].image_size
    config = model_config(name, overrides, image_size=size)  # an unknown name is an error here
    size = _usual_size(config.stem) if size is None else size
    scaling = None
    if phi is not None:
        from resnetlab.models.scaling import compound_scale

        scaling = _scaling_table(config, size)
        config, size = compound_scale(config, phi, image_size=size)
        name = f"{name}, phi {phi:g}"
    summary = summarize(blueprint(config), (config.in_channels, size, size), style=style, name=name)
    return summary, scaling, differences(config, model_config(_REFERENCE))


def _summary_of_other(name: str, image_size: int, arguments: dict[str, Any], style: str) -> Summary:
    """Returns the summary of a network of timm or of your own, whose code is executed."""
    from resnetlab.models.architectures import build, open_architecture, with_sizes
    from resnetlab.models.summary import summarize

    arguments = dict(arguments)
    sizes = {"in_channels": arguments.pop("in_channels", 3), "num_classes": arguments.pop("num_classes", 1000)}
    network = build(with_sizes(open_architecture(name, arguments), **sizes))
    return summarize(network.saved_module, (sizes["in_channels"], image_size, image_size), style=style, name=name)


def _scaling_table(config: ResNetConfig, image_size: int) -> Table:
    """Returns the steps of compound scaling, next to EfficientNet's own coefficients."""
    from rich.table import Table

    from resnetlab.models.scaling import ALPHA, BETA, GAMMA, scaling_table

    title = f"\nCompound scaling: depth {ALPHA}^phi, width {BETA}^phi, resolution (size) {GAMMA}^phi"
    table = Table(
        title=title, title_justify="left", title_style="", box=None, padding=(0, 1, 0, 0), pad_edge=False,
        header_style="bold",
    )  # fmt: skip
    headings = ("phi", "depth", "width", "size", "blocks", "pixels", "M params", "G MACs", "x", "EfficientNet")
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for row in scaling_table(config, image_size=image_size).to_dict("records"):
        phi, (depth, width, pixels) = row["phi"], row["published"]
        table.add_row(
            *(str(phi), f"{row['depth']:.2f}", f"{row['width']:.2f}", f"{row['resolution']:.2f}"),
            *("-".join(map(str, row["depths"])), str(row["image_size"]), _brief(row["parameters"] / 1e6)),
            *(_brief(row["macs"] / 1e9), f"{row['times_macs']:.1f}", f"B{phi} {depth} {width} {pixels}"),
        )
    table.caption = (
        "M params: millions of parameters. G MACs: billions of multiply-accumulates. "
        "x: how many times those of phi 0.\n"
        "EfficientNet: depth, width and pixels as released (Tan and Le 2019), not exact powers."
    )
    table.caption_justify = "left"
    return table


def _brief(value: float) -> str:
    return f"{value:.2f}" if value < 1 else f"{value:,.1f}"


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
        raise UserError(f"expected one of --style, --svg and --json, got {' and '.join(asked)}. Remove one.")
    if asked:
        return "svg" if svg else "json" if as_json else str(style)
    return _BY_SUFFIX.get(out.suffix.lower(), "table") if out is not None else "table"
