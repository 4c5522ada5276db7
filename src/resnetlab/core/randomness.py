"""Every random draw is a function of (seed, epoch, step, stream).

Draws come from NumPy's counter-based Philox generator on the CPU (Salmon et al., "Parallel
Random Numbers: As Easy as 1, 2, 3", SC 2011), never from a worker or from what was drawn
before. So a resumed run draws what the uninterrupted one would have, and devices agree.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from resnetlab.core.checks import check_integer


def generator(seed: int, stream: str, *, epoch: int = 0, step: int = 0) -> np.random.Generator:
    """Returns the generator of one place in the training.

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


@contextmanager
def torch_seeded(seed: int, stream: str) -> Iterator[None]:
    """Seeds torch's CPU generator, and no other, within the block and restores its state after it."""
    state = torch.default_generator.get_state()
    torch.default_generator.manual_seed(int(generator(seed, stream).integers(2**63)))
    try:
        yield
    finally:
        torch.default_generator.set_state(state)
