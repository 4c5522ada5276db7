"""Options that mean the same in every verb, and how a verb's function becomes a command."""

from __future__ import annotations

import copy
import dataclasses
import functools
import inspect
import re
import tomllib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_type_hints

import typer
from typer.models import OptionInfo

from resnetlab.core.errors import UserError
from resnetlab.core.files import printable

if TYPE_CHECKING:
    from resnetlab.data.assemble import PhotoListing
    from resnetlab.data.storage.store import ImageData

TRAINING, IMAGES, RUN, MACHINE = "Training", "Images", "Run", "Machine"
"""Headings of the options in a verb's help."""

_DATA = typer.Argument(
    metavar="DATA",
    help="digits, mnist, fashion_mnist, cifar10, cifar100, imagenette, a folder of class folders (with or without "
    "train and val), a .csv or .parquet table of paths and labels, or a pack.",
    show_default=False,
)
Data = Annotated[str, _DATA]
OptionalData = Annotated[str | None, _DATA]
Device = Annotated[
    str,
    typer.Option(help="auto, cpu, cuda, cuda:1, ...; auto uses a GPU if there is one.", rich_help_panel=MACHINE),
]
Precision = Annotated[
    str,
    typer.Option(
        help="auto (by what the processor or GPU offers), float32, bfloat16, float16 (GPU), float64, or measured "
        "(the fastest).",
        rich_help_panel=MACHINE,
    ),
]
MemoryFormat = Annotated[str, typer.Option(help="auto, contiguous or channels_last.", rich_help_panel=MACHINE)]
DataRoot = Annotated[
    Path | None,
    typer.Option(
        help="The folder of downloaded data sets, in torchvision's layout.",
        envvar="RESNETLAB_DATA",
        rich_help_panel=IMAGES,
    ),
]
SkipUnreadable = Annotated[
    bool,
    typer.Option("--skip-unreadable", help="Skip unreadable image files instead of stopping.", rich_help_panel=IMAGES),
]
Model = Annotated[
    str,
    typer.Option(
        help="A name from `resnetlab list models`; timm:NAME; your own class, as FILE.py:NAME (the file is executed) "
        "or package.module:NAME; or auto, which chooses by image size.",
        rich_help_panel=TRAINING,
    ),
]
RecipeName = Annotated[
    str,
    typer.Option(
        help="A named recipe; `resnetlab list recipes` lists them. auto: 'photos' if DATA is a "
        "folder or table of photos and --model is not set, otherwise 'quick'.",
        rich_help_panel=TRAINING,
    ),
]
BatchSize = Annotated[int | None, typer.Option(help="Images per step.", rich_help_panel=TRAINING)]
SetFields = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change a field of the recipe, of its augmentation (augment.rotation=10) or of the network "
        "(model.shortcut=C); `resnetlab list recipes --fields` and `resnetlab list models --fields` list them. Can be "
        "repeated.",
        rich_help_panel=TRAINING,
    ),
]
Seed = Annotated[
    int, typer.Option(help="Seed of the initial weights, the order of images and augmentation.", rich_help_panel=RUN)
]
OwnModel = Annotated[
    str | None,
    typer.Option(
        metavar="FILE.py:NAME",
        help="Only for a run with your own network: the class or function that builds it. The file is executed.",
    ),
]


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """The options of every verb that loads images: arguments of `load_data`."""

    image_size: Annotated[int | None, typer.Option(help="Resize images to this many pixels.")] = None
    channels: Annotated[int | None, typer.Option(help="1 converts images to gray, 3 to RGB.")] = None
    crop_mode: Annotated[
        str, typer.Option(help="How non-square images are made square: crop (the center) or squash.")
    ] = "crop"
    interpolation: Annotated[str, typer.Option(help="Filter that resizes images: bilinear or bicubic.")] = "bilinear"
    crop_pct: Annotated[
        float,
        typer.Option(
            help="Fraction of height and width, at the center, that evaluation uses; 0.875 is usual on ImageNet."
        ),
    ] = 1.0
    detail: Annotated[
        float,
        typer.Option(
            help="Store training photos at up to this many times the image size, so that random crops have enough "
            "pixels."
        ),
    ] = 1.5
    store: Annotated[
        str, typer.Option(help="Where decoded photos are kept: memory, pack (files that are read as needed), or auto.")
    ] = "auto"
    limit: Annotated[
        int | None, typer.Option(help="Use at most this many training images; the class proportions stay the same.")
    ] = None
    limit_held_out: Annotated[
        int | None, typer.Option(help="Use at most this many images for validation, and as many for testing.")
    ] = None
    add: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Also train on the images of this folder of class folders, such as RUN/corrections. They join the "
            "training split only, and their classes must be those of DATA.",
        ),
    ] = None
    split_seed: Annotated[int, typer.Option(help="Seed for drawing the splits that the data set does not provide.")] = 0
    validation_fraction: Annotated[
        float,
        typer.Option(
            help="Fraction of the training images to use for validation, if the data set has no validation split."
        ),
    ] = 0.1
    test_fraction: Annotated[
        float, typer.Option(help="Fraction of all images to use for testing, if the data set has no splits.")
    ] = 0.2
    skip_unreadable: SkipUnreadable = False
    follow_links: Annotated[
        bool, typer.Option("--follow-links", help="Follow symbolic links that point outside the image folder.")
    ] = False
    workers: Annotated[int | None, typer.Option(help="Decoding threads or processes; default: one per processor.")] = (
        None
    )
    data_root: DataRoot = None
    download: Annotated[bool, typer.Option(help="Download a data set that is missing.")] = True

    def given(self, names: Collection[str]) -> dict[str, Any]:
        """Returns the options among these names, and the place of data sets, as arguments of `load_data`."""
        chosen = {name: value for name, value in dataclasses.asdict(self).items() if name in names}
        return {**chosen, "data_root": self.data_root}

    def load(self, source: str, **changes: Any) -> ImageData:
        """Loads images as the options say, except for `changes`."""
        from resnetlab.data.load import load_data

        return load_data(source, **{**dataclasses.asdict(self), **changes})

    def open(self, source: str, framing: Mapping[str, Any]) -> PhotoListing | ImageData:
        """Lists photos in files without decoding them, and loads other images; `framing` replaces these options."""
        from resnetlab.data.load import open_data

        chosen = {name: value for name, value in dataclasses.asdict(self).items() if name not in framing}
        return open_data(source, framing, **chosen)


def as_command(
    command: Callable[..., None], *, usual: Collection[str] = (), without: Collection[str] = ()
) -> Callable[..., None]:
    """Returns a verb's function in the form that typer takes.

    A parameter of type `DataOptions` becomes one option for each of its fields.

    Args:
        command: the verb's function.
        usual: the parameters that `--help` shows; `--help-all` shows the others too. Empty: `--help` shows all.
        without: fields of `DataOptions` that the verb does not have.
    """
    signature = inspect.signature(command, eval_str=True)
    bundles = [name for name, parameter in signature.parameters.items() if parameter.annotation is DataOptions]
    fields = [field.name for field in dataclasses.fields(DataOptions) if field.name not in without]

    @functools.wraps(command)
    def run(**given: Any) -> None:
        given.pop("help_all", None)
        given.pop("imports")
        for bundle in bundles:
            given[bundle] = DataOptions(**{name: given.pop(name) for name in fields})
        command(**given)

    parameters = [
        parameter.replace(annotation=_shown(parameter.annotation, not usual or parameter.name in usual))
        for parameter in _flat(signature, fields)
    ]
    parameters.append(_option("imports", _shown(_IMPORTS, not usual), None))
    if usual:
        help_all = Annotated[bool, typer.Option("--help-all", is_eager=True, callback=_help_all, help=_HELP_ALL)]
        parameters.append(_option("help_all", help_all, False))
    run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def _import(context: typer.Context, files: list[Path] | None) -> list[Path] | None:
    """Imports the files, before other options name their parts."""
    if files and not context.resilient_parsing:
        from resnetlab.training.registration import import_parts

        for file in dict.fromkeys(files):
            import_parts(file)
    return files


_IMPORTS = Annotated[
    list[Path] | None,
    typer.Option(
        "--import",
        metavar="FILE.py",
        is_eager=True,
        callback=_import,
        help="Execute your file first, which registers parts of your own. Can be repeated.",
    ),
]
_HELP_ALL = "Show this message with all options."


def _flat(signature: inspect.Signature, fields: Collection[str]) -> Iterator[inspect.Parameter]:
    """Yields the parameters of a verb, the fields of `DataOptions` in place of one of this type."""
    for parameter in signature.parameters.values():
        if parameter.annotation is not DataOptions:
            yield parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
            continue
        hints = get_type_hints(DataOptions, include_extras=True)
        for field in dataclasses.fields(DataOptions):
            if field.name in fields:
                kind, info = get_args(hints[field.name])
                info = copy.copy(info)
                info.rich_help_panel = IMAGES
                yield _option(field.name, Annotated[kind, info], field.default)


def _option(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default)


def _shown(annotation: Any, shown: bool) -> Any:
    """Returns the annotation of a parameter that the help shows, or not."""
    extras = get_args(annotation)
    if shown or len(extras) != 2 or not isinstance(extras[1], OptionInfo):
        return annotation
    info = copy.copy(extras[1])
    info.hidden = True
    return Annotated[extras[0], info]


def _help_all(context: typer.Context, value: bool) -> None:
    if value:
        for parameter in context.command.params:
            parameter.hidden = False  # type: ignore[attr-defined]
        typer.echo(context.get_help())
        raise typer.Exit


def given_options(context: typer.Context, *, configured: bool = True) -> list[str]:
    """Returns the parameters that were given on the command line or, if `configured`, by --config, in ABC order."""
    sources = ("COMMANDLINE", "DEFAULT_MAP") if configured else ("COMMANDLINE",)  # the second one is --config
    given = []
    for name in context.params:
        source = context.get_parameter_source(name)
        if source is not None and source.name in sources:
            given.append(name)
    return sorted(given)


def refuse_options(context: typer.Context, options: Collection[str], reason: str) -> None:
    """Raises `UserError` if any of these options was given on the command line, where it would be ignored."""
    if given := [f"--{name.replace('_', '-')}" for name in given_options(context) if name in options]:
        raise UserError(f"{reason}, so it does not take {', '.join(given)}. Remove {'them' if given[1:] else 'it'}.")


def read_assignments(items: Iterable[str], example: str = "lr=0.1") -> dict[str, Any]:
    """Returns the values of --set KEY=VALUE by key: as TOML if it parses, else as text; the last of a key counts."""
    assigned: dict[str, Any] = {}
    for item in items:
        key, equals, text = item.partition("=")
        if not equals or not key:
            raise UserError(f"--set expects KEY=VALUE, such as --set {example}, got {item!r}.")
        try:
            assigned[key] = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            assigned[key] = text
    return assigned


def split_assignments(items: list[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns what --set changes in the recipe and in the network, whose fields are called model.<field>."""
    recipe: dict[str, Any] = {}
    network: dict[str, Any] = {}
    for key, value in read_assignments(items).items():
        if key.startswith("model."):
            network[key.removeprefix("model.")] = value
        else:
            recipe[key] = value
    return recipe, network


def add_options(changes: dict[str, Any], **options: Any) -> dict[str, Any]:
    """Returns the fields that --set changes and those whose own option was given; both for one is an error."""
    given = {name: value for name, value in options.items() if value is not None}
    if twice := sorted(set(changes) & set(given)):
        raise UserError(f"{', '.join(twice)} is set twice, by its own option and by --set. Remove one of them.")
    return changes | given


def read_grid(items: Iterable[str]) -> dict[str, list[Any]]:
    """Returns the values of --grid KEY=VALUE,VALUE,... by key; commas within brackets do not separate values."""
    grid: dict[str, list[Any]] = {}
    for item in items:
        key, equals, text = item.partition("=")
        values = [part.strip() for part in re.split(r",(?![^\[{(]*[\]})])", text)]
        if not equals or not key or not all(values):
            raise UserError(
                f"--grid expects KEY=VALUE,VALUE,..., such as --grid model.shortcut=A,B,C, got {printable(item)!r}."
            )
        if key in grid:
            raise UserError(f"--grid {printable(key)} is given twice. Give all values at once, separated by commas.")
        grid[key] = [read_assignments([f"value={value}"])["value"] for value in values]
    return grid
