"""Files with a flipped bit, and files that were cut short."""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from tests.faults.kinds import Case
from tests.faults.nursery import Ended
from tests.faults.setting import NotHeld, Setting, Undisturbed, check_refused, hold, wait_for_step

HOWS = ("header", "middle", "end", "empty", "half", "one byte less")


def damage(path: Path, how: str, draw: random.Random) -> None:
    """Flip a bit near the beginning, the middle or the end of a file, or cut it short."""
    size = path.stat().st_size
    if how in ("empty", "half", "one byte less"):
        os.truncate(path, {"empty": 0, "half": size // 2, "one byte less": size - 1}[how])
        return
    at = {
        "header": lambda: draw.randrange(min(16, size)),
        "middle": lambda: draw.randrange(size // 4, max(3 * size // 4, size // 4 + 1)),
        "end": lambda: size - 1 - draw.randrange(min(4, size)),
    }[how]()
    with open(path, "r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1 << draw.randrange(8)]))


@dataclass(frozen=True)
class Use:
    """A command that reads what was damaged, and what it says of what was not."""

    name: str
    run: Callable[[], Ended]
    result: Callable[[Ended], Any]


def in_a_run(setting: Setting, draw: random.Random) -> Iterator[Case]:
    """Every file of a run that was stopped in the middle, whatever reads it next."""
    whole, used = setting.folder / "half-way", setting.folder / "used"
    if not whole.exists():
        command = setting.nursery.start(*setting.train(whole))
        wait_for_step(command, whole, 14)
        command.signal(15)
        check_refused(command.wait(), 143)
        setting.nursery.run("evaluate", whole, "--lanes", "2")
    uses = [
        Use("evaluate", lambda: setting.nursery.run("evaluate", used, "--lanes", "2", "--json"), _scores),
        Use("generate", lambda: setting.nursery.run("generate", used, "--max-tokens", "20"), lambda ended: ended.out),
        Use("resume", lambda: setting.nursery.run("train", used, "--resume"), lambda ended: Undisturbed.of(used)),
    ]
    yield from _cases(whole, used, uses, draw)


def in_a_corpus(setting: Setting, draw: random.Random) -> Iterator[Case]:
    """Every file of a corpus, under training, resuming and evaluating."""
    used, run = setting.folder / "used-corpus", setting.folder / "case" / "run"
    recipe = setting.write_recipe("damaged", corpus=used)
    half_way = setting.folder / "half-way-damaged"
    if not half_way.exists():
        shutil.copytree(setting.corpus, used)
        command = setting.nursery.start(*setting.train(half_way, recipe))
        wait_for_step(command, half_way, 14)
        command.signal(15)
        check_refused(command.wait(), 143)

    def again(*argv: str) -> Ended:
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(half_way, run)
        return setting.nursery.run(argv[0], run, *argv[1:])

    def anew() -> Ended:
        shutil.rmtree(run, ignore_errors=True)
        return setting.nursery.run(*setting.train(run, recipe))

    uses = [
        Use("evaluate", lambda: again("evaluate", "--lanes", "2", "--json"), _scores),
        Use("train", anew, lambda ended: Undisturbed.of(run)),
        Use("resume", lambda: again("train", "--resume"), lambda ended: Undisturbed.of(run)),
    ]
    yield from _cases(setting.corpus, used, uses, draw)


def _cases(whole: Path, used: Path, uses: list[Use], draw: random.Random) -> Iterator[Case]:
    """Every file in `whole`, copied to `used` and damaged there, with every use."""
    known: dict[str, Any] = {}
    for use in uses:
        _copy(whole, used)
        ended = use.run()
        hold(ended.code == 0, f"{use.name} of what was not damaged ended with {ended.code}: {ended.told[-300:]}")
        known[use.name] = use.result(ended)
    files = sorted(path.relative_to(whole) for path in whole.rglob("*") if path.is_file() and path.stat().st_size)
    combined = list(itertools.product(files, HOWS, uses))
    draw.shuffle(combined)
    for file, how, use in combined:
        yield Case(
            f"{file}, {how}, {use.name}", partial(_do, whole, used, file, how, use, known[use.name], draw.random())
        )


def _do(whole: Path, used: Path, file: Path, how: str, use: Use, known: Any, seed: float, folder: Path) -> None:
    _copy(whole, used)
    damage(used / file, how, random.Random(seed))
    ended = use.run()
    if ended.code != 0:
        check_refused(ended)
        return
    hold("Traceback" not in ended.told, ended.told[-300:])
    try:
        found = use.result(ended)
    except NotHeld as error:
        raise NotHeld(f"exit code 0, but {error}") from None
    if file.name == "log.jsonl" and isinstance(found, Undisturbed):
        # No weight depends on the log; what was damaged is missing from it, and nothing else.
        lost = [line for line in known.losses if line not in found.losses]
        hold(how in ("empty", "half") or len(lost) <= 1, f"{len(lost)} lines of the log were lost with one")
        found = replace(found, losses=known.losses)
    same = found == known
    # An older checkpoint may take the place of a damaged one, where that is said.
    told = use.name != "resume" and "warning" in ended.told
    hold(same or told, "exit code 0 with another result, and not a word")


def _copy(whole: Path, used: Path) -> None:
    shutil.rmtree(used, ignore_errors=True)
    shutil.copytree(whole, used)


def _scores(ended: Ended) -> Any:
    told = json.loads(ended.out)
    return [{name: value for name, value in each.items() if name != "seconds"} for each in told["scores"]]
