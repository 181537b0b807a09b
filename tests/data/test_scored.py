"""What is scored: with either shift, with start tokens, and where only the ends of documents count."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remanence.data import Batch, Lanes, Split
from remanence.data.lanes import Protocol
from remanence.errors import InputError

PROTOCOLS: list[Protocol] = ["published", "document"]


@st.composite
def splits(draw: st.DrawFn) -> Split:
    """Tokens that tell where they stand."""
    length = draw(st.integers(2, 90))
    begins = draw(st.sets(st.integers(1, length - 1), max_size=9))
    return Split(
        np.arange(length, dtype="<u2"),
        65536,
        np.array([0, *sorted(begins)], np.int64),
        scored_last=draw(st.none() | st.integers(1, 6)),
        start_token=draw(st.none() | st.just(7)),
    )


def expected(text: Split, protocol: Protocol, shift: int) -> list[int]:
    """By hand, token for token."""
    edges = [*text.documents.tolist(), len(text)]
    found = []
    for begin, end in pairwise(edges):
        for token in range(begin, end):
            first = token == (0 if protocol == "published" else begin)
            skipped = first and (shift == 1 or (protocol == "document" and text.start_token is not None))
            if not skipped and (text.scored_last is None or end - token <= text.scored_last):
                found.append(token)
    return found


def scored(batches: Iterable[Batch]) -> list[int]:
    return sorted(int(target) for batch in batches for target in batch.targets.flatten() if target >= 0)


@settings(max_examples=300)
@given(splits(), st.integers(1, 6), st.integers(1, 9), st.sampled_from(PROTOCOLS), st.integers(0, 1))
def test_evaluation_scores_each_token_once(
    text: Split, lanes: int, length: int, protocol: Protocol, shift: int
) -> None:
    try:
        once = Lanes.once(text, lanes, length, protocol, shift)
    except InputError:
        return
    assert scored(once) == expected(text, protocol, shift)
    assert once.scored == len(expected(text, protocol, shift))


@given(splits(), st.integers(1, 4), st.integers(1, 9), st.integers(0, 1))
def test_an_epoch_of_training_by_document_scores_each_token_once(
    text: Split, lanes: int, length: int, shift: int
) -> None:
    text = dataclasses.replace(text, documents=np.arange(0, len(text) - 1, 3))
    try:
        reading = Lanes(text, 1, length, "document", shift=shift)
    except InputError:
        return
    found: list[int] = []
    while True:
        batch = reading.next()
        if reading.epoch:
            break
        found += scored([batch])
    assert sorted(found) == expected(text, "document", shift)


@given(splits(), st.integers(1, 4), st.integers(1, 9), st.sampled_from(PROTOCOLS))
def test_with_shift_0_the_targets_are_the_tokens(text: Split, lanes: int, length: int, protocol: Protocol) -> None:
    try:
        batches = [*Lanes.once(text, lanes, length, protocol, 0)]
        batches += [Lanes(text, lanes, length, protocol, shift=0).next()]
    except InputError:
        return
    for batch in batches:
        real = batch.targets >= 0
        assert bool((batch.targets[real] == batch.tokens[real]).all())


def test_the_start_token_is_read_with_shift_1_and_left_out_with_shift_0() -> None:
    text = Split(np.array([9, 1, 2, 9, 3, 4], np.uint8), 10, np.array([0, 3]), start_token=9)
    (one,) = Lanes.once(text, 2, 4, "document", 1)
    (zero,) = Lanes.once(text, 2, 4, "document", 0)
    assert one.tokens.tolist() == [[9, 1], [9, 3]]
    assert one.targets.tolist() == [[1, 2], [3, 4]]
    assert zero.tokens.tolist() == zero.targets.tolist() == [[1, 2], [3, 4]]


def test_a_column_of_training_ends_with_its_last_token_for_shift_0() -> None:
    text = Split(np.arange(8, dtype=np.uint8), 9)
    Lanes(text, 2, 4, shift=0).next()
    with pytest.raises(InputError, match="2 lanes with segments of 4 need 10"):
        Lanes(text, 2, 4)


@pytest.mark.parametrize("length", [4000, 8000, 16000])
def test_the_segments_of_the_sorting_task_are_as_published(length: int) -> None:
    size = length + 21
    text = Split(np.zeros(2 * size, np.uint8), 22, np.array([0, size]), scored_last=20)
    lanes = Lanes(text, 1, 1024, "document")
    batches = [lanes.next() for _ in range(-(-(size - 1) // 1024))]
    assert [int(batch.lengths[0]) for batch in batches if batch.lengths is not None] == {
        4000: [1024] * 3 + [948],
        8000: [1024] * 7 + [852],
        16000: [1024] * 15 + [660],
    }[length]
    assert [batch.scored for batch in batches] == [0] * (len(batches) - 1) + [20]
    assert lanes.next().starts.tolist() == [True]


def test_the_position_tells_its_shift() -> None:
    text = Split(np.arange(40, dtype=np.uint8), 41)
    state = json.loads(json.dumps(Lanes(text, 2, 4, shift=0).state()))
    with pytest.raises(InputError, match="shift 0"):
        Lanes(text, 2, 4).restore(state)
    old = Lanes(text, 2, 4).state()
    del old["shift"]
    Lanes(text, 2, 4).restore(old)


def test_the_first_tokens_of_a_task_are_whole_documents() -> None:
    text = Split(np.arange(30, dtype=np.uint8), 31, np.array([0, 10, 20]), scored_last=3)
    assert [len(text.first(limit)) for limit in (1, 10, 19, 20, 29, 30, 99)] == [10, 10, 10, 20, 20, 30, 30]
    plain = dataclasses.replace(text, scored_last=None)
    assert len(plain.first(19)) == 19 and plain.first(19).documents.tolist() == [0, 10]
