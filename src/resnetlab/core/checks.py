"""Checks of configuration values, made before any image is read.

Each returns the value, so that a dataclass can check a field in one line, and raises
`UserError` naming the field, what was expected and what came.
"""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from resnetlab.core.errors import UserError, nearest, unknown

T = TypeVar("T")


def check_integer(name: str, value: Any, minimum: int) -> int:
    """Returns `value` when it is an integer of at least `minimum`."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < minimum:
        raise UserError(f"{name} must be an integer of at least {minimum}, got {value!r}.")
    return int(value)


def check_number(
    name: str,
    value: Any,
    minimum: float,
    maximum: float = math.inf,
    *,
    above: bool = False,
    below: bool = False,
) -> float:
    """Returns `value` when it is a finite number in [minimum, maximum].

    `above` and `below` leave the minimum and the maximum themselves out.
    """
    range_text = f"{'above' if above else 'at least'} {minimum:g}"
    if maximum < math.inf:
        range_text += f" and {'below' if below else 'at most'} {maximum:g}"
    real = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    inside = real and minimum <= value <= maximum
    if not inside or (above and value == minimum) or (below and value == maximum):
        raise UserError(f"{name} must be a finite number {range_text}, got {value!r}.")
    return float(value)


def check_flag(name: str, value: Any) -> bool:
    """Returns `value` when it is True or False."""
    if not isinstance(value, bool):
        raise UserError(f"{name} must be true or false, got {value!r}.")
    return value


def check_choice(name: str, value: Any, choices: Iterable[str]) -> str:
    """Returns `value` when it is one of `choices`."""
    known = list(choices)
    if value not in known:
        raise unknown(name, value, known)
    return value


def from_mapping(cls: type[T], values: Mapping[str, Any], where: str) -> T:
    """Makes the dataclass `cls` of `values`; a key that is not a field is an error with the nearest one.

    Args:
        cls: a dataclass whose constructor checks its values.
        values: field names and values, as read from a file or an option.
        where: what the user wrote them in, for the message.
    """
    fields = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
    for key in values:
        if key not in fields:
            raise UserError(f"{where} has no field {key!r}. {nearest(key, fields)}Its fields: {', '.join(fields)}.")
    return cls(**values)
