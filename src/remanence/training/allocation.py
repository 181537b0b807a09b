"""Keep what is freed: a training step asks for the same large blocks again and again.

The C library of most Linux systems (glibc) hands every block above a threshold back to the system as soon as it is
free, and is given an empty one for the next. Each of its pages then costs a fault and zeros: 10 to 20 % of a step on a
CPU. Here it is told to keep them, so that a process holds on to the most it ever needed.
"""

from __future__ import annotations

import ctypes
import os
import sys

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""Names of options in glibc's malloc.h."""
LARGEST = 2**31 - 1
SETTINGS = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_", "MALLOC_MMAP_MAX_")


def keep_freed_memory() -> bool:
    """Tell the C library to keep large blocks, for the rest of the process; whether it does.

    False, and nothing happens, where the library is another (macOS, musl) or the user has set its thresholds (the
    variables of mallopt(3), or GLIBC_TUNABLES).
    """
    if not sys.platform.startswith("linux") or any(name in os.environ for name in SETTINGS):
        return False
    if "glibc.malloc." in os.environ.get("GLIBC_TUNABLES", ""):
        return False
    try:
        library = ctypes.CDLL(None)
        library.gnu_get_libc_version  # noqa: B018 (only glibc has it)
        mallopt = library.mallopt
    except (OSError, AttributeError):
        return False
    # Older versions refuse thresholds above half a heap, 32 MiB.
    raised = bool(mallopt(MMAP_THRESHOLD, LARGEST) or mallopt(MMAP_THRESHOLD, 1 << 25))
    return bool(mallopt(TRIM_THRESHOLD, LARGEST)) and raised
