"""Processes that are killed, without warning or with one."""

from __future__ import annotations

import hashlib
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

from tests.faults.kinds import Case, Missed
from tests.faults.setting import Setting, check_refused, hold, saved_step, wait_for_step
from tests.faults.shim import Fault

from remanence.training.log import read_log

BEHIND = 2
"""Steps that the log may be ahead of the last finished checkpoint where every step is saved: one that is trained while
the one before is written."""


def train_at_random(setting: Setting, draw: random.Random) -> Iterator[Case]:
    """Killed up to four times, and resumed each time."""
    while True:
        moments = [draw.uniform(0, 0.3) for _ in range(draw.randint(1, 4))]

        def do(folder: Path, moments: list[float] = moments) -> None:
            struck = False
            for moment in moments:
                before = saved_step(folder / "run")
                command = setting.nursery.start(*setting.train(folder / "run"))
                time.sleep(moment)
                struck |= command.kill()
                command.wait()
                hold(saved_step(folder / "run") >= before, f"step {before} was saved and is lost")
                check_steps_kept(folder / "run")
            if not struck:
                raise Missed
            setting.finish(folder / "run")

        yield Case(f"killed after {', '.join(f'{each:.3f}' for each in moments)} s", do)


def train_at_a_call(setting: Setting, draw: random.Random) -> Iterator[Case]:
    """Killed before one of the calls that change files: every place in a save can be met."""
    calls = _calls(setting)
    order = list(range(1, calls + 1))
    while True:
        draw.shuffle(order)
        for at in order:
            yield Case(f"killed before call {at} of {calls}", _killed_at(setting, at))


def _killed_at(setting: Setting, at: int):
    def do(folder: Path) -> None:
        ended = setting.nursery.run(*setting.train(folder / "run"), fault=Fault(str(folder), "kill", at))
        if ended.code != -signal.SIGKILL:
            raise Missed
        check_steps_kept(folder / "run")
        setting.finish(folder / "run")

    return do


def slow_save_at_random(setting: Setting, draw: random.Random) -> Iterator[Case]:
    """Killed at a random microsecond while every call that changes a file takes longer than it does."""
    while True:
        step, moment, seed = draw.randint(1, 6), draw.uniform(0, 0.04), draw.randint(1, 10**6)

        def do(folder: Path, step: int = step, moment: float = moment, seed: int = seed) -> None:
            fault = Fault(str(folder), "delay", microseconds=1500, seed=seed)
            command = setting.nursery.start(*setting.train(folder / "run"), fault=fault)
            wait_for_step(command, folder / "run", step)
            time.sleep(moment)
            struck = command.kill()
            command.wait()
            if not struck:
                raise Missed
            check_steps_kept(folder / "run")
            setting.finish(folder / "run")

        yield Case(f"killed {moment * 1e6:.0f} µs after step {step}", do)


def prepare_at_a_call(setting: Setting, draw: random.Random) -> Iterator[Case]:
    """Killed before one of the calls that change files, where nothing is yet and where a corpus is replaced."""
    counted = setting.nursery.run(
        *setting.prepare(setting.folder / "counting" / "corpus"), fault=Fault(str(setting.folder / "counting"), "count")
    ).counted
    while True:
        at, replaced = draw.randint(1, counted + 10), draw.random() < 0.5

        def do(folder: Path, at: int = at, replaced: bool = replaced) -> None:
            more = ["--overwrite"] if replaced else []
            if replaced:
                setting.nursery.run(*setting.prepare(folder / "corpus"))
            command = setting.prepare(folder / "corpus", *more)
            ended = setting.nursery.run(*command, fault=Fault(str(folder), "kill", at))
            if ended.code != -signal.SIGKILL:
                raise Missed
            check_prepared(setting, folder, *more)

        yield Case(f"killed before call {at}{' while replacing a corpus' if replaced else ''}", do)


def prepare_at_random(setting: Setting, draw: random.Random) -> Iterator[Case]:
    """Killed at a random moment."""
    while True:
        moment, seed = draw.uniform(0, 0.15), draw.randint(1, 10**6)

        def do(folder: Path, moment: float = moment, seed: int = seed) -> None:
            fault = Fault(str(folder), "delay", microseconds=2000, seed=seed)
            command = setting.nursery.start(*setting.prepare(folder / "corpus"), fault=fault)
            time.sleep(moment)
            struck = command.kill()
            command.wait()
            if not struck:
                raise Missed
            check_prepared(setting, folder)

        yield Case(f"killed after {moment:.3f} s", do)


def train_signalled(setting: Setting, draw: random.Random) -> Iterator[Case]:
    """SIGTERM or SIGINT at a random moment: the exit code says which, every step that was made is saved."""
    while True:
        number, moment = draw.choice((signal.SIGTERM, signal.SIGINT)), draw.uniform(0, 0.35)

        def do(folder: Path, number: signal.Signals = number, moment: float = moment) -> None:
            run = folder / "run"
            command = setting.nursery.start(*setting.train(run))
            time.sleep(moment)
            if not command.signal(number):
                raise Missed
            ended = command.wait()
            # A signal before training has begun ends the process as it does any other; a shell calls both 128 + n.
            if ended.code != 0:
                check_refused(ended, 128 + number, -number)
            if "and saved" in ended.told:
                made = max(each["step"] for each in read_log(run / "log.jsonl"))
                hold(saved_step(run) == made, f"stopped at step {made}, but {saved_step(run)} was saved")
            setting.finish(run)

        yield Case(f"{number.name} after {moment:.3f} s", do)


def prepare_signalled(setting: Setting, draw: random.Random) -> Iterator[Case]:
    """SIGTERM or SIGINT at a random moment: the exit code says which, nothing is left."""
    while True:
        number, moment = draw.choice((signal.SIGTERM, signal.SIGINT)), draw.uniform(0, 0.1)

        def do(folder: Path, number: signal.Signals = number, moment: float = moment) -> None:
            fault = Fault(str(folder), "delay", microseconds=2000)
            command = setting.nursery.start(*setting.prepare(folder / "corpus"), fault=fault)
            time.sleep(moment)
            if not command.signal(number):
                raise Missed
            ended = command.wait()
            if ended.code != 0:
                check_refused(ended, 128 + number, -number)
                if ended.code != -number and not (folder / "corpus").exists():
                    # An interrupt just after the folder was made, and before it is locked, may leave it empty.
                    left = [path.name for path in folder.iterdir() if any(path.iterdir())]
                    hold(not left, f"{', '.join(left)} was left")
            check_prepared(setting, folder)

        yield Case(f"{number.name} after {moment:.3f} s", do)


def check_steps_kept(run: Path) -> None:
    """Hold that no step is lost but those since the last checkpoint, which in these runs is due after every step."""
    if not (run / "log.jsonl").exists():
        return
    made = max((each["step"] for each in read_log(run / "log.jsonl")), default=0)
    hold(saved_step(run) >= made - BEHIND, f"step {made} was made, but only {saved_step(run)} is saved")


def check_prepared(setting: Setting, folder: Path, *more: str) -> None:
    """Hold that the same command makes the corpus, and leaves nothing else."""
    ended = setting.nursery.run(*setting.prepare(folder / "corpus", *more))
    hold(ended.code == 0, f"the same command ended with {ended.code}: {ended.told[-300:]}")
    hold(hashes(folder / "corpus") == hashes(setting.corpus), "the corpus is another one")
    left = [path.name for path in folder.iterdir() if path.name != "corpus"]
    hold(not left, f"{', '.join(left)} was left")


def hashes(folder: Path) -> dict[str, str]:
    """The SHA-256 of every file in a folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def _calls(setting: Setting) -> int:
    folder = setting.folder / "calls"
    return setting.nursery.run(*setting.train(folder / "run"), fault=Fault(str(folder), "count")).counted
