"""The training loop, shared by the command line, `fit` and the studies."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import cached_property, partial
from itertools import accumulate
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from resnetlab.core.console import notice
from resnetlab.core.environment import keep_freed_memory
from resnetlab.core.errors import Interrupted
from resnetlab.core.preprocessing import Preprocessing
from resnetlab.core.randomness import torch_seeded
from resnetlab.core.runs import Run, history_columns
from resnetlab.data.batches import Batch, training_batches
from resnetlab.data.storage.store import ImageData
from resnetlab.evaluation.calibration import FEWEST_IMAGES, fit_temperature
from resnetlab.evaluation.forward import answer_split
from resnetlab.evaluation.metrics import overall
from resnetlab.models.network import Network
from resnetlab.training.batch_norm import FEW_STEPS, match_statistics
from resnetlab.training.callbacks import Callback, Callbacks, CallbackState, Wishes, ask
from resnetlab.training.checkpoint import TrainingState, restore_checkpoint, save_checkpoint
from resnetlab.training.distributed import ALONE, Processes, exchange_for
from resnetlab.training.guard import BufferGuard, StepResult, StopSignals, check_finite, check_trained, take_results
from resnetlab.training.logs import TrainingLogs
from resnetlab.training.loss_scale import scaling_for
from resnetlab.training.machine import Machine
from resnetlab.training.optimizers import WeightAverage, build_optimizer
from resnetlab.training.recipe import Recipe
from resnetlab.training.sections import TrainedSections
from resnetlab.training.selection import images_of_epochs, placed, selection_for, steps_of
from resnetlab.training.step import class_weights, training_step

CHECKPOINT_SECONDS = 300.0
"""Interval between checkpoints within an epoch; every epoch also ends with one."""
RESULTS_STEPS = {"cpu": 1, "accelerator": 50}
"""Number of steps between reads of the losses; a read makes the program wait for the accelerator."""


class _ValidationStopped(Exception):  # noqa: N818 -- not an error
    """A signal arrived within a validation."""


class Training:
    """A training in progress. Its `state` is exactly what a checkpoint contains.

    Everything else is given at the start or a function of (seed, epoch, step), so `restore` continues a training
    as if it had never stopped. With several processes, each one has its own `Training` of the same run. They meet
    in two places: `exchange` combines the gradients of a step, and `processes` shares states and results.

    Args:
        model: trained in place; the same architecture as in the checkpoint, when you restore one.
        data: trains on "train" and validates on "validation"; does not touch "test".
        preprocessing: normalizes the images.
        recipe: resolved by `recipe_for`, without "auto".
        machine: device, precision, memory format and threads.
        seed: of all random draws.
        run: the run folder, for history and checkpoints.
        processes: this process's place among those that train together.
        callbacks: called in the first process.
        quiet: print nothing.
    """

    def __init__(
        self,
        model: Network,
        data: ImageData,
        *,
        preprocessing: Preprocessing,
        recipe: Recipe,
        machine: Machine,
        seed: int,
        run: Run,
        processes: Processes = ALONE,
        callbacks: Callbacks | None = None,
        quiet: bool = False,
    ) -> None:
        torch.set_num_threads(machine.threads)
        keep_freed_memory()
        machine.place(model)
        self.data, self.preprocessing, self.recipe, self.machine = data, preprocessing, recipe, machine
        self.seed, self.run, self.processes, self.quiet = seed, run, processes, quiet
        self.callbacks = callbacks or Callbacks()
        self._device = torch.device(machine.device)
        self._split = data.split("train")
        self._shown = images_of_epochs(recipe, len(self._split), max(recipe.epochs, run.epochs), run.starts)
        self._steps = [steps_of(images, recipe) for images in self._shown]
        self._steps_before = [0, *accumulate(self._steps)]  # of each epoch
        self._planned_steps = self._steps_before[recipe.epochs]
        # An extension runs the learning rate's schedule again, over its own epochs. All else depends on the epoch's
        # number.
        self._first_step = self._steps_before[run.first_epoch]
        self._schedule = recipe.changed(epochs=run.epochs - run.first_epoch)
        self._class_weights = class_weights(recipe, self._split.labels, data.class_names, machine)

        self._sections = TrainedSections(model, recipe)
        optimizer = build_optimizer(model, recipe)  # includes the sections that are unfrozen later
        average = WeightAverage(model.saved_module, recipe.average) if recipe.average else None
        scaling = scaling_for(machine)
        selection = selection_for(self._shown)
        self.state = TrainingState(
            model=model, optimizer=optimizer, average=average, scaling=scaling, selection=selection
        )

        self.exchange = exchange_for(processes, machine, recipe)
        self.check_layout = True
        self._guard = BufferGuard(model)
        self._signals = StopSignals(patient=not processes.is_alone)
        self._results: list[StepResult] = []
        self._results_steps = RESULTS_STEPS["cpu" if self._device.type == "cpu" else "accelerator"]
        self._clock = self._last_saved = time.perf_counter()

    def train(self) -> None:
        """Trains the remaining epochs, and leaves the model as `finish` does.

        Raises:
            Interrupted: SIGINT, SIGTERM or SIGHUP arrived; a checkpoint was written.
            UserError: the loss is no longer finite, or was in no step.
        """
        self._begin_epoch()
        with self._signals, self._logs:
            if self.steps_done == self._first_step:
                self.save()
            while self.state.progress.epoch < self.run.epochs and not self._is_over:
                self.epoch()
        with self.processes.alike():
            check_trained(self.state.history, self.run)
        self.finish()

    def epoch(self) -> None:
        """Trains the rest of an epoch, validates, adds a row to the history and saves a checkpoint."""
        state, progress = self.state, self.state.progress
        self._begin_epoch()
        state.model.train()
        self._clock = time.perf_counter()
        for batch in () if progress.stopped else self._batches():
            self.step(batch)
            if progress.stopped:
                break
        self._take_results()
        self._count_time()  # on an accelerator, reading the results waited for the last steps
        with self._saving_if_stopped(), state.average.in_place() if state.average else nullcontext():
            if self.steps_done <= FEW_STEPS:
                self._match_statistics()
            self.processes.share_state(state.model)
            validation = self.validate()
            row = self._row(validation)
            is_best = row["val_top1"] > progress.best_top1
            if is_best:
                state.set_best(row["val_top1"], row["epoch"], keep_weights=self.recipe.keep == "best")
            if is_best or self.recipe.keep == "final":
                progress.temperature = validation.get("temperature", progress.temperature)
        state.history.append(row)
        self._logs.epoch(row)
        self._call(self.callbacks.on_epoch, row["train_loss"])
        progress.end_epoch()
        if state.selection is not None:
            state.selection.end_epoch()
        self.save()
        self._write_history()
        if stop := self.exchange.agree_now(self._signals.received):
            raise Interrupted(stop, self.run.path, imports=self.run.imports)

    def step(self, batch: Batch) -> Tensor:
        """Takes one optimization step and returns its loss, a scalar on the device."""
        state, progress = self.state, self.state.progress
        state.model.set_drop_progress(min(1.0, self.steps_done / self._planned_steps))
        self._guard.remember()
        # Random draws inside the network are a function of (seed, epoch, step) and the process, like all others.
        stream = f"network {self.processes.rank}" if self.processes.rank else "network"
        of_images: list[Tensor] = []
        with torch_seeded(self.seed, stream, epoch=progress.epoch, step=batch.step, device=self._device):
            loss, correct = training_step(
                state.model,
                state.optimizer,
                batch,
                preprocessing=self.preprocessing,
                recipe=self.recipe,
                machine=self.machine,
                lr=self._learning_rate(self.steps_done),
                class_weights=self._class_weights,
                scaling=state.scaling,
                check_layout=self.check_layout,
                exchange=self.exchange,
                record=None if state.selection is None else partial(self._share_losses, batch, of_images),
            )
        self.check_layout = False
        self._guard.settle(loss)
        self._results.append(StepResult(batch.step, loss, correct, batch.positions, batch.weight, *of_images))
        progress.step, progress.seen = batch.step + 1, progress.seen + batch.total
        if state.average:
            state.average.update(self.steps_done)
        self._count_time()
        if len(self._results) == self._results_steps:
            self._take_results()
        self._logs.step(
            progress.epoch + 1,
            loss=progress.loss_sum / progress.images if progress.images else math.nan,
            images_per_second=progress.seen / progress.epoch_seconds,
        )
        self._call(self.callbacks.on_step, loss if batch.weight is None else loss * (batch.total / batch.weight))
        is_due = self._clock - self._last_saved > CHECKPOINT_SECONDS
        stop, is_due = self.exchange.agree(self._signals.received, is_due)
        if stop or is_due:
            self.save()
        if stop:
            raise Interrupted(stop, self.run.path, imports=self.run.imports)
        return loss

    def _share_losses(self, batch: Batch, whole: list[Tensor], losses: Tensor) -> None:
        """Appends the losses of all images of the global batch, in every process."""
        if not self.processes.is_alone:
            (losses,) = self.exchange.sum(placed(batch, losses, self.processes.rank, self.processes.world_size))
        whole.append(losses)

    def _call(self, callback: Callback | None, loss: Tensor | float) -> None:
        """Calls a callback in the first process, and does in all what it asks for."""
        if callback is None:
            return
        progress = self.state.progress

        def call() -> Wishes:
            state = CallbackState(
                epoch=progress.epoch + 1,
                epochs=self.run.epochs,
                step=progress.step,
                steps=self._steps[progress.epoch],
                lr=self._learning_rate(self.steps_done - 1),
                loss=float(loss),
                history=tuple(map(MappingProxyType, self.state.history)),
                run=self.run.path,
            )
            return ask(callback, state)

        wishes = self.processes.from_first(call)
        progress.lr_factor *= wishes.factor
        progress.stopped = progress.stopped or wishes.stop

    @contextmanager
    def _saving_if_stopped(self) -> Iterator[None]:
        """Saves and ends the training if a signal stopped the validation within; resuming validates again."""
        try:
            yield
        except _ValidationStopped:
            self.save()
            assert self._signals.received is not None
            raise Interrupted(self._signals.received, self.run.path, imports=self.run.imports) from None

    def save(self) -> None:
        """Writes `state` as a checkpoint, unless a weight is not finite, which raises `UserError`."""
        self._take_results()
        with self.processes.alike():
            check_finite(self.state.model, self.run)
        self.processes.from_first(lambda: save_checkpoint(self.run, self.state, self.steps_done, self.origin))
        self._last_saved = time.perf_counter()

    def restore(self) -> None:
        """Sets `state` to the newest intact checkpoint of the run; for a complete or extended run, to its network."""
        restore_checkpoint(self.run, self.state, processes=self.processes)
        self._write_history()  # it may be damaged, or of an epoch after the checkpoint
        progress = self.state.progress
        if self.recipe.keep == "best" and progress.best_epoch and not progress.best_weights:
            self.state.set_best(progress.best_top1, progress.best_epoch, keep_weights=True)

    @property
    def origin(self) -> dict[str, Any]:
        """Where the network comes from, as files record it. It contains no path, because people pass weights on."""
        settings = self.run.settings
        return {
            "provenance": {
                **{key: settings[key] for key in ("created", "seed", "recipe", "machine")},
                "network": settings["model"]["name"],
                **{key: settings["model"][key] for key in ("lineage",) if key in settings["model"]},
                "data": {"name": self.data.name, "fingerprint": self.data.fingerprint},
                "versions": self.run.environment.get("packages", {}),
            },
            "training": {
                "epoch": self.state.progress.epoch,
                "epochs": self.run.epochs,
                "history": history_columns(self.state.history),
            },
        }

    @property
    def steps_done(self) -> int:
        """Number of steps taken since the start of the training."""
        progress = self.state.progress
        return self._steps_before[progress.epoch] + progress.step

    def validate(self) -> dict[str, float]:
        """Returns loss, top-1 and the best temperature of the validation split.

        Loss and top-1 are NaN, and no temperature is returned, without such a split and in epochs without validation.
        The temperature is 1 if there are fewer than `calibration.FEWEST_IMAGES`.
        """
        epoch, processes = self.state.progress.epoch + 1, self.processes
        is_due = epoch % self.recipe.validate_every == 0 or epoch == self.run.epochs
        if "validation" not in self.data.splits or not is_due:
            return {"loss": math.nan, "top1": math.nan}
        own = answer_split(
            self.state.model,
            self.data,
            "validation",
            self.preprocessing,
            rank=processes.rank,
            world_size=processes.world_size,
            before_batch=self._stop_validation if processes.is_alone else None,
        )
        logits, labels = processes.gather(own.logits), self.data.splits["validation"].labels
        is_fitted = len(labels) >= FEWEST_IMAGES
        return processes.from_first(
            lambda: {
                **overall(logits, labels),
                "temperature": fit_temperature(logits, labels) if is_fitted else 1.0,
            }
        )

    def _stop_validation(self) -> None:
        """Raises `_ValidationStopped` if a signal arrived; several processes agree on it only after the validation."""
        if self._signals.received is not None:
            raise _ValidationStopped

    def _write_history(self) -> None:
        """Writes history.csv, which follows from the checkpoint."""
        self.processes.from_first(lambda: self.run.write_history(self.state.history))

    def _begin_epoch(self) -> None:
        """Unfreezes what is trained from this epoch on, and connects the gradients of the processes."""
        changed = self._sections.begin(self.state.progress.epoch)
        if changed or not self.exchange.is_connected:
            self.exchange.connect(self.state.model)
            self.check_layout = True

    def _match_statistics(self) -> None:
        match_statistics(
            self.state.model,
            self.data,
            self.preprocessing,
            self.recipe,
            self.machine,
            seed=self.seed,
            epoch=self.state.progress.epoch,
            world_size=self.processes.world_size,
        )

    def _batches(self) -> Iterator[Batch]:
        progress, selection = self.state.progress, self.state.selection
        weights = None
        if selection is not None:
            weights = selection.weights(self._shown[progress.epoch], seed=self.seed, epoch=progress.epoch)
        return training_batches(
            self._split,
            batch_size=self.recipe.batch_size,
            policy=self.recipe.augment,
            seed=self.seed,
            epoch=progress.epoch,
            first_step=progress.step,
            framing=replace(self.data.framing, image_size=self._image_size(progress.epoch)),
            device=self._device,
            preprocessing=self.preprocessing,
            balanced=self.recipe.sampling == "balanced",
            weights=weights,
            rank=self.processes.rank,
            world_size=self.processes.world_size,
        )

    def _image_size(self, epoch: int) -> int:
        """Returns height and width of the training images in an epoch, from 0."""
        return self.recipe.image_size(epoch, self.data.image_size)

    @cached_property
    def _logs(self) -> TrainingLogs:
        """What people see and the run folder records; opened once the state is restored."""
        return TrainingLogs(
            self.run,
            sizes=[self._image_size(epoch) for epoch in range(self.run.epochs)],
            steps=self._steps[: self.run.epochs],
            rows=self.state.history,
            step=self.state.progress.step,
            is_first=self.processes.is_first,
            quiet=self.quiet,
        )

    def _take_results(self) -> None:
        for result in self._results:
            if self.state.selection is not None and result.of_images is not None:
                self.state.selection.record(result.positions, result.of_images)
        with self.processes.alike():
            take_results(self.state.progress, self._results, self.run, self._split, log=self.processes.is_first)

    def _count_time(self) -> None:
        now, progress = time.perf_counter(), self.state.progress
        progress.epoch_seconds += now - self._clock
        progress.seconds += now - self._clock
        self._clock = now

    def _row(self, validation: dict[str, float]) -> dict[str, Any]:
        """Returns the epoch's row of the history; the time since the last step was spent on validation."""
        progress = self.state.progress
        progress.seconds += time.perf_counter() - self._clock
        return {
            "epoch": progress.epoch + 1,
            "step": self.steps_done,
            "lr": self._learning_rate(self.steps_done - 1),
            "train_loss": progress.loss_sum / progress.images if progress.images else math.nan,
            "train_top1": min(1.0, progress.correct / progress.images) if progress.images else math.nan,
            "val_loss": validation["loss"],
            "val_top1": validation["top1"],
            "images_per_second": round(progress.seen / progress.epoch_seconds, 1),
            "seconds": round(progress.seconds, 3),
        }

    def _learning_rate(self, step: int) -> float:
        """Returns the learning rate of a step, from 0 since the start of the training."""
        return self.state.progress.lr_factor * self._schedule.learning_rate(
            step - self._first_step, self._steps_before[self.run.epochs] - self._first_step
        )

    @property
    def _is_over(self) -> bool:
        """Whether patience or a callback ends the training; an epoch in which a callback did is completed first."""
        progress = self.state.progress
        return self.is_out_of_patience or (progress.stopped and progress.step == 0)

    @property
    def ended_by(self) -> str:
        """What ends the training before its planned epochs: "patience", "callback", or the user's "finish"."""
        if self.is_out_of_patience:
            return "patience"
        return "callback" if self.state.progress.stopped else "finish"

    @property
    def is_out_of_patience(self) -> bool:
        """Whether the recipe's patience ends the training here."""
        progress = self.state.progress
        return 0 < self.recipe.patience <= progress.epoch - max(progress.best_epoch, self.run.first_epoch)

    def finish(self) -> None:
        """Ends the training here, and leaves the model with the weights that the recipe keeps, in evaluation mode.

        These are the weights that `network_prefix` names, if the training was stopped.
        """
        state, progress = self.state, self.state.progress
        if self.is_out_of_patience and not self.quiet:
            notice(
                f"stopped after {progress.epoch} of {self.run.epochs} epochs: no improvement since "
                f"epoch {progress.best_epoch} (patience {self.recipe.patience})"
            )
        state.model.set_drop_progress(1.0)
        self.exchange.disconnect(state.model)
        self._sections.end()
        if state.average:
            state.average.put(state.average.weights)
        if progress.best_weights:
            state.model.saved_module.load_state_dict(progress.best_weights)
        state.model.temperature = progress.temperature
        self.processes.share_state(state.model)
        state.model.eval()
        epochs = self.run.epochs
        state.model.stopped_at = (progress.epoch, epochs) if progress.epoch < epochs else None
