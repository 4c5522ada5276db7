"""Checkpoints: everything that the rest of a training depends on, and nothing that runs code.

Data order, augmentation and learning rate are functions of (seed, epoch, step), so a checkpoint
is the weights, the optimizer's momentum, the place in the training and the sums of the epoch so far.
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
from resnetlab.training.average import WeightAverage
from resnetlab.training.distributed import ALONE, Ranks
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
        seen: images seen in the epoch so far.
        images: of those, the ones of steps with a finite loss, which the sums are of.
        best_top1: the highest validation top-1 so far; below 0 before the first.
        best_epoch: complete epochs at that point.
        bad_steps: steps in a row, up to here, whose loss or gradient was not finite.
        best_weights: the network's state at the best point, for recipes that keep the best.
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
    bad_steps: int = 0
    best_weights: dict[str, Tensor] = field(default_factory=dict)

    def end_epoch(self) -> None:
        """Moves on to the next epoch."""
        self.epoch, self.step = self.epoch + 1, 0
        self.epoch_seconds, self.loss_sum, self.correct, self.seen, self.images = 0.0, 0.0, 0, 0, 0


def save_checkpoint(
    folder: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
    total_steps: int,
    *,
    average: WeightAverage | None = None,
) -> None:
    """Writes a checkpoint atomically and removes all but the newest two.

    Args:
        folder: the run's `checkpoints`.
        model: the network.
        optimizer: its optimizer.
        progress: the place in the training.
        total_steps: steps taken since the beginning, for the file's name.
        average: of the weights, where the recipe has one.
    """
    names = _parameter_names(model, optimizer)
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    tensors |= {f"best.{name}": tensor for name, tensor in progress.best_weights.items()}
    tensors |= {f"average.{name}": tensor for name, tensor in (average.weights if average else {}).items()}
    for parameter, state in optimizer.state.items():
        tensors |= {f"optimizer.{names[parameter]}.{key}": value for key, value in state.items() if value is not None}
    place = {name: value for name, value in vars(progress).items() if name != "best_weights"}
    description = {"schema": SCHEMA_VERSION, "progress": place}
    write_tensors(folder / f"step-{total_steps:08d}.safetensors", tensors, description)
    for old in _newest_first(folder)[_KEPT:]:
        old.unlink()


def restore_checkpoint(
    folder: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    average: WeightAverage | None = None,
    ranks: Ranks = ALONE,
) -> Progress:
    """Puts the newest sound checkpoint into the network and optimizer and returns its place.

    Of several processes the first alone reads it, for all.

    A damaged one is said and passed over for the one before it. Every tensor is copied into memory of
    its parameter's layout, since a fused optimizer corrupts weights whose state lies otherwise.

    Raises:
        UserError: there is no sound checkpoint, or it is of another network.
    """
    path, tensors, description = ranks.from_first(lambda: _read_newest(folder))
    with ranks.alike():
        progress = _restore(path, tensors, description, model, optimizer)
    if average is not None:
        average.restore(_with_prefix(tensors, "average."))
    return progress


def _read_newest(folder: Path) -> tuple[Path, dict[str, Tensor], dict[str, Any]]:
    for path in _newest_first(folder):
        try:
            tensors, description = read_tensors(path)
        except DamagedFileError as error:
            notice(f"warning: {error} Going back to the checkpoint before it.")
            continue
        check_schema(path, description.get("schema"), SCHEMA_VERSION)
        return path, tensors, description
    raise UserError(f"{folder} holds no checkpoint that can be read, so the run cannot be resumed. Start it anew.")


def _restore(
    path: Path, tensors: Mapping[str, Tensor], description: Mapping, model: nn.Module, optimizer: torch.optim.Optimizer
) -> Progress:
    weights = _with_prefix(tensors, "model.")
    _check_same_network(path, weights, model)
    model.load_state_dict(weights)  # copies in place, so the layout stays
    optimizer.state.clear()
    for parameter, name in _parameter_names(model, optimizer).items():
        for key, value in _with_prefix(tensors, f"optimizer.{name}.").items():
            if value.shape == parameter.shape:
                state = torch.empty_like(parameter, requires_grad=False, memory_format=torch.preserve_format)
                optimizer.state[parameter][key] = state.copy_(value)
            else:  # AdamW counts steps, where its fused kernel finds them
                optimizer.state[parameter][key] = value.to(parameter.device)
    progress = from_mapping(Progress, description["progress"], "the checkpoint")
    progress.best_weights = _with_prefix(tensors, "best.")
    return progress


def _check_same_network(path: Path, weights: Mapping[str, Tensor], model: nn.Module) -> None:
    found = {name: tuple(value.shape) for name, value in weights.items()}
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    differences = [
        f"{name} is {found.get(name, 'absent')} there and {expected.get(name, 'absent')} here"
        for name in sorted(found.keys() | expected.keys())
        if found.get(name) != expected.get(name)
    ]
    if differences:
        more = f", and {len(differences) - 5} more" if len(differences) > 5 else ""
        raise UserError(
            f"the checkpoint {path} is of another network than run.toml describes: {'; '.join(differences[:5])}{more}. "
            "Restore run.toml as the run wrote it, or start a new run."
        )


def _parameter_names(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[Tensor, str]:
    trained = {parameter for group in optimizer.param_groups for parameter in group["params"]}
    return {parameter: name for name, parameter in model.named_parameters() if parameter in trained}


def _with_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*.safetensors"), reverse=True)
