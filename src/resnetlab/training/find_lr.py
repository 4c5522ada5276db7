"""The learning-rate range test: which rate to train with, from a hundred steps."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import nn

from resnetlab.core.checks import check_integer, check_number
from resnetlab.core.console import console, is_live, notice
from resnetlab.core.environment import keep_freed_memory
from resnetlab.core.errors import UserError
from resnetlab.core.randomness import torch_seeded
from resnetlab.data.batches import Batch, training_batches
from resnetlab.data.load import load_data
from resnetlab.data.storage.store import ImageData
from resnetlab.models.network import Architecture, Network
from resnetlab.training.machine import Machine
from resnetlab.training.optimizers import build_optimizer
from resnetlab.training.prepare import automatic_network, machine_for, model_name, network_for, open_model, recipe_for
from resnetlab.training.range_test import LearningRates, range_test
from resnetlab.training.recipe import Recipe
from resnetlab.training.recipes import resolve_recipe
from resnetlab.training.sections import TrainedSections
from resnetlab.training.step import balanced_weights, training_step

FEWEST_STEPS = 20


def find_lr(
    model: str | Architecture | nn.Module,
    data: str | Path | ImageData | Callable[[], ImageData] | Sequence[Any] | Mapping[str, Any],
    *,
    recipe: str | Recipe = "quick",
    lowest: float = 1e-5,
    highest: float = 10.0,
    steps: int = 100,
    seed: int = 0,
    device: str = "auto",
    precision: str = "auto",
    overrides: Mapping[str, Any] | None = None,
    quiet: bool = False,
    **changes: Any,
) -> LearningRates:
    """Trains a copy for some steps while the learning rate rises, and tells at which rate the loss falls fastest.

    The range test of Smith (2017), "Cyclical Learning Rates for Training Neural Networks", section 3.3, with
    a rate that rises exponentially, as in fastai. The steps are those that `fit` would take: the same network
    and initial weights, images in the same order and with the same augmentation, precision and memory format.
    They go over several epochs where one has too few. What the training unfreezes in its course is trained from
    the first step, and the rates that parts have of their own rise in proportion. On the same machine and a CPU the
    same seed gives the same losses. A network that is given, and the program's random state, stay as they are.

    Args:
        model: what `fit` takes.
        data: what `fit` takes.
        recipe: a name or a `Recipe`; its `lr`, schedule and number of epochs are of no account.
        lowest: the rate of the first step.
        highest: the rate of the last step, if the loss does not diverge before.
        steps: number of steps, at least 20.
        seed: of initial weights, order and augmentation.
        device: "auto", or a device of torch.
        precision: "auto", "float32", "bfloat16" or "float64".
        overrides: fields of `ResNetConfig` to change in a network given by name.
        quiet: show no progress.
        **changes: fields of the recipe to change, such as `batch_size=64`.

    Raises:
        UserError: something does not fit; nothing was trained.
    """
    seed = check_integer("seed", seed, 0)
    rates = _rates(lowest, highest, steps)
    if "lr" in changes:
        raise UserError("lr is what the test looks for. Leave it out, or give lowest and highest.")
    recipe = resolve_recipe(recipe, **changes)
    opened = copy.deepcopy(open_model(model, overrides or {}))
    machine = machine_for(opened, overrides or {}, device, precision)
    if callable(data):
        data = data()
    elif not isinstance(data, ImageData):
        data = load_data(data)
    if opened == "auto":
        opened = automatic_network(recipe, data)
    name = model_name(opened)
    network = network_for(opened, data, seed, overrides or {})
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
        return range_test(shown, rates, subject=f"{name} on {data.name}, recipe {recipe.name}")


def _rates(lowest: float, highest: float, steps: int) -> list[float]:
    lowest = check_number("lowest", lowest, 0, above=True)
    highest = check_number("highest", highest, 0, above=True)
    steps = check_integer("steps", steps, FEWEST_STEPS)
    if lowest >= highest:
        raise UserError(f"the highest learning rate must be above the lowest, got {lowest:g} to {highest:g}.")
    return [float(rate) for rate in np.geomspace(lowest, highest, steps)]


def _stepper(model: Network, data: ImageData, recipe: Recipe, machine: Machine, seed: int) -> Callable[[float], float]:
    """Returns a function that trains the next step at a learning rate and returns its loss."""
    torch.set_num_threads(machine.threads)
    keep_freed_memory()
    device = torch.device(machine.device)
    machine.place(model).train()
    model.set_drop_progress(0.0)  # the test stands at the beginning of a training
    parts = TrainedSections(model, recipe)
    optimizer = build_optimizer(model, recipe)
    parts.begin(recipe.epochs - 1)
    batches = _endless_batches(data, recipe, seed, device)
    weights = None
    if recipe.class_weights == "balanced":
        weights = balanced_weights(data.split("train").labels, data.num_classes).to(device, machine.dtype)

    def step(rate: float) -> float:
        epoch, batch = next(batches)
        with torch_seeded(seed, "network", epoch=epoch, step=batch.step, device=device):
            loss, _ = training_step(
                model,
                optimizer,
                batch,
                preprocessing=data.preprocessing,
                recipe=recipe,
                machine=machine,
                lr=rate,
                class_weights=weights,
                check_layout=epoch == batch.step == 0,
            )
        return loss.item()

    return step


def _endless_batches(data: ImageData, recipe: Recipe, seed: int, device: torch.device) -> Iterator[tuple[int, Batch]]:
    """Yields (epoch, batch), as the training loop would see them were all its epochs like the first."""
    for epoch in itertools.count():
        for batch in training_batches(
            data.split("train"),
            batch_size=recipe.batch_size,
            policy=recipe.augment,
            seed=seed,
            epoch=epoch,
            framing=replace(data.framing, image_size=recipe.image_size(0, data.image_size)),
            device=device,
            preprocessing=data.preprocessing,
        ):
            yield epoch, batch
