"""The one training loop, for the command line and for everything else."""

from __future__ import annotations

import math
import time
from typing import Any

import torch
from torch import Tensor

from resnetlab.core.errors import Interrupted, UserError
from resnetlab.core.memory import keep_freed_memory
from resnetlab.core.preprocessing import Preprocessing
from resnetlab.core.randomness import torch_seeded
from resnetlab.core.runs import Run
from resnetlab.data.batches import batch_bounds, training_batches
from resnetlab.data.store import ImageData
from resnetlab.evaluation.forward import answer_split
from resnetlab.evaluation.metrics import overall
from resnetlab.models.resnet import ResNet
from resnetlab.training.checkpoint import Progress, restore_checkpoint, save_checkpoint
from resnetlab.training.display import TrainingDisplay
from resnetlab.training.machine import Machine
from resnetlab.training.recipe import Recipe
from resnetlab.training.schedule import learning_rate
from resnetlab.training.signals import StopSignals
from resnetlab.training.step import build_optimizer, training_step

CHECKPOINT_SECONDS = 300.0
"""Within an epoch a checkpoint is written after this much time; one is at the end of every epoch anyway."""


def train(
    model: ResNet,
    data: ImageData,
    *,
    preprocessing: Preprocessing,
    recipe: Recipe,
    machine: Machine,
    seed: int,
    run: Run,
    resume: bool = False,
    quiet: bool = False,
) -> None:
    """Trains a network in place, writing history and checkpoints into the run folder.

    Args:
        model: fresh, or of the same architecture as the checkpoint when resuming.
        data: trained on "train"; "validation" is measured after every epoch; "test" is not touched.
        preprocessing: normalises the images.
        recipe: resolved, with no "auto" left in it.
        machine: device, precision, memory format and threads.
        seed: of every random draw.
        run: the folder.
        resume: go on from the newest checkpoint.
        quiet: show no progress.

    Raises:
        Interrupted: SIGINT or SIGTERM came; a checkpoint was written.
        UserError: the loss is no longer finite.
    """
    torch.set_num_threads(machine.threads)
    keep_freed_memory()
    machine.place(model)
    device = torch.device(machine.device)
    optimizer = build_optimizer(model, recipe)
    split = data.split("train")
    steps = len(batch_bounds(len(split), recipe.batch_size))
    total_steps = steps * recipe.epochs

    if resume:
        progress = restore_checkpoint(run.checkpoints, model, optimizer)
    else:
        progress = Progress()
        save_checkpoint(run.checkpoints, model, optimizer, progress, 0)
    rows = run.history_rows()[: progress.epoch]  # a row may have been written after the checkpoint
    done = progress.epoch * steps + progress.step
    first_step, last_saved = True, time.perf_counter()

    with (
        StopSignals() as signals,
        TrainingDisplay(epochs=recipe.epochs, steps=steps, done=done, quiet=quiet) as display,
    ):
        while progress.epoch < recipe.epochs:
            model.train()
            # Results stay on the device until the epoch ends or a checkpoint is due: reading them waits for it.
            results: list[tuple[Tensor, Tensor, int]] = []
            batches = training_batches(
                split,
                batch_size=recipe.batch_size,
                policy=recipe.augment,
                seed=seed,
                epoch=progress.epoch,
                first_step=progress.step,
                size=data.image_size,
                fit=data.fit,
                device=device,
                preprocessing=preprocessing,
            )
            clock = time.perf_counter()
            # What the network draws at random is a function of (seed, epoch, step), like every other draw.
            for batch in batches:
                model.set_drop_progress(done / total_steps)
                with torch_seeded(seed, "network", epoch=progress.epoch, step=batch.step, device=device):
                    loss, correct = training_step(
                        model,
                        optimizer,
                        batch,
                        preprocessing=preprocessing,
                        recipe=recipe,
                        machine=machine,
                        lr=learning_rate(recipe, done, total_steps),
                        check_layout=first_step,
                    )
                first_step = False
                results.append((loss, correct, len(batch.labels)))
                progress.step, done = batch.step + 1, done + 1
                progress.images += len(batch.labels)
                clock = _count_time(progress, clock)
                display.step(progress.epoch + 1, progress.images / progress.epoch_seconds)
                if signals.received or clock - last_saved > CHECKPOINT_SECONDS:
                    _read_results(progress, results, run)
                    save_checkpoint(run.checkpoints, model, optimizer, progress, done)
                    last_saved = time.perf_counter()
                if signals.received:
                    raise Interrupted(signals.received, run.path)

            _read_results(progress, results, run)
            _count_time(progress, clock)  # on an accelerator, reading the results waited for the last steps
            last_lr = learning_rate(recipe, done - 1, total_steps)
            row = _row(progress, model, data, preprocessing, lr=last_lr, done=done)
            if recipe.keep == "best" and row["val_top1"] > progress.best_top1:
                progress.best_top1 = row["val_top1"]
                progress.best_weights = {name: value.clone() for name, value in model.state_dict().items()}
            rows.append(row)
            run.write_history(rows)
            display.epoch(row)
            progress.end_epoch()
            save_checkpoint(run.checkpoints, model, optimizer, progress, done)
            last_saved = time.perf_counter()
            if signals.received:
                raise Interrupted(signals.received, run.path)

    model.set_drop_progress(1.0)
    if recipe.keep == "best":
        model.load_state_dict(progress.best_weights)
    model.eval()


def _read_results(progress: Progress, results: list[tuple[Tensor, Tensor, int]], run: Run) -> None:
    """Adds (mean loss, correct predictions, images) of steps to the epoch's sums, in order, and forgets them.

    A loss that is not finite ends the training here, before a checkpoint could be overwritten with it.
    """
    if results:
        losses = torch.stack([loss for loss, _, _ in results]).tolist()
        correct = torch.stack([count for _, count, _ in results]).tolist()
        for loss, right, (_, _, images) in zip(losses, correct, results, strict=True):
            progress.loss_sum += loss * images
            progress.correct += right
        results.clear()
    if not math.isfinite(progress.loss_sum):
        raise UserError(
            f"the training loss is no longer finite in epoch {progress.epoch + 1}. The last weights before that "
            f"are in {run.checkpoints}. Start again with a lower learning rate (--lr)."
        )


def _row(
    progress: Progress, model: ResNet, data: ImageData, preprocessing: Preprocessing, *, lr: float, done: int
) -> dict[str, Any]:
    """Measures the validation split and returns the epoch's row of the history."""
    start = time.perf_counter()
    validation = {"loss": math.nan, "top1": math.nan}
    if "validation" in data.splits:
        labels = data.splits["validation"].labels
        validation = overall(answer_split(model, data, "validation", preprocessing).logits, labels)
    progress.seconds += time.perf_counter() - start
    return {
        "epoch": progress.epoch + 1,
        "step": done,
        "lr": lr,
        "train_loss": progress.loss_sum / progress.images,
        "train_top1": progress.correct / progress.images,
        "val_loss": validation["loss"],
        "val_top1": validation["top1"],
        "images_per_second": round(progress.images / progress.epoch_seconds, 1),
        "seconds": round(progress.seconds, 3),
    }


def _count_time(progress: Progress, since: float) -> float:
    now = time.perf_counter()
    progress.epoch_seconds += now - since
    progress.seconds += now - since
    return now
