"""Starts commands in processes of their own without the seconds that importing torch takes.

A process imports everything once and forks for each command. The child is a process like any other: it can be killed,
signalled, given to another user and limited, and nothing of it is left to the next one.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn, Self

from tests.faults import shim
from tests.faults.shim import Fault

ROOT = Path(__file__).resolve().parent.parent.parent
PATIENCE = 120.0
"""Seconds after which a command hangs."""
NOBODY = 65534


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    """Its exit code; the number of the signal, negative, that ended it."""
    out: str
    told: str
    """What it wrote to standard error."""
    counted: int
    """Calls that changed files, where they were counted."""


class Command:
    """A command that runs."""

    def __init__(self, nursery: Nursery, pid: int, files: Path) -> None:
        self.pid, self._nursery, self._files = pid, nursery, files
        self._code: int | None = None

    @property
    def running(self) -> bool:
        if self._code is None:
            self._code = self._nursery.ask({"wait": self.pid})["code"]
        return self._code is None

    def signal(self, number: int) -> bool:
        """Send a signal; whether it was still running."""
        if not self.running:
            return False
        os.kill(self.pid, number)
        return True

    def kill(self) -> bool:
        """Kill it and what it started; whether it was still running."""
        if not self.running:
            return False
        os.killpg(self.pid, signal.SIGKILL)
        return True

    def wait(self, seconds: float = PATIENCE) -> Ended:
        """Raises TimeoutError, after killing it, when it takes longer."""
        deadline = time.monotonic() + seconds
        while self.running:
            if time.monotonic() > deadline:
                self.kill()
                raise TimeoutError(f"the command was still running after {seconds:g} s")
            time.sleep(0.003)
        assert self._code is not None
        told, out, counted = (
            path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
            for path in (self._files.with_suffix(ending) for ending in (".told", ".out", ".counted"))
        )
        return Ended(self._code, out, told, int(counted or 0))


class Nursery:
    """The process that forks, used as a context; `folder` is where outputs go."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        # Processes of another user write their output there too.
        folder.chmod(0o777)
        self.library = shim.compile_shim(folder)
        self._number = 0

    def __enter__(self) -> Self:
        paths = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
        preload = {"LD_PRELOAD": str(self.library)} if self.library else {}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.nursery"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths, **preload},
        )
        assert self._process.stdin and self._process.stdout
        self._requests, self._answers = self._process.stdin, self._process.stdout
        self.ask({"hello": True})
        return self

    def __exit__(self, *error: object) -> None:
        self._requests.close()
        self._process.wait()
        self._answers.close()

    def ask(self, request: dict[str, Any]) -> Any:
        self._requests.write(json.dumps(request) + "\n")
        self._requests.flush()
        return json.loads(self._answers.readline())

    def start(
        self,
        *argv: str | Path,
        cwd: Path | None = None,
        user: int | None = None,
        fault: Fault | None = None,
        jumps: int | None = None,
    ) -> Command:
        """Start `remanence ARGV`, as another user where one is given.

        fault   what happens to its calls to the system
        jumps   the seed of a clock that jumps by up to ten years
        """
        self._number += 1
        files = self.folder / str(self._number)
        answer = self.ask(
            {
                "argv": [str(each) for each in argv],
                "cwd": str(cwd or self.folder),
                "files": str(files),
                "user": user,
                "fault": asdict(fault) if fault else None,
                "jumps": jumps,
            }
        )
        return Command(self, answer["pid"], files)

    def run(self, *argv: str | Path, **options: Any) -> Ended:
        return self.start(*argv, **options).wait()


TEN_YEARS = 10 * 365 * 86400


def serve() -> int:
    """Answer requests; in a child, give the exit code of its command."""
    import remanence.commands.evaluate
    import remanence.commands.generate
    import remanence.commands.prepare
    import remanence.commands.train  # noqa: F401 (the point of this process)
    from remanence.evaluation.validation import validation  # noqa: F401
    from remanence.generation.session import Session  # noqa: F401

    # The pages of what is imported stay shared by all children.
    gc.freeze()
    for line in sys.stdin:
        request = json.loads(line)
        answer: dict[str, Any] = {}
        if "wait" in request:
            pid, status = os.waitpid(request["wait"], os.WNOHANG)
            answer = {"code": os.waitstatus_to_exitcode(status) if pid else None}
        elif "argv" in request:
            reader, writer = os.pipe()
            pid = os.fork()
            if pid == 0:
                _become(request, writer)
            os.close(writer)
            # Until the child stands on its own: a signal before would be met by what is of its parent.
            os.read(reader, 1)
            os.close(reader)
            answer = {"pid": pid}
        print(json.dumps(answer), flush=True)
    return 0


def _become(request: dict[str, Any], ready: int) -> NoReturn:
    """Run the command in this child, and end as a process of its own would."""
    from remanence.cli import main

    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    files = Path(request["files"])
    for number, path in ((0, Path(os.devnull)), (1, files.with_suffix(".out")), (2, files.with_suffix(".told"))):
        handle = os.open(path, os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT, 0o666)
        os.dup2(handle, number)
        os.close(handle)
    if request["user"] is not None:
        os.setgroups([])
        os.setgid(request["user"])
        os.setuid(request["user"])
    os.chdir(request["cwd"])
    if request["jumps"] is not None:
        shim.let_the_clock_jump(TEN_YEARS, request["jumps"])
    if request["fault"]:
        shim.arm(Fault(**request["fault"]))
    os.close(ready)
    try:
        code = main(request["argv"])
    except BaseException as error:
        # What an interpreter does; SystemExit never comes this far.
        sys.excepthook(type(error), error, error.__traceback__)
        code = 1
    if request["fault"]:
        files.with_suffix(".counted").write_text(str(shim.counted()))
    # As the interpreter ends, but for freeing everything that was imported, which takes longer than most commands.
    threading._shutdown()  # pyright: ignore[reportAttributeAccessIssue]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)


if __name__ == "__main__":
    sys.exit(serve())
