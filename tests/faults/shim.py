"""The preloaded library that makes calls to the system fail at chosen moments; `shim.c` says how."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

SOURCE = Path(__file__).with_name("shim.c")
ACTIONS = {"count": 0, "kill": 1, "full": 2, "delay": 3}
# Counting alone is waiting for no time.
ACTIONS["count"] = ACTIONS["delay"]


@dataclass(frozen=True)
class Fault:
    """What happens to the calls of a process that change files under a folder."""

    folder: str
    action: Literal["count", "kill", "full", "delay"]
    at: int = 0
    """The number of the call, from 1, before which it happens; for "delay" the last call that waits, and 0 for all."""
    microseconds: int = 0
    """The longest wait of "delay"."""
    seed: int = 1


def compile_shim(folder: Path) -> Path | None:
    """The compiled library; None where this machine has no C compiler or another system."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or not sys.platform.startswith("linux"):
        return None
    made = folder / "faults.so"
    command = [compiler, "-O1", "-shared", "-fPIC", "-w", str(SOURCE), "-o", str(made), "-ldl"]
    done = subprocess.run(command, capture_output=True, check=False)
    return made if done.returncode == 0 else None


def is_loaded() -> bool:
    return "faults.so" in os.environ.get("LD_PRELOAD", "")


def arm(fault: Fault) -> None:
    """From now on, in this process."""
    _library().faults_arm(
        os.fsencode(fault.folder),
        ACTIONS[fault.action],
        ctypes.c_long(fault.at),
        ctypes.c_long(fault.microseconds),
        ctypes.c_uint64(fault.seed),
    )


def let_the_clock_jump(seconds: int, seed: int) -> None:
    """The time of day is now up to so many seconds off, somewhere else every few times it is asked for."""
    _library().faults_clock(ctypes.c_long(seconds), ctypes.c_uint64(seed))


def counted() -> int:
    """Calls seen since `arm`."""
    library = _library()
    library.faults_counted.restype = ctypes.c_long
    return library.faults_counted()


def _library() -> ctypes.CDLL:
    # What was preloaded is among the symbols of the process itself.
    return ctypes.CDLL(None)
