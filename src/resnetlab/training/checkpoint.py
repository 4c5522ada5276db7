"""Checkpoints: everything that the rest of a training depends on, and nothing that runs code.

Data order, augmentation and learning rate are functions of (seed, epoch, step), so a checkpoint
is the weights, the optimiser's momentum, the place in the training and the sums of the epoch so far.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from resnetlab.core.checks import check_schema, from_mapping
from resnetlab.core.console import notice
from resnetlab.core.errors import UserError
from resnetlab.weights.tensors import DamagedFileError, read_tensors, write_tensors

SCHEMA_VERSION = 1
_KEPT = 2


@dataclass(kw_only=True)
class Progress:
    """How far a training has come.

    Attributes:
        epoch: complete epochs.
        step: steps taken in the epoch after those.
        seconds: time spent training and validating.
        epoch_seconds: of those, spent on the steps of the current epoch.
        loss_sum: loss times images, summed over the epoch's steps.
        correct: correct predictions in the epoch so far.
        images: images seen in the epoch so far.
        best_top1: the highest validation top-1 so far; below 0 before the first.
        best_weights: the network's state at that point, for recipes that keep the best.
    """

    epoch: int = 0
    step: int = 0
    seconds: float = 0.0
    epoch_seconds: float = 0.0
    loss_sum: float = 0.0
    correct: float = 0
    images: int = 0
    best_top1: float = -1.0
    best_weights: dict[str, Tensor] = field(default_factory=dict)

    def end_epoch(self) -> None:
        """Moves on to the next epoch."""
        self.epoch, self.step = self.epoch + 1, 0
        self.epoch_seconds, self.loss_sum, self.correct, self.images = 0.0, 0.0, 0, 0


def save_checkpoint(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, progress: Progress, total_steps: int
) -> None:
    """Writes a checkpoint atomically and removes all but the newest two.

    Args:
        folder: the run's `checkpoints`.
        model: the network.
        optimizer: its optimiser.
        progress: the place in the training.
        total_steps: steps taken since the beginning, for the file's name.
    """
    names = _parameter_names(model, optimizer)
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    tensors |= {f"best.{name}": tensor for name, tensor in progress.best_weights.items()}
    for parameter, state in optimizer.state.items():
        tensors |= {f"optimizer.{names[parameter]}.{key}": value for key, value in state.items() if value is not None}
    place = {name: value for name, value in vars(progress).items() if name != "best_weights"}
    description = {"schema": SCHEMA_VERSION, "progress": place}
    write_tensors(folder / f"step-{total_steps:08d}.safetensors", tensors, description)
    for old in _newest_first(folder)[_KEPT:]:
        old.unlink()


def restore_checkpoint(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> Progress:
    """Puts the newest sound checkpoint into the network and optimiser and returns its place.

    A damaged one is said and passed over for the one before it. Every tensor is copied into memory of
    its parameter's layout, since a fused optimiser corrupts weights whose state lies otherwise.

    Raises:
        UserError: there is no sound checkpoint.
    """
    for path in _newest_first(folder):
        try:
            tensors, description = read_tensors(path)
        except DamagedFileError as error:
            notice(f"warning: {error} Going back to the checkpoint before it.")
            continue
        check_schema(path, description.get("schema"), SCHEMA_VERSION)
        return _restore(tensors, description, model, optimizer)
    raise UserError(f"{folder} holds no checkpoint that can be read, so the run cannot be resumed. Start it anew.")


def _restore(
    tensors: Mapping[str, Tensor], description: Mapping, model: nn.Module, optimizer: torch.optim.Optimizer
) -> Progress:
    weights = _with_prefix(tensors, "model.")
    model.load_state_dict(weights)  # copies in place, so the layout stays
    optimizer.state.clear()
    for parameter, name in _parameter_names(model, optimizer).items():
        for key, value in _with_prefix(tensors, f"optimizer.{name}.").items():
            state = torch.empty_like(parameter, requires_grad=False, memory_format=torch.preserve_format)
            optimizer.state[parameter][key] = state.copy_(value)
    progress = from_mapping(Progress, description["progress"], "the checkpoint")
    progress.best_weights = _with_prefix(tensors, "best.")
    return progress


def _parameter_names(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[Tensor, str]:
    trained = {parameter for group in optimizer.param_groups for parameter in group["params"]}
    return {parameter: name for name, parameter in model.named_parameters() if parameter in trained}


def _with_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*.safetensors"), reverse=True)
