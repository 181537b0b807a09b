"""In which numbers the matrix products are computed: bfloat16 where this machine is faster in it."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor

Precision = Literal["float32", "bfloat16"]

ROWS, WIDTH, REPEATS = 512, 512, 40
GAIN = 1.2
"""bfloat16 must be this much faster in a bare product to be worth its rounding and the casts around it."""


def choose(precision: Literal["auto", "float32", "bfloat16"], device: torch.device | str) -> Precision:
    """The precision itself, or for "auto" the faster one on `device`, measured once in the life of the process."""
    return _measured(str(device)) if precision == "auto" else precision


def autocast(precision: Precision, device: torch.device | str) -> AbstractContextManager[Any]:
    """A context in which matrix products are computed in `precision`; weights and losses stay float32."""
    if precision == "bfloat16":
        return torch.autocast(torch.device(device).type, dtype=torch.bfloat16)
    return nullcontext()


@cache
def _measured(device: str) -> Precision:
    """The fastest of products that take turns, long enough that another process on the machine does not decide."""
    # Not drawn: measuring must not move the generators that a run is reproduced from.
    left = torch.linspace(-1, 1, ROWS * WIDTH, device=device).reshape(ROWS, WIDTH)
    right = torch.linspace(1, -1, WIDTH * WIDTH, device=device).reshape(WIDTH, WIDTH)
    fastest = {torch.float32: float("inf"), torch.bfloat16: float("inf")}
    for _ in range(REPEATS):
        for dtype in fastest:
            fastest[dtype] = min(fastest[dtype], _seconds(left.to(dtype), right.to(dtype)))
    return "bfloat16" if fastest[torch.float32] > GAIN * fastest[torch.bfloat16] else "float32"


def _seconds(left: Tensor, right: Tensor) -> float:
    begin = time.perf_counter()
    # Reading one value back waits for a device that computes on its own.
    float((left @ right)[0, 0])
    return time.perf_counter() - begin
