"""Lanes: which token is read where, which is scored, and how a position is saved."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from remanence.data import Batch, Lanes, Split
from remanence.data.lanes import Protocol
from remanence.errors import InputError


def split(length: int, documents: tuple[int, ...] = (0,)) -> Split:
    """Tokens that tell where they stand."""
    return Split(np.arange(length, dtype="<u2"), 65536, np.array(documents, np.int64), name="train")


@st.composite
def splits(draw: st.DrawFn) -> Split:
    length = draw(st.integers(2, 120))
    begins = draw(st.sets(st.integers(1, length - 1), max_size=12))
    return split(length, (0, *sorted(begins)))


def scored(batches: Iterable[Batch]) -> list[int]:
    return sorted(int(target) for batch in batches for target in batch.targets.flatten() if target >= 0)


@given(splits(), st.integers(1, 7), st.integers(1, 9))
def test_evaluation_scores_every_token_but_the_first_of_the_stream_once(text: Split, lanes: int, length: int) -> None:
    if len(text) - 1 < lanes:
        return
    once = Lanes.once(text, lanes, length)
    assert scored(once) == list(range(1, len(text)))
    assert once.scored == len(text) - 1


@given(splits(), st.integers(1, 7), st.integers(1, 9))
def test_evaluation_by_document_scores_every_token_but_the_first_of_each_once(
    text: Split, lanes: int, length: int
) -> None:
    firsts = set(text.documents.tolist())
    expected = [token for token in range(len(text)) if token not in firsts]
    if not expected:
        return
    once = Lanes.once(text, lanes, length, "document")
    assert scored(once) == expected
    assert once.scored == len(expected)


@given(splits(), st.integers(1, 5), st.integers(1, 9), st.sampled_from(["published", "document"]))
def test_a_lane_that_does_not_start_goes_on_where_it_ended(
    text: Split, lanes: int, length: int, protocol: Protocol
) -> None:
    try:
        once = Lanes.once(text, lanes, length, protocol)
    except InputError:
        return
    last: dict[int, int] = {}
    for batch in once:
        lengths = [batch.tokens.shape[1]] * lanes if batch.lengths is None else batch.lengths.tolist()
        for lane in range(lanes):
            if not lengths[lane]:
                continue
            assert batch.starts[lane] == (lane not in last) or protocol == "document"
            if not batch.starts[lane]:
                assert int(batch.tokens[lane, 0]) == last[lane]
            last[lane] = int(batch.targets[lane, lengths[lane] - 1])


@given(splits(), st.integers(1, 5), st.integers(1, 9), st.sampled_from(["published", "document"]))
def test_every_target_is_the_token_that_follows(text: Split, lanes: int, length: int, protocol: Protocol) -> None:
    try:
        batches = [*Lanes.once(text, lanes, length, protocol)]
    except InputError:
        return
    for batch in batches:
        real = batch.targets >= 0
        assert bool((batch.targets[real] == batch.tokens[real] + 1).all())


def test_evaluation_lanes_share_the_stream_evenly_and_touch() -> None:
    batches = [*Lanes.once(split(11), 3, 2)]
    assert [batch.tokens[:, 0].tolist() for batch in batches] == [[0, 3, 6], [2, 5, 8]]
    assert batches[-1].lengths is not None
    assert batches[-1].lengths.tolist() == [1, 1, 2]
    assert batches[-1].targets.tolist() == [[3, -1], [6, -1], [9, 10]]


def test_only_the_first_segment_of_evaluation_starts() -> None:
    assert [batch.starts.tolist() for batch in Lanes.once(split(11), 2, 2)] == [[True, True]] + 2 * [[False, False]]


def test_evaluation_knows_how_many_batches_it_has() -> None:
    once = Lanes.once(split(47, (0, 9, 30)), 2, 4, "document")
    assert len(once) == len([*once])


def test_evaluation_can_be_read_twice() -> None:
    once = Lanes.once(split(30), 2, 4)
    assert scored(once) == scored(once)


def test_a_lane_without_documents_left_has_length_zero() -> None:
    last = [*Lanes.once(split(12, (0, 10)), 2, 3, "document")][-1]
    assert last.lengths is not None
    assert last.lengths.tolist() == [3, 0]


def test_training_columns_are_contiguous_and_rotated() -> None:
    lanes = Lanes(split(23), 2, 3)
    rows: list[list[int]] = [[], []]
    for _ in range(3):
        batch = lanes.next()
        for lane in range(2):
            rows[lane] += batch.tokens[lane].tolist()
    for lane, row in enumerate(rows):
        assert all(token // 11 == lane for token in row)
        assert [(token - row[0]) % 11 for token in row] == list(range(9))


def test_training_drops_the_remainder_of_the_stream() -> None:
    lanes = Lanes(split(23), 2, 3)
    seen = {int(token) for _ in range(200) for token in lanes.next().tokens.flatten()}
    assert seen == set(range(22))


def test_training_forgets_at_the_beginning_of_an_epoch_and_only_there() -> None:
    lanes = Lanes(split(23), 2, 3)
    starts = [lanes.next().starts.tolist() for _ in range(7)]
    assert starts == [[True, True], [False, False], [False, False]] * 2 + [[True, True]]
    assert lanes.epoch == 2


def test_epochs_are_rotated_differently() -> None:
    lanes = Lanes(split(2000), 2, 900)
    assert lanes.next().tokens[:, 0].tolist() != lanes.next().tokens[:, 0].tolist()


def test_the_seed_decides_the_order() -> None:
    one, same, other = (Lanes(split(2000), 2, 9, seed=seed).next().tokens.tolist() for seed in (1, 1, 2))
    assert one == same
    assert one != other


def test_training_by_document_reads_each_document_once_an_epoch() -> None:
    text = split(40, (0, 7, 8, 20, 33))
    lanes = Lanes(text, 1, 5, "document")
    targets: list[int] = []
    while True:
        batch = lanes.next()
        if lanes.epoch:
            break
        targets += scored([batch])
    assert sorted(targets) == [token for token in range(40) if token not in (0, 7, 8, 20, 33)]


def test_training_by_document_starts_each_document_and_pads_its_end() -> None:
    lanes = Lanes(split(14, (0, 7)), 2, 4, "document")
    first, second = lanes.next(), lanes.next()
    assert first.starts.tolist() == [True, True]
    assert second.starts.tolist() == [False, False]
    assert first.lengths is not None and second.lengths is not None
    assert first.lengths.tolist() == [4, 4]
    assert second.lengths.tolist() == [2, 2]
    assert second.targets[:, 2:].tolist() == [[-1, -1]] * 2
    assert second.tokens[:, 2:].tolist() == [[0, 0]] * 2


@pytest.mark.parametrize("protocol", ["published", "document"])
@pytest.mark.parametrize("ranks", [2, 3])
def test_lanes_that_are_shared_out_read_what_they_would_read_together(protocol: Any, ranks: int) -> None:
    text = split(311, (0, 20, 45, 46, 60, 99, 120, 150, 201, 230, 280))
    whole = Lanes(text, 6, 5, protocol, seed=3)
    parts = [
        Lanes(text, 6, 5, protocol, seed=3, part=slice(r * 6 // ranks, (r + 1) * 6 // ranks)) for r in range(ranks)
    ]
    for _ in range(40):
        wanted, found = whole.next(), [part.next() for part in parts]
        for name in ("tokens", "targets", "starts") + (("lengths",) if protocol == "document" else ()):
            assert torch.equal(torch.cat([getattr(each, name) for each in found]), getattr(wanted, name))
        assert {part.remembered for part in parts} == {whole.remembered}
        assert all(part.state() == whole.state() for part in parts)


@pytest.mark.parametrize("protocol", ["published", "document"])
def test_evaluation_lanes_that_are_shared_out_read_what_they_would_read_together(protocol: Any) -> None:
    text = split(111, (0, 20, 45, 46, 60, 99))
    parts = [list(Lanes.once(text, 5, 7, protocol, part=part)) for part in (slice(0, 2), slice(2, 2), slice(2, 5))]
    assert parts[1] == [] and len(parts[0]) == len(parts[2])
    for wanted, *found in zip(Lanes.once(text, 5, 7, protocol), parts[0], parts[2], strict=True):
        assert torch.equal(torch.cat([each.targets for each in found]), wanted.targets)
        assert torch.equal(torch.cat([each.starts for each in found]), wanted.starts)


@settings(max_examples=60)
@given(splits(), st.integers(1, 4), st.integers(1, 6), st.sampled_from(["published", "document"]), st.integers(0, 12))
def test_a_saved_position_is_restored_exactly(
    text: Split, lanes: int, length: int, protocol: Protocol, steps: int
) -> None:
    try:
        one = Lanes(text, lanes, length, protocol, seed=3)
    except InputError:
        return
    for _ in range(steps):
        one.next()
    other = Lanes(text, lanes, length, protocol, seed=4)
    other.restore(json.loads(json.dumps(one.state())))
    for _ in range(9):
        expected, got = one.next(), other.next()
        assert got.tokens.tolist() == expected.tokens.tolist()
        assert got.targets.tolist() == expected.targets.tolist()
        assert got.starts.tolist() == expected.starts.tolist()


def test_the_state_is_a_few_integers_a_lane() -> None:
    state = Lanes(split(90_000, tuple(range(0, 90_000, 9))), 16, 4, "document").state()
    assert len(json.dumps(state)) < 16 * 2 * 12 + 200


@pytest.mark.parametrize("change", [{"lanes": 3}, {"segment_length": 5}, {"protocol": "document"}])
def test_a_position_of_other_lanes_is_refused(change: dict[str, Any]) -> None:
    text = split(90, (0, 30, 60))
    state = Lanes(text, 2, 4).state()
    other = Lanes(text, **{"lanes": 2, "segment_length": 4, **change})
    with pytest.raises(InputError, match=next(iter(change))):
        other.restore(state)


def test_a_position_in_another_text_is_refused() -> None:
    with pytest.raises(InputError, match="tokens"):
        Lanes(split(91), 2, 4).restore(Lanes(split(90), 2, 4).state())


def test_text_shorter_than_the_training_lanes_need_is_refused() -> None:
    with pytest.raises(InputError, match="has 19 tokens and 4 lanes with segments of 4 need 20"):
        Lanes(split(19), 4, 4)
    Lanes(split(20), 4, 4).next()


def test_text_shorter_than_the_evaluation_lanes_need_is_refused() -> None:
    with pytest.raises(InputError, match="4 tokens and 4 lanes need at least 5"):
        Lanes.once(split(4), 4, 4)


def test_fewer_documents_than_lanes_are_refused() -> None:
    with pytest.raises(InputError, match=r"1 documents .* 2 lanes"):
        Lanes(split(30, (0, 29)), 2, 4, "document")


def test_documents_without_anything_to_score_are_refused() -> None:
    with pytest.raises(InputError, match="nothing to score"):
        Lanes.once(split(2, (0, 1)), 1, 4, "document")


@pytest.mark.parametrize("arguments", [(0, 4), (2, 0), (-1, 4)])
def test_lengths_of_zero_are_refused(arguments: tuple[int, int]) -> None:
    with pytest.raises(InputError, match="must be at least 1"):
        Lanes(split(30), *arguments)


def test_a_negative_seed_is_refused() -> None:
    with pytest.raises(InputError, match="0 or more"):
        Lanes(split(30), 2, 4, seed=-1)


def test_an_unknown_protocol_is_refused() -> None:
    with pytest.raises(InputError, match='"published" or "document"'):
        Lanes(split(30), 2, 4, "other")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("protocol", ["published", "document"])
def test_token_ids_outside_the_vocabulary_are_refused(protocol: Protocol) -> None:
    text = Split(np.array([1, 2, 3, 9, 2, 1, 3, 2], np.uint8), 9, name="test")
    with pytest.raises(InputError, match="token id 9, outside its vocabulary of 9"):
        list(Lanes.once(text, 1, 3, protocol))


def test_tokens_are_64_bit_whatever_the_file_holds() -> None:
    import torch

    batch = Lanes(split(30), 2, 4).next()
    assert batch.tokens.dtype == batch.targets.dtype == torch.int64
    assert batch.lengths is None


@pytest.mark.parametrize(("protocol", "width"), [("published", 15), ("document", 20)])
def test_batches_are_no_wider_than_the_text_of_a_lane(protocol: Any, width: int) -> None:
    batches = [*Lanes.once(split(30, (0, 9)), 2, 10**12, protocol)]
    assert [batch.tokens.shape for batch in batches] == [(2, width)]
