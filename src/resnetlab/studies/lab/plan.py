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
from resnetlab.data.storage.store import ImageData
from resnetlab.models.config import ResNetConfig
from resnetlab.models.resnet import ResNet
from resnetlab.studies.lab.outside import OutsideConfig, suited_machine
from resnetlab.training.machine import Machine
from resnetlab.training.optimizers import build_optimizer
from resnetlab.training.recipe import Recipe
from resnetlab.training.step import training_step

EPOCHS = (10, 40)
"""Fewer epochs than the first are not planned while there are images to leave out; more than the second never."""
FEWEST_STEPS = 40
"""Of every training: a network that saw less has learned nothing that could be compared."""
FEWEST_EVALUATED = 2_000
"""Of the held-out images, where there are more and evaluation would take more than its share of the budget."""
_EVALUATION = 0.15  # of what is planned with
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
        network: the architecture, ours or timm's, or a network to train on.
        seed: of weights, order and augmentation.
        work: how many images it sees, again and again, as a multiple of what is planned.
        changes: of the study's recipe.
        pretrained: weights to begin with, as `fit` takes them, or `load_encoder` where the network is timm's.
        view: makes its images of the study's, such as those of some classes; it sees them all without it.
        image_size: what they are resized to, height and width in pixels; theirs without it.
        labels: what the study calls it by, a column of its table each.
    """

    name: str
    network: ResNetConfig | OutsideConfig | ResNet
    seed: int
    work: float = 1.0
    changes: Mapping[str, Any] = field(default_factory=dict)
    pretrained: str | Path | None = None
    view: Callable[[ImageData], ImageData] | None = None
    image_size: int | None = None
    labels: Mapping[str, Any] = field(default_factory=dict)

    @property
    def architecture(self) -> ResNetConfig | OutsideConfig:
        """That of the network."""
        return self.network.config if isinstance(self.network, ResNet) else self.network

    @property
    def config(self) -> ResNetConfig:
        """The architecture of a network that is ours."""
        assert isinstance(self.architecture, ResNetConfig)
        return self.architecture


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What every training of a study gets.

    Attributes:
        images: training images.
        epochs: passes over them.
        minutes: how long all of it should take, all trainings and evaluations together.
        evaluated: held-out images that each network is evaluated on; None for all.
    """

    images: int
    epochs: int
    minutes: float
    evaluated: int | None = None

    def epochs_of(self, cell: Cell, images: int | None = None) -> int:
        """The epochs of one training, on so many images where they are not those of the plan."""
        share = 1 if images is None else images / self.images
        return max(1, round(self.epochs * cell.work / share))


def make_plan(
    cells: Sequence[Cell], recipe: Recipe, preprocessing: Preprocessing, machine: Machine,
    *, images: int, evaluated: int, minutes: float, share: float = 1.0, may_leave_out: bool,
) -> Plan:  # fmt: skip
    """Returns the most training that the budget allows, the same for every cell.

    Args:
        cells: all trainings.
        recipe: of all of them.
        preprocessing: of the images.
        machine: that trains.
        images: training images that there are.
        evaluated: held-out images that there are, for each network to be evaluated on in the end.
        minutes: the budget.
        share: of it, for these trainings.
        may_leave_out: whether images may be left out.

    Raises:
        UserError: the budget does not allow as much as a comparison needs; it says what would.
    """
    measured: dict[tuple[Any, ...], float] = {}
    speeds, batches = [], []
    for cell in cells:
        batches.append(cell.changes.get("batch_size", recipe.batch_size))
        seen_as = dataclasses.replace(preprocessing, image_size=cell.image_size or preprocessing.image_size)
        key = (cell.architecture, batches[-1], seen_as.image_size)
        if key not in measured:
            its_recipe = recipe.changed(batch_size=batches[-1])
            measured[key] = seconds_per_image(cell.architecture, its_recipe, seen_as, machine)
        speeds.append(measured[key])
    seconds = minutes * share * 60 * _USED
    once = sum(speeds) / 3  # an image is evaluated in about a third of the time that it takes to train with it
    start, fewest_evaluated = _START * len(cells), evaluated
    if may_leave_out:
        fewest_evaluated = min(evaluated, FEWEST_EVALUATED)
        evaluated = min(evaluated, max(FEWEST_EVALUATED, int(seconds * _EVALUATION / once)))
    fixed = start + evaluated * once
    rate = sum(cell.work * speed for cell, speed in zip(cells, speeds, strict=True))
    seen = max(0.0, seconds - fixed) / rate  # images that a training of work 1 may see
    fewest = FEWEST_STEPS * max(size / cell.work for size, cell in zip(batches, cells, strict=True))
    if not may_leave_out:
        fewest = max(fewest, images)
    if seen < fewest:
        bare = start + fewest * rate
        needed = math.ceil(max(bare + fewest_evaluated * once, bare / (1 - _EVALUATION)) / 60 / _USED / share * 1.1)
        raise UserError(
            f"{len(cells)} trainings need a budget of at least {needed} minutes here, and it is {minutes:g}. Give a "
            "larger --budget, fewer --seeds, or smaller images."
        )
    taken = images if not may_leave_out else min(images, int(max(seen / EPOCHS[0], recipe.batch_size)))
    epochs = max(1, min(EPOCHS[1], int(seen / taken)))
    planned = round((fixed + epochs * taken * rate) / 60, 1)
    return Plan(images=taken, epochs=epochs, minutes=planned, evaluated=evaluated)


def seconds_per_image(
    config: ResNetConfig | OutsideConfig, recipe: Recipe, preprocessing: Preprocessing, machine: Machine
) -> float:
    """Returns how long a training takes for each image, by a few steps on random images."""
    size, count = preprocessing.image_size, recipe.batch_size
    machine = machine if isinstance(config, ResNetConfig) else suited_machine(machine)
    with torch_seeded(0, "timing"):
        network = ResNet(config) if isinstance(config, ResNetConfig) else config.build()
        model = machine.place(network).train()
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
