"""One spoilt input after the other: written to a folder, read by a parser, and what came of it counted.

Allowed are success and InputError. Anything else is a crash, and so is more memory than the size class of the input:
the address space may grow by 64 MiB and 16 times the bytes of the files, which the system enforces (RLIMIT_AS).
"""

from __future__ import annotations

import contextlib
import hashlib
import resource
import shutil
import signal
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from benchmarks.fuzzing.mutations import spoil
from benchmarks.fuzzing.parsers import Parser, quietly

from remanence.errors import InputError

LEAST, TIMES = 64 << 20, 16
"""Bytes by which memory may grow: so many, and so many times the size of the files."""
SECONDS = 20
KEPT = 3
"""Inputs kept of each kind of crash."""


@dataclass
class Tally:
    """What came of the inputs of one parser."""

    tried: int = 0
    accepted: int = 0
    refused: int = 0
    seconds: float = 0.0
    largest: int = 0
    """Bytes by which the resident memory grew at most, beyond 16 times the size of the files."""
    slowest: float = 0.0
    crashes: Counter[str] = field(default_factory=Counter)

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "crashes": dict(self.crashes)}


class Bench:
    """A parser in a folder of its own, and the valid files that everything begins with."""

    def __init__(self, parser: Parser, folder: Path, kept: Path | None = None) -> None:
        self.parser, self.folder, self.kept = parser, folder, kept
        self.tally = Tally()
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        parser.make(folder)
        quietly(parser.read, folder)
        if parser.sign:
            parser.sign(folder)
            quietly(parser.read, folder)
        self.valid = {name: (folder / name).read_bytes() for name in parser.files}
        self.others = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())

    def random(self, random: Random) -> None:
        """Try one input that the generator makes."""
        names = [random.choice(list(self.valid))]
        if random.random() < 0.1:
            names.append(random.choice(list(self.valid)))
        self.attempt(
            {name: spoil(self.valid[name], self.parser.files[name], random) for name in names}, random.random() < 0.6
        )

    def attempt(self, changed: dict[str, bytes], sign: bool, limited: bool = True) -> None:
        """Try one input: the valid files with some of them changed, signed again or not."""
        for name, content in {**self.valid, **changed}.items():
            (self.folder / name).write_bytes(content)
        if sign and self.parser.sign:
            # What is spoilt beyond recognition cannot be signed.
            with contextlib.suppress(Exception):
                self.parser.sign(self.folder)
        tally, size = self.tally, self.others + sum(map(len, changed.values()))
        tally.tried += 1
        begin, before = time.perf_counter(), resident()
        try:
            with bounded(LEAST + TIMES * size) if limited else contextlib.nullcontext():
                quietly(self.parser.read, self.folder)
            tally.accepted += 1
        except InputError:
            tally.refused += 1
        except (Exception, _TooLong) as error:
            self._crashed(error)
        spent = time.perf_counter() - begin
        tally.seconds += spent
        tally.slowest = max(tally.slowest, spent)
        if limited:
            tally.largest = max(tally.largest, peak() - before - TIMES * size)

    def _crashed(self, error: BaseException) -> None:
        frames = [each for each in traceback.extract_tb(error.__traceback__) if "remanence" in each.filename]
        place = f"{Path(frames[-1].filename).name}:{frames[-1].name}" if frames else "?"
        kind = f"{type(error).__name__} in {place}"
        self.tally.crashes[kind] += 1
        if self.kept is not None and self.tally.crashes[kind] <= KEPT:
            name = hashlib.sha256(f"{kind}{self.tally.tried}".encode()).hexdigest()[:10]
            target = self.kept / f"{self.parser.name.replace(' ', '-')}-{name}"
            shutil.copytree(self.folder, target, dirs_exist_ok=True)
            (target / "CRASH.txt").write_text("".join(traceback.format_exception(error))[-4000:], errors="replace")


class _TooLong(BaseException):
    """An input took more than its time."""


@contextlib.contextmanager
def bounded(more: int) -> Iterator[None]:
    """The address space may grow by `more` bytes, and the clock by some seconds."""
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    clear_peak()
    signal.signal(signal.SIGALRM, _alarm)
    signal.alarm(SECONDS)
    resource.setrlimit(resource.RLIMIT_AS, (pages(0) + more, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, hard))
        signal.alarm(0)


def _alarm(*arguments: Any) -> None:
    raise _TooLong


def pages(field: int) -> int:
    """Bytes of this process: 0 its address space, 1 what is resident."""
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[field]) * resource.getpagesize()


def resident() -> int:
    return pages(1)


def clear_peak() -> None:
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")


def peak() -> int:
    """The most that was resident since `clear_peak`."""
    with open("/proc/self/status", encoding="ascii") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM:")) << 10


def guided(benches: list[Bench], count: int, seed: int, corpus: Path, report: Callable[[], None], until: float) -> None:
    """Let atheris look for inputs that reach new lines of the library.

    Ends the process after `count` inputs, or when the clock that cannot be set says `until`.
    """
    import os
    import sys

    import atheris

    whole = sum(bench.parser.share for bench in benches)

    def once(data: bytes) -> None:
        if len(data) > 2:
            bench = benches[data[0] % len(benches)]
            name = list(bench.valid)[data[1] // 2 % len(bench.valid)]
            # The slow ones reach the most lines, and would take all of the time.
            if bench.tally.tried <= 3 * count * bench.parser.share / whole:
                bench.attempt({name: data[2:]}, bool(data[1] % 2))
        tried = sum(bench.tally.tried for bench in benches)
        done = tried >= count or time.monotonic() > until
        if tried % 500 == 0 or done:
            report()
        if done:
            os._exit(0)

    def mutate(data: bytes, most: int, number: int) -> bytes:
        random = Random(number)
        if len(data) <= 2 or random.random() < 0.02:
            bench = random.choice(benches)
            place, sign = random.randrange(len(bench.valid)), random.randrange(2)
            data = bytes([benches.index(bench), 2 * place + sign]) + list(bench.valid.values())[place]
        bench = benches[data[0] % len(benches)]
        kind = list(bench.parser.files.values())[data[1] // 2 % len(bench.valid)]
        if random.random() < 0.5:
            changed = spoil(data[2:], kind, random)
        else:
            changed = atheris.Mutate(data[2:], most - 2)
        return (data[:2] + changed)[:most]

    corpus.mkdir(parents=True, exist_ok=True)
    for number, bench in enumerate(benches):
        for place, content in enumerate(bench.valid.values()):
            for sign in (0, 1) if bench.parser.sign else (0,):
                (corpus / f"{number}-{place}-{sign}").write_bytes(bytes([number, 2 * place + sign]) + content)
    options = [f"-seed={seed}", "-max_len=200000", "-rss_limit_mb=0", "-timeout=60", "-verbosity=0", "-len_control=0"]
    atheris.Setup([sys.argv[0], *options, str(corpus)], once, custom_mutator=mutate)
    atheris.Fuzz()
