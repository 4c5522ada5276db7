"""The seam of the training loop for tests: a function around every step of trainings that `fit` or the program runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.conftest import EMPTY_SETTINGS
from torch import Tensor

from resnetlab.core.runs import Run, history_columns
from resnetlab.data.batches import Batch
from resnetlab.models.network import Network
from resnetlab.training.loop import Training

Step = Callable[[Training, Batch], Tensor]


def run_of(model: Network, folder: Path) -> tuple[Run, dict[str, Any]]:
    """A new run of a network, and what its checkpoints record of the network's origin."""
    config, recipe, data = model.config.to_dict(), {"name": "quick", "epochs": 2}, {"fingerprint": "equal"}
    changed = {"model": {"name": "custom", "config": config}, "data": {**EMPTY_SETTINGS["data"], **data}}
    settings = {**EMPTY_SETTINGS, **changed, "recipe": recipe}
    provenance = {"created": None, "seed": 0, "recipe": recipe, "data": data, "machine": {}}
    training = {"epoch": 1, "epochs": 2, "history": history_columns([])}
    return Run.create(folder, settings, {}), {"provenance": provenance, "training": training}


@contextmanager
def around_steps(wrapper: Callable[[Step, Training, Batch], Tensor]) -> Iterator[None]:
    """Within, `wrapper(step, training, batch)` is called for every step; it calls `step(training, batch)` itself."""
    step = Training.step
    Training.step = lambda training, batch: wrapper(step, training, batch)  # type: ignore
    try:
        yield
    finally:
        Training.step = step


@contextmanager
def before_step(number: int, act: Callable[[Training], Any]) -> Iterator[list[int]]:
    """Within, `act` is called before the step of this number, from 1; gives the numbers of the steps so far."""
    taken: list[int] = []

    def wrapper(step: Step, training: Training, batch: Batch) -> Tensor:
        taken.append(len(taken) + 1)
        if taken[-1] == number:
            act(training)
        return step(training, batch)

    with around_steps(wrapper):
        yield taken


def fail(training: Training) -> None:
    """Ends a training like a machine that fails."""
    raise ConnectionError("the machine is gone")
