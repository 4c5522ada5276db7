"""The loss around a trained network, along directions scaled to its filters (Li et al. 2018)."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resnetlab.core.randomness import generator
from resnetlab.evaluation.diagnostics import sample
from resnetlab.evaluation.forward import check_images
from resnetlab.models.folding import fold_batch_norm
from resnetlab.models.fused import fuse_blocks
from resnetlab.models.resnet import ResNet
from resnetlab.studies.lab.lab import Lab
from resnetlab.studies.lab.plan import REFERENCE, clock_of, reference_seconds

RADII = (0.25, 0.5, 0.75, 1.0)
"""Distances at which the loss is measured on both sides of a line; 1 is a step as long as each filter."""
_PLANE = (0, 1)
"""Numbers of the directions of the surface; the lines use the following ones."""
_IMAGES = (64, 2_000)  # fewest and most
_PROBE = 128  # images to measure speed and precision with
_TOLERANCE, _FLOOR = 0.05, 0.1
"""Allowed difference of bfloat16: this fraction of the loss, or of the floor if the loss is lower."""
_SILENCE = 30.0
"""Seconds between two progress messages."""
_TINY = 1e-10  # added to the denominator, as in the paper's code
_PIXELS = 2**19
"""Input pixels of a batch: narrow networks are faster with more images, up to about this number."""


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How losses are measured.

    Attributes:
        images: number of images.
        precision: "float32" or "bfloat16".
        deviation: largest difference of bfloat16 from float32 at nine points of each surface, as a fraction of the
            loss.
    """

    images: int
    precision: str
    deviation: float


def make_effort(
    lab: Lab, networks: Sequence[tuple[Callable[[], ResNet], int]], *, images: int, seconds: float | None,
    probe: Callable[..., tuple[float, dict[str, float]]] | None = None,
) -> Effort:  # fmt: skip
    """Returns how to measure all losses within a time; in bfloat16 if training used it and it agrees with float32.

    The speed is measured if a budget is given; otherwise it is that of the reference machine of a plan.

    Args:
        lab: of the study; it saves the result.
        networks: for each kind of network, a function that returns one, and the number of losses to measure.
        images: number of images; 0 for as many as the time allows, at most 2,000.
        seconds: the time; None for no limit.
        probe: measures a network, with the arguments of `nine_points`, the default.
    """
    probe = probe or nine_points

    def measure() -> pd.DataFrame:
        taken: dict[str, float] = {"float32": 0.0, "bfloat16": 0.0}
        deviations = []
        for get, losses in networks:
            model = get()
            deviation, per_image = probe(model, *_images(lab, _PROBE))
            deviations.append(deviation)
            if not lab.is_timed:
                training = reference_seconds(model.config, lab.recipe, lab.data.preprocessing, REFERENCE)
                per_image = dict.fromkeys(taken, training / 3)
            for precision, time_taken in per_image.items():
                taken[precision] += time_taken * losses
        precision = lab.precision
        if precision not in taken:
            is_close = max(deviations) <= _TOLERANCE
            precision = "bfloat16" if is_close and lab.trained_in == "bfloat16" else "float32"
        allowed = _IMAGES[1] if seconds is None else int(seconds / taken[precision])
        return pd.DataFrame([{"images": allowed, "precision": precision, "deviation": max(deviations)}])

    row = lab.measured("effort", measure).iloc[0]
    allowed = images or min(_IMAGES[1], max(_IMAGES[0], int(row["images"])))
    return Effort(
        images=min(allowed, len(lab.data.split("train"))),
        precision=str(row["precision"]),
        deviation=float(row["deviation"]),
    )


def nine_points(model: ResNet, images: Tensor, labels: Tensor) -> tuple[float, dict[str, float]]:
    """Returns the largest difference of bfloat16 from float32 at nine points of a surface, and the seconds per image.

    The points have coordinates -1, 0 and 1. The difference is a fraction of the loss, or of 0.1 if the loss is lower.
    """
    places = [(x, y) for x in (-1.0, 0.0, 1.0) for y in (-1.0, 0.0, 1.0)]
    losses, seconds = {}, {}
    clock = clock_of(str(next(model.parameters()).device))
    for precision in ("float32", "bfloat16"):
        surface = plane(model, images, labels, precision)
        surface.loss(0, 0)  # the first pass compiles and allocates
        found, times = [], []
        for place in places:
            start = clock()
            found.append(surface.loss(*place))
            times.append(clock() - start)
        losses[precision], seconds[precision] = np.array(found), min(times) / len(images)
    exact = losses["float32"]
    return float((abs(losses["bfloat16"] - exact) / np.maximum(exact, _FLOOR)).max()), seconds


def grid(lab: Lab, name: str, get: Callable[[], ResNet], effort: Effort, points: int) -> pd.DataFrame:
    """Returns one row per point of the surface from -1 to 1: x, y, loss; computed and saved line by line.

    Args:
        lab: of the study.
        name: of the network.
        get: returns the network, if it is needed.
        effort: images and precision.
        points: along each axis.
    """
    surface: list[Surface] = []
    places = np.linspace(-1, 1, points)

    def row(y: float) -> pd.DataFrame:
        if not surface:
            surface.append(plane(get(), *_images(lab, effort.images), effort.precision))
        return pd.DataFrame({"x": places, "y": y, "loss": [surface[0].loss(x, y) for x in places]})

    rows, logged = [], time.monotonic()
    for number, y in enumerate(places):
        rows.append(lab.measured(f"surface-{name}-row{number}", lambda y=float(y): row(y)))
        if time.monotonic() - logged > _SILENCE:
            lab.log(f"row {number + 1} of {points}")
            logged = time.monotonic()
    return pd.concat(rows, ignore_index=True)


def walk(lab: Lab, model: ResNet, effort: Effort, *, seed: int, lines: int) -> pd.DataFrame:
    """Returns one row per place on a line through a network: line, at (0 is the network), loss."""
    images, labels = _images(lab, effort.images)
    rows = []
    for line in range(lines):
        direction = random_direction(model, seed, len(_PLANE) + line)
        surface = Surface(model, [direction], images, labels, getattr(torch, effort.precision))
        for at in (0.0, *(sign * radius for radius in RADII for sign in (-1, 1))):
            rows.append({"line": line, "at": at, "loss": surface.loss(at)})
    return pd.DataFrame(rows)


def plane(model: ResNet, images: Tensor, labels: Tensor, precision: str, seed: int = 0) -> Surface:
    """Returns the loss surface on the plane of two random directions."""
    directions = [random_direction(model, seed, number) for number in _PLANE]
    return Surface(model, directions, images, labels, getattr(torch, precision))


def random_direction(model: ResNet, seed: int, number: int) -> dict[str, Tensor]:
    """Returns a random direction in the space of the network's parameters, normalized filter by filter.

        d_ij <- d_ij / |d_ij| * |w_ij|        (Li et al. 2018, section 4)

    The values are Gaussian; each output filter, and each row of the head, is scaled to the norm of the network's own.
    Parameters with at most one dimension, biases and those of normalizations, do not change: their direction is 0.
    Buffers are left out.

    Args:
        model: the network.
        seed: of the random values.
        number: of the direction; directions with different numbers are independent.
    """
    draws = generator(seed, "landscape", step=number)
    direction = {}
    for name, parameter in model.named_parameters():
        weight = parameter.detach()
        if weight.ndim <= 1:
            direction[name] = torch.zeros_like(weight)
            continue
        drawn = torch.from_numpy(draws.standard_normal(tuple(weight.shape))).to(weight)
        over = tuple(range(1, weight.ndim))
        norms = [torch.linalg.vector_norm(values, dim=over, keepdim=True) for values in (weight, drawn)]
        direction[name] = drawn * (norms[0] / (norms[1] + _TINY))
    return direction


class Surface:
    """The loss of a network on fixed images, on a line or plane through it in the space of its parameters.

    The network is in evaluation mode, with the statistics of its training. Batch normalizations are folded into the
    convolutions once: they only scale filters, so the folded weights are linear in the place on the plane, like the
    weights themselves. Each point then costs one linear combination and one forward pass without normalizations.

    Args:
        model: a trained network; it is not changed.
        directions: one or two results of `random_direction`.
        images: uint8 (N, C, H, W).
        labels: int64 (N,).
        dtype: of weights and images: float32 or bfloat16. The loss is computed in float32.
    """

    def __init__(
        self, model: ResNet, directions: list[dict[str, Tensor]], images: Tensor, labels: Tensor,
        dtype: torch.dtype = torch.float32,
    ) -> None:  # fmt: skip
        origin = fold_batch_norm(model)
        device = next(origin.parameters()).device
        self._origin = {name: parameter.detach().clone() for name, parameter in origin.named_parameters()}
        self._steps = []
        for direction in directions:
            end = dict(fold_batch_norm(_moved(model, direction)).named_parameters())
            self._steps.append({name: end[name].detach() - start for name, start in self._origin.items()})
        preprocessing, count = check_images(model, images), max(1, _PIXELS // images[0, 0].numel())
        self._batches = [
            (preprocessing.normalize(batch.to(device), dtype).contiguous(memory_format=torch.channels_last), truth)
            for batch, truth in zip(images.split(count), labels.to(device).split(count), strict=True)
        ]
        self._count = len(images)
        for layer in origin.modules():
            if isinstance(layer, nn.ReLU):
                layer.inplace = True  # its input is not needed without gradients, so it can be overwritten
        self._network = origin.to(dtype).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._parameters = dict(self._network.named_parameters())
        fuse_blocks(self._network)

    @torch.inference_mode()
    def loss(self, *place: float) -> float:
        """Returns the mean cross-entropy at a place, given by one coordinate per direction; (0, 0) is the network."""
        for name, parameter in self._parameters.items():
            value = self._origin[name]
            for coordinate, steps in zip(place, self._steps, strict=True):
                value = value + coordinate * steps[name]
            parameter.copy_(value)
        total = torch.zeros((), dtype=torch.float64)
        for images, labels in self._batches:
            total += F.cross_entropy(self._network(images).float(), labels, reduction="sum").double().cpu()
        return float(total) / self._count


def _moved(model: ResNet, direction: dict[str, Tensor]) -> ResNet:
    """Returns a copy of the network at the end of a direction."""
    moved = copy.deepcopy(model)
    with torch.no_grad():
        for name, parameter in moved.named_parameters():
            parameter += direction[name]
    return moved


def _images(lab: Lab, count: int) -> tuple[Tensor, Tensor]:
    """Returns training images without augmentation, and their labels; always the same ones for the same count."""
    train = lab.data.split("train")
    positions = sample(len(train), count)
    return lab.data.squares("train", positions), train.labels[positions]
