"""Where to compute."""

from __future__ import annotations

import torch
from torch.utils._triton import has_triton

from remanence.errors import InputError

FEWEST_COMPILED = 2_000
"""Steps that a run must have to be compiled unasked: compiling takes up to two minutes and saves some 50 ms a step on a
large GPU (benchmarks/results/gpu-first-look.md)."""


def compiles(wish: bool | None, steps: int, device: torch.device) -> bool:
    """Whether a run of so many steps is compiled: as wished, or where that measured faster, on GPUs with Triton.

    On a CPU a compiled step takes longer than one of our own functions (docs/performance.md).
    """
    return device.type == "cuda" and has_triton() and steps >= FEWEST_COMPILED if wish is None else wish


def choose_device(name: str, local: int = 0) -> torch.device:
    """The device of that name; "auto" is a CUDA GPU when there is one. Raises InputError when it cannot be used.

    `local` is the number of this process on its machine: each takes the GPU of its number.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        if device.type == "cuda" and device.index is None and local:
            if local >= torch.cuda.device_count():
                raise InputError(
                    f"Process {local} of this machine has no GPU of its own: there are {torch.cuda.device_count()}; "
                    "start as many processes by --nproc-per-node, or set training.device to cpu."
                )
            device = torch.device("cuda", local)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        usable = "cpu" + (", cuda" if torch.cuda.is_available() else "")
        raise InputError(
            f'The device "{name}" was asked for, which this machine cannot use; choose auto, {usable}.'
        ) from None
    return device
