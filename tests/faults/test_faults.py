"""A few cases of every kind of fault; `benchmarks/faults.py` does many and counts them."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.faults.catalog import KINDS
from tests.faults.kinds import Kind, tally
from tests.faults.nursery import Nursery
from tests.faults.setting import Setting

CASES = 2


@pytest.fixture(scope="module")
def setting() -> Iterator[Setting]:
    # Not where pytest puts things: other users come here too.
    with tempfile.TemporaryDirectory(prefix="faults-") as name, Nursery(Path(name) / "nursery") as nursery:
        Path(name).chmod(0o755)
        yield Setting(Path(name) / "setting", nursery)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_what_is_promised_holds(kind: Kind, setting: Setting) -> None:
    if missing := kind.missing(setting):
        pytest.skip(missing)
    count = 1 if kind.slow else CASES
    told = tally(kind, setting, seed=0, count=count)
    assert told.tried == count and not told.not_held, told.not_held
