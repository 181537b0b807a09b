"""Every parser with spoilt files: what is wrong is one sentence, never a traceback, and never much memory.

The same inputs in larger numbers, and a fuzzer that is guided by coverage, are `benchmarks/fuzz.py`.
"""

from __future__ import annotations

import json
import sys
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

fuzzing = pytest.importorskip("benchmarks.fuzzing.parsers", reason="needs the folder benchmarks of the repository")
trying = pytest.importorskip("benchmarks.fuzzing.trying")

PARSERS = {parser.name: parser for parser in fuzzing.parsers()}
QUICK = settings(
    max_examples=25,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)


@pytest.fixture(params=list(PARSERS))
def bench(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> trying.Bench:
    return trying.Bench(PARSERS[request.param], tmp_path_factory.mktemp("fuzzing") / "files")


def check(bench: trying.Bench) -> None:
    assert not bench.tally.crashes
    assert bench.tally.tried == bench.tally.accepted + bench.tally.refused


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the limits are those of Linux")
@QUICK
@given(random=st.randoms(use_true_random=False, note_method_calls=False))
def test_a_spoilt_file_is_read_or_refused(bench: trying.Bench, random: Random) -> None:
    bench.random(random)
    check(bench)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4),
    max_leaves=12,
)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the limits are those of Linux")
@settings(QUICK, max_examples=10)
@given(data=st.data())
def test_anything_else_in_the_place_of_a_file_is_refused_or_read(bench: trying.Bench, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(list(bench.valid)))
    content = data.draw(st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()))
    bench.attempt({name: content}, sign=data.draw(st.booleans()))
    check(bench)
