"""How long a training will take, from the measured time of a few steps. Nothing numeric depends on it."""

from __future__ import annotations

import copy
import functools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from resnetlab.core.environment import keep_freed_memory
from resnetlab.core.framing import Framing
from resnetlab.core.preprocessing import Preprocessing
from resnetlab.core.randomness import torch_seeded
from resnetlab.data.batches import Batch, training_batches
from resnetlab.data.storage.store import Split
from resnetlab.evaluation.forward import answer, batch_size
from resnetlab.models.network import Network
from resnetlab.models.summary.summary import summarize
from resnetlab.training.logs import duration
from resnetlab.training.machine import Machine
from resnetlab.training.optimizers import WeightAverage, build_optimizer
from resnetlab.training.recipe import Recipe
from resnetlab.training.sections import TrainedSections, first_epochs
from resnetlab.training.selection import images_of_epochs, steps_of
from resnetlab.training.step import training_step
from resnetlab.training.update_rules import Muon

_TIMED_MACS = 3e10
"""A timed step on a CPU has about as many images as take this many multiply-accumulates, at most a second on one core.
"""
_FEW, _MANY = 2, 8
"""Images of the smaller timed step, and of the larger one at least, unless a batch has fewer."""
_REPEATS, _ENOUGH = 3, 1.0
"""A step is timed this often, or until this many seconds have passed. The first time counts only if it is the only."""
_SLOW = 1e9, 0.1
"""Multiply-accumulates per second and seconds per step of a slow machine."""
_SHORT = 20.0
"""A training that takes less than this many seconds even on a slow machine is not measured."""


@dataclass(frozen=True, kw_only=True)
class Speed:
    """The time of the parts of a training, on a machine without other work.

    Attributes:
        step: seconds of a training step that do not depend on the number of images, such as the optimizer's.
        image: further seconds of a training step per image, when all sections of the network are trained.
        head_image: the same, when only the head is trained.
        evaluated: seconds of evaluation per image.
    """

    step: float
    image: float
    head_image: float
    evaluated: float


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """How much a training computes and about how long it takes; `print` shows both in a line.

    Attributes:
        macs: multiply-accumulates of the network for one image of full size; None if they cannot be counted.
        seconds: of training, validation and the last evaluation on a machine without other work; None if it is so short
            that it was not measured: less than 20 s even on a slow machine.
        epochs: of the training.
    """

    macs: int | None
    seconds: float | None
    epochs: int

    def __str__(self) -> str:
        macs = "" if self.macs is None else f"{_in_words(self.macs)} MACs per image; "
        about = "less than a minute" if self.seconds is None else f"about {duration(self.seconds)}"
        epochs = "1 epoch takes" if self.epochs == 1 else f"{self.epochs} epochs take"
        return f"{macs}{epochs} {about}, validation included"


def estimate_training(
    network: Network,
    recipe: Recipe,
    machine: Machine,
    framing: Framing,
    *,
    images: int,
    validated: int,
    evaluated: int = 0,
    world_size: int = 1,
    measure: Callable[..., Speed] | None = None,
) -> Estimate:
    """Returns about how long a training takes, measured in about a second, before any image is read.

    A copy of the network trains a few steps on random images (see `measure_speed`); network, random state and training
    do not change. The estimate counts the epochs with smaller images, the epochs that train only the head, and every
    validation. It does not count reading images before training, checkpoints and the report, nor what other programs
    on the machine take.

    Args:
        network: what will be trained.
        recipe: resolved for the data, as by `recipe_for`.
        machine: where it will be trained.
        framing: size and channels of the images.
        images: number of training images.
        validated: number of images of each validation; 0 if there is none.
        evaluated: number of images that are evaluated once, after training.
        world_size: number of processes that share the images of a step.
        measure: replaces `measure_speed`.
    """
    macs = _macs(network, framing)
    shown = images_of_epochs(recipe, images, recipe.epochs)
    steps = [steps_of(count, recipe) for count in shown]
    validations = -(-recipe.epochs // recipe.validate_every) * validated
    passes = 3 * sum(shown) + validations + evaluated  # training is about three forward passes
    if macs is not None and passes * macs / _SLOW[0] + sum(steps) * _SLOW[1] < _SHORT:
        return Estimate(macs=macs, seconds=None, epochs=recipe.epochs)
    speed = (measure or measure_speed)(network, recipe, machine, framing, macs=macs, world_size=world_size)
    seconds = (validations + evaluated) * speed.evaluated / world_size
    for epoch, trained in enumerate(_trained_fractions(recipe, network)):
        area = (recipe.image_size(epoch, framing.image_size) / framing.image_size) ** 2
        image = speed.head_image + trained * (speed.image - speed.head_image)
        seconds += steps[epoch] * speed.step + shown[epoch] * area * image / world_size
    return Estimate(macs=macs, seconds=seconds, epochs=recipe.epochs)


def measure_speed(
    network: Network,
    recipe: Recipe,
    machine: Machine,
    framing: Framing,
    *,
    macs: int | None = None,
    world_size: int = 1,
) -> Speed:
    """Returns the speed of training and evaluation, measured on a copy of the network with random images.

    Forward and backward pass, with augmentation, are timed with two numbers of images, the optimizer's step alone.
    A time is the smaller of wall time and the processor time of all threads: on a machine without other work, these
    are the wall time, and other work does not lengthen the processor time of one thread. On an accelerator, it is the
    wall time.

    Args:
        network: what will be trained.
        recipe: optimizer, augmentation and batch size.
        machine: where it will be trained.
        framing: size and channels of the images.
        macs: multiply-accumulates for one image, from which follows how many images a step is timed with; None for
            the fewest.
        world_size: number of processes that share the images of a step.
    """
    torch.set_num_threads(machine.threads)
    keep_freed_memory()
    with torch_seeded(0, "estimate", device=torch.device(machine.device)):
        return _measure(copy.deepcopy(network), recipe, machine, framing, macs, world_size)


def _measure(
    model: Network, recipe: Recipe, machine: Machine, framing: Framing, macs: int | None, world_size: int
) -> Speed:
    share = max(_FEW, recipe.batch_size // recipe.accumulate // world_size)
    affordable = _MANY if macs is None else max(_MANY, int(_TIMED_MACS / 3 / macs))
    many = share if machine.device != "cpu" else min(share, affordable)
    recipe = recipe.changed(accumulate=1, batch_size=many)
    half = (0.5,) * framing.channels
    preprocessing = Preprocessing(**vars(framing.framing), mean=half, std=half)
    machine.place(model).train()
    sections = TrainedSections(model, recipe)
    optimizer = build_optimizer(model, recipe)
    average = WeightAverage(model, recipe.average) if recipe.average else None
    size = (many, framing.channels, framing.image_size, framing.image_size)
    images, labels = torch.randint(256, size, dtype=torch.uint8), torch.randint(model.config.num_classes, (many,))

    def passes(count: int) -> float:
        """Returns the seconds of a step whose optimizer does nothing."""
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        idle = _Idle(parameters, lr=0.0)
        settings: dict[str, Any] = {"preprocessing": preprocessing, "recipe": recipe, "machine": machine, "lr": 0.0}
        batch = functools.partial(_batch, images[:count], labels[:count], recipe, machine, preprocessing)
        return _seconds(lambda: training_step(model, idle, batch(), **settings), machine)

    def update() -> None:
        optimizer.step()
        if average is not None:
            average.update(1)

    sections.begin(recipe.epochs - 1)
    few, all_of_them = passes(_FEW), passes(many)
    image = all_of_them / many
    if many > _FEW:  # some time of a step does not depend on the number of images
        image = min(image, max(0.5 * image, (all_of_them - few) / (many - _FEW)))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    updating = _seconds(update, machine)
    head_image = image
    if recipe.unfreeze:
        sections.begin(0)
        head_image *= min(1.0, passes(many) / all_of_them)
    shown = images[torch.arange(min(3 * affordable, batch_size(model, framing.image_size**2))) % many]
    evaluated = _seconds(lambda: answer(model, shown, preprocessing), machine) / len(shown)
    overhead = (all_of_them - many * image) * recipe.accumulate
    return Speed(step=overhead + updating, image=image, head_image=head_image, evaluated=evaluated)


class _Idle(Muon):
    """An optimizer that changes nothing; with one of torch, its compiler would be imported (see `Muon`)."""

    def step(self, closure: Callable[[], Any] | None = None) -> None:
        """Does nothing."""


def _batch(images: Tensor, labels: Tensor, recipe: Recipe, machine: Machine, preprocessing: Preprocessing) -> Batch:
    """Returns images as a batch of the recipe's augmentation."""
    split = Split(images=images, labels=labels, index=torch.arange(len(labels)))
    batches = training_batches(
        split, batch_size=len(labels), policy=recipe.augment, seed=0, epoch=0, framing=preprocessing.framing,
        device=torch.device(machine.device), preprocessing=preprocessing,
    )  # fmt: skip
    return next(batches)


def _seconds(work: Callable[[], object], machine: Machine) -> float:
    """Returns the shortest time of repeated work."""
    times: list[float] = []
    while len(times) < _REPEATS and sum(times) < _ENOUGH:
        wall, processor = time.perf_counter(), time.process_time()
        work()
        if machine.device != "cpu":
            torch.accelerator.synchronize(machine.device)
        wall, processor = time.perf_counter() - wall, time.process_time() - processor
        times.append(min(wall, processor) if machine.device == "cpu" else wall)
    return min(times[1:] or times)


def _trained_fractions(recipe: Recipe, network: Network) -> list[float]:
    """Returns for each epoch the fraction of the trained sections, except the head, that are unfrozen."""
    backbone = [first for name, first in first_epochs(recipe, network).items() if name != "head"]
    if not backbone:
        return [1.0] * recipe.epochs
    return [sum(first <= epoch for first in backbone) / len(backbone) for epoch in range(recipe.epochs)]


def _macs(network: Network, framing: Framing) -> int | None:
    """Returns the multiply-accumulates for one image; None for a module that cannot be traced without running it."""
    try:
        return summarize(network, (framing.channels, framing.image_size, framing.image_size)).macs
    except Exception:  # of your module, which may not take a tensor without values
        return None


def _in_words(count: int) -> str:
    """Returns a count such as "41.2 million" or "1.81 billion"."""
    scale, word = (1e9, "billion") if count >= 1e9 else (1e6, "million")
    return f"{count / scale:.3g} {word}"
