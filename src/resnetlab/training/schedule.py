"""Schedules of the learning rate, and how recipes write them.

A schedule is text: a name, and its values in parentheses if it takes any.

    one_cycle                      rises and falls along cosines (Smith and Topin 2018)
    cosine                         rises in a straight line, falls along a cosine (Loshchilov and Hutter 2017)
    constant                       stays the same
    steps(0.5, 0.75, factor=0.1)   is multiplied by 0.1 after 50 % and again after 75 % of the training
    every(30, factor=0.1)          is multiplied by 0.1 after every 30 epochs
"""

from __future__ import annotations

import ast
import functools
import math
from dataclasses import dataclass
from typing import Any

from resnetlab.core.checks import check_integer, check_number
from resnetlab.core.errors import UserError, brief, nearest

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


@dataclass(frozen=True)
class Schedule:
    """A schedule that was read from text.

    Attributes:
        name: one of `EXAMPLES`.
        values: for "steps", fractions of the training; for "every", the number of epochs.
        factor: by which those two multiply the learning rate.
    """

    name: str
    values: tuple[float, ...] = ()
    factor: float = FACTOR

    def __str__(self) -> str:
        if not self.values:
            return self.name
        return f"{self.name}({', '.join(map(str, self.values))}, factor={self.factor})"

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
        if self.name == "constant":
            return highest
        if self.name == "steps":
            return highest * self.factor ** sum(step / total_steps >= value for value in self.values)
        if self.name == "every":
            return highest * self.factor ** (step * epochs // total_steps // int(self.values[0]))
        progress = (step - rising) / (total_steps - rising) if total_steps > rising else 1.0
        return highest * (1 + math.cos(math.pi * progress)) / 2


def check_schedule(name: str, value: Any) -> str:
    """Returns a schedule in its normal form, or raises `UserError` with the forms that exist."""
    if not isinstance(value, str):
        raise UserError(f"{name} must be text, such as {EXAMPLES['steps']!r}, got {brief(value)}.")
    return str(read_schedule(value))


@functools.cache
def read_schedule(text: str) -> Schedule:
    """Returns the schedule that a recipe writes as `text`.

    Raises:
        UserError: the text does not describe a schedule.
    """
    try:
        call = ast.parse(text.strip(), mode="eval").body
        function, given, named = (call.func, call.args, call.keywords) if isinstance(call, ast.Call) else (call, [], [])
        name = function.id  # type: ignore[attr-defined]  # anything but a name has no id
        values = [ast.literal_eval(value) for value in given]
        options = {str(word.arg): ast.literal_eval(word.value) for word in named}
    except (SyntaxError, AttributeError, ValueError) as error:
        raise UserError(f"cannot read schedule {text!r}. Write one of: {_forms()}.") from error
    if name not in EXAMPLES:
        raise UserError(f"unknown schedule {name!r}. {nearest(name, EXAMPLES)}Available: {_forms()}.")
    fewest, most = {"steps": (1, math.inf), "every": (1, 1)}.get(name, (0, 0))
    if not fewest <= len(values) <= most or options.keys() - ({"factor"} if most else set()):
        raise UserError(f"schedule {text!r} has the wrong values. Write it like this: {EXAMPLES[name]}.")
    if name == "every":
        values = [check_integer("the number of epochs in schedule", values[0], 1)]
    else:
        values = [check_number("every entry of schedule", value, 0, 1) for value in values]
    factor = check_number("factor in schedule", options.get("factor", FACTOR), 0, 1, above=True)
    return Schedule(name, tuple(values), factor)


def _forms() -> str:
    return ", ".join(EXAMPLES.values())
