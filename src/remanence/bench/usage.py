"""Time and memory of one call, on a processor or a GPU."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from remanence.analysis.live_bytes import LiveBytes


def wait(device: torch.device) -> None:
    """Until the device has computed all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(call: Callable[[], Any], device: torch.device) -> float:
    """How long a call takes, its work on the device included."""
    wait(device)
    began = time.perf_counter()
    call()
    wait(device)
    return time.perf_counter() - began


def peak_bytes(call: Callable[[], Any], device: torch.device) -> int:
    """The most bytes of tensors alive at once that a call made itself.

    On a CPU they are counted as operations make them (`LiveBytes`), on a GPU the allocator tells.
    """
    if device.type == "cuda":
        wait(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        wait(device)
        return torch.cuda.max_memory_allocated(device) - before
    with LiveBytes() as live:
        call()
    return live.peak


def resident_bytes() -> int | None:
    """What the process holds of the machine's memory now; None where the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return pages * resource.getpagesize()


def most_resident_bytes() -> int:
    """The most that the process has held so far."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
