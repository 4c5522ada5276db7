"""The one training loop, for the command line and for everything else."""

from __future__ import annotations

import math
import time
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from resnetlab.core.console import notice
from resnetlab.core.errors import Interrupted
from resnetlab.core.memory import keep_freed_memory
from resnetlab.core.preprocessing import Preprocessing
from resnetlab.core.randomness import torch_seeded
from resnetlab.core.runs import Run
from resnetlab.data.batches import batch_bounds, training_batches
from resnetlab.data.storage.store import ImageData
from resnetlab.evaluation.forward import answer_split
from resnetlab.evaluation.metrics import overall
from resnetlab.models.network import Network
from resnetlab.training.average import WeightAverage
from resnetlab.training.checkpoint import Progress, restore_checkpoint, save_checkpoint
from resnetlab.training.distributed import ALONE, Agreement, Ranks, end_sharing, share_out
from resnetlab.training.guard import BufferGuard, StepResult, check_finite, take_results
from resnetlab.training.live_curves import LiveCurves
from resnetlab.training.machine import Machine
from resnetlab.training.progress import TrainingDisplay
from resnetlab.training.recipe import Recipe
from resnetlab.training.schedule import image_size, learning_rate
from resnetlab.training.signals import StopSignals
from resnetlab.training.step import balanced_weights, build_optimizer, training_step
from resnetlab.training.tensorboard import TensorBoardLog
from resnetlab.training.transfer import TrainedParts

CHECKPOINT_SECONDS = 300.0
"""Within an epoch a checkpoint is written after this much time; one is at the end of every epoch anyway."""
RESULTS_STEPS = {"cpu": 1, "accelerator": 50}
"""Results stay on an accelerator for so many steps, because reading them waits for it."""


def train(
    model: Network,
    data: ImageData,
    *,
    preprocessing: Preprocessing,
    recipe: Recipe,
    machine: Machine,
    seed: int,
    run: Run,
    resume: bool = False,
    quiet: bool = False,
    ranks: Ranks = ALONE,
) -> dict[str, Tensor]:
    """Trains a network in place, writing history and checkpoints into the run folder.

    Of several processes each calls this, takes its share of every batch, and ends with the same network.

    Args:
        model: fresh, or of the same architecture as the checkpoint when resuming.
        data: trained on "train"; "validation" is measured as often as the recipe says; "test" is not touched.
        preprocessing: normalizes the images.
        recipe: resolved, with no "auto" left in it.
        machine: device, precision, memory format and threads.
        seed: of every random draw.
        run: the folder.
        resume: go on from the newest checkpoint.
        quiet: show no progress.
        ranks: the place of this process among those that train together.

    Returns:
        The weights after the last step, averaged if the recipe says so, where the network has others: those of
        the best epoch. Else nothing.

    Raises:
        Interrupted: SIGINT or SIGTERM came; a checkpoint was written.
        UserError: the loss is no longer finite.
    """
    torch.set_num_threads(machine.threads)
    keep_freed_memory()
    machine.place(model)
    device = torch.device(machine.device)
    parts = TrainedParts(model, recipe)
    optimizer = build_optimizer(model, recipe)  # of all that is trained at some time
    average = WeightAverage(model, recipe.average) if recipe.average else None
    guard = BufferGuard(model)
    split = data.split("train")
    weights = None
    if recipe.class_weights == "balanced":
        weights = balanced_weights(split.labels, data.num_classes).to(device, machine.dtype)
    steps = len(batch_bounds(len(split), recipe.batch_size))
    total_steps = steps * recipe.epochs
    results_steps = RESULTS_STEPS["cpu" if device.type == "cpu" else "accelerator"]

    if resume:
        progress = restore_checkpoint(run.checkpoints, model, optimizer, average=average, ranks=ranks)
    else:
        progress = Progress()
    done = progress.epoch * steps + progress.step
    check_layout, last_saved = True, time.perf_counter()
    parts.begin(progress.epoch)
    shared, agreement = share_out(model, ranks, machine, recipe), Agreement(ranks)

    def write_checkpoint() -> None:
        save_checkpoint(run.checkpoints, model, optimizer, progress, done, average=average)

    def save() -> None:
        nonlocal last_saved
        with ranks.alike():
            check_finite(model, run)
        ranks.from_first(write_checkpoint)
        last_saved = time.perf_counter()

    def take() -> None:
        with ranks.alike():
            take_results(progress, results, run, split, log=ranks.is_first)

    if not resume:
        save()
    # A row may have been written after the checkpoint.
    rows = run.history_rows()[: progress.epoch] if ranks.is_first else []
    results: list[StepResult] = []
    logs: list[Any] = [LiveCurves(epochs=recipe.epochs, rows=rows, quiet=quiet or not ranks.is_first)]
    if run.settings.get("tensorboard") and ranks.is_first:
        logs.append(TensorBoardLog(run.path / "tensorboard"))
    with (
        StopSignals(patient=not ranks.is_alone) as signals,
        TrainingDisplay(epochs=recipe.epochs, steps=steps, done=done, quiet=quiet or not ranks.is_first) as display,
    ):
        while progress.epoch < recipe.epochs and not _has_no_more_patience(recipe, progress):
            if parts.begin(progress.epoch):
                end_sharing(shared, model)  # it would still exchange the gradients of the parts trained before
                shared, check_layout = share_out(model, ranks, machine, recipe), True
            model.train()
            batches = training_batches(
                split,
                batch_size=recipe.batch_size,
                policy=recipe.augment,
                seed=seed,
                epoch=progress.epoch,
                first_step=progress.step,
                size=image_size(recipe, progress.epoch, data.image_size),
                fit=data.fit,
                device=device,
                preprocessing=preprocessing,
                rank=ranks.rank,
                ranks=ranks.ranks,
            )
            clock = time.perf_counter()
            # What the network draws at random is a function of (seed, epoch, step) and rank, like every other draw.
            stream = f"network {ranks.rank}" if ranks.rank else "network"
            for batch in batches:
                model.set_drop_progress(done / total_steps)
                guard.remember()
                with torch_seeded(seed, stream, epoch=progress.epoch, step=batch.step, device=device):
                    loss, correct = training_step(
                        shared,
                        optimizer,
                        batch,
                        preprocessing=preprocessing,
                        recipe=recipe,
                        machine=machine,
                        lr=learning_rate(recipe, done, total_steps),
                        class_weights=weights,
                        check_layout=check_layout,
                    )
                check_layout = False
                guard.settle(loss)
                results.append(StepResult(batch.step, loss, correct, batch.positions))
                progress.step, done = batch.step + 1, done + 1
                if average is not None:
                    average.update(done)
                progress.seen += batch.total
                clock = _count_time(progress, clock)
                display.step(progress.epoch + 1, progress.seen / progress.epoch_seconds)
                if len(results) == results_steps:
                    take()
                stop, due = agreement.after_step(signals.received, clock - last_saved > CHECKPOINT_SECONDS)
                if stop or due:
                    take()
                    save()
                if stop:
                    raise Interrupted(stop, run.path)

            take()
            _count_time(progress, clock)  # on an accelerator, reading the results waited for the last steps
            with average.in_place() if average else nullcontext():
                last_lr = learning_rate(recipe, done - 1, total_steps)
                ranks.share_state(model)
                row = _row(progress, model, data, preprocessing, ranks, recipe, lr=last_lr, done=done)
                _remember_best(progress, model, recipe, row)
            rows.append(row)
            if ranks.is_first:
                run.write_history(rows)
            for log in (display, *logs):
                log.epoch(row)
            progress.end_epoch()
            save()
            if stop := agreement.now(signals.received):
                raise Interrupted(stop, run.path)

    if _has_no_more_patience(recipe, progress) and not quiet:
        notice(
            f"stopped after {progress.epoch} of {recipe.epochs} epochs: none of the last {recipe.patience} was better "
            f"than epoch {progress.best_epoch}"
        )
    model.set_drop_progress(1.0)
    end_sharing(shared, model)
    parts.end()
    if average is not None:
        average.put(average.weights)
    last = {}
    if recipe.keep == "best":
        last = {name: value.clone() for name, value in model.state_dict().items()}
        model.load_state_dict(progress.best_weights)
    ranks.share_state(model)
    model.eval()
    return last


def _has_no_more_patience(recipe: Recipe, progress: Progress) -> bool:
    return 0 < recipe.patience <= progress.epoch - progress.best_epoch


def _remember_best(progress: Progress, model: Network, recipe: Recipe, row: dict[str, Any]) -> None:
    if row["val_top1"] > progress.best_top1:
        progress.best_top1, progress.best_epoch = row["val_top1"], row["epoch"]
        if recipe.keep == "best":
            progress.best_weights = {name: value.clone() for name, value in model.state_dict().items()}


def _row(
    progress: Progress,
    model: Network,
    data: ImageData,
    preprocessing: Preprocessing,
    ranks: Ranks,
    recipe: Recipe,
    *,
    lr: float,
    done: int,
) -> dict[str, Any]:
    """Measures the validation split, where it is time to, and returns the epoch's row of the history."""
    start, epoch = time.perf_counter(), progress.epoch + 1
    validation = {"loss": math.nan, "top1": math.nan}
    if "validation" in data.splits and (epoch % recipe.validate_every == 0 or epoch == recipe.epochs):
        labels = data.splits["validation"].labels
        share = answer_split(model, data, "validation", preprocessing, rank=ranks.rank, ranks=ranks.ranks)
        logits = ranks.gather(share.logits)
        validation = ranks.from_first(lambda: overall(logits, labels))
    progress.seconds += time.perf_counter() - start
    return {
        "epoch": epoch,
        "step": done,
        "lr": lr,
        "train_loss": progress.loss_sum / progress.images if progress.images else math.nan,
        "train_top1": progress.correct / progress.images if progress.images else math.nan,
        "val_loss": validation["loss"],
        "val_top1": validation["top1"],
        "images_per_second": round(progress.seen / progress.epoch_seconds, 1),
        "seconds": round(progress.seconds, 3),
    }


def _count_time(progress: Progress, since: float) -> float:
    now = time.perf_counter()
    progress.epoch_seconds += now - since
    progress.seconds += now - since
    return now
