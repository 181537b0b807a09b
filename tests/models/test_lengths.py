"""Memories of any length, which may change at any time between segments."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from tests.models.variants import LANES, Variant, equal, gap, histories, read, text

from remanence.errors import InputError
from remanence.models import LanguageModel

LENGTHS = (1, 3, 5, 9)
"""One slot, fewer than the segment has tokens, as many, more."""


def invisible_when_empty(variant: Variant) -> bool:
    config = variant.config
    same_length = getattr(config, "same_length", False)
    return variant.queue and getattr(config, "memory_init", "empty") == "empty" and not same_length


@pytest.mark.parametrize("length", LENGTHS)
def test_every_memory_length_gives_the_same_numbers_token_by_token(remembering: Variant, length: int) -> None:
    if remembering.longest is not None and length > remembering.longest:
        pytest.skip("no memory is that long")
    model = remembering.model()
    whole = cut = model.init_memory(LANES, length)
    for tokens in text(model, 5, 2, 3):
        hidden, whole, _ = model(tokens, whole)
        first, cut, _ = model(tokens[:, :1], cut, close=False)
        rest, cut, _ = model(tokens[:, 1:], cut)
        assert gap(torch.cat([first, rest], dim=1), hidden) < 1e-12
        assert whole.length == length
        assert torch.isfinite(hidden).all()
    assert gap(cut, whole) < 1e-12


@pytest.mark.parametrize("length", [3, 9])
def test_the_length_of_a_memory_is_the_one_asked_for_not_the_trained_one(remembering: Variant, length: int) -> None:
    """The weights of a model that was configured for this length give the same numbers."""
    if getattr(remembering.config, "position", "") == "learned":
        pytest.skip("learned positions have a table whose size is the trained reach")
    if remembering.longest is not None:
        pytest.skip("its weights have the size of its memory")
    model = remembering.model()
    other = remembering.model(memory_length=length)
    segments = text(model, 5, 3)
    logits, memory = read(model, segments, model.init_memory(LANES, length))
    own_logits, own_memory = read(other, segments)
    assert equal(logits, own_logits) and equal(memory, own_memory)


def test_a_memory_of_length_zero_forgets_every_segment(variant: Variant) -> None:
    model = variant.model()
    if getattr(variant.config, "same_length", False) or not variant.forgets_at_zero:
        pytest.skip("same_length needs a memory, or something is remembered besides slots")
    memory = model.init_memory(LANES, 0)
    for tokens in text(model, 5, 3, 5):
        fresh = model(tokens, model.init_memory(LANES, 0))
        hidden, memory, _ = model(tokens, memory)
        assert gap(hidden, fresh.hidden) == 0
        assert memory.length == 0 and memory.lanes == LANES


def test_no_memory_and_an_empty_memory_read_the_first_segment_alike(remembering: Variant) -> None:
    if not invisible_when_empty(remembering):
        pytest.skip("its empty slots are attended to, or what may be seen depends on the number of slots")
    model = remembering.model()
    (tokens,) = text(model, 5)
    none = model(tokens, model.init_memory(LANES, 0)).hidden
    assert gap(model(tokens, model.init_memory(LANES)).hidden, none) < 1e-12


@pytest.mark.parametrize("change", [-2, 4])
def test_a_memory_resized_on_the_way_keeps_its_newest_slots(remembering: Variant, change: int) -> None:
    """Slots never written are never seen, so a longer memory reads as the shorter one did; a shorter one forgets."""
    if not invisible_when_empty(remembering):
        pytest.skip("its empty slots are attended to, or what may be seen depends on the number of slots")
    model = remembering.model()
    length = remembering.memory_length + change
    past, (tokens,) = histories(model), text(model, 4)
    resized = past.resize(length)
    assert resized.length == length
    hidden, memory, _ = model(tokens, resized)
    if change > 0:
        plain = model(tokens, past)
        assert gap(hidden, plain.hidden) < 1e-12
        assert gap(memory.resize(past.length), plain.memory) < 1e-12
        assert gap(resized.resize(past.length), past) == 0
    else:
        # Growing again brings nothing back: what was cut is as if never written.
        grown = model(tokens, resized.resize(past.length))
        assert gap(hidden, grown.hidden) < 1e-12
        assert gap(memory, grown.memory.resize(length)) < 1e-12


def test_a_resized_memory_goes_on_token_by_token_with_the_same_numbers(remembering: Variant) -> None:
    model = remembering.model()
    for length in (1, remembering.longest or remembering.memory_length + 3):
        memory, (tokens, after) = histories(model).resize(length), text(model, 4, 3)
        hidden, whole, _ = model(tokens, memory)
        after_hidden, whole, _ = model(after, whole)
        opened = model(tokens[:, :1], memory, close=False).memory
        rest, cut, _ = model(tokens[:, 1:], opened)
        assert gap(rest, hidden[:, 1:]) < 1e-12
        cut_hidden, cut, _ = model(after, cut)
        assert gap(cut_hidden, after_hidden) < 1e-12
        assert gap(cut, whole) < 1e-12


def test_an_open_memory_is_not_resized(variant: Variant) -> None:
    model = variant.model()
    (tokens,) = text(model, 4)
    opened = model(tokens, histories(model), close=False).memory
    with pytest.raises(InputError, match="open"):
        opened.resize(3)


def test_clamping_and_equal_windows_may_be_set_after_training(remembering: Variant) -> None:
    """No parameter depends on them, so the same weights serve both configurations."""
    if not remembering.windowed:
        pytest.skip("it has no equal windows")
    model = remembering.model()
    settings: dict[str, Any] = {"clamp_length": 3, "same_length": True}
    other: LanguageModel = type(model)(dataclasses.replace(model.config, **settings)).double().eval()
    other.load_state_dict(model.state_dict())
    past, (tokens,) = histories(model), text(model, 5)
    changed, plain = other(tokens, past).hidden, model(tokens, past).hidden
    assert torch.isfinite(changed).all()
    assert gap(changed, plain) > 1e-3 or (model.config.clamp_length, model.config.same_length) == (3, True)


def test_equal_windows_without_a_memory_are_refused(remembering: Variant) -> None:
    if not remembering.windowed:
        pytest.skip("it has no equal windows")
    with pytest.raises(InputError, match="same_length"):
        dataclasses.replace(remembering.config, same_length=True, memory_length=0)
    model = remembering.model(same_length=True)
    with pytest.raises(InputError, match="same_length"):
        model.init_memory(1, 0)


@pytest.mark.parametrize(("lanes", "length"), [(0, 3), (-1, 3), (2, -1)])
def test_impossible_sizes_of_a_memory_are_refused(variant: Variant, lanes: int, length: int) -> None:
    with pytest.raises(InputError):
        variant.model().init_memory(lanes, length)
