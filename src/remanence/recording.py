"""Whether a step is being recorded, to be repeated with other numbers: then no number may decide what is done."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

_recording: ContextVar[bool] = ContextVar("recording", default=False)


@contextmanager
def repeated() -> Iterator[None]:
    """What runs inside will be repeated."""
    token = _recording.set(True)
    try:
        yield
    finally:
        _recording.reset(token)


def inferring() -> bool:
    """Whether nothing here will ever have a gradient. The compiler cannot follow the question."""
    return not torch.compiler.is_compiling() and torch.is_inference_mode_enabled()


def may_look(device: torch.device) -> bool:
    """Whether a number in a memory may be looked at to save work: on a CPU, where nobody waits, in inference mode."""
    return device.type == "cpu" and inferring() and not _recording.get()
