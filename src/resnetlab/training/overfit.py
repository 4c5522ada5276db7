"""`overfit_one_batch`: the first thing to try when a training goes wrong. Can the network learn one batch?"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from resnetlab.core.checks import check_integer
from resnetlab.core.randomness import torch_seeded
from resnetlab.data.augment import Augmentation
from resnetlab.data.batches import Batch, training_batches
from resnetlab.data.load import load_data
from resnetlab.data.storage.store import ImageData
from resnetlab.models.network import Architecture
from resnetlab.models.stochastic import DropPath
from resnetlab.training.loss_scale import scaling_for
from resnetlab.training.optimizers import build_optimizer
from resnetlab.training.prepare import (
    automatic_network,
    framing_for,
    machine_for,
    network_for,
    normalized_for,
    open_model,
)
from resnetlab.training.recipe import Recipe
from resnetlab.training.recipes import resolve_recipe
from resnetlab.training.sections import TrainedSections, check_sections
from resnetlab.training.step import training_step

LEARNED = 0.1
"""A batch is learned if its mean loss is below this and every image is classified correctly."""


@dataclass(frozen=True)
class OneBatch:
    """How a network learned one batch.

    Attributes:
        losses: mean cross-entropy at each step.
        top1: fraction of the batch that was classified correctly at each step.
        images: number of images in the batch.
    """

    losses: tuple[float, ...]
    top1: tuple[float, ...]
    images: int

    @property
    def learned(self) -> bool:
        """Whether every image was classified correctly at the last step, with a loss below `LEARNED`."""
        return self.losses[-1] < LEARNED and self.top1[-1] == 1

    def __str__(self) -> str:
        course = f"loss {self.losses[0]:.3f} to {self.losses[-1]:.4f}, top-1 {self.top1[-1]:.0%}"
        if self.learned:
            return f"learned {self.images} images in {len(self.losses)} steps: {course}"
        return (
            f"did not learn {self.images} images in {len(self.losses)} steps: {course}. Possible causes: wrong labels, "
            "a learning rate that is far off (try resnetlab find-lr), frozen sections, or images that are all alike "
            "(try resnetlab inspect)"
        )


def overfit_one_batch(
    model: str | Architecture | nn.Module,
    data: str | Path | ImageData,
    *,
    overrides: Mapping[str, Any] | None = None,
    recipe: str | Recipe = "quick",
    steps: int = 100,
    seed: int = 0,
    device: str = "auto",
    precision: str = "auto",
    memory_format: str = "auto",
    **changes: Any,
) -> OneBatch:
    """Trains a copy of a network on a single batch, again and again, until it is learned or the steps are used up.

    Augmentation, label smoothing, weight decay and drops are off, since they make learning harder. The learning rate is
    constant, a quarter of the recipe's, for every section. Sections that the recipe would unfreeze later are trained
    from the first step.

    Args:
        model: as `fit` takes it; a module is not changed.
        data: what `load_data` returned, or takes.
        overrides: as `fit` takes them.
        recipe: a name or a `Recipe`.
        steps: the largest number of steps.
        seed: of initial weights and of the choice of images.
        device: "auto", or a device of torch.
        precision: "auto" for the rule of `machine.suitable`, "float32", "bfloat16", "float16" (GPUs only, with loss
            scaling), "float64", or "measured" for the fastest in a short timing.
        memory_format: "auto", "contiguous" or "channels_last".
        **changes: fields of the recipe to change.

    Raises:
        UserError: something does not fit.
    """
    steps = check_integer("steps", steps, 1)
    recipe = resolve_recipe(recipe, **changes)
    opened = copy.deepcopy(open_model(model, overrides or {}))
    machine = machine_for(opened, overrides or {}, device, precision, memory_format)
    if not isinstance(data, ImageData):
        data = load_data(data, **framing_for(recipe, model))
    if opened == "auto":
        opened = automatic_network(recipe, data)
    network = network_for(opened, data, seed, overrides or {}, recipe=recipe)
    check_sections(recipe, network)
    recipe = recipe.changed(label_smoothing=0.0, weight_decay=0.0, class_weights="none")
    machine.place(network).train()
    sections = TrainedSections(network, recipe)
    optimizer = build_optimizer(network, recipe)
    sections.begin(recipe.epochs - 1)
    network.set_drop_progress(0.0)
    for module in network.modules():
        if isinstance(module, DropPath):
            module.eval()
    policy = Augmentation(crop_padding=0.0, flip=False)
    size = min(recipe.batch_size, len(data.split("train")))
    place = torch.device(machine.device)
    settings = {"seed": seed, "epoch": 0, "framing": data.framing, "device": place}
    batch: Batch = next(training_batches(data.split("train"), batch_size=size, policy=policy, **settings))
    losses, top1, scaling = [], [], scaling_for(machine)
    for step in range(steps):
        with torch_seeded(seed, "network", step=step, device=place):
            loss, correct = training_step(
                network,
                optimizer,
                batch,
                preprocessing=normalized_for(data.preprocessing, recipe),
                recipe=recipe,
                machine=machine,
                lr=recipe.lr / 4,
                scaling=scaling,
                check_layout=step == 0,
            )
        losses.append(loss.item())
        top1.append(correct.item() / len(batch.labels))
        result = OneBatch(tuple(losses), tuple(top1), len(batch.labels))
        if result.learned or not math.isfinite(losses[-1]):
            break
    return result
