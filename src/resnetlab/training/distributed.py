"""Training in several processes, which torchrun starts and torch's process groups connect.

Every process trains a replica of the network on its part of every batch, and DistributedDataParallel averages the
gradients. Only the first process reads and writes the run folder and prints messages.

The processes use three groups. The group of the gradients waits at most `TIMEOUT_SECONDS` for a process, so a hung
process soon ends the training. A group on CPUs, for validation, checkpoints and the like, waits `wait_seconds`, and
says so every 30 seconds. A third group waits up to 12 hours, while one process downloads or packs images. All of them
detect a crashed process at once, because the system closes its connections.
"""

from __future__ import annotations

import atexit
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from resnetlab.core.console import console
from resnetlab.core.errors import ReportedElsewhereError, UserError
from resnetlab.core.waiting import WAIT_VARIABLE, announced, seconds_from, wait_seconds
from resnetlab.models.config import ResNetConfig
from resnetlab.models.network import Network
from resnetlab.training.machine import Machine
from resnetlab.training.recipe import Recipe

TIMEOUT_VARIABLE = "RESNETLAB_RANK_TIMEOUT"
"""The environment variable that sets how many seconds a step waits for another process."""
TIMEOUT_SECONDS = 30.0
"""torchrun then gives the remaining processes another 30 seconds to end."""
_LONG_TIMEOUT = timedelta(hours=12)
_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_LOST = ("gloo", "nccl", "connection closed", "connection reset", "broken pipe", "timed out", "tcpstore")
_T = TypeVar("_T")
_groups: dict[str, Any] = {}
_OTHERS = "the other processes of the training"


class ProcessLostError(ConnectionError):
    """Another process of the training ended or did not answer in time."""


@dataclass(frozen=True)
class Processes:
    """This process's place among those that train together; by default there is only one.

    Attributes:
        rank: number of this process, from 0.
        world_size: number of processes.
        local_rank: number of this process on its host, from 0.
        local_world_size: the largest number of processes on one host.
        group: the group in which processes wait `wait_seconds` for each other.
        patient: the group in which they wait up to 12 hours, for the preparation of images.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1
    group: dist.ProcessGroup | None = None
    patient: dist.ProcessGroup | None = None

    @property
    def is_first(self) -> bool:
        """Whether this is the process that owns the run folder and prints."""
        return self.rank == 0

    @property
    def is_alone(self) -> bool:
        """Whether this is the only process."""
        return self.world_size == 1

    def from_first(self, make: Callable[[], _T]) -> _T:
        """Calls `make` in the first process, while the others wait, and returns its result in all of them.

        Raises:
            ReportedElsewhereError: in the other processes, if `make` raised an error in the first.
        """
        if self.is_alone:
            return make()
        answer: list[Any] = [None, None]
        error: Exception | None = None
        if self.is_first:
            try:
                answer[0] = make()
            except Exception as caught:
                error, answer[1] = caught, str(caught)
        with announced(_OTHERS):
            dist.broadcast_object_list(answer, src=0, group=self.group)
        if error is not None:
            raise error
        if answer[1] is not None:
            raise ReportedElsewhereError(answer[1])
        return answer[0]

    @contextmanager
    def together(self) -> Iterator[None]:
        """Raises an error in all processes if the block raises one in any; only that process reports it.

        Within the block, processes must not wait for each other.
        """
        if self.is_alone:
            yield
            return
        error: Exception | None = None
        try:
            yield
        except Exception as caught:
            error = caught
        messages = enumerate(self._all(error and str(error)))
        reporter, message = next(((rank, found) for rank, found in messages if found is not None), (0, None))
        if message is None:
            return
        if error is not None and (self.rank == reporter or str(error) != message):
            raise error
        raise ReportedElsewhereError(message)

    @contextmanager
    def alike(self) -> Iterator[None]:
        """Lets only the first process report an error that all processes raise."""
        try:
            yield
        except UserError as error:
            if self.is_first:
                raise
            raise ReportedElsewhereError(str(error)) from error

    def in_turn(self, load: Callable[[], _T]) -> _T:
        """Calls `load` in the processes of each host one after the other, so that later ones find cached files."""
        result: _T | None = None
        patient = replace(self, group=self.patient or self.group)
        for turn in range(self.local_world_size):
            with patient.together():
                if turn == self.local_rank:
                    result = load()
        return result  # type: ignore[return-value]  # every process has had its turn

    def check_equal(self, what: str, value: str) -> None:
        """Raises `UserError` in all processes unless `value` is the same in all."""
        if self.is_alone:
            return
        values = self._all(value)
        with self.alike():
            if different := [rank for rank, other in enumerate(values) if other != values[0]]:
                raise UserError(
                    f"{what} differ between process 0 and process {different[0]}. Copy the same files to every host."
                )

    def gather(self, tensor: Tensor) -> Tensor:
        """Returns the rows (n, ...) of all processes in the first process, in order of rank; elsewhere its own."""
        if self.is_alone:
            return tensor
        gathered: list[Any] | None = [None] * self.world_size if self.is_first else None
        with announced(_OTHERS):
            dist.gather_object(tensor, gathered, dst=0, group=self.group)
        return tensor if gathered is None else torch.cat([rows for rows in gathered if len(rows)])

    def share_state(self, model: nn.Module) -> None:
        """Copies the first process's parameters and buffers to all others.

        Parameters differ only between different processors; running statistics differ between all processes.
        """
        if self.is_alone:
            return
        for value in model.state_dict().values():
            sent = value.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
            dist.broadcast(sent, src=0, group=self.group)
            with torch.no_grad():
                value.copy_(sent)

    def place(self, machine: Machine) -> Machine:
        """Returns the first process's settings with the device of this process.

        Raises:
            UserError: the device is not for several processes, or the host has too few GPUs.
        """
        machine = self.from_first(lambda: machine)
        if self.is_alone:
            return machine
        with self.together():
            device = torch.device(machine.device)
            if device.type == "cpu":
                return machine
            if device.type != "cuda" or not dist.is_nccl_available():
                raise UserError(
                    f"training with several processes supports cpu and cuda, not {device}. Choose one with --device."
                )
            if self.local_rank >= torch.cuda.device_count():
                raise UserError(
                    f"this host has {torch.cuda.device_count()} GPUs, but process number {self.local_rank + 1} "
                    "was started on it. Start one process per GPU (--nproc-per-node=gpu)."
                )
            torch.cuda.set_device(self.local_rank)
            return replace(machine, device=f"cuda:{self.local_rank}")

    def _all(self, value: _T) -> list[_T]:
        values: list[Any] = [None] * self.world_size
        with announced(_OTHERS):
            dist.all_gather_object(values, value, group=self.group)
        return values


ALONE = Processes()


def is_first_process() -> bool:
    """Whether torchrun started this process as the first, or torchrun did not start it."""
    return int(os.environ.get("RANK", "0")) == 0


@contextmanager
def connected() -> Iterator[Processes]:
    """Connects the processes that torchrun started, and explains it when one of them is lost within the block.

    An existing process group is used. A group that is created here stays open until the process ends, because
    torchrun's store accepts only one. Processes other than the first print nothing within the block.

    Raises:
        ProcessLostError: another process ended or did not answer in time.
    """
    launched = all(name in os.environ for name in _TORCHRUN) and int(os.environ["WORLD_SIZE"]) > 1
    if not launched and not dist.is_initialized():
        yield ALONE
        return
    timeout, wait = seconds_from(TIMEOUT_VARIABLE, TIMEOUT_SECONDS), timedelta(seconds=wait_seconds())
    if not dist.is_initialized():
        dist.init_process_group("gloo", timeout=_LONG_TIMEOUT)
        atexit.register(dist.destroy_process_group)
        _groups["long timeout"] = dist.group.WORLD
    elif "long timeout" not in _groups:
        _groups["long timeout"] = dist.new_group(backend="gloo", timeout=_LONG_TIMEOUT)
    if "wait" not in _groups:
        _groups["wait"] = dist.new_group(backend="gloo", timeout=wait)
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    groups = {"group": _groups["wait"], "patient": _groups["long timeout"]}
    processes = Processes(dist.get_rank(), dist.get_world_size(), local_rank, **groups)
    quiet, console.quiet = console.quiet, not processes.is_first
    try:
        with warnings.catch_warnings():
            # torch also compares strides of axes of length one, which are arbitrary; `check_memory_layout` does not.
            warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
            sizes = processes._all(int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
            yield replace(processes, local_world_size=max(sizes))
    except RuntimeError as error:
        if not _is_lost_connection(error):
            raise
        reason = str(error).strip().splitlines()[0].partition(". ")[0]
        raise ProcessLostError(
            f"process {processes.rank} of {processes.world_size}: another process of this training ended, or "
            f"did not answer in time. The limit is {timeout:g} seconds in a step ({TIMEOUT_VARIABLE}) and "
            f"{wait.total_seconds():g} seconds elsewhere ({WAIT_VARIABLE}). Its own messages are above or in "
            f"its log; this process received: {reason}. Continue from the last checkpoint with: resnetlab "
            "train --resume RUN"
        ) from error
    finally:
        console.quiet = quiet


def check_recipe(recipe: Recipe, processes: Processes, model: Network, machine: Machine) -> None:
    """Raises `UserError` for settings of the recipe that do not fit these processes or this network."""
    least = 2 * recipe.accumulate * processes.world_size
    if not processes.is_alone and recipe.batch_size < least:
        split = f" in accumulate={recipe.accumulate} micro-batches" if recipe.accumulate > 1 else ""
        raise UserError(
            f"batch_size={recipe.batch_size} is divided among {processes.world_size} processes{split}, which leaves "
            f"fewer than two images for each. Use --batch-size {least} or more, or fewer processes."
        )
    if not recipe.sync_norm:
        return
    config = model.config
    if isinstance(config, ResNetConfig) and (config.parts == "scratch" or config.running_variance != "unbiased"):
        raise UserError(
            'sync_norm=True needs torch\'s batch normalization, and the network has parts="scratch" or '
            'running_variance="biased". Set sync_norm=False.'
        )
    if torch.device(machine.device).type == "cpu":
        raise UserError("sync_norm=True needs GPUs: torch cannot synchronize on CPUs. Set sync_norm=False.")


class Exchange:
    """What the processes of a training exchange in every step. This class is for a single process: nothing."""

    world_size = 1

    @property
    def is_connected(self) -> bool:
        """Whether gradients can be exchanged: always, if there is nothing to exchange."""
        return True

    def connect(self, model: Network) -> None:
        """Prepares to exchange the gradients of the parameters that are now trained, and equalizes the replicas."""

    def disconnect(self, model: Network) -> None:
        """Undoes `connect`."""

    def forward(self, model: nn.Module, images: Tensor) -> Tensor:
        """Returns the logits; the backward pass through them combines the gradients of all processes."""
        return model(images)

    def accumulating(self) -> AbstractContextManager[Any]:
        """Within, gradients are added up in this process; the next pass after it exchanges their sum."""
        return nullcontext()

    def sum(self, *values: Tensor) -> tuple[Tensor, ...]:
        """Returns each scalar summed over all processes, on the device."""
        return values

    def agree(self, stop: int | None, save: bool) -> tuple[int, bool]:
        """Exchanges the wishes of the processes after a step and returns what they agreed on.

        Several processes agree on the wishes of the step before, so that no step waits for the exchange.

        Args:
            stop: the signal that arrived, if any; the largest number wins.
            save: whether a checkpoint is due by this process's clock; the first process decides.

        Returns:
            (signal or 0, whether to write a checkpoint).
        """
        return stop or 0, save

    def agree_now(self, stop: int | None) -> int:
        """Returns the signal that arrived in any process, or 0; the processes wait for each other."""
        return stop or 0


NO_EXCHANGE = Exchange()


class _ProcessExchange(Exchange):
    """The exchange among several processes, by DistributedDataParallel.

    Args:
        processes: this process and the others.
        machine: device of this process.
        recipe: its `sync_norm`.
    """

    def __init__(self, processes: Processes, machine: Machine, recipe: Recipe) -> None:
        self.world_size = processes.world_size
        self._processes = processes
        self._backend = "gloo" if torch.device(machine.device).type == "cpu" else "nccl"
        self._sync_norm = recipe.sync_norm
        self._network: DistributedDataParallel | None = None
        self._pending: tuple[Any, Tensor] | None = None

    @property
    def is_connected(self) -> bool:
        return self._network is not None

    def connect(self, model: Network) -> None:
        self.disconnect(model)
        group = dist.new_group(
            backend=self._backend, timeout=timedelta(seconds=seconds_from(TIMEOUT_VARIABLE, TIMEOUT_SECONDS))
        )
        if self._sync_norm:
            nn.SyncBatchNorm.convert_sync_batchnorm(model, group)
        # With a bucket view, gradients have the memory layout of their parameters.
        self._network = DistributedDataParallel(model, process_group=group, gradient_as_bucket_view=True)

    def disconnect(self, model: Network) -> None:
        if self._network is not None:
            dist.destroy_process_group(self._network.process_group)
            self._network = None
        restore_batch_norm(model)

    def forward(self, model: nn.Module, images: Tensor) -> Tensor:
        return self._connected()(images)

    def accumulating(self) -> AbstractContextManager[Any]:
        return self._connected().no_sync()

    def sum(self, *values: Tensor) -> tuple[Tensor, ...]:
        # One small exchange per step, for which the host of an accelerator does not wait. All processes need the sum
        # before they update, because it shows whether the loss of any of them is not finite.
        sums = torch.stack([value.double() for value in values])
        dist.all_reduce(sums, group=self._connected().process_group)
        return sums.unbind()

    def agree(self, stop: int | None, save: bool) -> tuple[int, bool]:
        agreed = self._settle()
        wishes = torch.tensor([stop or 0, int(save and self._processes.is_first)])
        work = dist.all_reduce(wishes, dist.ReduceOp.MAX, group=self._processes.group, async_op=True)
        self._pending = (work, wishes)
        return agreed

    def agree_now(self, stop: int | None) -> int:
        before = self.agree(stop, False)[0]
        return max(before, self._settle()[0])

    def _settle(self) -> tuple[int, bool]:
        if self._pending is None:
            return 0, False
        work, wishes = self._pending
        self._pending = None
        work.wait()
        return int(wishes[0]), bool(wishes[1])

    def _connected(self) -> DistributedDataParallel:
        assert self._network is not None, "connect the processes first"
        return self._network


def exchange_for(processes: Processes, machine: Machine, recipe: Recipe) -> Exchange:
    """Returns the exchange for one process or several."""
    return NO_EXCHANGE if processes.is_alone else _ProcessExchange(processes, machine, recipe)


def restore_batch_norm(model: nn.Module) -> None:
    """Replaces synchronized batch normalization by plain layers with the same tensors."""
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, nn.SyncBatchNorm):
                plain = nn.BatchNorm2d(layer.num_features, layer.eps, layer.momentum)
                plain.weight, plain.bias = layer.weight, layer.bias
                plain.running_mean, plain.running_var = layer.running_mean, layer.running_var
                plain.num_batches_tracked = layer.num_batches_tracked
                setattr(parent, name, plain.train(layer.training))


def _is_lost_connection(error: RuntimeError) -> bool:
    """Whether an error of torch is about the connection; gloo's errors have no type of their own."""
    lost = isinstance(error, dist.DistError) and not isinstance(error, ValueError)
    return lost or any(word in str(error).lower() for word in _LOST)
