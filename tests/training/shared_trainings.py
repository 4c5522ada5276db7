"""What every process of the tests of distributed training runs; torchrun starts it with the name of a function."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import json
import math
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from tests.training.stepping import Step, around_steps, before_step
from torch import Tensor, nn

from resnetlab.cli.main import main
from resnetlab.core.errors import Interrupted, UserError
from resnetlab.data.batches import Batch
from resnetlab.data.load import load_data
from resnetlab.data.storage.store import ImageData
from resnetlab.models.config import ResNetConfig
from resnetlab.models.resnet import ResNet
from resnetlab.training import fit as fitting
from resnetlab.training.fit import fit, resume
from resnetlab.training.loop import Training
from resnetlab.training.machine import Machine
from resnetlab.training.recipe import Recipe

TINY = ResNetConfig(depths=(1, 1), widths=(4, 8), stem="cifar", shortcut="A", in_channels=1, num_classes=10)
STEPS = 55  # five epochs of digits
RANK = int(os.environ.get("RANK", "0"))
RECIPE = Recipe(name="shared", epochs=5, lr=0.5, clip_norm=1.0, label_smoothing=0.1)
SETTINGS: dict[str, Any] = {"recipe": RECIPE, "precision": "float64", "quiet": True}
CURVES: dict[str, dict[str, Any]] = {
    "plain": {},
    "mixed": {"augment.mixup": 0.2, "label_smoothing": 0.1, "class_weights": "balanced", "clip_norm": 0.5},
    "micro-batches": {"accumulate": 4, "average": 0.9},
    "orthogonal": {"optimizer": "muon", "lr": 0.05},
    "unfrozen": {"rates": {"stem": 0, "layer_decay": 0.5}, "unfreeze": [1, 2]},
}
SKIPPING: dict[str, Any] = {"skip_easy": 0.4, "batch_size": 12, "lr": 0.05}
"""More than 100 steps per epoch, so that epochs leave images out."""
SELECTED: dict[str, Any] = {**SETTINGS, "epochs": 6, "lr": 1.0, "average": 0.8, "keep": "best", "patience": 2}


def frozen_norm() -> ResNet:
    """A tiny network whose normalization stays in evaluation mode, so that samples do not know of each other."""
    torch.manual_seed(0)
    model = ResNet(TINY)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.eval().train = lambda mode=True, layer=layer: layer  # type: ignore[method-assign]
    return model


def few_digits() -> ImageData:
    """34 training images: in batches of 32 the last one has two, one for each of two processes."""
    data = load_data("digits")
    train = data.splits["train"]
    images: Any = train.images
    few = dataclasses.replace(train, images=images[:34], labels=train.labels[:34], index=train.index[:34])
    return dataclasses.replace(data, splits={**data.splits, "train": few})


def losses_of(train: Callable[[], Any]) -> list[float]:
    """Returns the losses of all steps of a training."""
    losses: list[float] = []

    def noted(step: Step, training: Training, batch: Batch) -> Tensor:
        loss = step(training, batch)
        losses.append(loss.item())
        return loss

    with around_steps(noted):
        train()
    return losses


def digest(model: nn.Module) -> str:
    """A digest of all parameters and buffers."""
    joined = b"".join(value.numpy(force=True).tobytes() for value in model.state_dict().values())
    return hashlib.sha256(joined).hexdigest()


def suite(folder: Path) -> None:
    """Runs one thing after the other, because starting processes takes longest, and writes <rank>.json."""
    digits = load_data("digits")
    found: dict[str, Any] = {}

    for name, changes in CURVES.items():
        settings = {**SETTINGS, **changes}
        found[f"curve {name}"] = losses_of(lambda: fit(frozen_norm(), digits, out=folder / name, **settings))  # noqa: B023
    settings = {**SETTINGS, **SKIPPING, "epochs": 4}
    found["curve skipping"] = losses_of(lambda: fit(frozen_norm(), digits, out=folder / "skipping", **settings))
    settings = {**SETTINGS, "batch_size": 32}
    found["curve few"] = losses_of(lambda: fit(frozen_norm(), few_digits(), out=folder / "few", **settings))

    # Batch normalization of each process, running statistics, averages and the choice of the best epoch.
    model = ResNet(TINY)
    selected = fit(model, digits, out=folder / "selected", **SELECTED)
    found["selected"] = digest(model)
    found["selected, as saved"] = digest(model.float())
    found["selected path"] = str(selected.path)

    os.chdir(folder)
    found["default folder"] = str(fit(TINY, digits, **{**SETTINGS, "epochs": 1}).path)

    # In channels_last a fused optimizer needs gradients of the same layout, in every step.
    def checked(step: Step, training: Training, batch: Batch) -> Tensor:
        training.check_layout = True
        return step(training, batch)

    machine = Machine(device="cpu", precision="float32", memory_format="channels_last", threads=1)
    model = ResNet(dataclasses.replace(TINY, block="bottleneck"))
    with around_steps(checked), mock.patch.object(fitting, "machine_for", return_value=machine):
        fit(model, digits, out=folder / "channels_last", epochs=1, accumulate=2, quiet=True)
    found["channels_last"] = [digest(model), model.get_parameter("layer1.0.conv2.weight").stride()]

    # Images that are not finite, in this process only where it is the second.
    def poisoned(step: Step, training: Training, batch: Batch) -> Tensor:
        if batch.step == 2 and RANK == 1:
            batch = dataclasses.replace(batch, images=torch.full(batch.images.shape, math.nan), normalized=True)
        return step(training, batch)

    model = ResNet(TINY)
    with around_steps(poisoned):
        fit(model, digits, out=folder / "poisoned", **{**SETTINGS, "epochs": 1})
    found["poisoned"] = digest(model)

    for name, asked in {
        "small batch": {"batch_size": 3},
        "accumulate": {"batch_size": 16, "accumulate": 5},
        "sync_norm": {"sync_norm": True},
        "used folder": {"out": folder / "plain"},
        "on one": {"data": (lambda: load_data("digits" if RANK == 0 else "nowhere"))},
        "other images": {"data": digits if RANK == 0 else load_data("digits", split_seed=1)},
    }.items():
        try:
            fit(**{"model": TINY, "data": digits, "out": folder / "refused", **SETTINGS, **asked})
        except UserError as error:
            found[f"refused {name}"] = [type(error).__name__, str(error)]

    # Two processes continue where one was interrupted.
    with mock.patch.object(fitting, "rebuild", return_value=frozen_norm()):
        found["started alone"] = str(resume(folder / "started alone", quiet=True).summary)

    # A signal to the second process alone.
    with before_step(13, lambda training: RANK == 1 and os.kill(os.getpid(), signal.SIGTERM)):
        try:
            fit(frozen_norm(), digits, out=folder / "stopped", **SETTINGS)
        except Interrupted as stop:
            found["stopped"] = [stop.signal_number, str(stop)]
    (folder / f"{RANK}.json").write_text(json.dumps(found))


def killed(folder: Path) -> None:
    """Kills the second process in the second epoch of a training by the command line."""

    def kill(training: Training) -> None:
        (folder / "killed-at").write_text(str(time.time()))
        os.kill(os.getpid(), signal.SIGKILL)

    with before_step(15, kill) if RANK == 1 else contextlib.nullcontext():
        main(["train", "digits", "--model", "resnet20", "--epochs", "2", "--batch-size", "128",
              "--precision", "float64", "--out", str(folder / "run")])  # fmt: skip


def stopped(folder: Path) -> None:
    """Stops the second process like Ctrl-Z, in the validation of the first epoch."""
    validate = Training.validate

    def halt(training: Training) -> dict[str, float]:
        if RANK == 1:
            (folder / "stopped-at").write_text(str(time.time()))
            os.kill(os.getpid(), signal.SIGSTOP)
        return validate(training)

    with mock.patch.object(Training, "validate", halt):
        main(["train", "digits", "--model", "resnet20", "--epochs", "2", "--batch-size", "128",
              "--precision", "float64", "--out", str(folder / "run")])  # fmt: skip


def failing(folder: Path) -> None:
    """Raises an error in the second process alone, in the second epoch."""

    def fail(training: Training) -> None:
        (folder / "failed-at").write_text(str(time.time()))
        raise OSError(errno.EIO, "Input/output error", "a file of the second process")

    with before_step(15, fail) if RANK == 1 else contextlib.nullcontext():
        main(["train", "digits", "--model", "resnet20", "--epochs", "2", "--batch-size", "128",
              "--precision", "float64", "--out", str(folder / "run")])  # fmt: skip


def resumed(folder: Path) -> None:
    """Resumes with the command line."""
    main(["train", "--resume", str(folder / "run")])


def three(folder: Path) -> None:
    """Three processes, and a last batch of two images: one of them has none."""
    losses = losses_of(lambda: fit(frozen_norm(), few_digits(), out=folder / "run", **{**SETTINGS, "batch_size": 32}))
    (folder / f"{RANK}.json").write_text(json.dumps(losses))


if __name__ == "__main__":
    place = Path(sys.argv[2])
    (place / f"{RANK}.pid").write_text(str(os.getpid()))
    globals()[sys.argv[1]](place)
