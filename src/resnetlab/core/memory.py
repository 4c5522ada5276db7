"""How the C library hands memory back and forth."""

from __future__ import annotations

import ctypes
import functools
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt(3)
_LARGE = 2**30


@functools.cache
def keep_freed_memory() -> bool:
    """Makes the C library keep memory that tensors have freed, for the rest of the process.

    glibc gives blocks above 32 MiB back to the system at once, and the next tensor of that size waits while
    the system clears its pages again; batches and activations are such blocks at every step. The process
    holds on to its peak memory instead. Does nothing where the C library is another.

    Returns:
        Whether it took effect.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # not glibc
        return False
    # The threshold may not be above half of a heap, and that of trimming has no bound.
    return bool(mallopt(_MMAP_THRESHOLD, _LARGE)) and bool(mallopt(_TRIM_THRESHOLD, 2**31 - 1))
