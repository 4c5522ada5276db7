"""The learning-rate finder: a short training at rising rates, and which rate its curve suggests."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import nn

from resnetlab.core.checks import check_integer, check_number
from resnetlab.core.console import console, is_live, notice
from resnetlab.core.environment import keep_freed_memory
from resnetlab.core.errors import UserError
from resnetlab.core.pictures import MUTED, TRAINING, VALIDATION, Picture, make_logarithmic, save_png, style_axes
from resnetlab.core.randomness import torch_seeded
from resnetlab.data.assemble import PhotoListing
from resnetlab.data.batches import Batch, training_batches
from resnetlab.data.load import open_data
from resnetlab.data.storage.store import ImageData
from resnetlab.models.network import Architecture, Network
from resnetlab.training.loss_scale import scaling_for
from resnetlab.training.machine import Machine
from resnetlab.training.optimizers import build_optimizer
from resnetlab.training.prepare import (
    automatic_network,
    automatic_recipe,
    framing_for,
    machine_for,
    model_name,
    network_for,
    normalized_for,
    open_model,
    recipe_for,
)
from resnetlab.training.recipe import Recipe
from resnetlab.training.recipes import resolve_recipe
from resnetlab.training.schedule import WARMUP, read_schedule
from resnetlab.training.sections import TrainedSections
from resnetlab.training.step import class_weights, training_step

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

FEWEST_STEPS = 20
DIVERGENCE = 4.0
"""The test ends when the smoothed loss is more than this many times its lowest value, as in fastai."""
MEMORY = 1 / 20
"""The exponential average looks back over this fraction of the steps: over 5 of 100."""
_WIDTH, _FEWEST = 1 / 25, 4
"""Standard deviation of the weights of a local line: this fraction of the range, or this many steps."""
_CERTAINTY = 2.0
"""A fall counts if it exceeds this many standard deviations of a step's loss; its average varies by a third of one."""
_RISE = 0.5
"""The fall has ended when the smoothed loss has regained this fraction of it."""
PEAKS = {"sgd": 1.0, "scratch_sgd": 1.0, "muon": 1.5, "adamw": 1 / 15}
"""The highest rate of a schedule that falls to 0, as a multiple of the minimum, by optimizer.

Measured with the recipe `quick` and resnet20 on digits, Fashion-MNIST and Imagenette at 48 pixels, two seeds each: 0.2
with SGD was 0.4 to 1.8 times the minimum, 0.2 with Muon 1.2 to 4 times, and 0.001 with AdamW 1/57 to 1/6.
"""
HELD = 1 / 3
"""A rate that is held for much of the training is this fraction of the highest rate of a schedule that falls to 0."""
KEPT = 1 / 8, 4.0
"""The recipe's rate is kept if it is this many times the scaled minimum, which varies by a factor of 5."""


@dataclass(frozen=True, kw_only=True)
class LearningRates:
    """The result of a learning-rate range test.

    Attributes:
        rates: learning rate of each step, rising by a constant factor.
        losses: loss of each step's batch, before the step; the last may not be finite.
        smoothed: exponential average of the losses, with bias correction (Kingma and Ba 2015, section 3).
        steepest: rate at which the loss falls most per factor in the rate; None if it does not fall by more than its
            noise.
        minimum: rate of the lowest smoothed loss; None as for `steepest`.
        diverged_at: rate at which the test ended because the smoothed loss was above four times its lowest value or
            not finite; None if the test reached its highest rate.
        subject: what was tested, such as "resnet20 on digits, recipe quick".
        recipe_rate: the recipe's own `lr`; None if the test was not made for a recipe.
        optimizer: the optimizer of the test.
        schedule: the schedule that will use the rate.
    """

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    smoothed: tuple[float, ...]
    steepest: float | None
    minimum: float | None
    diverged_at: float | None
    subject: str = ""
    recipe_rate: float | None = None
    optimizer: str = "sgd"
    schedule: str = "one_cycle"

    @property
    def scaled_minimum(self) -> float | None:
        """The minimum, scaled to the optimizer and the schedule: see `PEAKS` and `HELD`."""
        if self.minimum is None:
            return None
        falls_to_zero = read_schedule(self.schedule).name in WARMUP
        return self.minimum * PEAKS.get(self.optimizer, 1.0) * (1.0 if falls_to_zero else HELD)

    @property
    def keeps_recipe(self) -> bool:
        """Whether the recipe's rate is about the scaled minimum: the curve does not clearly show a better one."""
        if self.recipe_rate is None or self.scaled_minimum is None:
            return False
        return KEPT[0] <= self.recipe_rate / self.scaled_minimum <= KEPT[1]

    @property
    def suggestion(self) -> float | None:
        """The rate to train with: the recipe's, or the scaled minimum if they clearly differ; None without a fall."""
        return self.recipe_rate if self.keeps_recipe else self.scaled_minimum

    @property
    def minimum_over_10(self) -> float | None:
        """A tenth of `minimum`, an older rule of thumb."""
        return None if self.minimum is None else self.minimum / 10

    @property
    def still_falling(self) -> bool:
        """Whether the minimum is in the last tenth of the range, so that a higher rate may be better."""
        if self.minimum is None or self.diverged_at is not None:
            return False
        first, last = self.rates[0], self.rates[-1]
        return math.log(last / self.minimum) < 0.1 * math.log(last / first)

    def frame(self) -> pd.DataFrame:
        """Returns one row per step: `rate`, `loss`, `smoothed`."""
        return pd.DataFrame({"rate": self.rates, "loss": self.losses, "smoothed": self.smoothed})

    def plot(self, path: str | Path) -> None:
        """Saves the curve, with steepest fall, minimum, the recipe's rate and the suggestion marked, as a PNG file."""
        save_png(Path(path), self.picture)

    @property
    def picture(self) -> Picture:
        """The curve, with steepest fall and minimum marked."""
        return Picture(
            title="", words=f"Loss by learning rate: {self}", draw=lambda figure: _draw(figure, self), size=(7.2, 4.4)
        )

    def __str__(self) -> str:
        found = "the loss does not fall"
        if self.steepest is not None and self.minimum is not None:
            found = f"steepest fall at {self.steepest:.2g}, minimum at {self.minimum:.2g}"
        end = "no divergence" if self.diverged_at is None else f"diverged at {self.diverged_at:.2g}"
        head = f"{self.subject}: " if self.subject else ""
        return f"{head}{len(self.rates)} rates from {self.rates[0]:.2g} to {self.rates[-1]:.2g}; {found}; {end}"

    __repr__ = __str__


def find_lr(
    model: str | Architecture | nn.Module,
    data: str | Path | ImageData | Callable[[], ImageData | PhotoListing] | Sequence[Any] | Mapping[str, Any],
    *,
    recipe: str | Recipe = "auto",
    lowest: float = 1e-5,
    highest: float = 10.0,
    steps: int = 100,
    seed: int = 0,
    device: str = "auto",
    precision: str = "auto",
    memory_format: str = "auto",
    overrides: Mapping[str, Any] | None = None,
    quiet: bool = False,
    **changes: Any,
) -> LearningRates:
    """Trains a copy for some steps while the learning rate rises, and says whether the recipe's rate suits the curve.

    This is the range test of Smith (2017), "Cyclical Learning Rates for Training Neural Networks", section 3.3, with
    an exponentially rising rate, as in fastai. The steps are those of `fit`: the same network and initial weights,
    order of images, augmentation, precision and memory format, over several epochs if one is too short. Sections that
    the recipe unfreezes later are trained from the first step, and the rates of sections rise in proportion. On the
    same machine and a CPU, the same seed gives the same losses. Your network and the program's random state do not
    change.

    Args:
        model: as for `fit`.
        data: as for `fit`.
        recipe: as for `fit`; the test does not use its `lr`, `schedule` and `epochs`, but the suggestion is for this
            schedule, and is this `lr` unless the curve is clear evidence against it.
        lowest: rate of the first step.
        highest: rate of the last step, unless the loss diverges before.
        steps: number of steps, at least 20.
        seed: seed of initial weights, order and augmentation.
        device: "auto", or a torch device.
        precision: "auto" for the rule of `machine.suitable`, "float32", "bfloat16", "float16" (GPUs only, with loss
            scaling), "float64", or "measured" for the fastest in a short timing.
        memory_format: "auto", "contiguous" or "channels_last".
        overrides: fields of `ResNetConfig` to change, if the model is a name.
        quiet: print nothing.
        **changes: fields of the recipe to change, such as `batch_size=64`.

    Raises:
        UserError: the arguments do not fit together; nothing was trained.
    """
    seed = check_integer("seed", seed, 0)
    rates = _rates(lowest, highest, steps)
    if "lr" in changes:
        raise UserError("the test searches for lr, so it cannot be set. Set lowest and highest instead.")
    framing = framing_for(resolve_recipe(recipe, **changes), model)
    opened = copy.deepcopy(open_model(model, overrides or {}))
    machine = machine_for(opened, overrides or {}, device, precision, memory_format)
    known = data() if callable(data) else data if isinstance(data, ImageData) else open_data(data, framing)
    recipe, known = automatic_recipe(recipe, model, known, **changes)
    data = known if isinstance(known, ImageData) else known.images
    if opened == "auto":
        opened = automatic_network(recipe, data)
    name = model_name(opened)
    network = network_for(opened, data, seed, overrides or {}, recipe=recipe)
    recipe = recipe_for(recipe, data, network)
    if not quiet:
        notice(f"{name}, recipe {recipe.name}: {steps} steps of {recipe.batch_size} images\n{machine}")
    bar = Progress(
        TextColumn("learning rate {task.fields[rate]:.2g}"),
        BarColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=quiet or not is_live(),
    )
    task = bar.add_task("", total=steps, rate=lowest)
    step = _stepper(network, data, recipe, machine, seed)

    def shown(rate: float) -> float:
        bar.update(task, advance=1, rate=rate)
        return step(rate)

    with bar:
        found = range_test(shown, rates, subject=f"{name} on {data.name}, recipe {recipe.name}")
    return replace(found, recipe_rate=recipe.lr, optimizer=recipe.optimizer, schedule=recipe.schedule)


def range_test(step: Callable[[float], float], rates: Sequence[float], *, subject: str = "") -> LearningRates:
    """Takes one step at each rate until the loss diverges, and reads the curve.

    Args:
        step: trains one step at the given learning rate and returns the loss before it.
        rates: rising by a constant factor.
        subject: what is tested, for the title of the picture.
    """
    memory = MEMORY * len(rates) / (1 + MEMORY * len(rates))
    losses: list[float] = []
    smoothed: list[float] = []
    total = weight = 0.0
    best, diverged_at = math.inf, None
    for rate in rates:
        losses.append(step(rate))
        total = memory * total + (1 - memory) * losses[-1]
        weight = memory * weight + (1 - memory)
        smoothed.append(total / weight)
        best = min(best, smoothed[-1])
        if not math.isfinite(smoothed[-1]) or smoothed[-1] > DIVERGENCE * best:
            diverged_at = rate
            break
    taken = rates[: len(losses)]
    steepest, minimum = read_curve(taken, losses, smoothed, span=rates[-1] / rates[0])
    return LearningRates(
        rates=tuple(taken),
        losses=tuple(losses),
        smoothed=tuple(smoothed),
        steepest=steepest,
        minimum=minimum,
        diverged_at=diverged_at,
        subject=subject,
    )


def read_curve(
    rates: Sequence[float], losses: Sequence[float], smoothed: Sequence[float], *, span: float
) -> tuple[float | None, float | None]:
    """Returns the rates of the steepest fall and of the minimum, or (None, None) if the loss does not fall.

    The fall ends at the minimum of the smoothed losses or before their first clear rise; later spikes and recoveries
    do not count. Its slope at a rate is that of a line fitted to the raw losses around it, by weighted least squares
    over the logarithm of the rate. The smoothed losses only look back, so they would show the fall too late, at too
    high a rate.

    Args:
        rates: rate of each step.
        losses: loss of each step.
        smoothed: average of the losses.
        span: highest rate of the whole test divided by the lowest.
    """
    finite = int(np.isfinite(smoothed).sum())  # only the last may not be finite
    x, y, average = np.log(rates[:finite]), np.array(losses[:finite]), np.array(smoothed[:finite])
    width = max(math.log(span) * _WIDTH, _FEWEST * float(np.diff(x[:2]).sum()))
    # At the ends of a curve, points have neighbors on one side only, so slopes and averages are mostly noise.
    begin = int((x - x[:1] < width).sum())
    if finite - begin < 3:
        return None, None
    # Second differences of a smooth curve contain only its noise, with six times the variance.
    noise = 1.4826 * float(np.median(np.abs(np.diff(y, 2)))) / math.sqrt(6)
    lowest = begin + _end_of_fall(average[begin:], noise)
    x, y = x[: lowest + 1], y[: lowest + 1]
    inner = np.arange(begin, int((x[-1] - x >= width).sum()))
    if len(inner) == 0 or not average[begin] - average[lowest] > _CERTAINTY * noise:
        return None, None
    slopes = np.empty(len(inner))
    for place, at in enumerate(inner.tolist()):
        weights = np.exp(-0.5 * ((x - x[at]) / width) ** 2)
        lever = weights * (x - np.average(x, weights=weights))
        slopes[place] = lever @ y / (lever @ x)
    return float(rates[inner[slopes.argmin()]]), float(rates[lowest])


def _end_of_fall(average: np.ndarray, noise: float) -> int:
    """Returns the index of the lowest smoothed loss before it first regained half of its fall, if it ever did."""
    best, top = np.minimum.accumulate(average), np.maximum.accumulate(average)
    rise = average - best
    rose = np.flatnonzero((rise > _RISE * (top - best)) & (rise > 2 * _CERTAINTY * noise))
    return int(average[: rose[0] if len(rose) else None].argmin())


def _draw(figure: Figure | SubFigure, found: LearningRates) -> None:
    axes = figure.subplots()
    low, high = _limits(found)
    losses = np.array(found.losses)
    beyond = int(np.sum(~(losses <= high)))
    points = "loss of each step" + (f" ({beyond} above the picture)" if beyond else "")
    axes.plot(found.rates, losses, "o", markersize=3.5, color=VALIDATION, alpha=0.4, markeredgewidth=0, label=points)
    axes.plot(found.rates, found.smoothed, "-", color=VALIDATION, linewidth=1.8, label="exponential average")
    axes.set_xlim(found.rates[0] / 1.5, found.rates[-1] * 1.5)
    make_logarithmic(axes, "x")
    axes.set_ylim(low, high)
    if found.diverged_at is not None:
        note = f"diverged at {found.diverged_at:.2g}, where the test ended"
        axes.axvline(found.diverged_at, color=MUTED, linewidth=1.2, linestyle=":", label=note)
    pad = 6
    if found.steepest is not None and found.minimum is not None:
        pad = 24  # the labels of the marks are between title and axes
        _mark(axes, found.steepest, f"steepest fall: {found.steepest:.2g}", MUTED, ":", right=False)
        _mark(axes, found.minimum, f"minimum: {found.minimum:.2g}", MUTED, "--", right=True)
    if found.recipe_rate is not None:
        label = f"recipe's rate: {found.recipe_rate:.2g}{' (keep it)' if found.keeps_recipe else ''}"
        axes.axvline(found.recipe_rate, color=TRAINING, linewidth=1.6, linestyle="-.", label=label)
    if found.suggestion is not None and not found.keeps_recipe:
        axes.axvline(found.suggestion, color=TRAINING, linewidth=1.6, label=f"suggestion: {found.suggestion:.2g}")
    title = f"Learning-rate range test{': ' if found.subject else ''}{found.subject}"
    labels = {"xlabel": "learning rate (logarithmic)", "ylabel": "training loss (nats)"}
    style_axes(axes, title=title, pad=pad, **labels)
    figure.legend(loc="outside lower left", ncols=3, frameon=False, fontsize=8, labelcolor=MUTED)


def _limits(found: LearningRates) -> tuple[float, float]:
    """Returns the lowest and highest loss that the picture shows; an explosion after the fall is cut off."""
    losses, smoothed = np.array(found.losses), np.array(found.smoothed)
    if not np.isfinite(smoothed).any():
        return 0.0, 1.0
    fall = losses[: int(np.nanargmin(smoothed)) + 1]
    top, bottom = float(fall.max()), float(losses[np.isfinite(losses)].min())
    height = max(top - bottom, 0.05 * abs(top), 1e-6)
    return bottom - 0.15 * height, top + 0.3 * height


def _mark(axes: Axes, rate: float, text: str, color: str, line: str, *, right: bool) -> None:
    """Draws a vertical line and its text above it, to the right or the left."""
    axes.axvline(rate, color=color, linewidth=1.4, linestyle=line, zorder=1.5)
    place = axes.transAxes.inverted().transform(axes.transData.transform((rate, axes.get_ylim()[0])))[0]
    # Near the edges, the texts are moved so that they are complete and do not overlap.
    axes.annotate(
        text,
        (min(max(place, 0.22), 0.83) if right else min(max(place, 0.21), 0.82), 1.0),
        xycoords="axes fraction",
        xytext=(3 if right else -3, 4),
        textcoords="offset points",
        ha="left" if right else "right",
        va="bottom",
        fontsize=9,
        color=color,
    )


def _rates(lowest: float, highest: float, steps: int) -> list[float]:
    lowest = check_number("lowest", lowest, 0, above=True)
    highest = check_number("highest", highest, 0, above=True)
    steps = check_integer("steps", steps, FEWEST_STEPS)
    if lowest >= highest:
        raise UserError(f"the highest learning rate must be above the lowest, got {lowest:g} to {highest:g}.")
    return [float(rate) for rate in np.geomspace(lowest, highest, steps)]


def _stepper(model: Network, data: ImageData, recipe: Recipe, machine: Machine, seed: int) -> Callable[[float], float]:
    """Returns a function that trains one step at a learning rate and returns the loss."""
    torch.set_num_threads(machine.threads)
    keep_freed_memory()
    device = torch.device(machine.device)
    machine.place(model).train()
    model.set_drop_progress(0.0)  # as at the start of a training
    sections = TrainedSections(model, recipe)
    optimizer = build_optimizer(model, recipe)
    sections.begin(recipe.epochs - 1)
    batches = _endless_batches(data, recipe, seed, device)
    scaling = scaling_for(machine)
    weights = class_weights(recipe, data.split("train").labels, data.class_names, machine)

    def step(rate: float) -> float:
        epoch, batch = next(batches)
        with torch_seeded(seed, "network", epoch=epoch, step=batch.step, device=device):
            loss, _ = training_step(
                model,
                optimizer,
                batch,
                preprocessing=normalized_for(data.preprocessing, recipe),
                recipe=recipe,
                machine=machine,
                lr=rate,
                class_weights=weights,
                scaling=scaling,
                check_layout=epoch == batch.step == 0,
            )
        return loss.item()

    return step


def _endless_batches(data: ImageData, recipe: Recipe, seed: int, device: torch.device) -> Iterator[tuple[int, Batch]]:
    """Yields (epoch, batch) with the image size of the first epoch, without end."""
    for epoch in itertools.count():
        for batch in training_batches(
            data.split("train"),
            batch_size=recipe.batch_size,
            policy=recipe.augment,
            seed=seed,
            epoch=epoch,
            framing=replace(data.framing, image_size=recipe.image_size(0, data.image_size)),
            device=device,
            preprocessing=normalized_for(data.preprocessing, recipe),
            balanced=recipe.sampling == "balanced",
        ):
            yield epoch, batch
