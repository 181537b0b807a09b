"""Clocks that jump, and two processes that want the same folder."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from pathlib import Path

from tests.faults.kills import check_prepared
from tests.faults.kinds import Case, Missed
from tests.faults.setting import Setting, check_refused, hold
from tests.faults.shim import Fault


def clock(setting: Setting, draw: random.Random) -> Iterator[Case]:
    """The time of day jumps by up to ten years, back and forth, while a run is trained, killed and resumed."""
    while True:
        seed, moment = draw.randint(1, 10**6), draw.uniform(0, 0.35)

        def do(folder: Path, seed: int = seed, moment: float = moment) -> None:
            run = folder / "run"
            command = setting.nursery.start(*setting.train(run), jumps=seed)
            time.sleep(moment)
            command.kill()
            command.wait()
            ended = setting.nursery.run(*setting.train(run), jumps=seed + 1)
            hold(ended.code == 0, f"exit code {ended.code}: {ended.told[-300:]}")
            setting.check(run)
            times = [word for word in ended.told.split() if word.startswith("-")]
            hold(not times, f"a negative time was told: {' '.join(times)}")

        yield Case(f"clock {seed}", do)


def prepare_clock(setting: Setting, draw: random.Random) -> Iterator[Case]:
    """Likewise while a corpus is prepared."""
    while True:
        seed = draw.randint(1, 10**6)

        def do(folder: Path, seed: int = seed) -> None:
            ended = setting.nursery.run(*setting.prepare(folder / "corpus"), jumps=seed)
            hold(ended.code == 0, f"exit code {ended.code}: {ended.told[-300:]}")
            check_prepared(setting, folder)

        yield Case(f"clock {seed}", do)


def slow(setting: Setting, folder: Path, draw: random.Random) -> Fault | None:
    """The first calls that change files take so long that two processes meet between any two of them."""
    if setting.nursery.library is None:
        return None
    return Fault(str(folder), "delay", at=30, microseconds=draw.choice((300, 30_000)), seed=draw.randint(1, 10**6))


def two_runs(setting: Setting, draw: random.Random) -> Iterator[Case]:
    """Two commands want one folder at the same moment: one trains, the other says why it does not."""
    while True:
        resumed, apart = draw.random() < 0.5, draw.choice((0.0, 0.0, draw.uniform(0, 0.1)))

        def do(folder: Path, resumed: bool = resumed, apart: float = apart) -> None:
            run = folder / "run"
            if resumed:
                command = setting.nursery.start(*setting.train(run))
                time.sleep(0.2)
                command.kill()
                command.wait()
                if not (run / "recipe.toml").exists():
                    raise Missed
            argv = setting.train(run)
            one = setting.nursery.start(*argv, fault=slow(setting, folder, draw))
            time.sleep(apart)
            other = setting.nursery.start(*argv, fault=slow(setting, folder, draw))
            ended = [one.wait(), other.wait()]
            codes = sorted(each.code for each in ended)
            if resumed and codes == [0, 0]:
                # The second one found the run finished.
                raise Missed
            hold(codes == [0, 2], f"exit codes {codes}: {' / '.join(each.told[-200:] for each in ended)}")
            refused = next(each for each in ended if each.code == 2)
            check_refused(refused)
            clear = any(words in refused.told.lower() for words in ("another process", "already holds a run"))
            hold(clear, f"not said what is in the way: {refused.told[-200:]}")
            setting.check(run)

        yield Case(f"two {'resumed ' if resumed else ''}runs {apart:.3f} s apart", do)


def two_preparations(setting: Setting, draw: random.Random) -> Iterator[Case]:
    """Two commands make one corpus: whichever comes second finds it there or says that it is being made."""
    while True:
        apart = draw.choice((0.0, 0.0, draw.uniform(0, 0.05)))

        def do(folder: Path, apart: float = apart) -> None:
            argv = setting.prepare(folder / "corpus")
            one = setting.nursery.start(*argv, fault=slow(setting, folder, draw))
            time.sleep(apart)
            other = setting.nursery.start(*argv, fault=slow(setting, folder, draw))
            ended = [one.wait(), other.wait()]
            codes = sorted(each.code for each in ended)
            hold(codes in ([0, 0], [0, 2]), f"exit codes {codes}: {' / '.join(each.told[-200:] for each in ended)}")
            for each in ended:
                check_refused(each, 0, 2)
            check_prepared(setting, folder)

        yield Case(f"two preparations {apart:.3f} s apart", do)
