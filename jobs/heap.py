"""Memory that a worker on a CPU keeps between its batches."""

from __future__ import annotations

import ctypes
import sys

# From glibc's <malloc.h>.
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8
NEVER = 2**31 - 1


def keep_freed_memory() -> None:
    """Makes glibc keep what this process frees, for its next batch; without glibc nothing happens.

    As it comes, malloc gives large blocks back to the system at once. Each batch's temporaries are then mapped, cleared
    and faulted in again, page by page.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    # Large blocks come from the heap too; there is one heap, since others than the first are cut into pieces of 64 MB
    # that hold no large blocks; and its end is never given back.
    mallopt(M_MMAP_MAX, 0)
    mallopt(M_ARENA_MAX, 1)
    mallopt(M_TRIM_THRESHOLD, NEVER)
