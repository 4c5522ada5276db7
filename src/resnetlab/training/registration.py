"""`register` and `unregister`: your own parts, by kind and name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from resnetlab.core.errors import unknown
from resnetlab.core.registry import Registry
from resnetlab.models.blocks import BLOCK_CLASSES
from resnetlab.scratch.activations import ACTIVATIONS

Part = TypeVar("Part")

REGISTRIES: dict[str, Registry] = {registry.kind: registry for registry in (BLOCK_CLASSES, ACTIVATIONS)}
"""The parts that can be registered, by kind."""


def register(kind: str, name: str, part: Any = None) -> Any:
    """Registers a part of your own, so that configurations, recipes and the shell find it by name.

    Files record the name and not the code, so register the part before you load or resume what uses it. If you define
    the same class or function again, for example by running a notebook cell twice, the new one replaces the old one.

    Args:
        kind: what it is; `resnetlab list parts` shows the kinds and what each takes.

            - "block": a subclass of `ResidualBlock`, see `register_block`.
            - "activation": a function of a tensor, or an `nn.Module` class that is called without arguments.
        name: the name to use, such as `create_model("resnet18", activation=name)`.
        part: the class or function. Without it, `register` is a decorator.

    Returns:
        The part.

    Raises:
        UserError: the kind is unknown, the name is taken, or the part cannot be used.
    """
    registry = _registry(kind)
    if part is None:
        return _decorator(registry, name)
    registry.add(name, part)
    return part


def unregister(kind: str, name: str) -> None:
    """Removes a part that was registered with `register`.

    Args:
        kind: as of `register`.
        name: the part's name.

    Raises:
        UserError: the kind is unknown, or no part of yours has this name.
    """
    _registry(kind).remove(name)


def _registry(kind: str) -> Registry:
    if kind not in REGISTRIES:
        raise unknown("kind of part", kind, REGISTRIES)
    return REGISTRIES[kind]


def _decorator(registry: Registry, name: str) -> Callable[[Part], Part]:
    def decorate(part: Part) -> Part:
        registry.add(name, part)
        return part

    return decorate
