"""Stochastic gradient descent with momentum and weight decay."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from resnetlab.core.checks import check_flag, check_number
from resnetlab.core.errors import UserError


class SGD(torch.optim.Optimizer):
    """Stochastic gradient descent with the update rule of torch.optim.SGD.

    With gradient g of parameter p, and b the state "momentum_buffer":

        g <- g + weight_decay * p
        b <- momentum * b + g            (b <- g in the first step)
        g <- g + momentum * b if nesterov else b
        p <- p - lr * g

    The learning rate scales the step and not the buffer, unlike in Sutskever et al., "On the importance of
    initialization and momentum in deep learning", 2013. Parameters without a gradient are not changed.

    Args:
        params: parameters, or groups of parameters with their own settings.
        lr: learning rate, at least 0.
        momentum: factor of the buffer of the last step, at least 0.
        weight_decay: factor of the parameter that is added to its gradient, at least 0.
        nesterov: use Nesterov momentum; requires momentum above 0.

    Raises:
        UserError: a setting is out of range, or nesterov is set without momentum.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "nesterov": nesterov})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group of parameters; settings that it omits are those of the optimizer."""
        settings = {**self.defaults, **param_group}
        for name in ("lr", "momentum", "weight_decay"):
            check_number(name, settings[name], 0)
        if check_flag("nesterov", settings["nesterov"]) and not settings["momentum"]:
            raise UserError("nesterov=True requires momentum above 0, got 0. Set momentum, for example 0.9.")
        super().add_param_group(param_group)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Takes one step; returns the loss that `closure` recomputes, or None without a closure."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)
        return loss

    def _update(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        if group["weight_decay"]:
            gradient = gradient.add(parameter, alpha=group["weight_decay"])
        if group["momentum"]:
            state = self.state[parameter]
            buffer = state.get("momentum_buffer")
            if buffer is None:
                buffer = state["momentum_buffer"] = gradient.clone()
            else:
                buffer.mul_(group["momentum"]).add_(gradient)
            gradient = gradient.add(buffer, alpha=group["momentum"]) if group["nesterov"] else buffer
        parameter.add_(gradient, alpha=-group["lr"])
