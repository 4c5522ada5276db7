"""Checkpoints: the state of a training, saved and restored. They contain tensors and numbers, no code.

Data order, augmentation and learning rate are functions of (seed, epoch, step), so a checkpoint needs only the
weights, the state of the optimizer, the position in the training and the sums of the epoch so far.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from resnetlab.core.checks import from_mapping
from resnetlab.core.errors import UserError
from resnetlab.core.runs import Run, history_from_columns
from resnetlab.models.network import Network
from resnetlab.training.distributed import ALONE, Processes
from resnetlab.training.loss_scale import LossScale
from resnetlab.training.optimizers import WeightAverage
from resnetlab.training.selection import Selection
from resnetlab.weights.file import checkpoint_files, describe_network, read_newest
from resnetlab.weights.tensors import is_checkpoint, refuse_damage, without_prefix, write_tensors

_KEPT = 2


@dataclass(kw_only=True)
class Progress:
    """The position in a training and the sums of the current epoch.

    Attributes:
        epoch: complete epochs.
        step: steps taken in the current epoch.
        seconds: time spent training and validating.
        epoch_seconds: time spent on the steps of the current epoch.
        loss_sum: sum of loss times number of images over the steps of the current epoch.
        correct: correct predictions in the current epoch.
        seen: images seen in the current epoch.
        images: images of the steps with a finite loss, by their weights; `loss_sum` and `correct` are sums over these.
        best_top1: highest validation top-1 so far; below 0 before the first validation.
        best_epoch: complete epochs when it was reached.
        temperature: of the weights that would be kept now, fitted at their validation; 1 before.
        bad_steps: number of consecutive steps up to now whose loss or gradient was not finite.
        lr_factor: product of the factors by which callbacks scaled the learning rate.
        stopped: whether a callback ended the training.
        best_weights: state of the network at its best epoch, for recipes that keep it.
    """

    epoch: int = 0
    step: int = 0
    seconds: float = 0.0
    epoch_seconds: float = 0.0
    loss_sum: float = 0.0
    correct: float = 0
    seen: int = 0
    images: float = 0
    best_top1: float = -1.0
    best_epoch: int = 0
    temperature: float = 1.0
    bad_steps: int = 0
    lr_factor: float = 1.0
    stopped: bool = False
    best_weights: dict[str, Tensor] = field(default_factory=dict)

    def end_epoch(self) -> None:
        """Moves to the next epoch."""
        self.epoch, self.step = self.epoch + 1, 0
        self.epoch_seconds, self.loss_sum, self.correct, self.seen, self.images = 0.0, 0.0, 0, 0, 0


@dataclass(kw_only=True)
class TrainingState:
    """Everything that a training changes, and exactly what a checkpoint contains.

    Attributes:
        model: the network.
        optimizer: built by `build_optimizer` for this network.
        average: moving average of the weights, if the recipe has one.
        scaling: of the loss, in float16.
        selection: the losses that decide which images an epoch shows, if the recipe leaves some out.
        progress: the position in the training.
        history: one row per complete epoch.
    """

    model: Network
    optimizer: torch.optim.Optimizer
    average: WeightAverage | None = None
    scaling: LossScale | None = None
    selection: Selection | None = None
    progress: Progress = field(default_factory=Progress)
    history: list[dict[str, Any]] = field(default_factory=list)

    def set_best(self, top1: float, epoch: int, *, keep_weights: bool) -> None:
        """Records the epoch, from 1, with the highest validation top-1, and the network's weights as its if wanted."""
        self.progress.best_top1, self.progress.best_epoch = top1, epoch
        if keep_weights:
            state = self.model.saved_module.state_dict()
            self.progress.best_weights = {name: value.clone() for name, value in state.items()}


def save_checkpoint(run: Run, state: TrainingState, steps_done: int, origin: Mapping[str, Any]) -> None:
    """Writes a checkpoint atomically and removes all but the newest two.

    Args:
        run: whose checkpoint it is.
        state: what to save.
        steps_done: steps since the start of the training, for the file's name.
        origin: where the network comes from, see `describe_network`.
    """
    names = _parameter_names(state)
    tensors = {f"model.{name}": tensor for name, tensor in state.model.saved_module.state_dict().items()}
    tensors |= {f"best.{name}": tensor for name, tensor in state.progress.best_weights.items()}
    tensors |= {f"average.{name}": tensor for name, tensor in (state.average.weights if state.average else {}).items()}
    for name, part in (("scaling", state.scaling), ("selection", state.selection)):
        tensors |= {f"{name}.{key}": tensor for key, tensor in (part.tensors if part else {}).items()}
    numbers: dict[str, Any] = {}
    for parameter, values in state.optimizer.state.items():
        for key, value in values.items():
            name = f"{names[parameter]}.{key}"
            if isinstance(value, Tensor):
                tensors[f"optimizer.{name}"] = value
            elif value is not None:
                numbers[name] = _check_number(state.optimizer, key, value)
    position = {name: value for name, value in vars(state.progress).items() if name != "best_weights"}
    run.check_place()
    folder = run.checkpoints
    folder.mkdir(parents=True, exist_ok=True)
    description = {**describe_network(state.model, origin), "progress": position}
    description["optimizer"] = {"groups": _group_numbers(state.optimizer), "state": numbers}
    description["temperature"] = state.progress.temperature
    write_tensors(folder / f"step-{steps_done:08d}.safetensors", tensors, description)
    for old in checkpoint_files(folder)[_KEPT:]:
        with suppress(PermissionError):  # on Windows, of a file that another process reads
            old.unlink()


def restore_checkpoint(run: Run, state: TrainingState, *, processes: Processes = ALONE) -> None:
    """Sets the state to the newest intact checkpoint; for a complete or an extended run, to its network.

    The first process reads it for all. A damaged checkpoint is skipped with a warning. Every tensor is copied into
    memory with the layout of its parameter, because a fused optimizer computes wrong weights if layouts differ.

    Raises:
        UserError: no checkpoint is intact, or it belongs to another run or another network.
    """
    path, tensors, description = processes.from_first(lambda: read_newest(run))
    with processes.alike():
        with refuse_damage(path, "a checkpoint"):
            state.history = history_from_columns(description["training"]["history"])
        if not is_checkpoint(description):
            _start_from(path, tensors, description, state)
            return
        weights, network = without_prefix(tensors, "model."), state.model.saved_module
        _check_same_network(path, weights, network)
        network.load_state_dict(weights)  # copies in place, so the layout stays
        state.optimizer.state.clear()
        for parameter, name in _parameter_names(state).items():
            for key, value in without_prefix(tensors, f"optimizer.{name}.").items():
                if value.shape == parameter.shape:
                    restored = torch.empty_like(parameter, requires_grad=False, memory_format=torch.preserve_format)
                    state.optimizer.state[parameter][key] = restored.copy_(value)
                else:  # AdamW's count of steps, which its fused kernel expects on the device
                    state.optimizer.state[parameter][key] = value.to(parameter.device)
        for group, numbers in zip(state.optimizer.param_groups, description["optimizer"]["groups"], strict=True):
            group.update(numbers)
        parameters = {name: parameter for parameter, name in _parameter_names(state).items()}
        for place, value in description["optimizer"]["state"].items():
            name, _, key = place.rpartition(".")
            state.optimizer.state[parameters[name]][key] = value
        state.progress = from_mapping(Progress, description["progress"], "the checkpoint")
        state.progress.best_weights = without_prefix(tensors, "best.")
    if state.average is not None:
        state.average.restore(without_prefix(tensors, "average."))
    if state.scaling is not None and "scaling.scale" in tensors:  # absent if the run started in another precision
        state.scaling.restore(without_prefix(tensors, "scaling."))
    if state.selection is not None:
        state.selection.restore(without_prefix(tensors, "selection."))


def _start_from(
    path: Path, weights: Mapping[str, Tensor], description: Mapping[str, Any], state: TrainingState
) -> None:
    """Sets the state to a network whose training ended; the optimizer is new."""
    _check_same_network(path, weights, state.model.saved_module)
    state.model.saved_module.load_state_dict(weights)
    if state.average is not None:
        state.average.restore(weights)
    state.progress = Progress(
        epoch=description["training"]["epoch"],
        seconds=state.history[-1]["seconds"] if state.history else 0.0,
        temperature=description["temperature"],
    )
    validated = [row for row in state.history if not math.isnan(row["val_top1"])]
    if validated:
        best = max(validated, key=lambda row: row["val_top1"])
        state.progress.best_top1, state.progress.best_epoch = best["val_top1"], best["epoch"]


def _check_same_network(path: Path, weights: Mapping[str, Tensor], model: nn.Module) -> None:
    found = {name: tuple(value.shape) for name, value in weights.items()}
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    differences = [
        f"{name}: {found.get(name, 'missing')} in the checkpoint, {expected.get(name, 'missing')} in the network"
        for name in sorted(found.keys() | expected.keys())
        if found.get(name) != expected.get(name)
    ]
    if differences:
        more = f", and {len(differences) - 5} more" if len(differences) > 5 else ""
        raise UserError(
            f"the checkpoint {path} does not fit the network that run.toml describes: {'; '.join(differences[:5])}"
            f"{more}. Restore the original run.toml, or start a new run."
        )


def _group_numbers(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """Returns the numbers among the settings of each group, which some optimizers change, except the learning rate."""
    return [
        {key: value for key, value in group.items() if isinstance(value, (bool, int, float)) and key != "lr"}
        for group in optimizer.param_groups
    ]


def _check_number(optimizer: torch.optim.Optimizer, key: str, value: Any) -> bool | int | float:
    """Returns a value of an optimizer's state that JSON can hold exactly, or raises `UserError`."""
    if isinstance(value, (bool, int, float)):
        return value
    raise UserError(
        f"the optimizer {type(optimizer).__name__} keeps {key!r} of type {type(value).__name__} in its state, which a "
        "checkpoint cannot contain, so the run could not be resumed. Keep tensors and numbers only."
    )


def _parameter_names(state: TrainingState) -> dict[Tensor, str]:
    trained = {parameter for group in state.optimizer.param_groups for parameter in group["params"]}
    return {parameter: name for name, parameter in state.model.named_parameters() if parameter in trained}
