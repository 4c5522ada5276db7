"""Groups of parameters for an optimizer, with a learning rate for each part of a network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from resnetlab.core.checks import check_number
from resnetlab.core.errors import UserError, unknown
from resnetlab.models.network import Network, sections_of


def parameter_groups(
    model: Network,
    lr: float,
    *,
    rates: Mapping[str, float] | None = None,
    layer_decay: float | None = None,
    weight_decay: float = 0.0,
) -> list[dict[str, Any]]:
    """Returns the trainable parameters in groups that any optimizer of torch takes.

    Each part of the network ("stem", "stage1", ..., "head") has a learning rate of its own, in its group's "lr",
    and within it weights have `weight_decay` while scales, shifts and biases have none. Frozen parameters are
    left out.

    Args:
        model: the network.
        lr: the rate of the head, and of every part that `rates` does not name.
        rates: learning rates by part.
        layer_decay: instead of `rates`, the ratio from each part to the one after it: the last stage has
            lr * layer_decay, the stage before it lr * layer_decay^2, and so on to the stem.
        weight_decay: on weights of two and more dimensions.

    Raises:
        UserError: a part is unknown, a rate is out of range, both ways are given, or all is frozen.
    """
    given = part_rates(model, lr, rates=rates, layer_decay=layer_decay)
    groups = []
    for name, modules in model.sections().items():
        trained = [p for module in modules for p in module.parameters() if p.requires_grad]
        for suffix, decay, members in (
            ("", check_number("weight_decay", weight_decay, 0), [p for p in trained if p.ndim > 1]),
            (" scales and shifts", 0.0, [p for p in trained if p.ndim <= 1]),
        ):
            if members:
                group = {"params": members, "lr": given[name], "weight_decay": decay, "name": f"{name}{suffix}"}
                groups.append(group)
    if not groups:
        raise UserError("every part of the network is frozen, so there is nothing to train. Unfreeze one.")
    return groups


def part_rates(
    model: Network, lr: float, *, rates: Mapping[str, float] | None = None, layer_decay: float | None = None
) -> dict[str, float]:
    """Returns the learning rate of every part, from "stem" to "head"; arguments and errors as of `parameter_groups`."""
    names = list(sections_of(model))
    lr = check_number("lr", lr, 0, above=True)
    if rates and layer_decay is not None:
        raise UserError("rates and layer_decay both set the learning rates of the parts. Give one of them.")
    if layer_decay is not None:
        ratio = check_number("layer_decay", layer_decay, 0, 1, above=True)
        return {name: lr * ratio ** (len(names) - 1 - place) for place, name in enumerate(names)}
    for name, rate in (rates or {}).items():
        if name not in names:
            raise unknown("part of the network", name, names)
        check_number(f"the learning rate of {name}", rate, 0, above=True)
    return {name: (rates or {}).get(name, lr) for name in names}
