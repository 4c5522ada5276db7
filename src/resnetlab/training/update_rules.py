"""The optimizers that a recipe can name, Muon among them.

An optimizer of your own is called with groups of parameters, `lr`, and `momentum`, `nesterov` and `weight_decay` of the
recipe if it has arguments of these names. Groups have their own `lr` and `weight_decay`.
"""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from resnetlab import scratch
from resnetlab.core.errors import UserError
from resnetlab.core.own_code import received
from resnetlab.core.registry import Registry, read_call

_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
"""Coefficients of the polynomial that brings singular values from (0, 1] close to 1, as published."""
_ITERATIONS = 5
_OF_RECIPE = ("lr", "momentum", "nesterov", "weight_decay", "params")
_NOT_OFFERED = ("Optimizer", "LBFGS", "SparseAdam")
"""The base class, and optimizers that need several passes per step or sparse gradients."""


def _sgd(params: ParamsT, lr: float, momentum: float, nesterov: bool, dampening: float = 0.0) -> torch.optim.Optimizer:
    """Stochastic gradient descent of torch, with its fused update."""
    nesterov = nesterov and not dampening
    given = {"lr": lr, "momentum": momentum, "nesterov": nesterov, "dampening": dampening}
    return torch.optim.SGD(params, **given, fused=_can_fuse(params))


def _adamw(
    params: ParamsT, lr: float, momentum: float, beta2: float = 0.999, eps: float = 1e-8
) -> torch.optim.Optimizer:
    """AdamW of torch (Loshchilov and Hutter 2019), with its fused update; its first beta is `momentum`."""
    return torch.optim.AdamW(params, lr=lr, betas=(momentum, beta2), eps=eps, fused=_can_fuse(params))


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


def _can_fuse(params: Any) -> bool:
    return all(p.device.type in ("cpu", "cuda") for group in params for p in group["params"])


def _of_torch() -> dict[str, Any]:
    """Returns the optimizers of torch by name in lower case, except those that have a part of their own."""
    found = {name: value for name, value in vars(torch.optim).items() if isinstance(value, type)}
    names = [name for name, value in found.items() if issubclass(value, torch.optim.Optimizer)]
    return {name.lower(): found[name] for name in sorted(names) if name not in _NOT_OFFERED}


OPTIMIZERS = Registry(
    "optimizer",
    {**_of_torch(), "sgd": _sgd, "adamw": _adamw, "muon": Muon, "scratch_sgd": scratch.SGD},
    elsewhere=_OF_RECIPE,
)


def make_optimizer(text: str, groups: list[dict[str, Any]], settings: Mapping[str, Any]) -> torch.optim.Optimizer:
    """Returns the optimizer that a recipe names.

    Args:
        text: its name, possibly with options in parentheses.
        groups: parameters, each group with its "weight_decay".
        settings: lr, momentum, nesterov and weight_decay of the recipe. Those are passed that it takes; an optimizer
            with `betas` and without `momentum` gets momentum as its first beta.

    Raises:
        UserError: it returned something else, or raised an error.
    """
    call = read_call(text)
    make = OPTIMIZERS[call.name]
    parameters = inspect.signature(make).parameters
    given = {name: value for name, value in settings.items() if name in parameters or name == "lr"}
    if "betas" in parameters and "momentum" not in parameters:
        given["betas"] = (settings["momentum"], *parameters["betas"].default[1:])
    if owned := [name for name in call.options if name in _OF_RECIPE]:
        raise UserError(f"{owned[0]} of optimizer {text!r} is a field of the recipe. Set {owned[0]} instead.")
    try:
        with OPTIMIZERS.calling(call.name):
            made = make(groups, **{**given, **call.options})
    except (TypeError, ValueError) as error:
        raise UserError(f"{OPTIMIZERS.title(call.name)} cannot be made: {error}") from error
    if not isinstance(made, torch.optim.Optimizer):
        raise UserError(f"{OPTIMIZERS.title(call.name)} must return a torch.optim.Optimizer, got {received(made)}.")
    return made


def takes_weight_decay(text: str) -> bool:
    """Whether the optimizer that a recipe names has weight decay."""
    name = read_call(text).name
    return name in ("sgd", "adamw") or "weight_decay" in inspect.signature(OPTIMIZERS[name]).parameters
