"""Losses along lines and over a plane through trained networks: on how many images, in which precision, and where."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from resnetlab.evaluation.diagnostics import sample
from resnetlab.models.resnet import ResNet
from resnetlab.studies.lab.lab import Lab
from resnetlab.studies.landscape.directions import Surface, random_direction

RADII = (0.25, 0.5, 0.75, 1.0)
"""Where the loss is measured along a line, to both sides; 1 is a step as long as each filter."""
_PLANE = (0, 1)
"""Numbers of the directions of the surface; those of the lines come after them."""
_IMAGES = (64, 2_000)  # fewest and most
_PROBE = 128  # images that speed and precision are measured with
_TOLERANCE, _FLOOR = 0.05, 0.1
"""What bfloat16 may be off by: this share of a loss, or of the floor where the loss is lower."""
_ADVANTAGE = 1.15
_SILENCE = 30.0
"""Seconds without a word while a surface is walked over."""


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How losses are measured.

    Attributes:
        images: on how many.
        precision: "float32" or "bfloat16".
        off: the most by which bfloat16 is off float32 on nine points of each surface, as a share of the loss.
    """

    images: int
    precision: str
    off: float


def make_effort(
    lab: Lab, networks: Sequence[tuple[Callable[[], ResNet], int]], *, images: int, seconds: float | None
) -> Effort:
    """Returns how to measure so that all of it takes so long; bfloat16 where it is faster and agrees with float32.

    Args:
        lab: of the study; it keeps what was found.
        networks: what gives a network, and how many losses are to be measured with it or one like it.
        images: on how many; 0 for as many as the time allows, at most 2,000.
        seconds: that all may take; None for no limit.
    """

    def measure() -> pd.DataFrame:
        taken: dict[str, float] = {"float32": 0.0, "bfloat16": 0.0}
        offs = []
        for get, losses in networks:
            off, per_image = nine_points(get(), *_images(lab, _PROBE))
            offs.append(off)
            for precision, time_taken in per_image.items():
                taken[precision] += time_taken * losses
        precision = lab.precision
        if precision not in taken:
            is_better = max(offs) <= _TOLERANCE and taken["bfloat16"] * _ADVANTAGE < taken["float32"]
            precision = "bfloat16" if is_better and precision == "auto" else "float32"
        allowed = _IMAGES[1] if seconds is None else int(seconds / taken[precision])
        return pd.DataFrame([{"images": allowed, "precision": precision, "off": max(offs)}])

    row = lab.once("effort", measure).iloc[0]
    allowed = images or min(_IMAGES[1], max(_IMAGES[0], int(row["images"])))
    return Effort(
        images=min(allowed, len(lab.data.split("train"))), precision=str(row["precision"]), off=float(row["off"])
    )


def nine_points(model: ResNet, images: Tensor, labels: Tensor) -> tuple[float, dict[str, float]]:
    """Returns by how much bfloat16 is off float32 on nine points of a network's surface, and the seconds an image.

    The points have coordinates -1, 0 and 1. The difference is a share of the loss, or of 0.1 where that is lower.
    """
    places = [(x, y) for x in (-1.0, 0.0, 1.0) for y in (-1.0, 0.0, 1.0)]
    losses, seconds = {}, {}
    for precision in ("float32", "bfloat16"):
        surface = plane(model, images, labels, precision)
        surface.loss(0, 0)  # the first pass compiles and allocates
        found, times = [], []
        for place in places:
            start = time.perf_counter()
            found.append(surface.loss(*place))
            times.append(time.perf_counter() - start)
        losses[precision], seconds[precision] = np.array(found), float(np.median(times)) / len(images)
    exact = losses["float32"]
    return float((abs(losses["bfloat16"] - exact) / np.maximum(exact, _FLOOR)).max()), seconds


def plane(model: ResNet, images: Tensor, labels: Tensor, precision: str, seed: int = 0) -> Surface:
    """Returns the surface over two random directions."""
    directions = [random_direction(model, seed, number) for number in _PLANE]
    return Surface(model, directions, images, labels, getattr(torch, precision))


def grid(lab: Lab, name: str, get: Callable[[], ResNet], effort: Effort, points: int) -> pd.DataFrame:
    """Returns a row a point of the surface from -1 to 1: x, y, loss; worked out and kept row by row.

    Args:
        lab: of the study.
        name: of the network.
        get: gives the network, where it is needed.
        effort: images and precision.
        points: along each axis.
    """
    surface: list[Surface] = []
    places = np.linspace(-1, 1, points)

    def row(y: float) -> pd.DataFrame:
        if not surface:
            surface.append(plane(get(), *_images(lab, effort.images), effort.precision))
        return pd.DataFrame({"x": places, "y": y, "loss": [surface[0].loss(x, y) for x in places]})

    rows, told = [], time.monotonic()
    for number, y in enumerate(places):
        rows.append(lab.once(f"surface-{name}-row{number}", lambda y=float(y): row(y)))
        if time.monotonic() - told > _SILENCE:
            lab.tell(f"row {number + 1} of {points}")
            told = time.monotonic()
    return pd.concat(rows, ignore_index=True)


def walk(lab: Lab, model: ResNet, effort: Effort, *, seed: int, lines: int) -> pd.DataFrame:
    """Returns a row a place on a line through a network: line, at (0 is the network), loss."""
    images, labels = _images(lab, effort.images)
    rows = []
    for line in range(lines):
        direction = random_direction(model, seed, len(_PLANE) + line)
        surface = Surface(model, [direction], images, labels, getattr(torch, effort.precision))
        for at in (0.0, *(sign * radius for radius in RADII for sign in (-1, 1))):
            rows.append({"line": line, "at": at, "loss": surface.loss(at)})
    return pd.DataFrame(rows)


def _images(lab: Lab, count: int) -> tuple[Tensor, Tensor]:
    """Returns the same training images, as they are, and their labels, whenever it is asked for so many."""
    train = lab.data.split("train")
    positions = sample(len(train), count)
    return lab.data.squares("train", positions), train.labels[positions]
