"""The plan of a study: how many images and epochs fit into its budget, by the measured speed of its networks."""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from resnetlab.core.errors import UserError
from resnetlab.core.fields import REQUIRED, Checked, documented, setting
from resnetlab.core.preprocessing import Preprocessing
from resnetlab.core.randomness import torch_seeded
from resnetlab.data.batches import Batch
from resnetlab.data.storage.store import ImageData
from resnetlab.models.architectures import build
from resnetlab.models.config import ResNetConfig
from resnetlab.models.network import Architecture, Network
from resnetlab.training.machine import Machine
from resnetlab.training.optimizers import build_optimizer
from resnetlab.training.prepare import suited
from resnetlab.training.recipe import Recipe
from resnetlab.training.step import training_step

EPOCHS = (10, 40)
"""A plan leaves out images rather than have fewer epochs than the first, and never has more than the second."""
FEWEST_STEPS = 40
"""Minimum steps of every training: a network that trained for less has learned nothing worth comparing."""
FEWEST_EVALUATED = 2_000
"""Held-out images that are always kept, even if their evaluation takes more than its fraction of the budget."""
_EVALUATION = 0.15  # fraction of the usable budget
_USED = 0.8
"""Fraction of the budget that is planned; the rest is a reserve for other load on the machine."""
_START = 2.0
"""Seconds that a training takes in addition to steps and evaluation: building, checkpoints, files."""
_TIMED_STEPS = 4


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One training of a study.

    Attributes:
        name: of its run folder; describes the training.
        network: the architecture, or a network to continue training.
        seed: of weights, order and augmentation.
        work: number of images that it sees over all epochs, as a multiple of the plan's.
        changes: fields of the study's recipe that it changes.
        pretrained: weights to start from, as for `fit`.
        view: makes its data from the study's, for example some of the classes; without it, all of the data.
        image_size: height and width in pixels to resize the images to; without it, they keep their size.
        labels: its columns in the study's tables.
    """

    name: str
    network: Architecture | Network
    seed: int
    work: float = 1.0
    changes: Mapping[str, Any] = field(default_factory=dict)
    pretrained: str | Path | None = None
    view: Callable[[ImageData], ImageData] | None = None
    image_size: int | None = None
    labels: Mapping[str, Any] = field(default_factory=dict)

    @property
    def architecture(self) -> Architecture:
        """The architecture of the network."""
        return self.network.config if isinstance(self.network, Network) else self.network

    @property
    def config(self) -> ResNetConfig:
        """The architecture of a ResNet."""
        assert isinstance(self.architecture, ResNetConfig)
        return self.architecture


@documented
@dataclass(frozen=True, kw_only=True)
class Plan(Checked):
    """What every training of a study gets."""

    images: int = setting(REQUIRED, "training images", minimum=1)
    epochs: int = setting(REQUIRED, "passes over them", minimum=1)
    minutes: float = setting(0.0, "expected time of all trainings and evaluations together; 0 if unknown", minimum=0)
    evaluated: int | None = setting(None, "held-out images that each network is evaluated on; None for all", minimum=1)

    def epochs_of(self, cell: Cell, images: int | None = None) -> int:
        """Returns the epochs of one training; `images` is its number of training images if not the plan's."""
        fraction = 1 if images is None else images / self.images
        return max(1, round(self.epochs * cell.work / fraction))


def make_plan(
    cells: Sequence[Cell], recipe: Recipe, preprocessing: Preprocessing, machine: Machine,
    *, images: int, evaluated: int, minutes: float, fraction: float = 1.0, may_leave_out: bool,
    measure: Callable[..., float] | None = None,
) -> Plan:  # fmt: skip
    """Returns the longest training that the budget allows, the same for every cell.

    Args:
        cells: all trainings.
        recipe: of all of them.
        preprocessing: of the images.
        machine: that trains.
        images: training images available.
        evaluated: held-out images available, on which each network is evaluated at the end.
        minutes: the budget.
        fraction: of the budget, for these trainings.
        may_leave_out: whether images may be left out.
        measure: measures the speed of a training, with the arguments of `seconds_per_image`, the default.

    Raises:
        UserError: the budget is too small for a comparison; the message names one that is enough.
    """
    measure = measure or seconds_per_image
    measured: dict[tuple[Any, ...], float] = {}
    speeds, batches = [], []
    for cell in cells:
        batches.append(cell.changes.get("batch_size", recipe.batch_size))
        seen_as = dataclasses.replace(preprocessing, image_size=cell.image_size or preprocessing.image_size)
        key = (str(cell.architecture), batches[-1], seen_as.image_size)
        if key not in measured:
            its_recipe = recipe.changed(batch_size=batches[-1])
            measured[key] = measure(cell.architecture, its_recipe, seen_as, machine)
        speeds.append(measured[key])
    seconds = minutes * fraction * 60 * _USED
    once = sum(speeds) / 3  # evaluating an image takes about a third of the time of training on it
    start, fewest_evaluated = _START * len(cells), evaluated
    if may_leave_out:
        fewest_evaluated = min(evaluated, FEWEST_EVALUATED)
        evaluated = min(evaluated, max(FEWEST_EVALUATED, int(seconds * _EVALUATION / once)))
    fixed = start + evaluated * once
    rate = sum(cell.work * speed for cell, speed in zip(cells, speeds, strict=True))
    seen = max(0.0, seconds - fixed) / rate  # images that a training of work 1 can see
    fewest = FEWEST_STEPS * max(size / cell.work for size, cell in zip(batches, cells, strict=True))
    if not may_leave_out:
        fewest = max(fewest, images)
    if seen < fewest:
        bare = start + fewest * rate
        needed = math.ceil(max(bare + fewest_evaluated * once, bare / (1 - _EVALUATION)) / 60 / _USED / fraction * 1.1)
        raise UserError(
            f"{len(cells)} trainings need a budget of at least {needed} minutes on this machine, got {minutes:g}. Give "
            "a larger --budget, fewer --seeds, or smaller images."
        )
    taken = images if not may_leave_out else min(images, int(max(seen / EPOCHS[0], recipe.batch_size)))
    epochs = max(1, min(EPOCHS[1], int(seen / taken)))
    planned = round((fixed + epochs * taken * rate) / 60, 1)
    return Plan(images=taken, epochs=epochs, minutes=planned, evaluated=evaluated)


def seconds_per_image(config: Architecture, recipe: Recipe, preprocessing: Preprocessing, machine: Machine) -> float:
    """Returns the seconds of training per image, measured over a few steps on random images."""
    size, count = preprocessing.image_size, recipe.batch_size
    machine = suited(machine, config)
    with torch_seeded(0, "timing"):
        model = machine.place(build(config)).train()
        images = torch.randint(256, (count, config.in_channels, size, size), dtype=torch.uint8)
        labels = torch.randint(max(1, config.num_classes), (count,))
    optimizer = build_optimizer(model, recipe)
    batch = Batch(step=0, images=images.to(machine.device), labels=labels.to(machine.device))
    times = []
    for _ in range(_TIMED_STEPS):
        start = time.perf_counter()
        loss, _ = training_step(
            model, optimizer, batch, preprocessing=preprocessing, recipe=recipe, machine=machine, lr=1e-3
        )
        loss.item()  # waits for an accelerator
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:]) / count
