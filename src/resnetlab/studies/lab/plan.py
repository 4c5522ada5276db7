"""The plan of a study: how many images and epochs fit into its budget.

Without a budget, the plan is made for a reference core, from the multiply-accumulates of the networks. So it is the
same on every machine, however busy. With a budget, it is made for the measured speed of the networks, and never falls
below a floor. Whether a budget is enough for the floor is not measured, so a budget named in an error is accepted.
"""

from __future__ import annotations

import dataclasses
import math
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
from resnetlab.models.summary.summary import count, summarize
from resnetlab.training.machine import Machine
from resnetlab.training.optimizers import build_optimizer
from resnetlab.training.prepare import suited
from resnetlab.training.recipe import Recipe
from resnetlab.training.step import training_step

REFERENCE = Machine(device="cpu", precision="float32", memory_format="channels_last", threads=1)
"""The machine that a plan without a budget is made for."""
REFERENCE_SPEED = 2.5e10
"""Multiply-accumulates per second that the reference machine computes in training; a slow core of 2026."""
_CORES_OF_AN_ACCELERATOR = 40
_SCALING = 0.75
"""N threads count as N to this power cores."""
EPOCHS = (10, 40)
"""A plan leaves out images rather than have fewer epochs than the first, and never has more than the second."""
FEWEST_STEPS = 40
"""The floor of a plan, in steps of every training: after fewer, a network has learned nothing worth comparing."""
FEWEST_EVALUATED = 2_000
"""Held-out images that are always kept, even if their evaluation takes more than its fraction of the budget."""
_EVALUATION = 0.15  # fraction of the usable budget
_USED = 0.8
"""Fraction of the budget that is planned; the rest is a reserve for other load on the machine."""
_START = 2.0
"""Seconds that a training takes in addition to steps and evaluation: building, checkpoints, files."""
_TIMED_STEPS = (3, 7)
"""Fewest and most steps that are timed, after one that is not."""
_TIMED_SECONDS = 2.0


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
        measure: returns the seconds of training per image, such as `seconds_per_image`. Without it, the plan is made
            for the reference machine, and takes longer than the budget if only the floor is left.

    Raises:
        UserError: with `measure`, the budget is below the floor; the message names the smallest sufficient budget.
            That depends on the networks, the images, and the kind of device with its number of threads only.
    """
    batches = [cell.changes.get("batch_size", recipe.batch_size) for cell in cells]
    fewest = FEWEST_STEPS * max(size / cell.work for size, cell in zip(batches, cells, strict=True))
    fewest_evaluated = min(evaluated, FEWEST_EVALUATED)
    if not may_leave_out:
        fewest, fewest_evaluated = max(fewest, images), evaluated
    costs = _costs(cells, recipe, preprocessing, machine if measure else REFERENCE, reference_seconds)
    if measure is not None:
        floor = costs.seconds(fewest, fewest_evaluated) / 60 / _USED / fraction
        if minutes < (needed := math.ceil(10 * floor) / 10):
            raise UserError(
                f"{len(cells)} trainings need a budget of at least {needed:g} minutes, got {minutes:g}. Give --budget "
                f"{needed:g}, fewer --seeds, or smaller images."
            )
        costs = _costs(cells, recipe, preprocessing, machine, measure)
    seconds = minutes * fraction * 60 * _USED
    if may_leave_out:
        evaluated = min(evaluated, max(FEWEST_EVALUATED, int(seconds * _EVALUATION / costs.evaluation)))
    seen = max(fewest, (seconds - costs.seconds(0, evaluated)) / costs.training)  # images, by a training of work 1
    taken = images if not may_leave_out else min(images, int(max(seen / EPOCHS[0], recipe.batch_size)))
    epochs = max(1, min(EPOCHS[1], int(seen / taken)))
    planned = round(costs.seconds(epochs * taken, evaluated) / 60, 1)
    return Plan(images=taken, epochs=epochs, minutes=planned, evaluated=evaluated)


@dataclass(frozen=True, kw_only=True)
class _Costs:
    """Seconds that all trainings of a study take.

    Attributes:
        start: in addition to steps and evaluation.
        training: for each image that a training of work 1 sees.
        evaluation: for each held-out image.
    """

    start: float
    training: float
    evaluation: float

    def seconds(self, seen: float, evaluated: int) -> float:
        """Returns the time for so many images."""
        return self.start + seen * self.training + evaluated * self.evaluation


def _costs(
    cells: Sequence[Cell], recipe: Recipe, preprocessing: Preprocessing, machine: Machine, measure: Callable[..., float]
) -> _Costs:
    """Measures each network once for each of its batch sizes and image sizes."""
    measured: dict[tuple[Any, ...], float] = {}
    speeds = []
    for cell in cells:
        its_recipe = recipe.changed(batch_size=cell.changes.get("batch_size", recipe.batch_size))
        seen_as = dataclasses.replace(preprocessing, image_size=cell.image_size or preprocessing.image_size)
        key = (str(cell.architecture), its_recipe.batch_size, seen_as.image_size)
        if key not in measured:
            measured[key] = measure(cell.architecture, its_recipe, seen_as, machine)
        speeds.append(measured[key])
    return _Costs(
        start=_START * len(cells),
        training=sum(cell.work * speed for cell, speed in zip(cells, speeds, strict=True)),
        evaluation=sum(speeds) / 3,  # of a training step, about a third is the forward pass
    )


def reference_seconds(config: Architecture, recipe: Recipe, preprocessing: Preprocessing, machine: Machine) -> float:
    """Returns the seconds of training per image, by multiply-accumulates: nothing is measured.

    An accelerator counts as 40 cores of the reference machine.
    """
    size = preprocessing.image_size
    if isinstance(config, ResNetConfig):
        macs = count(config, size)[1]
    else:
        with torch_seeded(0, "counting"):
            macs = summarize(build(config), (config.in_channels, size, size)).macs
    cores = _cores(machine) if machine.device == "cpu" else _CORES_OF_AN_ACCELERATOR
    return 3 * macs / REFERENCE_SPEED / cores


def seconds_per_image(
    config: Architecture, recipe: Recipe, preprocessing: Preprocessing, machine: Machine,
    *, clock: Callable[[], float] | None = None,
) -> float:  # fmt: skip
    """Returns the seconds of training per image: the fastest of a few steps on random images.

    On a CPU, these steps use one thread, because a thread that waits for another also uses CPU time.

    Args:
        config: the network.
        recipe: its optimizer and batch size.
        preprocessing: of the images.
        machine: that trains.
        clock: returns the time in seconds, `clock_of` the device by default.
    """
    size, batch_size = preprocessing.image_size, recipe.batch_size
    machine = suited(machine, config)
    clock = clock or clock_of(machine.device)
    with torch_seeded(0, "timing"):
        model = machine.place(build(config)).train()
        images = torch.randint(256, (batch_size, config.in_channels, size, size), dtype=torch.uint8)
        labels = torch.randint(max(1, config.num_classes), (batch_size,))
    optimizer = build_optimizer(model, recipe)
    batch = Batch(step=0, images=images.to(machine.device), labels=labels.to(machine.device))
    times: list[float] = []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        while len(times) <= _TIMED_STEPS[0] or (len(times) <= _TIMED_STEPS[1] and sum(times) < _TIMED_SECONDS):
            start = clock()
            loss, _ = training_step(
                model, optimizer, batch, preprocessing=preprocessing, recipe=recipe, machine=machine, lr=1e-3
            )
            loss.item()  # waits for an accelerator
            times.append(clock() - start)
    finally:
        torch.set_num_threads(threads)
    cores = _cores(machine) if machine.device == "cpu" else 1
    return min(times[1:]) / batch_size / cores  # the first step compiles and allocates


def _cores(machine: Machine) -> float:
    return machine.threads**_SCALING


def clock_of(device: str) -> Callable[[], float]:
    """Returns the clock that measures work on a device: on a CPU, time of other processes does not count."""
    return time.thread_time if torch.device(device).type == "cpu" else time.perf_counter
