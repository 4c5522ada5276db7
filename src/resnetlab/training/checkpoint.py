"""Checkpoints: the state of a training, saved and restored. They contain tensors and numbers, no code.

Data order, augmentation and learning rate are functions of (seed, epoch, step), so a checkpoint needs only the
weights, the state of the optimizer, the position in the training and the sums of the epoch so far.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from resnetlab.core.checks import check_schema, from_mapping
from resnetlab.core.console import notice
from resnetlab.core.errors import UserError
from resnetlab.models.network import Network
from resnetlab.training.distributed import ALONE, Processes
from resnetlab.training.optimizers import WeightAverage
from resnetlab.weights.tensors import DamagedFileError, read_tensors, write_tensors

SCHEMA_VERSION = 1
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
        images: images of the steps with a finite loss; `loss_sum` and `correct` are sums over these.
        best_top1: highest validation top-1 so far; below 0 before the first validation.
        best_epoch: complete epochs when it was reached.
        temperature: of the weights that would be kept now, fitted at their validation; 1 before.
        bad_steps: number of consecutive steps up to now whose loss or gradient was not finite.
        best_weights: state of the network at its best epoch, for recipes that keep it.
    """

    epoch: int = 0
    step: int = 0
    seconds: float = 0.0
    epoch_seconds: float = 0.0
    loss_sum: float = 0.0
    correct: float = 0
    seen: int = 0
    images: int = 0
    best_top1: float = -1.0
    best_epoch: int = 0
    temperature: float = 1.0
    bad_steps: int = 0
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
        progress: the position in the training.
    """

    model: Network
    optimizer: torch.optim.Optimizer
    average: WeightAverage | None = None
    progress: Progress = field(default_factory=Progress)

    def set_best(self, top1: float, *, keep_weights: bool) -> None:
        """Records that the current epoch has the highest validation top-1, and its weights if wanted."""
        self.progress.best_top1, self.progress.best_epoch = top1, self.progress.epoch + 1
        if keep_weights:
            self.progress.best_weights = {name: value.clone() for name, value in self.model.state_dict().items()}


def save_checkpoint(folder: Path, state: TrainingState, steps_done: int) -> None:
    """Writes a checkpoint atomically and removes all but the newest two.

    Args:
        folder: the run's `checkpoints`.
        state: what to save.
        steps_done: steps since the start of the training, for the file's name.
    """
    names = _parameter_names(state)
    tensors = {f"model.{name}": tensor for name, tensor in state.model.state_dict().items()}
    tensors |= {f"best.{name}": tensor for name, tensor in state.progress.best_weights.items()}
    tensors |= {f"average.{name}": tensor for name, tensor in (state.average.weights if state.average else {}).items()}
    for parameter, values in state.optimizer.state.items():
        tensors |= {f"optimizer.{names[parameter]}.{key}": value for key, value in values.items() if value is not None}
    position = {name: value for name, value in vars(state.progress).items() if name != "best_weights"}
    description = {"schema": SCHEMA_VERSION, "progress": position}
    write_tensors(folder / f"step-{steps_done:08d}.safetensors", tensors, description)
    for old in _newest_first(folder)[_KEPT:]:
        old.unlink()


def restore_checkpoint(folder: Path, state: TrainingState, *, processes: Processes = ALONE) -> None:
    """Sets the state to the newest intact checkpoint.

    The first process reads it for all. A damaged checkpoint is skipped with a warning. Every tensor is copied into
    memory with the layout of its parameter, because a fused optimizer computes wrong weights if layouts differ.

    Raises:
        UserError: no checkpoint is intact, or it belongs to another network.
    """
    path, tensors, description = processes.from_first(lambda: _read_newest(folder))
    with processes.alike():
        weights = _with_prefix(tensors, "model.")
        _check_same_network(path, weights, state.model)
        state.model.load_state_dict(weights)  # copies in place, so the layout stays
        state.optimizer.state.clear()
        for parameter, name in _parameter_names(state).items():
            for key, value in _with_prefix(tensors, f"optimizer.{name}.").items():
                if value.shape == parameter.shape:
                    restored = torch.empty_like(parameter, requires_grad=False, memory_format=torch.preserve_format)
                    state.optimizer.state[parameter][key] = restored.copy_(value)
                else:  # AdamW's count of steps, which its fused kernel expects on the device
                    state.optimizer.state[parameter][key] = value.to(parameter.device)
        state.progress = from_mapping(Progress, description["progress"], "the checkpoint")
        state.progress.best_weights = _with_prefix(tensors, "best.")
    if state.average is not None:
        state.average.restore(_with_prefix(tensors, "average."))


def _read_newest(folder: Path) -> tuple[Path, dict[str, Tensor], dict[str, Any]]:
    for path in _newest_first(folder):
        try:
            tensors, description = read_tensors(path)
        except DamagedFileError as error:
            notice(f"warning: {error} Using the previous checkpoint instead.")
            continue
        check_schema(path, description.get("schema"), SCHEMA_VERSION)
        return path, tensors, description
    raise UserError(f"{folder} contains no intact checkpoint, so the run cannot be resumed. Start a new run.")


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


def _parameter_names(state: TrainingState) -> dict[Tensor, str]:
    trained = {parameter for group in state.optimizer.param_groups for parameter in group["params"]}
    return {parameter: name for name, parameter in state.model.named_parameters() if parameter in trained}


def _with_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*.safetensors"), reverse=True)
