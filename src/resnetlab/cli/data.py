"""`resnetlab data inspect` and `resnetlab data pack`: look at images, and pack them for training."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from resnetlab.cli.options import (
    CropShare,
    DataRoot,
    Detail,
    Device,
    Download,
    Fit,
    FollowLinks,
    ImageSize,
    SkipUnreadable,
    SplitSeed,
    Store,
    Workers,
    read_assignments,
)
from resnetlab.core.console import notice
from resnetlab.core.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

    from resnetlab.data.augment import Augmentation
    from resnetlab.data.storage.store import ImageData
    from resnetlab.models.resnet import ResNet

NAME = "data"
HELP = "Look at images before they are trained on, and pack them."
_SHOWN_SUSPECTS = 20

Source = Annotated[
    str, typer.Argument(metavar="DATA", help="The name of a data set, a folder of class folders, or a table.")
]


def inspect_command(
    source: Source,
    out: Annotated[
        Path | None, typer.Option(help="The contact sheet, a PNG file; <data>-contact-sheet.png without it.")
    ] = None,
    augmented: Annotated[
        bool, typer.Option("--augmented", help="Show beneath each image what training makes of it.")
    ] = False,
    recipe: Annotated[str, typer.Option(help="Whose augmentation --augmented shows.")] = "quick",
    assign: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change it, such as augment.rotation=15. May be repeated."),
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="A run or a model.safetensors: list the labels that it doubts."),
    ] = None,
    split: Annotated[str, typer.Option(help="Whose images to show: train, validation or test.")] = "train",
    per_class: Annotated[int, typer.Option(help="Images of each class on the sheet.")] = 8,
    max_classes: Annotated[int, typer.Option(help="Classes on the sheet.")] = 20,
    seed: Annotated[int, typer.Option(help="Of the choice of images and of their augmentation.")] = 0,
    image_size: ImageSize = None,
    limit: Annotated[int | None, typer.Option(help="Look at no more than this many training images.")] = None,
    split_seed: SplitSeed = 0,
    fit: Fit = "crop",
    detail: Detail = 1.5,
    store: Store = "auto",
    data_root: DataRoot = None,
    download: Download = True,
    device: Device = "auto",
    follow_links: FollowLinks = False,
) -> None:
    """Count, measure and compare images, and draw a contact sheet of them.

    Unreadable files are left out and named; nothing is changed or deleted.

    resnetlab data inspect photos/

    resnetlab data inspect photos/ --augmented --set augment.rotation=15

    resnetlab data inspect photos/ --model runs/photos --split validation
    """
    out = _checked_target(out)
    policy = _policy(augmented, recipe, assign or [])
    network = None if model is None else _network(model, device)

    from rich.console import Console

    from resnetlab.data.inspection.contact_sheet import sheet_of
    from resnetlab.data.inspection.inspect import inspect_data

    own = None if model is None else _own_data(model, source, data_root)
    if own is not None:
        data, notes = own, [f"the splits are those of {model}"]
    else:
        data, notes = _load(
            source,
            network,
            image_size=image_size,
            limit=limit,
            split_seed=split_seed,
            fit=fit,
            detail=detail,
            store=store,
            data_root=data_root,
            download=download,
            follow_links=follow_links,
        )
    data.split(split)  # a mistake is told before the images are compared
    console = Console()
    console.print(inspect_data(data, notes=notes))
    target = out or Path(f"{data.name}-contact-sheet.png")
    _save(sheet_of(data, split, per_class, seed, policy, max_classes), target)
    notice(f"contact sheet  {target}")
    if network is not None:
        _tell_suspects(network, data, split, target, console.print)


def pack_command(
    source: Source,
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="The pack: a new folder, or an unfinished pack.")],
    image_size: ImageSize = None,
    detail: Detail = 1.5,
    channels: Annotated[int | None, typer.Option(help="1 makes all images gray, 3 makes them RGB.")] = None,
    fit: Fit = "crop",
    crop_share: CropShare = 1.0,
    split_seed: SplitSeed = 0,
    validation_fraction: Annotated[float, typer.Option(help="Share of the training images.")] = 0.1,
    test_fraction: Annotated[float, typer.Option(help="Share of all images where there are no splits.")] = 0.2,
    skip_unreadable: SkipUnreadable = False,
    follow_links: FollowLinks = False,
    workers: Workers = None,
    data_root: DataRoot = None,
    download: Download = True,
) -> None:
    """Decode images once into files that training maps into memory.

    A stopped packing goes on when the same is run again.

    resnetlab data pack photos/ --out packs/photos --image-size 224
    """
    from rich.console import Console

    from resnetlab.data.load import pack_data

    data = pack_data(
        source,
        out,
        workers=workers,
        download=download,
        data_root=None if data_root is None else str(data_root),
        image_size=image_size,
        detail=detail,
        channels=channels,
        fit=fit,
        crop_share=crop_share,
        split_seed=split_seed,
        validation_fraction=validation_fraction,
        test_fraction=test_fraction,
        skip_unreadable=skip_unreadable,
        follow_links=follow_links,
    )
    Console().print(data)
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    notice(f"{out}  {_bytes(size)}\ntrain from it: resnetlab train {_quoted(out)}")


def _policy(augmented: bool, recipe: str, assign: list[str]) -> Augmentation | None:
    """Returns the augmentation to show, or refuses settings that would change nothing."""
    changes = read_assignments(assign, "augment.rotation=15")
    if not augmented and (changes or recipe != "quick"):
        raise UserError("--recipe and --set say how images are augmented, and are of no use without --augmented.")
    for key in changes:
        if not key.startswith("augment."):
            raise UserError(f"--set changes what --augmented shows, such as augment.rotation=15; {key!r} does not.")
    if not augmented:
        return None

    from resnetlab.training.recipes import resolve_recipe

    return resolve_recipe(recipe, **changes).augment


def _network(model: Path, device: str) -> ResNet:
    from resnetlab.core.devices import resolve_device
    from resnetlab.core.runs import Run
    from resnetlab.evaluation.forward import trained_on
    from resnetlab.weights.file import load

    network = load(model if model.is_file() else Run(model)).to(resolve_device(device))
    trained_on(network)
    return network


def _own_data(model: Path, source: str, data_root: Path | None) -> ImageData | None:
    """Returns a run's own images with its own splits, so that what it was trained on is told from what it was not."""
    from resnetlab.core.runs import Run
    from resnetlab.data.load import may_be_recorded, reload_data

    if not model.is_dir():
        return None
    recorded = Run(model).settings["data"]
    if not may_be_recorded(source, recorded):
        return None
    try:
        return reload_data(recorded, source=source, data_root=data_root)
    except UserError:  # they are other images after all
        return None


def _load(source: str, network: ResNet | None, **options: Any) -> tuple[ImageData, list[str]]:
    """Loads images, as the network wants them where there is one; what is said of them becomes notes."""
    from resnetlab.data.load import load_data
    from resnetlab.evaluation.forward import trained_on

    if network is not None:
        preprocessing, _ = trained_on(network)
        options |= {name: getattr(preprocessing, name) for name in ("channels", "fit", "crop_share")}
        options["image_size"] = options["image_size"] or preprocessing.image_size
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        data = load_data(source, skip_unreadable=True, **options)
    return data, list(dict.fromkeys(str(warning.message) for warning in caught))


def _tell_suspects(network: ResNet, data: ImageData, split: str, sheet: Path, show: Callable[[Any], None]) -> None:
    from rich.markup import escape
    from rich.table import Table

    from resnetlab.core.files import write_text
    from resnetlab.evaluation.suspects import suspect_labels, suspect_sheet

    suspects = suspect_labels(network, data, split)
    likely = sum(suspects["likely"].tolist())
    title = f"labels of {split} that the network doubts: {len(suspects):,}, likely wrong: {likely:,}"
    show("\n" + title + (f"; the first {_SHOWN_SUSPECTS}:" if len(suspects) > _SHOWN_SUSPECTS else ""))
    table = Table()
    named = [name for name in ("path", "label", "prediction") if name in suspects]
    table.add_column("index", justify="right")
    for name in named:
        table.add_column(name, overflow="fold")
    for name in ("confidence", "of the label", "likely"):
        table.add_column(name, justify="right")
    for row in suspects.head(_SHOWN_SUSPECTS).to_dict("records"):
        texts = (str(row[name]) for name in named)
        shares = (f"{row['confidence']:.1%}", f"{row['label_probability']:.1%}")
        table.add_row(str(row["index"]), *map(escape, texts), *shares, "yes" if row["likely"] else "")
    show(table)
    listed = sheet.with_name(f"{sheet.stem}-suspects.csv")
    write_text(listed, suspects.to_csv(index=False))
    notice(f"suspects       {listed}")
    if len(suspects):
        _save(suspect_sheet(data, split, suspects), listed.with_suffix(".png"))
        notice(f"               {listed.with_suffix('.png')}")


def _checked_target(out: Path | None) -> Path | None:
    if out is None:
        return None
    if out.is_dir() or out.suffix.lower() != ".png":
        raise UserError(f"{out} is no PNG file. Name one to write with --out, such as {out / 'sheet.png'}.")
    if not out.resolve().parent.is_dir():
        raise UserError(f"there is no folder {out.resolve().parent} to write {out.name} to. Make it first.")
    return out


def _save(picture: Image.Image, path: Path) -> None:
    from resnetlab.core.files import atomic

    with atomic(path) as temporary:
        picture.save(temporary, format="PNG", optimize=True)


def _bytes(size: int) -> str:
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20)):
        if size >= scale:
            return f"{size / scale:.1f} {unit}"
    return f"{size / 2**10:.0f} KiB"


def _quoted(path: Path) -> str:
    import shlex

    return shlex.quote(str(path))
