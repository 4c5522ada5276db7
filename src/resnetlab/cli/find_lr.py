"""`resnetlab find-lr`: the learning-rate range test."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from resnetlab.cli.files import check_file, write_csv
from resnetlab.cli.options import (
    BatchSize,
    Data,
    DataOptions,
    Device,
    MemoryFormat,
    Model,
    Precision,
    RecipeName,
    Seed,
    SetFields,
    add_options,
    given_options,
    split_assignments,
)
from resnetlab.core.console import notice
from resnetlab.core.files import free_name

if TYPE_CHECKING:
    from resnetlab.training.lr_finder import LearningRates

NAME = "find-lr"
_TEST = "Range test"
USUAL = (
    "model", "recipe", "batch_size", "assign", "steps", "lowest", "highest", "image_size", "limit", "seed", "out",
    "csv", "device",
)  # fmt: skip


def command(
    context: typer.Context,
    data: Data,
    model: Model = "auto",
    recipe: RecipeName = "auto",
    batch_size: BatchSize = None,
    assign: SetFields = None,
    steps: Annotated[
        int, typer.Option(help="Number of steps; with more steps, the curve is less noisy.", rich_help_panel=_TEST)
    ] = 100,
    lowest: Annotated[float, typer.Option(help="Learning rate of the first step.", rich_help_panel=_TEST)] = 1e-5,
    highest: Annotated[float, typer.Option(help="Learning rate of the last step.", rich_help_panel=_TEST)] = 10.0,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.png",
            help="Write the plot to this new file; default: lr.png, or lr-2.png and so on if it exists.",
            rich_help_panel=_TEST,
        ),
    ] = None,
    csv: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.csv",
            help="Also write the learning rate, loss and smoothed loss of each step to a new file.",
            rich_help_panel=_TEST,
        ),
    ] = None,
    options: DataOptions = DataOptions(),
    seed: Seed = 0,
    device: Device = "auto",
    precision: Precision = "auto",
    memory_format: MemoryFormat = "auto",
) -> None:
    """Find a learning rate: train with a rising learning rate, and see where the loss falls fastest.

    resnetlab find-lr digits --model resnet20

    resnetlab find-lr photos/ --model resnet18 --image-size 128 --out photos-lr.png --csv photos-lr.csv
    """
    check_file(out, "--out", "lr.png", new=True)
    check_file(csv, "--csv", "lr.csv", new=True)
    changes, overrides = split_assignments(assign or [])
    changes = add_options(changes, batch_size=batch_size)

    from resnetlab.training.lr_finder import find_lr
    from resnetlab.training.prepare import framing_for
    from resnetlab.training.recipes import resolve_recipe

    framing, given = framing_for(resolve_recipe(recipe, **changes), model), given_options(context)
    framing = {name: value for name, value in framing.items() if name not in given}
    found = find_lr(
        model,
        lambda: options.open(data, framing),
        recipe=recipe,
        lowest=lowest,
        highest=highest,
        steps=steps,
        seed=seed,
        device=device,
        precision=precision,
        memory_format=memory_format,
        overrides=overrides,
        **changes,
    )
    picture = out or free_name(Path("lr.png"))
    found.plot(picture)
    typer.echo(_words(found))
    notice(f"picture        {picture}")
    if csv is not None:
        write_csv(found.frame(), csv, "steps        ")


def _words(found: LearningRates) -> str:
    """Returns the figures, one per line, and what to do."""
    if found.steepest is None or found.minimum is None or found.minimum_over_10 is None:
        tested = f"{found.rates[0]:.2g} to {found.rates[-1]:.2g}"
        lines = [
            f"The loss does not fall by more than its noise at learning rates from {tested}.",
            "Try another range (--lowest, --highest) or more --steps.",
        ]
    else:
        assert found.suggestion is not None and found.recipe_rate is not None and found.scaled_minimum is not None
        advice = "keep it: the curve does not clearly show a better rate"
        if not found.keeps_recipe:
            advice = f"try --lr {found.suggestion:.2g}, and compare"
        lines = [
            f"recipe's rate  {found.recipe_rate:<8.2g}  {advice}",
            f"minimum        {found.minimum:<8.2g}  for this optimizer and schedule: about {found.scaled_minimum:.2g}",
            f"steepest fall  {found.steepest:<8.2g}  usually too low as the highest rate of a schedule",
            f"minimum / 10   {found.minimum_over_10:<8.2g}  an older rule, for comparison",
        ]
        if found.still_falling:
            lines.append("The loss still falls at the highest learning rate. Raise it with --highest.")
    end = "none" if found.diverged_at is None else f"{found.diverged_at:.2g}"
    return "\n".join([*lines, f"divergence     {end}"])
