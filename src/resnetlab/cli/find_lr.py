"""`resnetlab find-lr`: the learning-rate range test."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from resnetlab.cli.options import (
    BatchSize,
    DataRoot,
    Detail,
    Device,
    Download,
    Fit,
    FollowLinks,
    ImageSize,
    Model,
    Precision,
    SkipUnreadable,
    SplitSeed,
    Store,
    Workers,
    split_assignments,
)
from resnetlab.core.console import notice
from resnetlab.core.errors import UserError

if TYPE_CHECKING:
    from resnetlab.data.storage.store import ImageData
    from resnetlab.training.range_test import LearningRates

NAME = "find-lr"
_PICTURE = Path("lr.png")


def command(
    data: Annotated[str, typer.Argument(help="What `resnetlab train` takes: a data set, a folder, a table, a pack.")],
    model: Model = "auto",
    recipe: Annotated[str, typer.Option(help="A named recipe; `resnetlab recipes` lists them.")] = "quick",
    batch_size: BatchSize = None,
    assign: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Change a field of the recipe, its augmentation or the network, as for `resnetlab train`. May be "
            "repeated.",
        ),
    ] = None,
    steps: Annotated[int, typer.Option(help="Steps of the test; more of them are less noisy.")] = 100,
    lowest: Annotated[float, typer.Option(help="The rate of the first step.")] = 1e-5,
    highest: Annotated[float, typer.Option(help="The rate of the last step.")] = 10.0,
    image_size: ImageSize = None,
    fit: Fit = "crop",
    detail: Detail = 1.5,
    store: Store = "auto",
    workers: Workers = None,
    seed: Annotated[int, typer.Option(help="Of initial weights, order and augmentation.")] = 0,
    split_seed: SplitSeed = 0,
    limit: Annotated[
        int | None, typer.Option(help="Take at most this many training images, the classes in proportion.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The picture, a new PNG file; lr.png, lr-2.png, ... without it.")
    ] = None,
    csv: Annotated[
        Path | None, typer.Option(help="Write rate, loss and its average of each step to a new file.")
    ] = None,
    data_root: DataRoot = None,
    download: Download = True,
    device: Device = "auto",
    precision: Precision = "auto",
    skip_unreadable: SkipUnreadable = False,
    follow_links: FollowLinks = False,
) -> None:
    """Find a learning rate: train some steps while it rises, and see where the loss falls fastest.

    resnetlab find-lr digits --model resnet20

    resnetlab find-lr photos/ --model resnet18 --image-size 128 --out photos-lr.png --csv photos-lr.csv
    """
    if out is not None and out.suffix.lower() != ".png":
        raise UserError(f"{out} is no PNG file. Name one to write with --out, such as {out.with_suffix('.png')}.")
    picture = _check_new(out or _unused(_PICTURE), "--out")
    table = None if csv is None else _check_new(csv, "--csv")
    changes, overrides = split_assignments(assign or [])
    if batch_size is not None:
        if "batch_size" in changes:
            raise UserError("batch_size is given twice, by its option and by --set. Leave one out.")
        changes["batch_size"] = batch_size

    from resnetlab.core.files import write_text
    from resnetlab.data.load import load_data
    from resnetlab.training.find_lr import find_lr

    def images() -> ImageData:
        return load_data(
            data,
            data_root=data_root,
            image_size=image_size,
            fit=fit,
            detail=detail,
            store=store,
            workers=workers,
            split_seed=split_seed,
            limit=limit,
            skip_unreadable=skip_unreadable,
            follow_links=follow_links,
            download=download,
        )

    found = find_lr(
        model,
        images,
        recipe=recipe,
        lowest=lowest,
        highest=highest,
        steps=steps,
        seed=seed,
        device=device,
        precision=precision,
        overrides=overrides,
        **changes,
    )
    found.plot(picture)
    if table is not None:
        write_text(table, found.frame().to_csv(index=False))
    typer.echo(_words(found))
    notice(f"picture        {picture}" + (f"\nsteps          {table}" if table is not None else ""))


def _words(found: LearningRates) -> str:
    """Returns the figures, a line each, and what to do."""
    if found.steepest is None or found.minimum is None or found.minimum_over_10 is None:
        tested = f"{found.rates[0]:.2g} to {found.rates[-1]:.2g}"
        lines = [
            f"The loss does not fall by more than its noise at rates from {tested}. Try another range (--lowest, "
            "--highest) or more --steps."
        ]
    else:
        lines = [
            f"steepest fall  {found.steepest:<8.2g}  try --lr {found.steepest:.2g}",
            f"minimum        {found.minimum:<8.2g}  the highest rate of a one-cycle schedule may be up to about this",
            f"minimum / 10   {found.minimum_over_10:<8.2g}  an older rule, for comparison",
        ]
        if found.still_falling:
            lines.append("The loss still falls at the highest rate. Give a higher one with --highest.")
    end = "none" if found.diverged_at is None else f"{found.diverged_at:.2g}"
    return "\n".join([*lines, f"divergence     {end}"])


def _check_new(path: Path, option: str) -> Path:
    """Refuses a file that exists or cannot be made, before the test has taken its time."""
    if path.is_dir():
        raise UserError(f"{path} is a folder. Name a new file to write with {option}.")
    if path.exists() or path.is_symlink():
        raise UserError(f"{path} exists, and nothing is overwritten. Remove it, or name another file with {option}.")
    if not path.resolve().parent.is_dir():
        raise UserError(f"there is no folder {path.resolve().parent} to write {path.name} to. Make it first.")
    return path


def _unused(path: Path) -> Path:
    """Returns the path, or the first of path-2, path-3, ... that does not exist."""
    found, number = path, 2
    while found.exists() or found.is_symlink():
        found, number = path.with_stem(f"{path.stem}-{number}"), number + 1
    return found
