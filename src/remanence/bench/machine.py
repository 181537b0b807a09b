"""What the figures were measured on."""

from __future__ import annotations

import datetime as dt
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

PACKAGES = (
    "remanence",
    "torch",
    "numpy",
    "triton",
    "transformers",
    "x-transformers",
    "compressive-transformer-pytorch",
    "memformer",
    "recurrent-memory-transformer-pytorch",
)


def describe(device: torch.device, command: str) -> dict[str, Any]:
    """Machine, versions, command and date, for the results of a run."""
    return {
        "date": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "command": command,
        "machine": {
            "system": platform.system(),
            "architecture": platform.machine(),
            "processor": _processor(),
            "cores": _cores(),
            "threads": torch.get_num_threads(),
            "device": device.type,
            "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
            "allocator": {name: os.environ[name] for name in ("GLIBC_TUNABLES", "LD_PRELOAD") if name in os.environ},
        },
        "versions": {"python": platform.python_version(), **versions()},
    }


def versions() -> dict[str, str]:
    """Those of the packages that are installed."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return {**found, "torch": torch.__version__}


def _processor() -> str:
    """The name that the processor gives itself, where the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown"


def _cores() -> int:
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1
