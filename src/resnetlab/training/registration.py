"""`register`, `unregister` and `import_parts`: your own parts, by kind and name."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from resnetlab.core.console import notice
from resnetlab.core.errors import UserError, unknown
from resnetlab.core.imports import remember_import
from resnetlab.core.registry import Registry
from resnetlab.data.augment.policy import STEPS
from resnetlab.models.architectures import execute
from resnetlab.models.attention import ATTENTIONS
from resnetlab.models.blocks import BLOCK_CLASSES
from resnetlab.models.normalizations import NORMALIZATIONS
from resnetlab.scratch.activations import ACTIVATIONS
from resnetlab.training.losses import LOSSES
from resnetlab.training.schedule import SCHEDULES
from resnetlab.training.update_rules import OPTIMIZERS

Part = TypeVar("Part")

REGISTRIES: dict[str, Registry] = {
    registry.kind: registry
    for registry in (BLOCK_CLASSES, ACTIVATIONS, NORMALIZATIONS, ATTENTIONS, LOSSES, OPTIMIZERS, SCHEDULES, STEPS)
}
"""The parts that can be registered, by kind."""


def register(kind: str, name: str, part: Any = None) -> Any:
    """Registers a part of your own, so that configurations, recipes and the shell find it by name.

    Files record the name and not the code, so register the part before you load or resume what uses it. If you define
    the same class or function again, for example by running a notebook cell twice, the new one replaces the old one.

    Args:
        kind: what it is. `resnetlab list parts` lists the parts of every kind.

            - "block": a subclass of `ResidualBlock`, see `register_block`.
            - "activation": a function of a tensor, or an `nn.Module` class that is called without arguments.
            - "normalization" or "attention": an `nn.Module` class, or a function that returns a module, which is called
              with the number of channels.
            - "loss": a function of logits (N, K) and integer labels (N,) that returns the loss of each sample, (N,). If
              it has an argument `reduction`, it is called with "none"; if it has `label_smoothing`, with the recipe's.
            - "optimizer": an optimizer class, or a function that returns an optimizer. It is called with groups of
              parameters and `lr`, and with `momentum`, `nesterov` and `weight_decay` if it has these arguments.
            - "schedule": a function of the progress after warm-up, from 0 to 1, that returns a factor of the highest
              learning rate.
            - "augmentation": a function of images, float32 (N, C, H, W) with values 0 to 255, and a NumPy generator for
              its random draws, that returns images of the same shape. `Augmentation(steps=(name,))` uses it.

            A recipe can pass further arguments to the last four by name: "mine(strength=0.5)".
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


_REGISTERED_BY: dict[Path, list[tuple[str, str]]] = {}
"""Kind and name of the parts that a file registered."""


def import_parts(path: str | Path) -> None:
    """Executes a Python file of yours, which registers parts, as `--import` does in the shell.

    Runs that start later record the file and its SHA-256. What loads or resumes them asks for the file if a part is
    missing, and never imports it on its own. If the file is imported again, its parts replace those of before.

    Args:
        path: the file; files next to it can be imported in it.

    Raises:
        UserError: the file does not exist, raises an error, or registers a part that cannot be used.
    """
    path = Path(path)
    if not path.is_file() or path.suffix != ".py":
        raise UserError(f"{path} is not a Python file. Give the file that registers your parts: --import FILE.py")
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    for kind, name in _REGISTERED_BY.pop(path.resolve(), []):
        if name in REGISTRIES[kind].added:
            REGISTRIES[kind].remove(name)
    before = {(kind, name) for kind, registry in REGISTRIES.items() for name in registry.added}
    notice(f"executing {path} for its parts")
    try:
        execute(path, sha256)
    finally:
        found = [(kind, name) for kind, registry in REGISTRIES.items() for name in registry.added]
        _REGISTERED_BY[path.resolve()] = [one for one in found if one not in before]
    remember_import(str(path), sha256)


def _registry(kind: str) -> Registry:
    if kind not in REGISTRIES:
        raise unknown("kind of part", kind, REGISTRIES)
    return REGISTRIES[kind]


def _decorator(registry: Registry, name: str) -> Callable[[Part], Part]:
    def decorate(part: Part) -> Part:
        registry.add(name, part)
        return part

    return decorate
