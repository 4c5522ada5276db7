"""What is checked: a module, a class, a function that returns a module, or the network in a file."""

from __future__ import annotations

import ast
import contextlib
import inspect
import io
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from resnetlab.checking.places import Built
from resnetlab.core.errors import UserError, unknown
from resnetlab.models.architectures import execute

_CLASSES = ("num_classes", "n_classes", "classes", "num_outputs", "out_features", "n_class", "num_class", "class_num")
_CHANNELS = ("in_channels", "channels", "num_channels", "in_chans", "input_channels", "img_channels", "image_channels",
             "in_channel", "n_channels", "channels_in")  # fmt: skip


@dataclass(kw_only=True)
class Subject:
    """A network that somebody wrote.

    Attributes:
        model: the network.
        name: what reports call it.
        built: where its modules were made.
        origin: how to name it in a command, such as "my_net.py:MyResNet"; "" for an object.
    """

    model: nn.Module
    name: str
    built: Built
    origin: str = ""


def open_subject(
    obj: Any, *, arguments: Mapping[str, Any] | None = None, channels: int | None = None, classes: int = 10
) -> Subject:
    """Returns the network that an argument of `check` means.

    Raises:
        UserError: it is not a network, or its arguments are not known.
    """
    given, built = dict(arguments or {}), Built()
    if isinstance(obj, nn.Module):
        if given:
            raise UserError("args are for a class or function that builds the network, got a module. Leave them out.")
        return Subject(model=obj, name=type(obj).__name__, built=built)
    if isinstance(obj, (str, Path)):
        return _from_file(str(obj), given, channels, classes, built)
    if not callable(obj):
        raise UserError(
            f"check expects a module, a class, a function that returns a module, or FILE.py, got {type(obj).__name__}."
        )
    return _made(obj, getattr(obj, "__name__", type(obj).__name__), given, channels, classes, built)


def part_object(obj: Any, part: str) -> Any:
    """Returns the class, module or function that an argument of `check` means, for a single part.

    Raises:
        UserError: a file defines several, and none has a name like the part's.
    """
    if not isinstance(obj, (str, Path)):
        return obj
    place, wanted = _place_and_name(str(obj))
    module = execute(Path(place))
    if wanted:
        return _attribute(module, wanted, place)
    found = {name: value for name, value in vars(module).items() if _is_part_of(module, name, value)}
    plain = part.replace("_", "")
    likely = [name for name in found if plain[:4] in name.lower().replace("_", "")]
    names = likely or list(found)
    if len(names) != 1:
        raise UserError(
            f"{place} defines {', '.join(names) or 'no class or function'}. Name the one to check: {place}:NAME."
        )
    return found[names[0]]


def _is_part_of(module: ModuleType, name: str, value: Any) -> bool:
    is_here = getattr(value, "__module__", None) == module.__name__
    return is_here and not name.startswith("_") and (isinstance(value, type) or inspect.isfunction(value))


def parsed_arguments(text: str) -> dict[str, Any]:
    """Returns the keyword arguments in a text such as "num_classes=10, depth=18"; only literals are allowed.

    Raises:
        UserError: it is something else.
    """
    try:
        call = ast.parse(f"f({text})", mode="eval").body
        assert isinstance(call, ast.Call)
        if call.args or any(word.arg is None for word in call.keywords):
            raise ValueError
        return {str(word.arg): ast.literal_eval(word.value) for word in call.keywords}
    except (SyntaxError, ValueError, AssertionError) as error:
        raise UserError(
            f"--args expects keyword arguments with plain values, such as 'num_classes=10, depths=[2, 2, 2, 2]', got "
            f"{text!r}."
        ) from error


def _made(
    maker: Callable[..., Any], name: str, given: dict[str, Any], channels: int | None, classes: int, built: Built
) -> Subject:
    filled = _arguments(maker, name, given, channels, classes)
    with built.recording():
        model = maker(**filled)
    if not isinstance(model, nn.Module):
        raise UserError(f"{name} must return an nn.Module, got {type(model).__name__}.")
    return Subject(model=model, name=name, built=built)


def _arguments(
    maker: Callable[..., Any], name: str, given: dict[str, Any], channels: int | None, classes: int
) -> dict[str, Any]:
    """Returns the arguments, with classes and channels where the signature has them."""
    try:
        signature = inspect.signature(maker)
    except (TypeError, ValueError):
        return given
    filled = dict(given)
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in signature.parameters.values())
    for key in given:
        if key not in signature.parameters and not takes_any:
            raise unknown(f"argument of {name}", key, list(signature.parameters))
    missing = []
    for key, parameter in signature.parameters.items():
        if key in filled or parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            continue
        if key in _CHANNELS and (channels is not None or parameter.default is parameter.empty):
            filled[key] = 3 if channels is None else channels
        elif parameter.default is parameter.empty and key in _CLASSES:
            filled[key] = classes
        elif parameter.default is parameter.empty:
            missing.append(key)
    if missing:
        raise UserError(
            f"{name} needs arguments: {', '.join(missing)}. Pass them: in the shell --args '{missing[0]}=...', in "
            f"Python args={{{missing[0]!r}: ...}}, or pass a module."
        )
    return filled


def _from_file(text: str, given: dict[str, Any], channels: int | None, classes: int, built: Built) -> Subject:
    place, wanted = _place_and_name(text)
    with built.recording():
        module = execute(Path(place))
    if wanted:
        found = _attribute(module, wanted, place)
        if isinstance(found, nn.Module):
            return Subject(model=found, name=wanted, built=built, origin=f"{place}:{wanted}")
        subject = _made(found, wanted, given, channels, classes, built)
    else:
        subject = _found_in(module, place, given, channels, classes, built)
    subject.origin = f"{place}:{subject.name}"
    return subject


def _place_and_name(text: str) -> tuple[str, str]:
    place, _, wanted = text.rpartition(":") if not text.endswith(".py") else (text, "", "")
    if not place.endswith(".py") or not Path(place).is_file():
        raise UserError(f"{text} was not found. Give a Python file: FILE.py, or FILE.py:CLASS.")
    return place, wanted


def _attribute(module: ModuleType, name: str, place: str) -> Any:
    found: Any = module
    for part in name.split("."):
        names = [key for key, value in vars(found).items() if callable(value) and not key.startswith("_")]
        if not hasattr(found, part):
            raise unknown(f"name in {place}", part, names)
        found = getattr(found, part)
    return found


def _found_in(
    module: ModuleType, place: str, given: dict[str, Any], channels: int | None, classes: int, built: Built
) -> Subject:
    """Returns the largest network that a file defines, as an object, a class or a function."""
    found: list[Subject] = []
    problems: dict[str, str] = {}
    for name, value in _candidates(module):
        if isinstance(value, nn.Module):
            found.append(Subject(model=value, name=name, built=built))
            continue
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                found.append(_made(value, name, dict(given), channels, classes, built))
        except Exception as error:  # of your code; a block that needs arguments, for example
            problems[name] = f"{type(error).__name__}: {error}" if not isinstance(error, UserError) else str(error)
    if not found:
        if problems:
            name, problem = list(problems.items())[-1]
            raise UserError(f"no network in {place} could be built. {name}: {problem}")
        raise UserError(
            f"{place} defines no network. Expected a class derived from nn.Module, a function that returns one, or an "
            "object; name it with FILE.py:NAME."
        )
    return max(found, key=lambda subject: _values(subject.model))


def _candidates(module: ModuleType) -> Iterator[tuple[str, Any]]:
    for name, value in list(vars(module).items()):
        if name.startswith("_"):
            continue
        is_here = getattr(value, "__module__", None) == module.__name__
        is_class = isinstance(value, type) and issubclass(value, nn.Module)
        if isinstance(value, nn.Module) or (is_here and (is_class or inspect.isfunction(value))):
            yield name, value


def _values(model: nn.Module) -> int:
    lazy = [value for value in model.parameters() if isinstance(value, nn.parameter.UninitializedParameter)]
    if lazy:
        return 10**6 + len(lazy)
    return sum(value.numel() for value in model.parameters()) + len(list(model.modules()))


def is_lazy(model: nn.Module) -> bool:
    """Whether a network still infers the shapes of its weights from the first image."""
    return any(isinstance(value, torch.nn.parameter.UninitializedParameter) for value in model.parameters())
