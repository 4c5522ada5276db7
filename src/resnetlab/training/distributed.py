"""Training shared out over processes: torchrun starts them, torch's process groups connect them.

Every process (a rank) holds the whole network and takes its share of every batch; DistributedDataParallel
averages the gradients. The first rank alone reads and writes the run folder, and says what is to be said.

There are two groups. That of the gradients waits for a rank for `TIMEOUT_SECONDS`, so that one that hangs ends
the training soon. The other, on CPUs, is patient: in it ranks wait while one of them packs images or writes a file,
and still hear at once of a process that dies, because the system closes its connections.
"""

from __future__ import annotations

import atexit
import math
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
from resnetlab.core.errors import ToldElsewhereError, UserError
from resnetlab.models.network import Network
from resnetlab.models.resnet import ResNet
from resnetlab.training.machine import Machine
from resnetlab.training.recipe import Recipe

TIMEOUT_VARIABLE = "RESNETLAB_RANK_TIMEOUT"
"""The environment variable that sets how many seconds a step waits for another rank."""
TIMEOUT_SECONDS = 30.0
"""torchrun gives the processes that are left as much again to end."""
_PATIENCE = timedelta(hours=12)
_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_LOST = ("gloo", "nccl", "connection closed", "connection reset", "broken pipe", "timed out", "tcpstore")
_T = TypeVar("_T")
_groups: dict[str, Any] = {}


class RankLostError(ConnectionError):
    """Another process of the training ended, or did not answer in time."""


@dataclass(frozen=True)
class Ranks:
    """The place of this process among those that train together; by default it is the only one.

    Attributes:
        rank: number of this process, from 0.
        ranks: how many there are.
        local_rank: number of this process on its host, from 0.
        turns: the most processes that a host has.
        patient: the group in which ranks wait for each other as long as it takes.
    """

    rank: int = 0
    ranks: int = 1
    local_rank: int = 0
    turns: int = 1
    patient: dist.ProcessGroup | None = None

    @property
    def is_first(self) -> bool:
        """Whether this is the rank that owns the run folder and prints."""
        return self.rank == 0

    @property
    def is_alone(self) -> bool:
        """Whether there is no other."""
        return self.ranks == 1

    def from_first(self, make: Callable[[], _T]) -> _T:
        """Calls `make` on the first rank, while the others wait, and returns on all what it returned.

        Raises:
            ToldElsewhereError: on the others, where it raised an error on the first.
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
        dist.broadcast_object_list(answer, src=0, group=self.patient)
        if error is not None:
            raise error
        if answer[1] is not None:
            raise ToldElsewhereError(answer[1])
        return answer[0]

    @contextmanager
    def together(self) -> Iterator[None]:
        """Ends on every rank with an error where it does on one, which alone tells it.

        Within, a rank must not wait for another.
        """
        if self.is_alone:
            yield
            return
        error: Exception | None = None
        try:
            yield
        except Exception as caught:
            error = caught
        teller, told = next(
            ((rank, words) for rank, words in enumerate(self._all(error and str(error))) if words is not None),
            (0, None),
        )
        if told is None:
            return
        if error is not None and (self.rank == teller or str(error) != told):
            raise error
        raise ToldElsewhereError(told)

    @contextmanager
    def alike(self) -> Iterator[None]:
        """Marks an error that is raised on all ranks alike, so that the first alone tells it."""
        try:
            yield
        except UserError as error:
            if self.is_first:
                raise
            raise ToldElsewhereError(str(error)) from error

    def in_turn(self, load: Callable[[], _T]) -> _T:
        """Calls `load` on one process of each host after the other: the first makes what the others then find."""
        result: _T | None = None
        for turn in range(self.turns):
            with self.together():
                if turn == self.local_rank:
                    result = load()
        return result  # type: ignore[return-value]  # every local rank had its turn

    def check_equal(self, what: str, value: str) -> None:
        """Raises `UserError` on all ranks unless `value` is the same on all."""
        if self.is_alone:
            return
        values = self._all(value)
        with self.alike():
            if different := [rank for rank, other in enumerate(values) if other != values[0]]:
                raise UserError(
                    f"{what} of process {different[0]} are not those of process 0. Every host needs the same copy."
                )

    def gather(self, tensor: Tensor) -> Tensor:
        """Returns, on the first rank, the rows (n, ...) of all ranks in their order; on the others their own."""
        if self.is_alone:
            return tensor
        parts: list[Any] | None = [None] * self.ranks if self.is_first else None
        dist.gather_object(tensor, parts, dst=0, group=self.patient)
        return tensor if parts is None else torch.cat([part for part in parts if len(part)])

    def share_state(self, model: nn.Module) -> None:
        """Gives all ranks the first one's parameters and buffers.

        Parameters are equal already, but where processors differ; running statistics are each rank's own.
        """
        if self.is_alone:
            return
        for value in model.state_dict().values():
            sent = value.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
            dist.broadcast(sent, src=0, group=self.patient)
            with torch.no_grad():
                value.copy_(sent)

    def place(self, machine: Machine) -> Machine:
        """Returns the first rank's settings, with this rank's own device.

        Raises:
            UserError: the device cannot be shared out, or the host has too few.
        """
        machine = self.from_first(lambda: machine)
        if self.is_alone:
            return machine
        with self.together():
            device = torch.device(machine.device)
            if device.type == "cpu":
                return machine
            if device.type != "cuda" or not dist.is_nccl_available():
                raise UserError(f"several processes train on cpu or cuda, not on {device}. Choose --device.")
            if self.local_rank >= torch.cuda.device_count():
                raise UserError(
                    f"this host has {torch.cuda.device_count()} GPUs, too few for process {self.local_rank + 1} on "
                    "it. Start as many processes as there are GPUs (--nproc-per-node=gpu)."
                )
            torch.cuda.set_device(self.local_rank)
            return replace(machine, device=f"cuda:{self.local_rank}")

    def _all(self, value: _T) -> list[_T]:
        values: list[Any] = [None] * self.ranks
        dist.all_gather_object(values, value, group=self.patient)
        return values


ALONE = Ranks()


def is_first_process() -> bool:
    """Whether this is the process that goes on alone when the others of a training have ended."""
    return int(os.environ.get("RANK", "0")) == 0


@contextmanager
def connected() -> Iterator[Ranks]:
    """Connects this process with the others that torchrun started, where it did, and explains a loss within.

    A process group that is there already is used. One that is opened here stays open until the process ends, since
    torchrun's store takes no second one. Ranks other than the first print nothing within the block.

    Raises:
        RankLostError: another process ended, or did not answer in time.
    """
    launched = all(name in os.environ for name in _TORCHRUN) and int(os.environ["WORLD_SIZE"]) > 1
    if not launched and not dist.is_initialized():
        yield ALONE
        return
    timeout = _timeout()
    if not dist.is_initialized():
        dist.init_process_group("gloo", timeout=_PATIENCE)
        atexit.register(dist.destroy_process_group)
        _groups["patient"] = dist.group.WORLD
    elif "patient" not in _groups:
        _groups["patient"] = dist.new_group(backend="gloo", timeout=_PATIENCE)
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    patient: Any = _groups["patient"]
    ranks = Ranks(dist.get_rank(), dist.get_world_size(), local_rank, patient=patient)
    quiet, console.quiet = console.quiet, not ranks.is_first
    try:
        with warnings.catch_warnings():
            # It compares strides of axes of length one too, which have no say; `check_memory_layout` looks at the rest.
            warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
            yield replace(ranks, turns=max(ranks._all(int(os.environ.get("LOCAL_WORLD_SIZE", "1")))))
    except RuntimeError as error:
        if not _tells_of_a_loss(error):
            raise
        noticed = str(error).strip().splitlines()[0].partition(". ")[0]
        raise RankLostError(
            f"process {ranks.rank} of {ranks.ranks}: another process of this training ended, or did not answer within "
            f"{timeout:g} seconds ({TIMEOUT_VARIABLE} sets them). What it said is above or in its own log; here it was "
            f"noticed by: {noticed}. Go on from the last checkpoint, with train --resume and the run's folder."
        ) from error
    finally:
        console.quiet = quiet


def share_out(model: Network, ranks: Ranks, machine: Machine, recipe: Recipe) -> nn.Module:
    """Returns what forward and backward passes go through: the network itself, or torch's wrapper around it.

    The network has the first rank's weights on all ranks then. Its gradients lie in memory as its parameters do.
    """
    if ranks.is_alone:
        return model
    kind = torch.device(machine.device).type
    backend = "gloo" if kind == "cpu" else "nccl"
    group = dist.new_group(backend=backend, timeout=timedelta(seconds=_timeout()))
    if recipe.sync_norm:
        nn.SyncBatchNorm.convert_sync_batchnorm(model, group)
    return DistributedDataParallel(model, process_group=group, gradient_as_bucket_view=True)


def end_sharing(shared: nn.Module, model: Network) -> None:
    """Gives up what `share_out` made; batch normalization takes the place of the synchronized one, with its tensors."""
    if isinstance(shared, DistributedDataParallel):
        dist.destroy_process_group(shared.process_group)
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, nn.SyncBatchNorm):
                plain = nn.BatchNorm2d(layer.num_features, layer.eps, layer.momentum)
                plain.weight, plain.bias = layer.weight, layer.bias
                plain.running_mean, plain.running_var = layer.running_mean, layer.running_var
                plain.num_batches_tracked = layer.num_batches_tracked
                setattr(parent, name, plain.train(layer.training))


def check_recipe(recipe: Recipe, ranks: Ranks, model: ResNet, machine: Machine) -> None:
    """Raises `UserError` for what the recipe asks and so many processes, or this network, cannot do."""
    least = 2 * recipe.accumulate * ranks.ranks
    if not ranks.is_alone and recipe.batch_size < least:
        parts = f" in accumulate={recipe.accumulate} parts" if recipe.accumulate > 1 else ""
        raise UserError(
            f"batch_size={recipe.batch_size} is the batch of all {ranks.ranks} processes together, and leaves less "
            f"than two images for each{parts}. Take at least {least} (--batch-size), or fewer processes."
        )
    if not recipe.sync_norm:
        return
    if model.config.parts == "scratch" or model.config.running_variance != "unbiased":
        raise UserError(
            'sync_norm=True is for torch\'s own batch normalization, and the network has parts="scratch" or '
            'running_variance="biased". Set sync_norm=False.'
        )
    if torch.device(machine.device).type == "cpu":
        raise UserError("sync_norm=True needs GPUs: torch has no synchronized normalization on CPUs. Set it to False.")


def shares(model: nn.Module) -> int:
    """Returns into how many shares a batch is divided among processes: 1 without the wrapper."""
    return dist.get_world_size(model.process_group) if isinstance(model, DistributedDataParallel) else 1


def without_exchange(model: nn.Module) -> AbstractContextManager[Any]:
    """Within, gradients are added up in this process; the pass after it exchanges their sum."""
    return model.no_sync() if isinstance(model, DistributedDataParallel) else nullcontext()


def summed(model: nn.Module, *values: Tensor) -> tuple[Tensor, ...]:
    """Returns scalars summed over all ranks, or as they are where there is one, on the device.

    It is one small exchange of a step, and an accelerator's host does not wait for it. What a step that is not
    finite is told by must be known to all ranks before they update: the sum is, and says the rest as well.
    """
    if not isinstance(model, DistributedDataParallel):
        return values
    sums = torch.stack([value.double() for value in values])
    dist.all_reduce(sums, group=model.process_group)
    return sums.unbind()


class Agreement:
    """What any rank wants after a step, known to all of them one step later, so that no step waits for it."""

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._pending: tuple[Any, Tensor] | None = None

    def after_step(self, stop: int | None, save: bool) -> tuple[int, bool]:
        """Takes this rank's wishes and returns those of all ranks, of the step before; alone, of this one.

        Args:
            stop: the signal that came, if one did; the greatest is agreed upon.
            save: whether a checkpoint is due by this rank's clock; the first rank's counts.

        Returns:
            (signal or 0, whether to write a checkpoint).
        """
        if self._ranks.is_alone:
            return stop or 0, save
        agreed = self._settle()
        wishes = torch.tensor([stop or 0, int(save and self._ranks.is_first)])
        work = dist.all_reduce(wishes, dist.ReduceOp.MAX, group=self._ranks.patient, async_op=True)
        self._pending = (work, wishes)
        return agreed

    def now(self, stop: int | None) -> int:
        """Returns the signal that came to any rank, or 0; all ranks wait for each other."""
        before = self.after_step(stop, False)[0]
        return max(before, self._settle()[0])

    def _settle(self) -> tuple[int, bool]:
        if self._pending is None:
            return 0, False
        work, wishes = self._pending
        self._pending = None
        work.wait()
        return int(wishes[0]), bool(wishes[1])


def _timeout() -> float:
    given = os.environ.get(TIMEOUT_VARIABLE, "")
    try:
        seconds = float(given or TIMEOUT_SECONDS)
    except ValueError:
        seconds = math.nan
    if not 1 <= seconds <= _PATIENCE.total_seconds():
        raise UserError(f"{TIMEOUT_VARIABLE} must be a number of seconds, 1 to 43200, got {given!r}.")
    return seconds


def _tells_of_a_loss(error: RuntimeError) -> bool:
    """Whether an error of torch is about the connection; gloo's have no type of their own."""
    lost = isinstance(error, dist.DistError) and not isinstance(error, ValueError)
    return lost or any(word in str(error).lower() for word in _LOST)
