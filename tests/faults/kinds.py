"""A kind of fault, and how many of its cases held what is promised."""

from __future__ import annotations

import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults.setting import NotHeld, Setting


class Missed(Exception):
    """The fault came too late to meet anything; such a case is not counted."""


@dataclass(frozen=True)
class Case:
    """One fault: what it is, and what does it in an empty folder. It raises NotHeld, or Missed."""

    what: str
    do: Callable[[Path], None]


@dataclass(frozen=True)
class Kind:
    """Faults of one kind; their cases come in an order that depends on the generator alone."""

    name: str
    what: str
    cases: Callable[[Setting, random.Random], Iterator[Case]]
    missing: Callable[[Setting], str | None] = lambda setting: None
    """Why this machine cannot do it; None where it can."""
    finite: bool = False
    """There is a certain number of cases, and a count means all of them."""
    slow: bool = False
    """A case starts several launchers, each of which takes seconds; a tenth of the others' count is enough."""


@dataclass
class Tally:
    """What came of the cases of a kind."""

    kind: Kind
    tried: int = 0
    missed: int = 0
    not_held: Counter[str] = field(default_factory=Counter)

    @property
    def held(self) -> int:
        return self.tried - self.not_held.total()


def tally(
    kind: Kind, setting: Setting, seed: int, count: int, failed: Callable[[str, str], None] = lambda what, why: None
) -> Tally:
    """Do `count` cases, fewer where there are no more; `failed` hears at once of what did not hold."""
    told = Tally(kind)
    folder = setting.folder / "case"
    for case in kind.cases(setting, random.Random(f"{kind.name} {seed}")):
        if told.tried >= count or told.missed > 3 * count + 20:
            break
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        folder.chmod(0o755)
        try:
            case.do(folder)
        except Missed:
            told.missed += 1
            continue
        except (NotHeld, TimeoutError) as error:
            told.not_held[f"{case.what}: {error}"] += 1
            failed(case.what, str(error))
        told.tried += 1
    shutil.rmtree(folder, ignore_errors=True)
    return told
