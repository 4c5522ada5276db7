"""The learning-rate range test as such: take steps at rising rates, read the curve, draw it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from resnetlab.core.pictures import MUTED, TRAINING, VALIDATION, Picture, save_png, style_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

DIVERGENCE = 4.0
"""The test ends where the smoothed loss is more than so many times its best, as fastai's does."""
MEMORY = 1 / 20
"""The exponential average looks back over this share of the steps: over 5 of 100."""
_WIDTH, _FEWEST = 1 / 25, 4  # a local line's weights have this standard deviation, of the range, or so many steps
_CERTAINTY = 2.0  # a fall counts from so many standard deviations of a step's loss on; its average varies by a third
_RISE = 0.5  # the fall is over where the smoothed loss has regained this share of it


@dataclass(frozen=True, kw_only=True)
class LearningRates:
    """What a range test measured.

    Attributes:
        rates: the learning rate of each step that was taken, rising by a constant factor.
        losses: the loss of each step's batch, before the step; the last one may not be finite.
        smoothed: their exponential average, corrected for its beginning (Kingma and Ba 2015, section 3).
        steepest: the rate at which the loss falls most for a given factor in the rate; None where it
            does not fall by more than its noise.
        minimum: the rate of the lowest smoothed loss; None likewise.
        diverged_at: the rate at which the smoothed loss was above four times its best or not finite,
            where the test ended; None where it went on to its highest rate.
        subject: what was tested, such as "resnet20 on digits, recipe quick".
    """

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    smoothed: tuple[float, ...]
    steepest: float | None
    minimum: float | None
    diverged_at: float | None
    subject: str = ""

    @property
    def suggestion(self) -> float | None:
        """The rate to try first: `steepest`."""
        return self.steepest

    @property
    def minimum_over_10(self) -> float | None:
        """A tenth of `minimum`, an older rule for the rate to try."""
        return None if self.minimum is None else self.minimum / 10

    @property
    def still_falling(self) -> bool:
        """Whether the minimum is within the last tenth of the range, which then was too short to show more."""
        if self.minimum is None or self.diverged_at is not None:
            return False
        first, last = self.rates[0], self.rates[-1]
        return math.log(last / self.minimum) < 0.1 * math.log(last / first)

    def frame(self) -> pd.DataFrame:
        """Returns a row a step: `rate`, `loss`, `smoothed`."""
        return pd.DataFrame({"rate": self.rates, "loss": self.losses, "smoothed": self.smoothed})

    def plot(self, path: str | Path) -> None:
        """Draws loss over rate, with steepest fall and minimum marked, into a PNG file."""
        save_png(Path(path), self.picture)

    @property
    def picture(self) -> Picture:
        """Loss over rate, with steepest fall and minimum marked."""
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


def range_test(step: Callable[[float], float], rates: Sequence[float], *, subject: str = "") -> LearningRates:
    """Takes a step at each rate in turn until the loss diverges, and reads the curve.

    Args:
        step: takes a learning rate, trains one step at it and returns the loss before the step.
        rates: rising by a constant factor.
        subject: what is tested, for the picture's title.
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
    """Returns the rates of the steepest fall and of the minimum, or (None, None) where the loss does not fall.

    The fall is what lies before the minimum of the smoothed losses and before they first rose clearly; spikes and
    recoveries after it have no say. Its slope at each rate is that of a line through the raw losses around it, by
    weighted least squares over the logarithm of the rate: an average that only looks back, as the smoothed losses
    are, shows the fall late, at too high a rate.

    Args:
        rates: of the steps.
        losses: of the steps.
        smoothed: their average.
        span: highest rate of the whole test over its lowest.
    """
    finite = int(np.isfinite(smoothed).sum())  # only the last can be otherwise
    x, y, average = np.log(rates[:finite]), np.array(losses[:finite]), np.array(smoothed[:finite])
    width = max(math.log(span) * _WIDTH, _FEWEST * float(np.diff(x[:2]).sum()))
    # At its ends a curve has neighbors on one side only, so that slopes and averages there are mostly noise.
    begin = int((x - x[:1] < width).sum())
    if finite - begin < 3:
        return None, None
    # Second differences leave of a smooth curve nothing but its noise, with six times its variance.
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
    """Returns where the smoothed loss was lowest before it first rose by half of what it had fallen, or at all."""
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
    axes.set_xscale("log")
    axes.set_xlim(found.rates[0] / 1.5, found.rates[-1] * 1.5)
    axes.set_ylim(low, high)
    if found.diverged_at is not None:
        note = f"diverged at {found.diverged_at:.2g}, where the test ended"
        axes.axvline(found.diverged_at, color=MUTED, linewidth=1.2, linestyle=":", label=note)
    pad = 6
    if found.steepest is not None and found.minimum is not None:
        pad = 24  # the names of the marks are between title and axes
        _mark(axes, found.steepest, f"steepest fall: {found.steepest:.2g}", TRAINING, "-", right=False)
        _mark(axes, found.minimum, f"minimum: {found.minimum:.2g}", MUTED, "--", right=True)
    title = f"Learning-rate range test{': ' if found.subject else ''}{found.subject}"
    labels = {"xlabel": "learning rate (logarithmic)", "ylabel": "training loss (nats)"}
    style_axes(axes, title=title, pad=pad, **labels)
    figure.legend(loc="outside lower left", ncols=3, frameon=False, fontsize=8, labelcolor=MUTED)


def _limits(found: LearningRates) -> tuple[float, float]:
    """Returns the losses at the bottom and the top of the picture, which shows the fall and where it ends.

    What explodes after it is cut off; it would press all else together.
    """
    losses, smoothed = np.array(found.losses), np.array(found.smoothed)
    if not np.isfinite(smoothed).any():
        return 0.0, 1.0
    fall = losses[: int(np.nanargmin(smoothed)) + 1]
    top, bottom = float(fall.max()), float(losses[np.isfinite(losses)].min())
    height = max(top - bottom, 0.05 * abs(top), 1e-6)
    return bottom - 0.15 * height, top + 0.3 * height


def _mark(axes: Axes, rate: float, text: str, color: str, line: str, *, right: bool) -> None:
    """Draws a vertical line, and above it, to the right or the left, its text."""
    axes.axvline(rate, color=color, linewidth=1.4, linestyle=line, zorder=1.5)
    place = axes.transAxes.inverted().transform(axes.transData.transform((rate, axes.get_ylim()[0])))[0]
    # Near the edges the texts stay where they are whole and do not meet.
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
