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

_POLYNOMIALS = ((8.0934, -23.6204, 17.4462), (3.6366, -2.7219, 0.5365), (2.6613, -1.9772, 0.4526))
"""Coefficients (a, b, c) of the odd polynomials p(x) = a x + b x^3 + c x^5 that bring [0.01, 1] close to 1 one by one.

Each has the least possible largest error e = max |1 - p(x)| on its interval: the error is reached with alternating
signs at four points, which determine a, b, c and e (Chebyshev; solved by Remez exchange). The first interval is
[0.01, 1]; each polynomial maps its interval onto [1 - e, 1 + e], which is the interval of the next one. The errors are
0.92, 0.71 and 0.27.
"""
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
    """Momentum whose kernels are made orthogonal in blocks of rows, after Jordan et al., "Muon", 2024.

    With gradient g of parameter p, and b the state "momentum_buffer":

        b <- momentum * b + g
        u <- g + momentum * b if nesterov else b
        u <- orthogonal(block) * sqrt(max(1, rows / columns)) for each block of u      (kernels of convolutions only)
        p <- (1 - lr * weight_decay) * p - lr * u

    A kernel is treated as a matrix with one row per output channel, cut into equal blocks of at most `block_rows` rows.
    orthogonal(X) = (X X')^(-1/2) X for a block with at most as many rows as columns, X (X' X)^(-1/2) for others, where
    `inverse_root` approximates the power. So all rows move about equally far, one learning rate suits all layers, and
    the length of the gradient does not matter. The original makes the whole kernel orthogonal, with five iterations of
    one polynomial. Blocks cost much less, since X X' is smaller, and lost no accuracy beyond noise in comparisons.

    All other parameters, the head and the scales and shifts of normalization, move as in stochastic gradient descent.
    Weight decay is decoupled from the gradient (Loshchilov and Hutter 2019). If the attribute `found_inf`, a scalar on
    the device, is 1, a step changes nothing, as in torch's fused optimizers.

    Args:
        params: parameters, or groups of parameters with their own settings.
        lr: learning rate.
        momentum: fraction of the buffer that is kept in a step.
        weight_decay: times the learning rate, the fraction of a parameter that a step removes.
        nesterov: look ahead along the buffer.
        block_rows: largest number of rows of a block. A kernel that equal blocks of at least half as many rows do not
            divide stays whole.

    Raises:
        ValueError: `block_rows` is less than 1.
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
        block_rows: int = 128,
    ) -> None:
        if block_rows < 1:
            raise ValueError(f"block_rows must be at least 1, got {block_rows}")
        settings = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "nesterov": nesterov}
        super().__init__(params, {**settings, "block_rows": block_rows})

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
                    blocks = _blocks(update, parameter, group["block_rows"])
                    kernels[blocks.shape[1]].append((parameter, blocks))
                else:
                    parameter.mul_(1 - group["lr"] * group["weight_decay"]).sub_(group["lr"] * update)
            for alike in kernels.values():
                roots = inverse_root(torch.cat([blocks @ blocks.mT for _, blocks in alike]))
                for (parameter, blocks), root in zip(alike, roots.split([len(b) for _, b in alike]), strict=True):
                    _move(parameter, root, blocks, group)
        return loss

    def _update(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> Tensor:
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        buffer = _sum(gradient, group["momentum"], state["momentum_buffer"], out=state["momentum_buffer"])
        return _sum(gradient, group["momentum"], buffer) if group["nesterov"] else buffer


def inverse_root(matrices: Tensor) -> Tensor:
    """Returns approximately X^(-1/2) of symmetric positive semidefinite matrices X.

    With s = (tr X^4)^(1/4), a bound of the largest eigenvalue, eigenvalues x from s / 10000 to s become 0.73 to 1.27
    times x^(-1/2), and smaller ones at most 78 s^(-1/2). This is as good for training as the exact root, and faster.
    For eigenvalues that are all alike, the bound is much closer than the trace, which saves an iteration.

    Each polynomial p(x) = x f(x^2) of `_POLYNOMIALS` maps X to f(X) X f(X), and the product of all f(X) is the root.
    This needs float32: rounded to bfloat16, X has negative eigenvalues, which grow.

    Shapes: (N, rows, rows) -> (N, rows, rows).
    """
    trace = matrices.diagonal(dim1=1, dim2=2).sum(1)[:, None, None] + 1e-14
    rest = matrices / trace
    bound = (rest @ rest).norm(dim=(1, 2), keepdim=True).sqrt().clamp(min=1 / rest.shape[1])  # for zeros
    rest = rest / bound
    factor = root = _polynomial(rest, *_POLYNOMIALS[0])
    for coefficients in _POLYNOMIALS[1:]:
        rest = factor @ rest @ factor
        factor = _polynomial(rest, *coefficients)
        root = factor @ root
    return root / (trace * bound).sqrt()


def _polynomial(matrices: Tensor, first: float, second: float, third: float) -> Tensor:
    factor = torch.baddbmm(matrices, matrices, matrices, beta=second, alpha=third)
    factor.diagonal(dim1=1, dim2=2).add_(first)
    return factor


def _sum(first: Tensor, factor: float | Tensor, second: Tensor, out: Tensor | None = None) -> Tensor:
    """Returns first + factor * second, in one pass unless the factor is a scalar on the device."""
    if isinstance(factor, Tensor):
        return torch.add(first, factor * second, out=out)
    return torch.add(first, second, alpha=factor, out=out)


def _blocks(tensor: Tensor, kernel: Tensor, most: int) -> Tensor:
    """Returns a tensor of a kernel's shape as equal blocks (N, rows, columns), transposed if they are tall.

    Columns are in the order of the kernel's memory, so that blocks are views; their order does not matter.
    """
    matrix = (tensor if kernel.is_contiguous() else tensor.permute(0, 2, 3, 1)).flatten(1)
    rows = len(matrix)
    counts = (count for count in range(-(-rows // most), 2 * rows // most + 1) if rows % count == 0)
    blocks = matrix.unflatten(0, (next(counts, 1), -1))
    return blocks if blocks.shape[1] <= blocks.shape[2] else blocks.mT


def _move(kernel: Tensor, root: Tensor, blocks: Tensor, group: dict[str, Any]) -> None:
    """Changes a kernel by the update `root @ blocks`, in one pass over its memory if settings are numbers."""
    rows, columns = len(kernel) / len(blocks), kernel[0].numel()
    kept = 1 - group["lr"] * group["weight_decay"]
    target = kernel if kernel.is_contiguous() else kernel.contiguous(memory_format=torch.channels_last)
    if isinstance(kept, Tensor):
        target, kept = target.mul_(kept), 1.0
    moved = _blocks(target, kernel, group["block_rows"])
    moved.baddbmm_(root * (group["lr"] * max(1.0, rows / columns) ** 0.5), blocks, beta=kept, alpha=-1.0)
    if target is not kernel:
        kernel.copy_(target)


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
        raise UserError(
            f"optimizer {text!r}: {owned[0]} is a field of the recipe. Set it there, not in the parentheses."
        )
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
