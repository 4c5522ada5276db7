"""How the C library hands memory back and forth."""

from __future__ import annotations

import ctypes
import functools
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8  # of mallopt(3)
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
    kept, untrimmed = mallopt(_MMAP_THRESHOLD, _LARGE), mallopt(_TRIM_THRESHOLD, 2**31 - 1)
    mallopt(_ARENA_MAX, 1)  # what one thread has freed is another's
    return bool(kept and untrimmed)
