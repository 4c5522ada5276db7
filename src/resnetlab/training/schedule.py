"""Schedules of the learning rate, and how recipes write them.

A schedule is text: a name, and its values in parentheses if it takes any.

    one_cycle                      rises and falls along cosines (Smith and Topin 2018)
    cosine                         rises in a straight line, falls along a cosine (Loshchilov and Hutter 2017)
    constant                       stays the same
    steps(0.5, 0.75, factor=0.1)   is multiplied by 0.1 after 50 % and again after 75 % of the training
    every(30, factor=0.1)          is multiplied by 0.1 after every 30 epochs

A schedule of your own is a function of the progress after warm-up, from 0 to 1, that returns a factor of the highest
learning rate: `register("schedule", "poly", lambda progress, power=2: (1 - progress) ** power)`, then "poly" or
"poly(3)".
"""

from __future__ import annotations

import functools
import inspect
import math
import numbers
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from resnetlab.core.checks import check_integer, check_number
from resnetlab.core.errors import UserError, brief, nearest
from resnetlab.core.own_code import received
from resnetlab.core.registry import Call, Registry, read_call

EXAMPLES = {
    "one_cycle": "one_cycle",
    "cosine": "cosine",
    "constant": "constant",
    "steps": "steps(0.5, 0.75, factor=0.1)",
    "every": "every(30, factor=0.1)",
}
"""The schedules by name, as a recipe writes them."""
START = 1 / 25
"""During warm-up, the learning rate rises from this fraction of the highest rate."""
WARMUP = {"one_cycle": 0.25, "cosine": 0.25}
"""Fraction of the steps in which these schedules rise, if the recipe does not say."""
FACTOR = 0.1
"""Default factor of "steps" and "every"."""


def one_cycle(progress: float) -> float:
    """Falls along a cosine, after a rise along a cosine (Smith and Topin 2018)."""
    return (1 + math.cos(math.pi * progress)) / 2


def cosine(progress: float) -> float:
    """Falls along a cosine, after a rise in a straight line (Loshchilov and Hutter 2017)."""
    return one_cycle(progress)


def constant(progress: float) -> float:
    """Stays the same."""
    return 1.0


def steps(done: float, *fractions: float, factor: float = FACTOR) -> float:
    """Is multiplied by a factor after each of these fractions of the training."""
    return factor ** sum(done >= fraction for fraction in fractions)


def every(epoch: float, interval: int, factor: float = FACTOR) -> float:
    """Is multiplied by a factor after each interval of epochs."""
    return factor ** (epoch // int(interval))


SCHEDULES = Registry(
    "schedule",
    {function.__name__: function for function in (one_cycle, cosine, constant, steps, every)},
)


@dataclass(frozen=True)
class Schedule:
    """A schedule that was read from text.

    Attributes:
        name: one of `SCHEDULES`.
        values: for "steps", fractions of the training; for "every", the number of epochs.
        options: the arguments with names; "factor" of those two multiplies the learning rate.
    """

    name: str
    values: tuple[Any, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return str(Call(self.name, self.values, self.options))

    def learning_rate(self, highest: float, step: int, total_steps: int, *, epochs: int, warmup: float | None) -> float:
        """Returns the learning rate of one step.

        Args:
            highest: the rate that warm-up reaches.
            step: from 0, over all epochs.
            total_steps: steps of the whole training. The step after the last would have rate 0 with "one_cycle" and
                "cosine".
            epochs: of the whole training.
            warmup: fraction of the steps in which the rate rises; None for the default of the schedule.
        """
        rising = (WARMUP.get(self.name, 0.0) if warmup is None else warmup) * total_steps
        if step < rising:
            low, progress = highest * START, step / rising
            risen = (1 - math.cos(math.pi * progress)) / 2 if self.name == "one_cycle" else progress
            return low + (highest - low) * risen
        progress = (step - rising) / (total_steps - rising) if total_steps > rising else 1.0
        done = {"steps": step / total_steps, "every": step * epochs // total_steps}.get(self.name, progress)
        if self.name not in SCHEDULES.added:
            return highest * SCHEDULES[self.name](done, *self.values, **self.options)
        with SCHEDULES.calling(self.name):
            factor = SCHEDULES[self.name](done, *self.values, **self.options)
        return highest * _check_factor(self.name, factor)


def check_schedule(name: str, value: Any) -> str:
    """Returns a schedule in its normal form, or raises `UserError` with the forms that exist."""
    if callable(value):
        return SCHEDULES.check(name, value)
    if not isinstance(value, str):
        raise UserError(f"{name} must be text, such as {EXAMPLES['steps']!r}, got {brief(value)}.")
    return str(read_schedule(value))


def read_schedule(text: str) -> Schedule:
    """Returns the schedule that a recipe writes as `text`.

    Raises:
        UserError: the text does not describe a schedule.
    """
    try:
        call = read_call(text)
    except ValueError as error:
        raise UserError(f"cannot read schedule {text!r}. Write one of: {_forms()}.") from error
    if call.name not in SCHEDULES:
        raise UserError(f"unknown schedule {call.name!r}. {nearest(call.name, SCHEDULES)}Available: {_forms()}.")
    return _own(call) if call.name in SCHEDULES.added else _built_in(text)


def _own(call: Call) -> Schedule:
    """Returns a registered schedule, called once to see that it takes the values."""
    try:
        inspect.signature(SCHEDULES[call.name]).bind(0.0, *call.values, **call.options)
        found = SCHEDULES[call.name](0.0, *call.values, **call.options)
    except Exception as error:  # code of the user
        raise UserError(
            f"{SCHEDULES.title(call.name)} raised {type(error).__name__} for {str(call)!r}: {error}. Correct its "
            "values."
        ) from error
    _check_factor(call.name, found)
    return Schedule(call.name, call.values, call.options)


def _check_factor(name: str, factor: object) -> float:
    if not isinstance(factor, numbers.Real) or not 0 <= float(factor) < math.inf:
        raise UserError(
            f"{SCHEDULES.title(name)} must return a finite number of at least 0, got "
            f"{brief(factor) if isinstance(factor, numbers.Real) else received(factor)}."
        )
    return float(factor)


@functools.cache
def _built_in(text: str) -> Schedule:
    call = read_call(text)
    values, options = list(call.values), dict(call.options)
    fewest, most = {"steps": (1, math.inf), "every": (1, 1)}.get(call.name, (0, 0))
    if not fewest <= len(values) <= most or options.keys() - ({"factor"} if most else set()):
        raise UserError(f"schedule {text!r} has the wrong values. Write it like this: {EXAMPLES[call.name]}.")
    if call.name == "every":
        values = [check_integer("the number of epochs in schedule", values[0], 1)]
    else:
        values = [check_number("every entry of schedule", value, 0, 1) for value in values]
    factor = check_number("factor in schedule", options.get("factor", FACTOR), 0, 1, above=True)
    return Schedule(call.name, tuple(values), {"factor": factor} if most else {})


def _forms() -> str:
    return ", ".join([*EXAMPLES.values(), *SCHEDULES.added])
