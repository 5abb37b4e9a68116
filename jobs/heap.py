"""How a worker's process keeps the memory that one batch frees for the next one."""

from __future__ import annotations

import os

# As it comes, glibc gives large blocks back to the system at once: each batch on a CPU maps, clears and faults in its
# temporaries anew, page by page. It reads these when a process begins; `mallopt` comes too late for threads that have a
# heap already. Other C libraries know none of them.
_KEEPING = {
    "MALLOC_MMAP_MAX_": "0",  # large blocks come from the heap too
    "MALLOC_ARENA_MAX": "1",  # of which there is one: further ones are in pieces of 64 MB, too small for large blocks
    "MALLOC_TRIM_THRESHOLD_": str(2**62),  # its end is never given back
}


def environment() -> dict[str, str]:
    """What to begin a worker's process with; what the user has set goes before."""
    return {name: os.environ.get(name, value) for name, value in _KEEPING.items()}
