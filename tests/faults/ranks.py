"""Several processes that train one run, and one of them dies."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file
from tests.faults.kills import check_steps_kept
from tests.faults.kinds import Case, Missed
from tests.faults.launch import Launch, reached, wait_for_step
from tests.faults.setting import Setting, Undisturbed, hold, saved_step

from remanence.training.log import read_log

STEPS = 80
RECIPE = {"steps": STEPS, "save_every": 1, "validate_every": 30}
TOLERANCE = 1e-5
"""Of the weights, which are about 0.1 to 1: what other numbers of ranks change by adding in another order."""


def killed(setting: Setting, draw: random.Random) -> Iterator[Case]:
    """One rank is killed at random moments, once or twice; the launcher starts all again."""
    known = undisturbed(setting)
    while True:
        kills = [(draw.randrange(2), draw.randint(5, STEPS - 25), draw.uniform(0, 0.05))]
        if draw.random() < 0.4:
            kills.append((draw.randrange(2), kills[0][1] + draw.randint(2, 15), draw.uniform(0, 0.05)))

        def do(folder: Path, kills: list[tuple[int, int, float]] = kills) -> None:
            launch = launched(setting, folder, 2, restarts=3)
            try:
                for rank, step, moment in kills:
                    wait_for_step([launch], folder / "run", step)
                    time.sleep(moment)
                    os.kill(launch.ranks()[rank], signal.SIGKILL)
                    check_steps_kept(folder / "run")
                    wait_for_restart(launch, folder / "run")
                check_went_on(launch, folder / "run", known)
            finally:
                launch.stop()

        yield Case(", ".join(f"rank {rank} after step {step}" for rank, step, _ in kills), do)


def killed_in_a_sum(setting: Setting, draw: random.Random) -> Iterator[Case]:
    """One rank is halted, so that the other one waits for it in a sum; then either is killed."""
    known = undisturbed(setting)
    while True:
        halted, step, dead = draw.randrange(2), draw.randint(5, STEPS - 20), draw.randrange(2)

        def do(folder: Path, halted: int = halted, step: int = step, dead: int = dead) -> None:
            launch = launched(setting, folder, 2, restarts=3)
            try:
                wait_for_step([launch], folder / "run", step)
                ranks = launch.ranks()
                os.kill(ranks[halted], signal.SIGSTOP)
                time.sleep(0.4)
                os.kill(ranks[dead], signal.SIGKILL)
                with suppress(ProcessLookupError):
                    os.kill(ranks[halted], signal.SIGCONT)
                check_went_on(launch, folder / "run", known)
            finally:
                launch.stop()

        yield Case(f"rank {halted} halted after step {step}, rank {dead} killed", do)


def killed_for_good(setting: Setting, draw: random.Random) -> Iterator[Case]:
    """One rank is killed and nobody starts it again; the run goes on by hand, on as many ranks or on others."""
    known = undisturbed(setting)
    while True:
        rank, step, others = draw.randrange(2), draw.randint(5, STEPS - 20), draw.choice((1, 2, 4))

        def do(folder: Path, rank: int = rank, step: int = step, others: int = others) -> None:
            run = folder / "run"
            launch = launched(setting, folder, 2, restarts=0)
            try:
                wait_for_step([launch], run, step)
                os.kill(launch.ranks()[rank], signal.SIGKILL)
                ended = launch.wait()
            finally:
                launch.stop()
            hold(ended.code not in (0, None), "the launcher ended with exit code 0")
            check_steps_kept(run)
            before = saved_step(run)
            again = launched(setting, folder, others, 0, "--resume")
            try:
                ended = again.wait()
            finally:
                again.stop()
            hold(ended.code == 0, f"going on on {others} ranks ended with {ended.code}: {ended.told[-500:]}")
            check_resumed(run, before)
            check_same(run, setting.folder / "together", known, exactly=others == 2)

        yield Case(f"rank {rank} killed after step {step}, gone on with {others}", do)


def terminated(setting: Setting, draw: random.Random) -> Iterator[Case]:
    """SIGTERM to the launcher, as schedulers give notice: all ranks stop at one step, and it is saved."""
    known = undisturbed(setting)
    while True:
        step, others = draw.randint(3, STEPS - 20), draw.choice((1, 2))

        def do(folder: Path, step: int = step, others: int = others) -> None:
            run = folder / "run"
            launch = launched(setting, folder, 2, restarts=0)
            try:
                wait_for_step([launch], run, step)
                launch.signal(signal.SIGTERM)
                ended = launch.wait()
            finally:
                launch.stop()
            if reached(run) >= STEPS:
                raise Missed
            hold(ended.code not in (0, None), "the launcher ended with exit code 0")
            made = reached(run)
            hold(saved_step(run) == made, f"stopped at step {made}, but {saved_step(run)} was saved")
            hold("and saved; go on with" in ended.told, f"it was not told how to go on: {ended.told[-300:]}")
            again = launched(setting, folder, others, 0, "--resume")
            try:
                ended = again.wait()
            finally:
                again.stop()
            hold(ended.code == 0, f"going on on {others} ranks ended with {ended.code}: {ended.told[-500:]}")
            check_resumed(run, made)
            check_same(run, setting.folder / "together", known, exactly=others == 2)

        yield Case(f"SIGTERM after step {step}, gone on with {others}", do)


def launched(setting: Setting, folder: Path, ranks: int, restarts: int, *more: str) -> Launch:
    options = ["--standalone", "--nproc-per-node", str(ranks), "--max-restarts", str(restarts)]
    recipe = setting.write_recipe("together", **RECIPE)
    argv = ["train", recipe, "--folder", folder / "run", *more]
    return Launch([*options, "--monitor-interval", "0.1"], argv, folder / f"told-{ranks}{''.join(more)}")


def undisturbed(setting: Setting) -> Undisturbed:
    """How two ranks end when nothing happens."""
    folder = setting.folder / "together"
    if not folder.exists():
        folder.mkdir()
        launch = launched(setting, folder, 2, restarts=0)
        ended = launch.wait()
        hold(ended.code == 0, f"two undisturbed ranks ended with {ended.code}: {ended.told[-500:]}")
    return Undisturbed.of(folder / "run")


def wait_for_restart(launch: Launch, run: Path) -> None:
    """Until the run goes on, or has ended."""
    before = resumptions(run)
    while launch.running and resumptions(run) == before:
        time.sleep(0.01)


def resumptions(run: Path) -> int:
    return sum(each["kind"] == "resume" for each in read_log(run / "log.jsonl"))


def check_went_on(launch: Launch, run: Path, known: Undisturbed) -> None:
    ended = launch.wait()
    hold(ended.code == 0, f"the launcher ended with {ended.code}: {ended.told[-500:]}")
    hold(resumptions(run) >= 1, "nothing was started again")
    check_same(run, run, known, exactly=True)


def check_resumed(run: Path, before: int) -> None:
    began = [each["step"] for each in read_log(run / "log.jsonl") if each["kind"] == "resume"]
    hold(bool(began) and began[-1] >= before, f"went on from step {began[-1:]}, but {before} was saved")


def check_same(run: Path, other: Path, known: Undisturbed, exactly: bool) -> None:
    """Hold that the run ended as two undisturbed ranks do: bit for bit, or to the rounding of other ranks."""
    found = Undisturbed.of(run)
    if exactly:
        for name in ("last", "best", "losses"):
            hold(getattr(found, name) == getattr(known, name), f"another {name} than of undisturbed ranks")
        return
    place = Path("checkpoints") / "last" / "model.safetensors"
    one, two = load_file(run / place), load_file(other / "run" / place)
    far = max(float(np.abs(one[name] - two[name]).max()) for name in two)
    hold(far <= TOLERANCE, f"weights differ by up to {far:g} from those of two undisturbed ranks")
