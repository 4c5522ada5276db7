"""The optimizers of recipes, Muon among them, and the moving average of the weights."""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import ParamsT
from torch.optim.swa_utils import get_ema_multi_avg_fn

from resnetlab import scratch
from resnetlab.training.recipe import Recipe
from resnetlab.training.sections import optimizer_groups

_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of the polynomial that brings singular values from (0, 1] close to 1, as published."""
_ITERATIONS = 5


def build_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Returns the recipe's optimizer for the trainable parameters, in the groups of `optimizer_groups`.

    Weight decay applies to weights of two and more dimensions, and with `decay_all` also to scales, shifts and
    biases. torch's fused update is used on devices that have one.
    """
    groups = optimizer_groups(model, recipe)  # type: ignore[arg-type]  # it needs a `Network` only for sections
    if recipe.optimizer == "scratch_sgd":
        return scratch.SGD(groups, lr=recipe.lr, momentum=recipe.momentum, nesterov=recipe.nesterov)
    if recipe.optimizer == "muon":
        return Muon(groups, lr=recipe.lr, momentum=recipe.momentum, nesterov=recipe.nesterov)
    fused = all(p.device.type in ("cpu", "cuda") for group in groups for p in group["params"])
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=recipe.lr, betas=(recipe.momentum, 0.999), fused=fused)
    return torch.optim.SGD(groups, lr=recipe.lr, momentum=recipe.momentum, nesterov=recipe.nesterov, fused=fused)


class Muon(torch.optim.Optimizer):
    """Momentum orthogonalized by Newton-Schulz iterations (Jordan et al., "Muon", 2024).

    With gradient g of parameter p, and b the state "momentum_buffer":

        b <- momentum * b + g
        u <- g + momentum * b if nesterov else b
        u <- orthogonal(u) * sqrt(max(1, rows / columns))      (kernels of convolutions only)
        p <- (1 - lr * weight_decay) * p - lr * u

    A kernel is treated as a matrix with one row per output channel. All its singular values become about 1, so one
    learning rate suits all layers, and the length of the gradient does not matter. All other parameters, the head and
    the scales and shifts of normalization, move as in stochastic gradient descent. Weight decay is decoupled from the
    gradient (Loshchilov and Hutter 2019). If the attribute `found_inf`, a scalar on the device, is 1, a step changes
    nothing, as in torch's fused optimizers.

    Args:
        params: parameters, or groups of parameters with their own settings.
        lr: learning rate.
        momentum: fraction of the buffer that is kept in a step.
        weight_decay: times the learning rate, the fraction of a parameter that a step removes.
        nesterov: look ahead along the buffer.
    """

    # As torch wraps these methods, the first call imports its compiler, which takes a second.
    add_param_group = inspect.unwrap(torch.optim.Optimizer.add_param_group)
    load_state_dict = inspect.unwrap(torch.optim.Optimizer.load_state_dict)
    state_dict = inspect.unwrap(torch.optim.Optimizer.state_dict)
    zero_grad = inspect.unwrap(torch.optim.Optimizer.zero_grad)

    def __init__(
        self,
        params: ParamsT,
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        nesterov: bool = True,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "nesterov": nesterov})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Takes one step and returns the loss that `closure`, if given, computes."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        found_inf: Tensor | None = getattr(self, "found_inf", None)
        for settings in self.param_groups:
            group = settings if found_inf is None else _unless(found_inf, settings)
            kernels = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                gradient = parameter.grad
                if found_inf is not None:
                    gradient = gradient.masked_fill(found_inf > 0, 0.0)
                update = self._update(parameter, gradient, group)
                if parameter.ndim == 4:
                    kernels[parameter.shape].append((parameter, update))
                else:
                    _move(parameter, update, group)
            for alike in kernels.values():
                # In the order of channels_last, the memory layout of such a network's kernels.
                rows = [update.permute(0, 2, 3, 1).flatten(1) for _, update in alike]
                for (parameter, _), matrix in zip(alike, orthogonal(torch.stack(rows)), strict=True):
                    out, per_group, height, width = parameter.shape
                    matrix *= max(1.0, out / matrix.shape[1]) ** 0.5
                    _move(parameter, matrix.view(out, height, width, per_group).permute(0, 3, 1, 2), group)
        return loss

    def _update(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> Tensor:
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        buffer = state["momentum_buffer"].mul_(group["momentum"]).add_(gradient)
        return gradient + group["momentum"] * buffer if group["nesterov"] else buffer


def orthogonal(matrices: Tensor) -> Tensor:
    """Returns approximately the nearest matrices with orthonormal rows, or columns if there are fewer of them.

    Singular values that are not tiny become 0.68 to 1.13 instead of 1, which is as good for training and faster. A
    matrix of zeros stays zero.

    Each iteration maps X to P X, where P is a polynomial of X X'. So the product of all P is computed with small square
    matrices and multiplied by X once. This needs float32: rounded to bfloat16, X X' has negative eigenvalues that grow.

    Shapes: (N, rows, columns) -> (N, rows, columns).
    """
    is_tall = matrices.shape[1] > matrices.shape[2]
    wide = matrices.mT if is_tall else matrices
    wide = wide / (wide.norm(dim=(1, 2), keepdim=True) + 1e-7)
    square = wide @ wide.mT
    factor = product = _polynomial(square)
    for _ in range(_ITERATIONS - 1):
        square = factor @ square @ factor
        factor = _polynomial(square)
        product = factor @ product
    wide = product @ wide
    return wide.mT if is_tall else wide


def _polynomial(square: Tensor) -> Tensor:
    first, second, third = _NEWTON_SCHULZ
    factor = torch.baddbmm(square, square, square, beta=second, alpha=third)
    factor.diagonal(dim1=1, dim2=2).add_(first)
    return factor


def _move(parameter: Tensor, update: Tensor, group: dict[str, Any]) -> None:
    parameter.mul_(1 - group["lr"] * group["weight_decay"]).sub_(group["lr"] * update)


def _unless(found_inf: Tensor, settings: dict[str, Any]) -> dict[str, Any]:
    """Returns the settings of a step as scalars on the device; if `found_inf` is 1, they change nothing."""
    fine = 1 - found_inf
    return {**settings, "lr": settings["lr"] * fine, "momentum": settings["momentum"] * fine + found_inf}


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
