"""`resnetlab inspect`: look at images before training."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from resnetlab.cli.files import check_file, write_csv, write_png
from resnetlab.cli.options import Data, DataOptions, Device, given_options, read_assignments
from resnetlab.core.console import output
from resnetlab.core.errors import UserError
from resnetlab.core.files import free_name

if TYPE_CHECKING:
    from rich.table import Table

    from resnetlab.core.runs import Run
    from resnetlab.data.assemble import PhotoListing
    from resnetlab.data.storage.store import ImageData
    from resnetlab.models.network import Network
    from resnetlab.training.recipe import Recipe

NAME = "inspect"
WITHOUT = ("skip_unreadable", "workers")
USUAL = ("augmented", "recipe", "assign", "model", "split", "per_class", "max_classes", "seed", "image_size", "out")
_SHEET = "Contact sheet"
_SHOWN_SUSPECTS = 20


def command(
    context: typer.Context,
    data: Data,
    augmented: Annotated[
        bool,
        typer.Option("--augmented", help="Below each image, show an augmented version of it.", rich_help_panel=_SHEET),
    ] = False,
    recipe: Annotated[
        str,
        typer.Option(
            help="The recipe whose augmentation --augmented shows; auto: the one that `resnetlab train` would use.",
            rich_help_panel=_SHEET,
        ),
    ] = "auto",
    assign: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Change a field of the augmentation that --augmented shows, such as augment.rotation=15. "
            "Can be repeated.",
            rich_help_panel=_SHEET,
        ),
    ] = None,
    split: Annotated[
        str, typer.Option(help="train, validation or test: the images to show.", rich_help_panel=_SHEET)
    ] = "train",
    per_class: Annotated[int, typer.Option(help="Images per class.", rich_help_panel=_SHEET)] = 8,
    max_classes: Annotated[int, typer.Option(help="Number of classes.", rich_help_panel=_SHEET)] = 20,
    seed: Annotated[
        int,
        typer.Option(help="Seed of the choice of images and their augmentation.", rich_help_panel=_SHEET),
    ] = 0,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.png",
            help="The contact sheet. An existing FILE is replaced. Without --out: a new file, "
            "<data>-contact-sheet.png, <data>-contact-sheet-2.png and so on.",
            rich_help_panel=_SHEET,
        ),
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN",
            help="A run or a model.safetensors: list images for which the network predicts another class than "
            "the label, the most suspicious first.",
            rich_help_panel="Labels",
        ),
    ] = None,
    options: DataOptions = DataOptions(),
    device: Device = "auto",
) -> None:
    """Count, measure and compare images, and draw a contact sheet.

    Works on any folder or table, and lists what training would refuse. No image is changed or deleted. Image size and
    augmentation are those of `resnetlab train DATA` without options, or of the run that --model names.

    resnetlab inspect photos/

    resnetlab inspect photos/ --augmented --set augment.rotation=15

    resnetlab inspect photos/ --model runs/photos --split validation
    """
    check_file(out, "--out", "contact-sheet.png")
    changes = _changes(augmented, recipe, assign or [])
    network = None if model is None else _network(model, device)

    from resnetlab.data.inspection.contact_sheet import sheet_of
    from resnetlab.data.inspection.inspect import inspect_data, nothing_found

    run = model if model is not None and model.is_dir() else None
    own = None if run is None else own_images(run, data, options.data_root)
    shown = _Shown(_recipe_of(run, recipe), changes)
    refusals: list[str] = []
    if own is not None:
        images, notes = own, [f"the splits are those of {model}"]
    else:
        images, notes, refusals = _load(data, network, options, shown, given_options(context))
    if images is None:
        output().print(nothing_found(data, notes, refusals))
        return
    if split == "train" and split not in images.splits:
        split = next(iter(images.splits))
    images.split(split)  # an unknown split is an error before the images are compared
    output().print(inspect_data(images, notes=notes, refusals=refusals))
    sheet = out or free_name(Path(f"{images.name}-contact-sheet.png"))
    policy = shown.recipe_for(images).augment if augmented else None
    write_png(sheet_of(images, split, per_class, seed, policy, max_classes), sheet, "contact sheet")
    if network is not None:
        _show_suspects(network, images, split, sheet)


def own_images(run: Path, source: str, data_root: Path | None) -> ImageData | None:
    """Returns a run's own images, with its splits, if `source` is where they are now; None for other images."""
    from resnetlab.core.runs import Run
    from resnetlab.data.load import may_be_recorded, reload_data

    recorded = Run(run).settings["data"]
    if not may_be_recorded(source, recorded):
        return None
    try:
        return reload_data(recorded, source=source, data_root=data_root)
    except UserError:  # other images after all
        return None


def moved_images(run: Run, folder: str, data_root: Path | None) -> ImageData:
    """Returns a run's own images from where they are now."""
    from resnetlab.data.load import reload_data

    return reload_data(run.settings["data"], source=folder, data_root=data_root)


def _changes(augmented: bool, recipe: str, assign: list[str]) -> dict[str, Any]:
    """Returns what --set changes in the augmentation to show, or refuses settings that would change nothing."""
    changes = read_assignments(assign, "augment.rotation=15")
    if not augmented and (changes or recipe != "auto"):
        raise UserError("--recipe and --set choose the augmentation to show. Add --augmented, or remove them.")
    for key in changes:
        if not key.startswith("augment."):
            raise UserError(f"--set expects a field of the augmentation, such as augment.rotation=15, got {key!r}.")
    return changes


def _recipe_of(run: Path | None, recipe: str) -> str | Recipe:
    """Returns the recipe of the run instead of "auto"."""
    if run is None or recipe != "auto":
        return recipe

    from resnetlab.core.imports import asking_for
    from resnetlab.core.runs import Run
    from resnetlab.training.recipe import Recipe

    settings = Run(run).settings
    with asking_for(settings.get("imports", ()), run):
        return Recipe.from_dict(settings["recipe"])


class _Shown:
    """The recipe whose image size and augmentation are shown; as in training, the photos may decide on it."""

    def __init__(self, recipe: str | Recipe, changes: dict[str, Any]) -> None:
        from resnetlab.training.prepare import framing_for
        from resnetlab.training.recipes import resolve_recipe

        self._recipe, self._changes = recipe, changes
        self._of_photos: Recipe | None = None
        self.framing = framing_for(resolve_recipe(recipe, **changes), "auto")

    def at_size(self, photos: PhotoListing) -> PhotoListing:
        """Returns listed photos at the size that training uses."""
        from resnetlab.training.prepare import automatic_recipe

        self._of_photos, chosen = automatic_recipe(self._recipe, "auto", photos, **self._changes)
        return chosen  # type: ignore[return-value]  # what is listed remains so

    def recipe_for(self, images: ImageData) -> Recipe:
        """Returns the recipe: that of the photos, if they were listed before they were loaded."""
        from resnetlab.training.prepare import automatic_recipe

        return self._of_photos or automatic_recipe(self._recipe, "auto", images, **self._changes)[0]


def _network(model: Path, device: str) -> Network:
    from resnetlab.core.environment import resolve_device
    from resnetlab.core.runs import Run
    from resnetlab.evaluation.forward import trained_on
    from resnetlab.weights.file import load

    network = load(model if model.is_file() else Run(model)).to(resolve_device(device))
    trained_on(network)
    return network


def _load(
    source: str, network: Network | None, options: DataOptions, shown: _Shown, given: Collection[str]
) -> tuple[ImageData | None, list[str], list[str]]:
    """Loads images with notes and refusals, in the form that the network or training takes; see `load_anyway`."""
    from resnetlab.data.inspection.inspect import load_anyway
    from resnetlab.evaluation.forward import trained_on

    changes: dict[str, Any] = {name: value for name, value in shown.framing.items() if name not in given}
    choose = shown.at_size if network is None else None
    if network is not None:
        preprocessing, _ = trained_on(network)
        size = options.image_size or preprocessing.image_size
        changes = {**asdict(preprocessing.framing), "image_size": size}
    return load_anyway(source, **{**asdict(options), "workers": None, **changes}, choose=choose)


def _show_suspects(network: Network, images: ImageData, split: str, sheet: Path) -> None:
    from rich.markup import escape
    from rich.table import Table

    from resnetlab.evaluation.suspects import suspect_labels, suspect_sheet

    suspects = suspect_labels(network, images, split)
    likely = sum(suspects["likely"].tolist())
    title = f"labels of {split} that the network does not predict: {len(suspects):,}, likely wrong: {likely:,}"
    output().print("\n" + title + (f"; the first {_SHOWN_SUSPECTS}:" if len(suspects) > _SHOWN_SUSPECTS else ""))
    table: Table = Table()
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
    output().print(table)
    listed = sheet.with_name(f"{sheet.stem}-suspects.csv")
    write_csv(suspects, listed, "suspects     ")
    if len(suspects):
        write_png(suspect_sheet(images, split, suspects), listed.with_suffix(".png"), "suspects     ")
