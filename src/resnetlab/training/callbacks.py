"""Functions of yours that are called after every step or epoch of a training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from resnetlab.core.checks import check_number
from resnetlab.core.console import notice
from resnetlab.core.errors import UserError, brief


@dataclass
class Wishes:
    """What a callback asked for.

    Attributes:
        stop: end the training here.
        factor: multiply the learning rates of all further steps.
    """

    stop: bool = False
    factor: float = 1.0


@dataclass(frozen=True, kw_only=True)
class CallbackState:
    """What a callback sees of the training. It cannot be changed; `stop` and `scale_lr` ask for a change.

    Attributes:
        epoch: the current epoch, from 1.
        epochs: number of epochs of the run.
        step: steps taken in this epoch.
        steps: number of steps of an epoch.
        lr: the highest learning rate of the last step.
        loss: of the last step; after an epoch, the mean training loss of the epoch. NaN if it was not finite.
        history: a row for each complete epoch, with the columns of history.csv.
        run: the run folder.
    """

    epoch: int
    epochs: int
    step: int
    steps: int
    lr: float
    loss: float
    history: tuple[Mapping[str, Any], ...]
    run: Path
    _wishes: Wishes = field(default_factory=Wishes, repr=False, compare=False)

    def stop(self) -> None:
        """Ends the training here: the epoch is validated, and the run is complete."""
        self._wishes.stop = True

    def scale_lr(self, factor: float) -> None:
        """Multiplies the learning rates of all further steps, in addition to the schedule.

        Args:
            factor: above 0.

        Raises:
            UserError: the factor is not a number above 0.
        """
        self._wishes.factor *= check_number("the factor of scale_lr", factor, 0, above=True)

    def log(self, text: str) -> None:
        """Prints a line, which does not disturb the progress bar."""
        notice(text)


Callback = Callable[[CallbackState], object]


@dataclass(frozen=True, kw_only=True)
class Callbacks:
    """The callbacks of a training.

    Attributes:
        on_step: called after every step.
        on_epoch: called after every epoch and its validation, before its checkpoint.

    Raises:
        UserError: one of them cannot be called.
    """

    on_step: Callback | None = None
    on_epoch: Callback | None = None

    def __post_init__(self) -> None:
        for place, function in vars(self).items():
            if function is not None and not callable(function):
                raise UserError(f"{place} must be a function of the state of the training, got {brief(function)}.")

    @property
    def names(self) -> list[str]:
        """What run.toml records of them, such as "on_epoch=halve"."""
        return [
            f"{place}={getattr(function, '__qualname__', type(function).__name__)}"
            for place, function in vars(self).items()
            if function is not None
        ]


def ask(callback: Callback, state: CallbackState) -> Wishes:
    """Calls a callback and returns what it asked for."""
    callback(state)
    return state._wishes
