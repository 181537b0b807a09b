"""Training by several processes, started by torchrun, and what can be done to one of them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from tests.faults.nursery import ROOT, Ended
from tests.faults.setting import NotHeld

from remanence.training.log import read_log

WAIT = 120.0
"""Seconds after which a launch hangs."""


class Launch:
    """A torchrun that runs `remanence train`; what it says goes to a file."""

    def __init__(
        self,
        options: Sequence[str],
        argv: Sequence[str | Path],
        told: Path,
        before: Sequence[str] = (),
        **environment: str,
    ) -> None:
        self._told = told
        command = [sys.executable, "-m", "torch.distributed.run", *options, "-m", "remanence", *map(str, argv)]
        with open(told, "wb") as file:
            self._process = subprocess.Popen(
                [*before, *command],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
                env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src"), **environment},
            )

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def ranks(self) -> dict[int, int]:
        """The process of every rank that runs, by rank."""
        found = {}
        for pid in children(self._process.pid):
            with suppress(OSError):
                words = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
                for word in words:
                    if word.startswith(b"RANK="):
                        found[int(word.removeprefix(b"RANK="))] = pid
        return found

    def wait(self, seconds: float = WAIT) -> Ended:
        """Raises NotHeld, after ending it, when it takes longer."""
        try:
            code = self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.stop()
            raise NotHeld(f"still running after {seconds:g} s: {self.told()[-400:]}") from None
        return Ended(code, "", self.told(), 0)

    def told(self) -> str:
        return self._told.read_text(encoding="utf-8", errors="replace")

    def signal(self, number: int) -> None:
        """To the launcher, as a scheduler does it."""
        with suppress(ProcessLookupError):
            os.kill(self._process.pid, number)

    def stop(self) -> None:
        """End it and all that it started, at once."""
        for pid in [*children(self._process.pid), self._process.pid]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait()


def children(pid: int) -> list[int]:
    """All processes below a process."""
    with suppress(OSError):
        own = [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
        return [each for child in own for each in (child, *children(child))]
    return []


def reached(run: Path) -> int:
    """The step of the last line of the log."""
    with suppress(OSError):
        return max((record["step"] for record in read_log(run / "log.jsonl")), default=0)
    return 0


def wait_for_step(launches: Sequence[Launch], run: Path, step: int) -> None:
    """Until the log has reached a step; raises NotHeld when it never does."""
    deadline = time.monotonic() + WAIT
    while reached(run) < step:
        if time.monotonic() > deadline or not all(each.running for each in launches):
            raise NotHeld(f"step {step} was never reached: {' / '.join(each.told()[-300:] for each in launches)}")
        time.sleep(0.005)
