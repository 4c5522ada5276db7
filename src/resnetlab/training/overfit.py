"""The first thing to try when a training goes wrong: can the network learn one batch by heart?"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from resnetlab.core.checks import check_integer
from resnetlab.core.randomness import torch_seeded
from resnetlab.data.augment import Augmentation
from resnetlab.data.batches import Batch, training_batches
from resnetlab.data.load import load_data
from resnetlab.data.storage.store import ImageData
from resnetlab.models.config import ResNetConfig
from resnetlab.models.resnet import ResNet
from resnetlab.models.stochastic import DropPath
from resnetlab.training.machine import choose_machine
from resnetlab.training.optimizers import build_optimizer
from resnetlab.training.prepare import automatic_network, network_for, parts_of
from resnetlab.training.recipe import Recipe
from resnetlab.training.recipes import resolve_recipe
from resnetlab.training.sections import TrainedSections, check_sections
from resnetlab.training.step import training_step

LEARNED = 0.1
"""A mean loss below this, with every image right, is learned by heart."""


@dataclass(frozen=True)
class OneBatch:
    """How a network learned one batch.

    Attributes:
        losses: mean cross-entropy of each step.
        top1: share of the batch that was right at each step.
        images: of the batch.
    """

    losses: tuple[float, ...]
    top1: tuple[float, ...]
    images: int

    @property
    def learned(self) -> bool:
        """Whether every image was right at last, with next to no loss."""
        return self.losses[-1] < LEARNED and self.top1[-1] == 1

    def __str__(self) -> str:
        course = f"loss {self.losses[0]:.3f} to {self.losses[-1]:.4f}, top-1 {self.top1[-1]:.0%}"
        if self.learned:
            return f"learned {self.images} images by heart in {len(self.losses)} steps: {course}"
        return (
            f"{self.images} images were not learned by heart in {len(self.losses)} steps: {course}. Look for labels "
            "that do not belong to their images, a learning rate that is far off (resnetlab find-lr), frozen parts, or "
            "images that are all alike (resnetlab inspect)"
        )


def overfit_one_batch(
    model: str | ResNetConfig | ResNet,
    data: str | Path | ImageData,
    *,
    overrides: Mapping[str, Any] | None = None,
    recipe: str | Recipe = "quick",
    steps: int = 100,
    seed: int = 0,
    device: str = "auto",
    precision: str = "auto",
    **changes: Any,
) -> OneBatch:
    """Trains a copy of a network on a single batch, over and over, until it is known by heart or the steps are over.

    What makes learning harder is left out: augmentation, label smoothing, weight decay and drops. The learning
    rate is a quarter of the recipe's, all the time and of every part. What the training unfreezes is trained from the
    first step.

    Args:
        model: as `fit` takes it; a `ResNet` is not changed.
        data: what `load_data` returned, or takes.
        overrides: fields of `ResNetConfig` to change in a network given by name.
        recipe: a name or a `Recipe`.
        steps: at most.
        seed: of initial weights, and of the choice of images.
        device: "auto", or a device of torch.
        precision: "auto", "float32", "bfloat16" or "float64".
        **changes: fields of the recipe to change.

    Raises:
        UserError: something does not fit.
    """
    steps = check_integer("steps", steps, 1)
    recipe = resolve_recipe(recipe, **changes)
    machine = choose_machine(device, precision, parts=parts_of(model, overrides or {}))
    if not isinstance(data, ImageData):
        data = load_data(data)
    if model == "auto":
        model = automatic_network(recipe, data)
    network = copy.deepcopy(network_for(model, data, seed, overrides or {}))
    check_sections(recipe, network)
    recipe = recipe.changed(label_smoothing=0.0, weight_decay=0.0, class_weights="none")
    machine.place(network).train()
    parts = TrainedSections(network, recipe)
    optimizer = build_optimizer(network, recipe)
    parts.begin(recipe.epochs - 1)
    network.set_drop_progress(0.0)
    for module in network.modules():
        if isinstance(module, DropPath):
            module.eval()
    policy = Augmentation(crop_padding=0.0, flip=False)
    size = min(recipe.batch_size, len(data.split("train")))
    place = torch.device(machine.device)
    settings = {"seed": seed, "epoch": 0, "framing": data.framing, "device": place}
    batch: Batch = next(training_batches(data.split("train"), batch_size=size, policy=policy, **settings))
    losses, top1 = [], []
    for step in range(steps):
        with torch_seeded(seed, "network", step=step, device=place):
            loss, correct = training_step(
                network,
                optimizer,
                batch,
                preprocessing=data.preprocessing,
                recipe=recipe,
                machine=machine,
                lr=recipe.lr / 4,
                check_layout=step == 0,
            )
        losses.append(loss.item())
        top1.append(correct.item() / len(batch.labels))
        result = OneBatch(tuple(losses), tuple(top1), len(batch.labels))
        if result.learned or not math.isfinite(losses[-1]):
            break
    return result
