"""The optimizer of a network for a recipe, and the moving average of the weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from resnetlab.training.recipe import Recipe
from resnetlab.training.sections import optimizer_groups
from resnetlab.training.update_rules import make_optimizer


def build_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Returns the recipe's optimizer for the trainable parameters, in the groups of `optimizer_groups`.

    Weight decay applies to weights of two and more dimensions, and with `decay_all` also to scales, shifts and
    biases. torch's fused update is used on devices that have one.
    """
    groups = optimizer_groups(model, recipe)  # type: ignore[arg-type]  # it needs a `Network` only for sections
    settings = {name: getattr(recipe, name) for name in ("lr", "momentum", "nesterov", "weight_decay")}
    return make_optimizer(recipe.optimizer, groups, settings)


class WeightAverage:
    """Exponential moving average of parameters and buffers (Polyak and Juditsky 1992).

    The average predicts better than the last weights. After step t (from 1) it moves toward the weights by
    1 - min(decay, t / (t + 9)), so it soon forgets the early weights. Counters are copied.

    Args:
        model: placed on its device; its state is the first average.
        decay: fraction of the average that is kept in a step.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._decay = decay
        self._current = dict(model.state_dict())  # views of the network's own memory
        self.weights = {name: value.clone() for name, value in self._current.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Adds the weights after step number `step`, from 1."""
        names = [name for name, value in self.weights.items() if value.is_floating_point()]
        move = get_ema_multi_avg_fn(min(self._decay, step / (step + 9)))
        move([self.weights[name] for name in names], [self._current[name] for name in names], None)
        for name in self.weights.keys() - names:
            self.weights[name].copy_(self._current[name])

    @torch.no_grad()
    def restore(self, weights: Mapping[str, Tensor]) -> None:
        """Sets the average to a saved one."""
        for name, value in self.weights.items():
            value.copy_(weights[name])

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Gives the network the average until the block ends, and keeps what the block changes in it."""
        own = {name: value.clone() for name, value in self._current.items()}
        self.put(self.weights)
        try:
            yield
        finally:
            self.restore(self._current)
            self.put(own)

    @torch.no_grad()
    def put(self, weights: Mapping[str, Tensor]) -> None:
        """Copies weights into the network."""
        for name, value in self._current.items():
            value.copy_(weights[name])
