"""Lanes never see each other, and each lives by its own history."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.models.variants import LANES, Variant, equal, gap, histories, tensors, text
from torch import Tensor

from remanence.errors import InputError
from remanence.memory import Memory
from remanence.models import LanguageModel


def test_permuting_the_lanes_permutes_the_results(variant: Variant) -> None:
    model = variant.model()
    past, (tokens,) = histories(model), text(model, 5)
    order = torch.tensor([2, 0, 3, 1])
    hidden, memory, _ = model(tokens, past)
    permuted, permuted_memory, _ = model(tokens[order], past[order])
    assert gap(permuted, hidden[order]) < 1e-12
    assert gap(permuted_memory, memory[order]) < 1e-12


def test_a_lane_alone_gives_what_it_gives_among_others(variant: Variant) -> None:
    model = variant.model()
    past, (tokens,) = histories(model), text(model, 5)
    hidden, memory, _ = model(tokens, past)
    for lane in range(LANES):
        alone, alone_memory, _ = model(tokens[lane : lane + 1], past[lane])
        assert gap(alone, hidden[lane : lane + 1]) < 1e-12
        assert gap(alone_memory, memory[lane]) < 1e-12


def test_a_lane_that_starts_is_a_fresh_lane_and_the_others_go_on(variant: Variant) -> None:
    model = variant.model()
    past, segments = histories(model), text(model, 5, 4)
    starts = torch.tensor([True, False, False, True])
    fresh, unchanged = model.init_memory(LANES), past
    memory = past
    for number, tokens in enumerate(segments):
        hidden, memory, _ = model(tokens, memory, starts if number == 0 else None)
        fresh_hidden, fresh, _ = model(tokens, fresh)
        plain_hidden, unchanged, _ = model(tokens, unchanged)
        assert gap(hidden[starts], fresh_hidden[starts]) < 1e-12
        assert gap(hidden[~starts], plain_hidden[~starts]) < 1e-12
    assert gap(memory[starts], fresh[starts]) < 1e-12
    assert gap(memory[~starts], unchanged[~starts]) < 1e-12


def test_starts_that_are_all_false_change_nothing(variant: Variant) -> None:
    model = variant.model()
    past, (tokens,) = histories(model), text(model, 5)
    hidden, memory, _ = model(tokens, past)
    same, same_memory, _ = model(tokens, past, torch.zeros(LANES, dtype=torch.bool))
    assert equal(same, hidden) and equal(same_memory, memory)


def test_a_padded_lane_is_the_lane_without_padding(variant: Variant) -> None:
    model = variant.model()
    past, (tokens, after) = histories(model), text(model, 6, 4)
    lengths = torch.tensor([6, 3, 1, 5])
    hidden, memory, _ = model(tokens, past, lengths=lengths)
    after_hidden, after_memory, _ = model(after, memory)
    for lane, length in enumerate(lengths.tolist()):
        alone, alone_memory, _ = model(tokens[lane : lane + 1, :length], past[lane])
        assert gap(alone, hidden[lane : lane + 1, :length]) < 1e-12
        assert gap(alone_memory, memory[lane]) < 1e-12
        alone, alone_memory, _ = model(after[lane : lane + 1], alone_memory)
        assert gap(alone, after_hidden[lane : lane + 1]) < 1e-12
        assert gap(alone_memory, after_memory[lane]) < 1e-12


def test_lengths_that_pad_nothing_change_nothing(variant: Variant) -> None:
    model = variant.model()
    past, (tokens,) = histories(model), text(model, 5)
    hidden, memory, _ = model(tokens, past)
    same, same_memory, _ = model(tokens, past, lengths=torch.full((LANES,), 5))
    assert gap(same, hidden) < 1e-12
    assert gap(same_memory, memory) < 1e-12


def test_what_stands_in_the_padding_leaves_no_trace(variant: Variant) -> None:
    model = variant.model()
    past, (tokens, other) = histories(model), text(model, 6, 6)
    lengths = torch.tensor([6, 3, 1, 0])
    real = torch.arange(6) < lengths[:, None]
    hidden, memory, _ = model(tokens, past, lengths=lengths)
    changed, changed_memory, _ = model(torch.where(real, tokens, other), past, lengths=lengths)
    assert equal(changed[real], hidden[real])
    assert equal(changed_memory, memory)


def test_a_lane_of_length_zero_is_untouched_bit_for_bit(variant: Variant) -> None:
    model = variant.model()
    past, segments = histories(model), text(model, 6, 3)
    memory = past
    for tokens in segments:
        memory = model(tokens, memory, lengths=torch.tensor([0, 2, 0, 0])).memory
    idle = torch.tensor([True, False, True, True])
    assert equal(memory[idle], past[idle])


def test_a_lane_that_starts_and_reads_nothing_is_fresh(variant: Variant) -> None:
    model = variant.model()
    past, (tokens,) = histories(model), text(model, 4)
    starts = torch.tensor([True, False, False, False])
    memory = model(tokens, past, starts, torch.tensor([0, 4, 4, 4])).memory
    assert equal(memory[0], model.init_memory(1))


def test_lanes_that_lived_apart_are_joined_and_go_on_as_themselves(variant: Variant) -> None:
    model = variant.model()
    longer, shorter, after = text(model, 6, 2, 4)
    parts = [model(tokens, histories(model)).memory for tokens in (longer, shorter)]
    joined = Memory.concatenate([parts[0][:2], parts[1][2:]])
    hidden, memory, _ = model(after, joined)
    for lane in range(LANES):
        own, own_memory, _ = model(after[lane : lane + 1], parts[lane // 2][lane])
        assert gap(own, hidden[lane : lane + 1]) < 1e-12
        assert gap(own_memory, memory[lane]) < 1e-12


def test_an_open_segment_keeps_its_lanes_from_being_reset(variant: Variant) -> None:
    model = variant.model()
    (tokens,) = text(model, 3)
    opened = model(tokens, histories(model), close=False).memory
    with pytest.raises(InputError, match="open"):
        opened.reset(torch.ones(LANES, dtype=torch.bool))


def test_lengths_beyond_the_tokens_reach_into_no_other_lane(variant: Variant) -> None:
    model = variant.model()
    past, (tokens, other) = histories(model), text(model, 4, 4)
    other[0] = tokens[0]
    memories = []
    for segment, before in ((tokens, past), (other, past[[0, 2, 3, 1]])):
        try:
            memories.append(model(segment, before, lengths=torch.tensor([7, 4, 4, 4])).memory[0])
        except InputError:
            return
    assert equal(*memories)


def alone(model: LanguageModel, tokens: list[Tensor], starts: Tensor, lengths: Tensor, lane: int) -> tuple[Any, Any]:
    """The life of one lane, read by itself without padding."""
    memory, hidden = model.init_memory(1), []
    for number, segment in enumerate(tokens):
        if starts[number, lane]:
            memory = model.init_memory(1)
        length = int(lengths[number, lane])
        if length:
            output = model(segment[lane : lane + 1, :length], memory)
            memory = output.memory
            hidden.append(output.hidden)
    return hidden, memory


def test_lives_of_starts_pauses_and_padding_are_those_of_each_lane_alone(variant: Variant) -> None:
    model = variant.model()
    generator = torch.Generator().manual_seed(0)
    widths = (5, 2, 7, 1, 4)
    segments = text(model, *widths)
    starts = torch.rand(len(widths), LANES, generator=generator) < 0.25
    shares = torch.rand(len(widths), LANES, generator=generator) * 1.4
    lengths = torch.stack(
        [(share * width).long().clamp(max=width) for share, width in zip(shares, widths, strict=True)]
    )
    memory, together = model.init_memory(LANES), []
    for number, tokens in enumerate(segments):
        output = model(tokens, memory, starts[number], lengths[number])
        memory = output.memory
        together.append(output.hidden)
    for lane in range(LANES):
        hidden, own = alone(model, segments, starts, lengths, lane)
        read = [output[lane : lane + 1, :n] for output, n in zip(together, lengths[:, lane].tolist(), strict=True) if n]
        assert max((gap(one, other) for one, other in zip(hidden, read, strict=True)), default=0.0) < 1e-12
        assert gap(memory[lane], own) < 1e-12


def test_a_call_changes_nothing_that_it_was_given(variant: Variant) -> None:
    model = variant.model()
    past, (tokens,) = histories(model), text(model, 5)
    before = {name: tensor.clone() for name, tensor in tensors(past).items()}
    written = tokens.clone()
    model(tokens, past, torch.tensor([True, False, False, False]), torch.tensor([5, 2, 0, 4]))
    opened = model(tokens, past, close=False).memory
    held = {name: tensor.clone() for name, tensor in tensors(opened).items()}
    model(tokens, opened)
    assert torch.equal(tokens, written)
    assert all(torch.equal(tensor, before[name]) for name, tensor in tensors(past).items())
    assert all(torch.equal(tensor, held[name]) for name, tensor in tensors(opened).items())


def test_a_model_keeps_nothing_between_calls(variant: Variant) -> None:
    model = variant.model()
    past, (tokens, other) = histories(model), text(model, 5, 3)
    assert not list(model.buffers())
    kept = {name: {**module.__dict__} for name, module in model.named_modules()}
    first = model(tokens, past)
    model(other, past, close=False)
    second = model(tokens, past)
    assert equal(first.hidden, second.hidden) and equal(first.memory, second.memory)
    for name, module in model.named_modules():
        assert module.__dict__.keys() == kept[name].keys()
        assert all(module.__dict__[key] is value for key, value in kept[name].items()), name
