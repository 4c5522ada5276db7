"""The moving average of a network's weights, which predicts better than the last of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class WeightAverage:
    """Exponential moving average of parameters and buffers (Polyak and Juditsky 1992).

    After step t (from 1) a weight's average moves toward the weight by 1 - min(decay, t / (t + 9)), so that
    it starts as the weight and early weights are soon forgotten. Counters are taken as they are.

    Args:
        model: placed where it trains; its state is the average at first.
        decay: what is kept of the average at a step.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._decay = decay
        self._current = dict(model.state_dict())  # views of the network's own memory
        self.weights = {name: value.clone() for name, value in self._current.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Takes in the weights after step number `step`, from 1."""
        names = [name for name, value in self.weights.items() if value.is_floating_point()]
        take_in = get_ema_multi_avg_fn(min(self._decay, step / (step + 9)))
        take_in([self.weights[name] for name in names], [self._current[name] for name in names], None)
        for name in self.weights.keys() - names:
            self.weights[name].copy_(self._current[name])

    @torch.no_grad()
    def restore(self, weights: Mapping[str, Tensor]) -> None:
        """Takes an average that was saved."""
        for name, value in self.weights.items():
            value.copy_(weights[name])

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The network has the averaged weights until the block ends."""
        own = {name: value.clone() for name, value in self._current.items()}
        self.put(self.weights)
        try:
            yield
        finally:
            self.put(own)

    @torch.no_grad()
    def put(self, weights: Mapping[str, Tensor]) -> None:
        """Copies weights into the network."""
        for name, value in self._current.items():
            value.copy_(weights[name])
