"""How many images and epochs fit into a study's budget, by the measured speed of its networks."""

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
from resnetlab.core.preprocessing import Preprocessing
from resnetlab.core.randomness import torch_seeded
from resnetlab.data.batches import Batch
from resnetlab.data.store import ImageData
from resnetlab.models.config import ResNetConfig
from resnetlab.models.resnet import ResNet
from resnetlab.training.machine import Machine
from resnetlab.training.recipe import Recipe
from resnetlab.training.step import build_optimizer, training_step

EPOCHS = (10, 40)
"""Fewer epochs than the first are not planned while there are images to leave out; more than the second never."""
FEWEST_STEPS = 40
"""Of every training: a network that saw less has learned nothing that could be compared."""
_USED = 0.8
"""Share of the budget that is planned with: what comes to a machine beside the study is not known before."""
_START = 2.0
"""Seconds that a training takes beside its steps and its evaluation: building, checkpoints, files."""
_TIMED_STEPS = 4


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One training of a study.

    Attributes:
        name: of its run folder; says what it is.
        network: the architecture, or a network to train on.
        seed: of weights, order and augmentation.
        work: how many images it sees, again and again, as a multiple of what is planned.
        changes: of the study's recipe.
        pretrained: weights to begin with, as `fit` takes them.
        view: makes its images of the study's, such as those of some classes; it sees them all without it.
        image_size: what they are resized to, height and width in pixels; theirs without it.
        labels: what the study calls it by, a column of its table each.
    """

    name: str
    network: ResNetConfig | ResNet
    seed: int
    work: float = 1.0
    changes: Mapping[str, Any] = field(default_factory=dict)
    pretrained: str | Path | None = None
    view: Callable[[ImageData], ImageData] | None = None
    image_size: int | None = None
    labels: Mapping[str, Any] = field(default_factory=dict)

    @property
    def config(self) -> ResNetConfig:
        """The architecture."""
        return self.network.config if isinstance(self.network, ResNet) else self.network


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What every training of a study gets.

    Attributes:
        images: training images.
        epochs: passes over them.
        minutes: how long all of it should take, all trainings and evaluations together.
    """

    images: int
    epochs: int
    minutes: float

    def epochs_of(self, cell: Cell, images: int | None = None) -> int:
        """The epochs of one training, on so many images where they are not those of the plan."""
        share = 1 if images is None else images / self.images
        return max(1, round(self.epochs * cell.work / share))


def make_plan(
    cells: Sequence[Cell], recipe: Recipe, preprocessing: Preprocessing, machine: Machine,
    *, images: int, evaluated: int, minutes: float, may_leave_out: bool,
) -> Plan:  # fmt: skip
    """Returns the most training that the budget allows, the same for every cell.

    Args:
        cells: all trainings.
        recipe: of all of them.
        preprocessing: of the images.
        machine: that trains.
        images: training images that there are.
        evaluated: images that each network is evaluated on in the end.
        minutes: the budget for these trainings.
        may_leave_out: whether training images may be left out.

    Raises:
        UserError: the budget does not allow as much as a comparison needs; it says what would.
    """
    measured: dict[tuple[Any, ...], float] = {}
    speeds, batches = [], []
    for cell in cells:
        batches.append(cell.changes.get("batch_size", recipe.batch_size))
        seen_as = dataclasses.replace(preprocessing, image_size=cell.image_size or preprocessing.image_size)
        key = (cell.config, batches[-1], seen_as.image_size)
        if key not in measured:
            its_recipe = recipe.changed(batch_size=batches[-1])
            measured[key] = seconds_per_image(cell.config, its_recipe, seen_as, machine)
        speeds.append(measured[key])
    # An image is evaluated in about a third of the time that it takes to train with it.
    fixed = sum(_START + evaluated * speed / 3 for speed in speeds)
    rate = sum(cell.work * speed for cell, speed in zip(cells, speeds, strict=True))
    seen = max(0.0, minutes * 60 * _USED - fixed) / rate  # images that a training of work 1 may see
    fewest = FEWEST_STEPS * max(size / cell.work for size, cell in zip(batches, cells, strict=True))
    if not may_leave_out:
        fewest = max(fewest, images)
    if seen < fewest:
        needed = math.ceil((fixed + fewest * rate) / 60 / _USED * 1.1)
        raise UserError(
            f"{len(cells)} trainings need at least {needed} minutes here, and the budget has {minutes:g} for them. "
            "Give a larger --budget, fewer --seeds, or smaller images."
        )
    taken = images if not may_leave_out else min(images, math.ceil(max(seen / EPOCHS[0], recipe.batch_size)))
    epochs = max(1, min(EPOCHS[1], int(seen / taken)))
    return Plan(images=taken, epochs=epochs, minutes=round((fixed + epochs * taken * rate) / 60, 1))


def seconds_per_image(config: ResNetConfig, recipe: Recipe, preprocessing: Preprocessing, machine: Machine) -> float:
    """Returns how long a training takes for each image, by a few steps on random images."""
    size, count = preprocessing.image_size, recipe.batch_size
    with torch_seeded(0, "timing"):
        model = machine.place(ResNet(config)).train()
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
