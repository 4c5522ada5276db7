"""Configuration fields: one declaration gives the check, the normalized value and the description."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from resnetlab.core.errors import UserError
from resnetlab.core.fields import REQUIRED, check_fields, describe_fields, documented, setting

KINDS = {"round": 1, "square": 2}


def _even(name: str, value: Any) -> int:
    if value % 2:
        raise UserError(f"{name} must be even, got {value!r}.")
    return value


@dataclass(frozen=True, kw_only=True)
class Inner:
    fill: int = setting(0, "value of the border", minimum=0, maximum=255)

    def __post_init__(self) -> None:
        check_fields(self, "inner.")


@documented
@dataclass(frozen=True, kw_only=True)
class Outer:
    """A configuration.

    Raises:
        UserError: a value is out of range.
    """

    size: int = setting(REQUIRED, "height and width", minimum=1)
    any_integer: int = setting(-3, "without bounds")
    rate: float = setting(0.5, "a share", above=0, maximum=1)
    open_rate: float = setting(0.5, "a probability", minimum=0, below=1)
    flag: bool = setting(False, "switches it on")
    kind: str = setting("round", "its form", choices=KINDS, remedy="Register your own form first.")
    text: str = setting("a", "its name")
    channels: int | None = setting(None, "of the images", choices=(1, 3))
    depths: tuple[int, ...] = setting((2, 2), "blocks", minimum=1, length=(1, 6), entries="one per stage")
    pair: tuple[float, float] = setting((0.1, 1.0), "area", ordered=True, entries="smallest and largest")
    rates: Mapping[str, float] = setting({}, "by section", minimum=0)
    drops: float | tuple[float, ...] = setting(0.0, "of the last block, or of each", minimum=0)
    flip: bool | str = setting("auto", "mirror images", choices=("auto",))
    even: int | None = setting(2, "without a remainder", check=_even, accepts="even integer")
    inner: Inner = setting(Inner(), "nested", group="compatibility")

    def __post_init__(self) -> None:
        check_fields(self)


def test_defaults_are_valid_and_values_become_plain() -> None:
    made = Outer(size=np.int64(4), rate=np.float32(0.5), depths=[np.int32(1), 2], pair=[1, 2], rates={"stem": 1})  # type: ignore[arg-type]
    assert made.size == 4 and type(made.size) is int
    assert type(made.rate) is float and type(made.rates["stem"]) is float
    assert made.depths == (1, 2) and type(made.depths[0]) is int
    assert made.pair == (1.0, 2.0) and type(made.pair[0]) is float
    assert Outer(size=1, drops=[0, 1]).drops == (0.0, 1.0)  # type: ignore[arg-type]
    assert Outer(size=1, inner={"fill": 7}).inner == Inner(fill=7)  # type: ignore[arg-type]
    assert Outer(size=1, even=None).even is None
    assert [Outer(size=1, flip=value).flip for value in (True, False, "auto")] == [True, False, "auto"]
    assert Outer(size=1).rates is not Outer(size=1).rates
    assert hash(Outer(size=1)) == hash(Outer(size=1))


@pytest.mark.parametrize(
    ("values", "facts"),
    [
        ({"size": 0}, ("size", "integer", "at least 1", "0")),
        ({"size": 1.5}, ("size", "integer", "1.5")),
        ({"size": True}, ("size", "True")),
        ({"any_integer": "x"}, ("any_integer", "integer", "'x'")),
        ({"rate": 0}, ("rate", "above 0", "at most 1")),
        ({"rate": float("nan")}, ("rate", "finite", "nan")),
        ({"open_rate": 1}, ("open_rate", "at least 0", "below 1")),
        ({"flag": 1}, ("flag", "true or false")),
        ({"kind": "squar"}, ("kind", "'squar'", "'square'", "round, square", "Register your own")),
        ({"text": 3}, ("text", "3")),
        ({"channels": 2}, ("channels", "1 or 3", "2")),
        ({"channels": True}, ("channels", "1 or 3", "True")),
        ({"depths": 3}, ("depths", "sequence", "1 to 6 integers", "one per stage", "3")),
        ({"depths": ()}, ("depths", "1 to 6")),
        ({"depths": (1, 0)}, ("entry of depths", "at least 1", "0")),
        ({"pair": (2, 1)}, ("pair", "smaller number first")),
        ({"pair": (1, 2, 3)}, ("pair", "2 numbers", "smallest and largest")),
        ({"rates": [1]}, ("rates", "mapping")),
        ({"rates": {"stem": -1}}, ("rates.stem", "at least 0", "-1")),
        ({"drops": (0, -1)}, ("entry of drops", "at least 0")),
        ({"drops": "x"}, ("drops", "number", "'x'")),
        ({"flip": "x"}, ("flip", "true or false or 'auto'", "'x'")),
        ({"even": 3}, ("even", "3")),
        ({"inner": 3}, ("inner", "Inner")),
        ({"inner": {"fil": 3}}, ("inner", "'fil'", "'fill'")),
        ({"inner": {"fill": 256}}, ("inner.fill", "at least 0 and at most 255", "256")),
    ],
)
def test_a_wrong_value_names_field_expectation_and_value(values: dict[str, Any], facts: tuple[str, ...]) -> None:
    with pytest.raises(UserError) as caught:
        Outer(**{"size": 1, **values})
    assert all(fact in str(caught.value) for fact in facts), str(caught.value)


def test_choices_that_grow_later_are_accepted() -> None:
    KINDS["oval"] = 3
    try:
        assert Outer(size=1, kind="oval").kind == "oval"
    finally:
        del KINDS["oval"]


def test_every_field_is_described_with_values_and_default() -> None:
    found = {field.name: field for field in describe_fields(Outer)}
    assert next(iter(found)) == "size" and found["size"].default is REQUIRED
    assert (found["size"].values, found["any_integer"].values) == ("integer, at least 1", "integer")
    assert found["rate"].values == "number, above 0 and at most 1"
    assert found["kind"].choices == ("round", "square") and found["kind"].values == "round | square"
    assert found["channels"].values == "integer: 1 | 3"
    assert found["depths"].type == "sequence of 1 to 6 integers, one per stage"
    assert found["depths"].range == "each at least 1"
    assert found["depths"].range == "each at least 1"
    assert found["rates"].type == "mapping from names to numbers" and found["rates"].default == {}
    assert found["drops"].type == "number or sequence of numbers"
    assert found["even"].type == "even integer"
    assert found["flag"].description == "switches it on"
    assert found["inner.fill"].default == 0 and found["inner.fill"].group == "compatibility"
    assert "inner" not in found
    assert [field.name for field in describe_fields(Outer, nested=False)] == [
        field.name for field in dataclasses.fields(Outer)
    ]


def test_the_docstring_lists_the_fields_before_what_is_raised() -> None:
    text = Outer.__doc__ or ""
    assert text.index("Attributes:") < text.index("rate (number") < text.index("Raises:")
    assert "rate (number, above 0 and at most 1; default 0.5): a share." in text
