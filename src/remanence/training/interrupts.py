"""Ctrl-C and SIGTERM as requests that are met between two steps."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, Self

SIGNALS = (signal.SIGTERM, signal.SIGINT)
"""Those that stop a run."""


class Interrupted(Exception):
    """The signal arrived where stopping at once harms nothing."""


class Interrupts:
    """Remembers the first SIGINT or SIGTERM in `signal`, and ends the process at a SIGINT after it.

    Used as a context; outside the main thread, where Python allows no handlers, it does nothing. `speaking` says
    whether this process tells the person what it does.
    """

    def __init__(self, speaking: bool = True) -> None:
        self.speaking = speaking
        self.signal: int | None = None
        self._before: dict[int, Any] = {}
        self._at_once = False

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {each: signal.signal(each, self._note) for each in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for each, handler in self._before.items():
            signal.signal(each, handler)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Inside, the first signal raises `Interrupted` instead of waiting; for work that leaves nothing half-done."""
        if self.signal is not None:
            raise Interrupted
        self._at_once = True
        try:
            yield
        finally:
            self._at_once = False

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None:
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            # Schedulers tell every process, and a launcher tells its own once more: the notice is the same.
            return
        self.signal = number
        if self.speaking:
            # Not print: the handler may have interrupted one that holds the stream's lock.
            os.write(2, b"\nremanence: saving after this step; Ctrl-C once more stops at once, without saving.\n")
        if self._at_once:
            raise Interrupted
