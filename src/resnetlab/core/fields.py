"""Configuration fields: described, bounded and defaulted in one place, at the field.

    @documented
    @dataclass(frozen=True, kw_only=True)
    class Schedule(Checked):
        '''How the learning rate changes.'''

        epochs: int = setting(20, "passes over the training images", minimum=1)
        decay: float = setting(0.1, "factor of each drop of the learning rate", above=0, maximum=1)
        kind: str = setting("cosine", "shape of the curve", choices=("cosine", "constant"))

The annotation says what kind of value a field takes: `int`, `float`, `bool`, `str`, `tuple[int, ...]`,
`tuple[float, float]`, `Mapping[str, float]`, another dataclass, and unions of them, with `None` where the field is
optional. `setting` adds the bounds. `Checked` checks and normalizes all values when an instance is made, and
`describe_fields` lists the fields for `--help`, `list --fields` and the reference.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
import numbers
import textwrap
import types
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import MISSING, dataclass
from typing import Any, ParamSpec, Self, TypeVar

from resnetlab.core.checks import check_flag, check_integer, check_names, check_number, from_mapping, set_checked
from resnetlab.core.errors import UserError, brief, unknown

REQUIRED: Any = MISSING
"""The default of a field that has none."""

P = ParamSpec("P")
T = TypeVar("T")
_KEY = "resnetlab.setting"


@dataclass(frozen=True, kw_only=True)
class _Setting:
    """The arguments of `setting`, kept in the metadata of a field."""

    description: str
    minimum: float | None
    maximum: float | None
    above: float | None
    below: float | None
    choices: Collection[Any] | None
    length: int | tuple[int, int] | None
    entries: str
    ordered: bool
    example: str
    remedy: str
    check: Callable[[str, Any], Any] | None
    accepts: str
    group: str


def setting(
    default: Any,
    description: str,
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    above: float | None = None,
    below: float | None = None,
    choices: Collection[Any] | None = None,
    length: int | tuple[int, int] | None = None,
    entries: str = "",
    ordered: bool = False,
    example: str = "",
    remedy: str = "",
    check: Callable[[str, Any], Any] | None = None,
    accepts: str = "",
    group: str = "",
) -> Any:
    """Declares a field of a configuration; assign it to an attribute of a dataclass.

    Args:
        default: the value when none is given; `REQUIRED` if one must be given. A dict is copied for each instance.
        description: what the field means, in one or a few sentences, without range and default.
        minimum: the smallest value allowed. Bounds of a sequence or mapping apply to each of its entries.
        maximum: the largest value allowed.
        above: a bound that the value must exceed.
        below: a bound that the value must stay under.
        choices: the values allowed. A dict may grow later, as a registry does; its keys are the choices. In a union
            with `bool` or numbers, they are the names allowed in addition.
        length: the number of entries of a sequence, or (fewest, most). A `tuple[float, float]` has two anyway.
        entries: what the entries of a sequence are, such as "one per stage" or "smallest and largest".
        ordered: whether the entries of a sequence must not decrease.
        example: a value to show in the error message, such as "[0.5, 0.75]".
        remedy: a sentence to add to the error message.
        check: a function that is called with the field's name and the value, and returns the normalized value or raises
            `UserError`. It replaces the check by annotation; None is still allowed if the annotation allows it.
        accepts: what `check` accepts, for the description.
        group: a heading under which the field is listed, such as "compatibility".
    """
    said = {name: value for name, value in locals().items() if name != "default"}
    metadata = {_KEY: _Setting(**said)}
    if isinstance(default, dict):
        return dataclasses.field(default_factory=default.copy, hash=False, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def check_fields(instance: Any, prefix: str = "") -> None:
    """Checks all fields of a dataclass that `setting` declared, and normalizes their values.

    Numbers become plain `int` and `float`, sequences tuples, mappings dicts, and a mapping given for a nested dataclass
    becomes the dataclass. `Checked` calls it without a prefix.

    Args:
        instance: the dataclass, frozen or not.
        prefix: text before a field's name in error messages, such as "augment.".

    Raises:
        UserError: a value does not fit its field; the message names the field, what was expected, and the value.
    """
    hints = _hints(type(instance))
    for field in dataclasses.fields(instance):
        if said := field.metadata.get(_KEY):
            value = _checked(f"{prefix}{field.name}", getattr(instance, field.name), hints[field.name], said)
            set_checked(instance, **{field.name: value})


class Checked:
    """Base of a dataclass whose fields are checked and normalized when an instance is made; see `check_fields`."""

    def __new__(cls, *positional: Any, **fields: Any) -> Self:
        """Refuses a name that is not a field; the constructor of a dataclass would raise a `TypeError`."""
        check_names(cls, fields, cls.__name__)
        return super().__new__(cls)

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, kw_only=True)
class FieldDescription:
    """One field of a configuration, as `describe_fields` lists it.

    Attributes:
        name: the field's name; dotted for a field of a nested dataclass.
        type: the kind of value: "integer", "number", "true or false", "text", "sequence of integers" and the like.
        range: the bounds, such as "at least 1" or "each above 0 and at most 1"; "" if there are none.
        choices: the values allowed, if only some are.
        default: the value when none is given; `REQUIRED` if one must be given.
        description: what the field means.
        group: the heading under which it is listed; "" for most.
    """

    name: str
    type: str
    range: str
    choices: tuple[Any, ...]
    default: Any
    description: str
    group: str

    @property
    def values(self) -> str:
        """The values allowed: the choices, or type and range."""
        if self.choices and self.type == "text":
            return " | ".join(map(str, self.choices))
        text = f"{self.type}, {self.range}" if self.range else self.type
        return f"{text}: {' | '.join(map(str, self.choices))}" if self.choices else text


def describe_fields(cls: type, *, nested: bool = True) -> list[FieldDescription]:
    """Returns the fields of a configuration in order, each with type, range, default and description.

    Args:
        cls: a dataclass whose fields are declared by `setting`.
        nested: list the fields of a nested dataclass, as "augment.flip", instead of the dataclass itself.
    """
    hints, found = _hints(cls), []
    for field in dataclasses.fields(cls):
        said: _Setting | None = field.metadata.get(_KEY)
        if said is None:
            continue
        default = field.default if field.default_factory is MISSING else field.default_factory()
        inner = [
            kind for kind in _members(hints[field.name]) if isinstance(kind, type) and dataclasses.is_dataclass(kind)
        ]
        if nested and inner:
            found += [
                dataclasses.replace(
                    entry,
                    name=f"{field.name}.{entry.name}",
                    default=getattr(default, entry.name, entry.default),
                    group=entry.group or said.group,
                )
                for entry in describe_fields(inner[0])
            ]
            continue
        kind = said.accepts or _type_name(hints[field.name], said)
        bounds = {"at least": said.minimum, "above": said.above, "at most": said.maximum, "below": said.below}
        limits = " and ".join(f"{word} {bound:g}" for word, bound in bounds.items() if bound is not None)
        is_each = limits and kind.startswith(("sequence", "mapping"))
        found.append(
            FieldDescription(
                name=field.name,
                type=kind,
                range=f"each {limits}" if is_each else limits,
                choices=tuple(said.choices or ()),
                default=default,
                description=said.description,
                group=said.group,
            )
        )
    return found


def documented(cls: type[T]) -> type[T]:
    """Adds the fields of a dataclass to its docstring: description, values and default of each.

    Use it as the outermost decorator of a dataclass whose fields are declared by `setting`.
    """
    head, raises, tail = inspect.cleandoc(cls.__doc__ or "").partition("Raises:\n")
    cls.__doc__ = "\n".join([head.rstrip(), "", "Attributes:", *_field_lines(cls), "", raises + tail]).rstrip() + "\n"
    return cls


def takes_fields(cls: type, *, without: Collection[str] = ()) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Decorates a function whose `**options` are fields of a configuration: its signature and docstring list them.

    Args:
        cls: a dataclass whose fields are declared by `setting`.
        without: the names of fields that the function does not take.
    """

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        signature, hints = inspect.signature(function), _hints(cls)
        named = [one for one in signature.parameters.values() if one.kind is not inspect.Parameter.VAR_KEYWORD]
        added = [
            inspect.Parameter(
                field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=hints[field.name]
            )
            for field in describe_fields(cls, nested=False)
            if field.name not in without
        ]
        function.__signature__ = signature.replace(parameters=[*named, *added])  # type: ignore[attr-defined]
        lines = []
        for line in inspect.cleandoc(function.__doc__ or "").splitlines():
            lines += _field_lines(cls, without) if line.startswith("    **options:") else [line]
        function.__doc__ = "\n".join(lines) + "\n"
        return function

    return decorate


def _field_lines(cls: type, without: Collection[str] = ()) -> list[str]:
    """Returns the lines of a docstring that describe the fields."""
    lines = []
    for field in describe_fields(cls, nested=False):
        if field.name not in without:
            default = "required" if field.default is REQUIRED else f"default {field.default!r}"
            # In docstrings, a colon ends the values, and a line that begins with a bar is a line block.
            values = field.values.replace(": ", ", ").replace(" | ", " or ")
            text = f"{field.name} ({values}; {default}): {field.description}."
            lines += textwrap.wrap(text, 100, initial_indent="    ", subsequent_indent="        ")
    return lines


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _members(hint: Any) -> tuple[Any, ...]:
    """Returns the types that a union is made of, without None; or the one type."""
    members = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    return tuple(member for member in members if member is not type(None))


def _checked(name: str, value: Any, hint: Any, said: _Setting) -> Any:
    if value is None and type(None) in typing.get_args(hint):
        return None
    try:
        if said.check is not None:
            return said.check(name, value)
        members = _members(hint)
        if said.choices is not None and bool in members:
            return _check_choice(name, value, [True, False, *said.choices])
        return _check_type(name, value, _fitting(value, members), said)
    except UserError as error:
        if not said.remedy:
            raise
        raise UserError(f"{error} {said.remedy}") from None


def _fitting(value: Any, members: tuple[Any, ...]) -> Any:
    """Returns the type of a union that `value` is checked against: the one of its shape, else the first."""
    shapes = {
        tuple: is_sequence(value),
        str: isinstance(value, str),
        int: isinstance(value, numbers.Integral),
        float: isinstance(value, numbers.Real),
    }
    return next((kind for kind in members if shapes.get(typing.get_origin(kind) or kind, False)), members[0])


def _check_type(name: str, value: Any, member: Any, said: _Setting) -> Any:
    origin = typing.get_origin(member) or member
    if origin is tuple:
        return _check_sequence(name, value, typing.get_args(member), said)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return _check_mapping(name, value, typing.get_args(member), said)
    if isinstance(member, type) and dataclasses.is_dataclass(member):
        if isinstance(value, Mapping):
            return from_mapping(member, value, name)
        if not isinstance(value, member):
            raise UserError(f"{name} must be of type {member.__name__}, got {brief(value)}.")
        return value
    if member is bool:
        return check_flag(name, value)
    if said.choices is not None and any(isinstance(choice, member) for choice in said.choices):
        return _check_choice(name, value, list(said.choices))
    if member is int:
        return check_integer(name, value, said.minimum, said.maximum)
    if member is float:
        above, below = said.above is not None, said.below is not None
        low, high = said.above if above else said.minimum, said.below if below else said.maximum
        return check_number(name, value, low, high, above=above, below=below)
    if member is str and not isinstance(value, str):
        raise UserError(f"{name} must be text{_such_as(said)}, got {brief(value)}.")
    return value


def _check_choice(name: str, value: Any, choices: list[Any]) -> Any:
    for choice in choices:
        if value == choice and isinstance(value, bool) == isinstance(choice, bool):
            return choice
    if all(isinstance(choice, str) for choice in choices):
        raise unknown(name.removeprefix("every "), value, choices)
    plain = (str(choice).lower() if isinstance(choice, bool) else repr(choice) for choice in choices)
    raise UserError(f"{name} must be {' or '.join(plain)}, got {brief(value)}.")


def _check_sequence(name: str, values: Any, kinds: tuple[Any, ...], said: _Setting) -> tuple[Any, ...]:
    fewest, most = _lengths(kinds, said)
    if not is_sequence(values) or not fewest <= len(values) <= most:
        raise UserError(f"{name} must be a {_sequence_name(kinds, said)}{_such_as(said)}, got {brief(values)}.")
    if len(kinds) != 2 or kinds[1] is not ...:
        entries = zip(values, kinds, strict=True)
    else:
        entries = ((value, kinds[0]) for value in values)
    checked = tuple(_check_type(f"every entry of {name}", value, kind, said) for value, kind in entries)
    if said.ordered and list(checked) != sorted(checked):
        raise UserError(f"{name} must have the smaller number first, got {brief(values)}.")
    return checked


def _check_mapping(name: str, values: Any, kinds: tuple[Any, ...], said: _Setting) -> dict[str, Any]:
    if not isinstance(values, Mapping) or not all(isinstance(key, str) for key in values):
        raise UserError(
            f"{name} must be a mapping from names to {_plural(kinds[1])}{_such_as(said)}, got {brief(values)}."
        )
    return {key: _check_type(f"{name}.{key}", value, kinds[1], said) for key, value in values.items()}


def is_sequence(value: Any) -> bool:
    """Whether a value is a list, a tuple or the like, and not text."""
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))


def _such_as(said: _Setting) -> str:
    return f", such as {said.example}" if said.example else ""


def _lengths(kinds: tuple[Any, ...], said: _Setting) -> tuple[int, float]:
    if kinds[-1] is not ...:
        return len(kinds), len(kinds)
    if said.length is None:
        return 0, math.inf
    return said.length if isinstance(said.length, tuple) else (said.length, said.length)


_NAMES = {int: "integer", float: "number", bool: "true or false", str: "text"}


def _type_name(hint: Any, said: _Setting) -> str:
    names = []
    for member in _members(hint):
        origin = typing.get_origin(member) or member
        if origin is tuple:
            names.append(_sequence_name(typing.get_args(member), said))
        elif isinstance(origin, type) and issubclass(origin, Mapping):
            names.append(f"mapping from names to {_plural(typing.get_args(member)[1])}")
        else:
            names.append(_NAMES.get(member) or getattr(member, "__name__", str(member)))
    return " or ".join(names)


def _sequence_name(kinds: tuple[Any, ...], said: _Setting) -> str:
    fewest, most = _lengths(kinds, said)
    count = "" if most == math.inf else f"{fewest} " if fewest == most else f"{fewest} to {most} "
    return f"sequence of {count}{_plural(kinds[0])}{', ' if said.entries else ''}{said.entries}"


def _plural(kind: Any) -> str:
    return {int: "integers", float: "numbers", bool: "flags", str: "texts"}.get(kind, "entries")
