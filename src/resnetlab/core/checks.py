"""Checks of single values: each returns the value, or raises `UserError` with name, expectation and value.

`core/fields.py` uses them for the fields of configurations.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import inspect
import math
import numbers
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ParamSpec, TypeVar

from resnetlab.core.errors import UserError, available, brief, nearest, unknown
from resnetlab.core.files import printable
from resnetlab.core.foreign import LISTED_BY, hint

P = ParamSpec("P")
T = TypeVar("T")
MOST_CLASSES, MOST_EPOCHS = 1_000_000, 1_000_000
MOST_BLOCKS, MOST_CHANNELS = 2000, 2**16
"""Of a stage, and of a layer: a file cannot ask for more memory or time than any machine has."""
LARGEST_SIZE = 8192
"""Height and width in pixels of the largest input of a network."""
MOST_THREADS = 4096
LONGEST_NAME = 1000
_KINDS = {
    int: "an integer", float: "a number", bool: "true or false", str: "text", list: "a list",
    dict: "a table of names and values",
}  # fmt: skip


def check_integer(name: str, value: Any, minimum: float | None = None, maximum: float | None = None) -> int:
    """Returns `value` if it is an integer in [minimum, maximum]; a bound of None is open."""
    number = int(value) if isinstance(value, numbers.Integral) and not isinstance(value, bool) else None
    if number is None or (minimum is not None and number < minimum) or (maximum is not None and number > maximum):
        bounds = [f"at least {minimum}"] * (minimum is not None) + [f"at most {maximum}"] * (maximum is not None)
        raise UserError(
            f"{name} must be an integer{' of ' if bounds else ''}{' and '.join(bounds)}, got {brief(value)}."
        )
    return number


def check_number(
    name: str,
    value: Any,
    minimum: float | None = None,
    maximum: float | None = None,
    *,
    above: bool = False,
    below: bool = False,
) -> float:
    """Returns `value` as a float if it is a finite number in [minimum, maximum]; a bound of None is open.

    `above` and `below` exclude the minimum and the maximum themselves.
    """
    number = float(value) if isinstance(value, numbers.Real) and not isinstance(value, bool) else math.nan
    bounds, inside = [], math.isfinite(number)
    if minimum is not None:
        bounds.append(f" {'above' if above else 'at least'} {minimum:g}")
        inside &= number > minimum if above else number >= minimum
    if maximum is not None:
        bounds.append(f" {'below' if below else 'at most'} {maximum:g}")
        inside &= number < maximum if below else number <= maximum
    if not inside:
        raise UserError(f"{name} must be a finite number{' and'.join(bounds)}, got {brief(value)}.")
    return number


def check_flag(name: str, value: Any) -> bool:
    """Returns `value` if it is True or False."""
    if not isinstance(value, bool):
        raise UserError(f"{name} must be true or false, got {brief(value)}.")
    return value


def check_choice(name: str, value: Any, choices: Iterable[str]) -> str:
    """Returns `value` if it is one of `choices`."""
    known = list(choices)
    if value not in known:
        raise unknown(name, value, known)
    return value


def check_class_names(class_names: Sequence[str], name: str = "class_names") -> tuple[str, ...]:
    """Returns the class names if they are distinct texts without control characters.

    Args:
        class_names: what was given or read.
        name: what the message calls them.

    Raises:
        UserError: one is not, or there are too many.
    """
    if isinstance(class_names, (str, bytes)) or not isinstance(class_names, Sequence):
        raise UserError(f"{name} must be a sequence of names, such as ['cat', 'dog'], got {brief(class_names)}.")
    if len(class_names) > MOST_CLASSES:
        raise UserError(f"{name} must have at most {MOST_CLASSES:,} names, got {len(class_names):,}.")
    for each in class_names:
        if not isinstance(each, str) or not each.strip():
            raise UserError(f"{name} must be a sequence of names, such as ['cat', 'dog'], got {brief(each)} in it.")
        if len(each) > LONGEST_NAME:
            raise UserError(f"{name} must have names of at most {LONGEST_NAME:,} characters, got {len(each):,}.")
        if printable(each) != each:
            raise UserError(f"{name} must be without control characters and line breaks, got '{printable(each)}'.")
    if not class_names:
        raise UserError(f"{name} is empty. Name every class, or leave it out.")
    if len(set(class_names)) < len(class_names):
        twice = next(one for one, count in collections.Counter(class_names).items() if count > 1)
        raise UserError(f"{name} contains {twice!r} twice. Give every class its own name.")
    return tuple(class_names)


def check_shape(where: str, value: Any, shape: Any, field: str = "") -> None:
    """Raises `UserError` unless a value that was read from a file has this shape.

    Args:
        where: the file.
        value: what was read.
        shape: `int`, `float`, `bool`, `str` or `dict`; a `range` for an integer in it; a list of one shape, that of all
            entries; a dict with the key `str` and the shape of all values; or a dict of field names and shapes, where a
            name that ends in "?" may be missing, and other fields may exist.
        field: the name of the value, for messages.
    """
    if isinstance(shape, range):
        check_integer(f"{where}: {printable(field)}", value, shape.start, shape.stop - 1)
    elif isinstance(shape, list) and isinstance(value, list):
        if shape[0] is int and set(map(type, value)) <= {int}:
            return  # a long list of numbers, such as a histogram
        for place, entry in enumerate(value):
            check_shape(where, entry, shape[0], f"{field}[{place}]")
    elif isinstance(shape, dict) and isinstance(value, Mapping):
        if str in shape:
            for key, entry in value.items():
                check_shape(where, entry, shape[str], f"{field}.{key}")
            return
        for name, inner in shape.items():
            key, full = name.rstrip("?"), f"{field}.{name}".strip(".?")
            if key in value:
                check_shape(where, value[key], inner, full)
            elif not name.endswith("?"):
                raise UserError(f"{where} is incomplete: {full} missing. Restore the file.")
    else:
        kind = type(shape) if isinstance(shape, (list, dict)) else shape
        fits = isinstance(value, (int, float) if kind is float else kind)
        if not fits or (isinstance(value, bool) and kind is not bool):
            got = printable(brief(value))
            raise UserError(f"{where}: {printable(field)} must be {_KINDS[kind]}, got {got}. Restore the file.")
        if kind is str and printable(str(value)) != value:
            raise UserError(
                f"{where}: {printable(field)} must be without control characters and line breaks, got "
                f"'{printable(str(value))[:LONGEST_NAME]}'. Restore the file."
            )


def check_schema(where: object, schema: Any, newest: int) -> None:
    """Raises `UserError` unless this version can read the schema of a file."""
    if not isinstance(schema, int) or not 1 <= schema <= newest:
        raise UserError(
            f"{where} has schema {schema!r}; this version reads schemas up to {newest}. "
            "Use the version of resnetlab that wrote it, or a newer one."
        )


def from_mapping(cls: type[T], values: Mapping[str, Any], where: str) -> T:
    """Returns an instance of the dataclass `cls` with the fields in `values`.

    Args:
        cls: a dataclass whose constructor checks its values.
        values: field names and values, as read from a file or an option.
        where: where the values come from, for error messages.

    Raises:
        UserError: a key is not a field (with the nearest field), or a required field is missing.
    """
    check_names(cls, values, where)
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key, field in fields.items():
        if key not in values and field.default is field.default_factory is dataclasses.MISSING:
            raise UserError(f"{where} lacks the field {key!r}. Its fields: {', '.join(fields)}.")
    return cls(**values)


def check_names(cls: Any, values: Mapping[str, Any], where: str) -> None:
    """Raises `UserError` if a key is not a field of a dataclass; the message has ours for another library's name."""
    fields = [field.name for field in dataclasses.fields(cls)]
    for key, value in values.items():
        if key in fields:
            continue
        kind = getattr(cls, "KIND", "")
        listed_by = LISTED_BY.get(kind, "")
        if known := hint(key, value, kind):
            rest = f"`{listed_by}` lists the fields." if listed_by else ""
            raise UserError(f"{where} has no field {key!r}. {known}{rest}".rstrip())
        rest = available(key, fields, title="Its fields", listed_by=listed_by)
        raise UserError(f"{where} has no field {key!r}. {nearest(key, fields)}{rest}")


def known_arguments(kind: str) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Decorates a function of a kind of `foreign`: an unknown keyword argument is a `UserError` that names ours."""

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        known = list(inspect.signature(function).parameters)

        @functools.wraps(function)
        def run(*positional: P.args, **named: P.kwargs) -> T:
            for key, value in named.items():
                if key not in known:
                    does = hint(key, value, kind) or nearest(key, known)
                    takes = f"It takes: {', '.join(known)}."
                    raise UserError(f"{function.__name__} has no argument {key!r}. {does}{takes}")
            return function(*positional, **named)

        return run

    return decorate


def set_checked(instance: object, **values: Any) -> None:
    """Sets fields of a frozen dataclass to checked values."""
    for name, value in values.items():
        object.__setattr__(instance, name, value)
