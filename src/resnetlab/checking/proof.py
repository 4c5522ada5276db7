"""The proof: with the reference's weights, and the proposed changes alone, a network gives the reference's output."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resnetlab.checking.graph import ACTIVATIONS, Node
from resnetlab.checking.path import Token, steps_of

_ROLES = ("weight", "bias", "mean", "var")


def randomize(model: nn.Module, seed: int = 0) -> None:
    """Gives normalization layers random scales, shifts and statistics, so that an error in them shows."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            mean, var = getattr(module, "running_mean", None), getattr(module, "running_var", None)
            if not isinstance(mean, Tensor) or not isinstance(var, Tensor):
                continue
            mean.copy_(torch.randn(mean.shape, generator=generator) * 0.1)
            var.copy_(torch.rand(var.shape, generator=generator) + 0.5)
            for name, middle in (("weight", 0.7), ("bias", 0.0)):
                if isinstance(value := getattr(module, name, None), Tensor):
                    value.copy_(torch.randn(value.shape, generator=generator) * 0.1 + middle)


def transferable(one: Token, other: Token) -> bool:
    """Whether the tensors of a reference's layer fit the corresponding layer."""
    for role in _ROLES:
        theirs, ours = one.node.tensors.get(role), other.node.tensors.get(role)
        if ours is not None and theirs is not None and _reduced(theirs) != _reduced(ours):
            return False
        if ours is None and theirs is not None and role == "weight":
            return False
    return True


def transfer(pairs: Sequence[tuple[Token, Token]]) -> list[tuple[Tensor, Tensor]]:
    """Copies the reference's tensors to the corresponding layers; returns what was there, to restore it.

    A bias that the reference does not have becomes 0.
    """
    before: list[tuple[Tensor, Tensor]] = []
    with torch.no_grad():
        for one, other in pairs:
            if not other.node.tensors or not transferable(one, other):
                continue
            for role, ours in other.node.tensors.items():
                theirs = one.node.tensors.get(role)
                before.append((ours, ours.detach().clone()))
                if theirs is not None:
                    ours.copy_(theirs.reshape(ours.shape))
                elif role == "bias":
                    ours.zero_()
    return before


def restore(before: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Undoes `transfer`."""
    with torch.no_grad():
        for tensor, value in before:
            tensor.copy_(value)


def key_map(pairs: Sequence[tuple[Token, Token]], ours: nn.Module, theirs: nn.Module) -> dict[str, str]:
    """Returns the reference's tensor names by yours."""
    named = [
        {id(value): name for name, value in [*model.named_parameters(), *model.named_buffers()]}
        for model in (ours, theirs)
    ]
    names = {}
    for one, other in pairs:
        for role, value in other.node.tensors.items():
            reference = one.node.tensors.get(role)
            if reference is not None and id(value) in named[0] and id(reference) in named[1]:
                names[named[0][id(value)]] = named[1][id(reference)]
    return names


def replay(tokens: Sequence[Token], image: Tensor) -> Tensor:
    """Computes a path by the meaning of its layers, with their own tensors."""
    return _run([(None, token) for token in tokens], image, {}, repaired=False)


def repaired(expected: Sequence[Token], found: Sequence[Token], image: Tensor) -> Tensor:
    """Computes a path with all its differences from the reference changed to what the reference has."""
    return _run(steps_of(expected, found), image, {}, repaired=True)


def _run(
    steps: Sequence[tuple[Token | None, Token | None]], x: Tensor, values: dict[int, Tensor], *, repaired: bool
) -> Tensor:
    start = x
    for one, other in steps:
        if repaired and one is None:
            assert other is not None
            values[id(other.node)] = x
            continue
        token = other if other is not None and not (repaired and one is not None and one.kind != other.kind) else one
        assert token is not None
        if token.kind in ("add", "gate") and token.fork is not None:
            side = steps_of(one.shortcut, other.shortcut) if repaired and one and other else None
            side = side if side is not None else [(None if not repaired else t, t) for t in token.shortcut]
            origin = values.get(id(token.fork), start)
            other_side = _run(side, origin, values, repaired=repaired)
            x = x + other_side if token.kind == "add" else x * other_side
        else:
            settings = one if repaired and one is not None else token
            x = _layer(settings, token, one, x)
        for made in (one, other):
            if made is not None:
                values[id(made.node)] = x
    return x


def _layer(settings: Token, token: Token, reference: Token | None, x: Tensor) -> Tensor:
    values = settings.values
    tensors: Mapping[str, Tensor] = token.node.tensors
    if reference is not None and (not transferable(reference, token) or settings is not token):
        tensors = reference.node.tensors
    kind = settings.kind
    if kind == "conv":
        return F.conv2d(
            x, tensors["weight"].reshape(_kernel_shape(tensors["weight"], values)), _flat(tensors.get("bias")),
            values["stride"], values["padding"], values["dilation"], values["groups"],
        )  # fmt: skip
    if kind == "norm" and values.get("name") == "batch_norm" and "mean" in tensors and "var" in tensors:
        roles = [_flat(tensors.get(role)) for role in ("mean", "var", "weight", "bias")]
        return F.batch_norm(x, *roles, training=False, momentum=0.0, eps=values["eps"])
    if kind == "act" and values["name"] in ACTIVATIONS:
        return ACTIVATIONS[values["name"]](x)
    if kind == "maxpool" and not values.get("ceil"):
        return F.max_pool2d(x, values["kernel"], values["stride"], values["padding"])
    if kind == "gap" and x.ndim == 4:
        return x.mean((2, 3), keepdim=True)
    if kind == "flatten":
        return x.flatten(1)
    if kind == "linear":
        return _linear(x, tensors["weight"].reshape(values["out"], -1), _flat(tensors.get("bias")))
    if kind == "dropout":
        return x
    node: Node = settings.node
    if node.replay is None:
        raise NotImplementedError(kind)
    return node.replay(x)


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Returns a linear layer of features (N, D), or of one value per channel (N, C, 1, 1) in that shape."""
    result = F.linear(x.flatten(1) if x.shape[1:].numel() == weight.shape[1] else x, weight, bias)
    return result[:, :, None, None] if x.ndim == 4 and result.ndim == 2 else result


def _kernel_shape(weight: Tensor, values: Mapping) -> tuple[int, ...]:
    return tuple(weight.shape) if weight.ndim == 4 else (values["out"], -1, *values["kernel"])


def _flat(value: Tensor | None) -> Tensor | None:
    return None if value is None else value.reshape(-1)


def _reduced(value: Tensor) -> tuple[int, ...]:
    sizes = tuple(size for place, size in enumerate(value.shape) if place < 2 or size != 1)
    return sizes if value.ndim in (2, 4) and max(value.shape) < value.numel() else (value.numel(),)
