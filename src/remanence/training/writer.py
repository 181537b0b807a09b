"""One thread that writes while training goes on."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Writer:
    """Does one job at a time in a thread; what a job raises is raised by the next `check` or `wait`."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None

    def start(self, job: Callable[[], None]) -> None:
        """Begin a job, after the one before."""
        self.wait()
        # A daemon: whoever interrupts the waiting for it ends the process.
        self._thread = threading.Thread(target=self._do, args=(job,), name="checkpoint", daemon=True)
        self._thread.start()

    @property
    def failed(self) -> bool:
        """Whether a job has ended by an error that nobody was told."""
        return self._error is not None

    def check(self) -> None:
        """Raise what the job raised, if it has ended by an error. Waits for nothing."""
        if self._thread is not None and not self._thread.is_alive():
            self.wait()

    def wait(self) -> None:
        """Let the job end, and raise what it raised."""
        self.join()
        self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def join(self) -> None:
        """Let the job end; what it raised is kept for the next `check` or `wait`."""
        if self._thread is not None:
            self._thread.join()

    def _do(self, job: Callable[[], None]) -> None:
        try:
            job()
        except Exception as error:
            self._error = error
