"""Every random draw is a function of (seed, epoch, step, stream).

Draws come from NumPy's counter-based Philox generator on the CPU (Salmon et al., "Parallel
Random Numbers: As Easy as 1, 2, 3", SC 2011), never from a worker or from earlier
draws. So a resumed run draws the same numbers as an uninterrupted one, and devices agree.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from resnetlab.core.checks import check_integer


def generator(seed: int, stream: str, *, epoch: int = 0, step: int = 0) -> np.random.Generator:
    """Returns the generator for one stream at one step of the training.

    Args:
        seed: the run's seed, 0 or more.
        stream: what is drawn ("order", "crop", ...); streams do not share draws.
        epoch: the epoch, from 0.
        step: the step within the epoch, from 0.
    """
    seed = check_integer("seed", seed, 0)
    stream_key = int.from_bytes(hashlib.sha256(stream.encode()).digest()[:8], "little")
    key = np.array([seed % 2**64, stream_key], dtype=np.uint64)
    # The draws of one place advance the two low words of the counter, never the high ones.
    counter = np.array([0, 0, step, epoch], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


@dataclass(frozen=True)
class Draws:
    """The random draws of one step: one generator per stream, so that kinds of draws are independent.

    Attributes:
        seed: the run's seed, 0 or more.
        epoch: the epoch, from 0.
        step: the step within the epoch, from 0.
    """

    seed: int
    epoch: int = 0
    step: int = 0

    def stream(self, name: str) -> np.random.Generator:
        """Returns the generator of one stream, at its start."""
        return generator(self.seed, name, epoch=self.epoch, step=self.step)


@contextmanager
def torch_seeded(
    seed: int, stream: str, *, epoch: int = 0, step: int = 0, device: torch.device | None = None
) -> Iterator[None]:
    """Seeds torch's CPU generator within the block, and that of a CUDA `device`, and restores their states after it.

    Arguments as of `generator`.
    """
    generators = [torch.default_generator]
    if device is not None and device.type == "cuda":
        generators.append(torch.cuda.default_generators[device.index or 0])
    states = [one.get_state() for one in generators]
    drawn = int(generator(seed, stream, epoch=epoch, step=step).integers(2**63))
    for one in generators:
        one.manual_seed(drawn)
    try:
        yield
    finally:
        for one, state in zip(generators, states, strict=True):
            one.set_state(state)
