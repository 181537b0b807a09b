"""A segment at once, token by token, or in any pieces: the same numbers, at the same cost."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.models.variants import VARIANTS, Variant, cuts, gap, histories, text
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from remanence.models import LanguageModel


def in_pieces(
    model: LanguageModel, tokens: Tensor, memory: Any, pieces: list[int], *, close: str = "call"
) -> tuple[Tensor, Any]:
    """Hidden states of a segment that is opened, extended and closed; by its last call or by `model.close`."""
    hidden = []
    parts = tokens.split(pieces, dim=1)
    for number, part in enumerate(parts):
        last = number == len(parts) - 1
        output = model(part, memory, close=last and close == "call")
        hidden.append(output.hidden)
        memory = output.memory
    return torch.cat(hidden, dim=1), model.close(memory)


def test_a_segment_in_pieces_gives_the_numbers_of_the_segment_at_once(variant: Variant) -> None:
    model = variant.model()
    past = histories(model)
    for length in (variant.config.segment_length, 7):
        (tokens,) = text(model, length)
        hidden, memory, _ = model(tokens, past)
        for pieces in cuts(length):
            piecewise, cut_memory = in_pieces(model, tokens, past, pieces)
            assert gap(piecewise, hidden) < 1e-12, pieces
            assert gap(model.head.logits(piecewise), model.head.logits(hidden)) < 1e-12, pieces
            assert gap(cut_memory, memory) < 1e-12, pieces


def test_segments_of_changing_lengths_in_pieces_add_up(variant: Variant) -> None:
    model = variant.model()
    whole = cut = histories(model)
    for tokens in text(model, 1, 6, 2, 3):
        output = model(tokens, whole)
        hidden, cut = in_pieces(model, tokens, cut, [1] * tokens.shape[1])
        whole = output.memory
        assert gap(hidden, output.hidden) < 1e-12
    assert gap(cut, whole) < 1e-12
    assert model.init_memory(1).state()[1].keys() == cut.state()[1].keys()


def test_closing_afterwards_is_closing_with_the_last_tokens(variant: Variant) -> None:
    model = variant.model()
    (tokens,) = text(model, 4)
    past = histories(model)
    _, by_call = in_pieces(model, tokens, past, [3, 1], close="call")
    _, afterwards = in_pieces(model, tokens, past, [3, 1], close="model")
    assert gap(afterwards, by_call) == 0
    assert afterwards.state()[1] == by_call.state()[1]
    assert afterwards.opened == 0


def test_closing_a_closed_memory_changes_nothing(variant: Variant) -> None:
    model = variant.model()
    past = histories(model)
    assert model.close(past) is past


def test_a_memory_counts_the_tokens_of_its_open_segment(variant: Variant) -> None:
    model = variant.model()
    (tokens,) = text(model, 4)
    memory = histories(model)
    assert memory.opened == 0
    memory = model(tokens[:, :3], memory, close=False).memory
    assert memory.opened == 3
    memory = model(tokens[:, 3:], memory, close=False).memory
    assert memory.opened == 4


def test_gradients_of_pieces_are_those_of_the_segment_at_once(variant: Variant) -> None:
    model = variant.model()
    past, (tokens, targets) = histories(model), text(model, 5, 5)
    gradients = []
    for pieces in ([5], [1, 1, 1, 1, 1], [2, 3]):
        model.zero_grad()
        hidden, memory = in_pieces(model, tokens, past, pieces)
        loss = model.head.loss(hidden, targets).sum()
        if model.memory_carries_gradient:
            loss = loss + model.head.loss(model(targets, memory).hidden, tokens).sum()
        loss.backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    for other in gradients[1:]:
        assert other.keys() == gradients[0].keys()
        assert max(gap(other[name], gradients[0][name]) for name in other) < 1e-11


def test_lanes_of_an_open_segment_can_be_chosen_and_joined(variant: Variant) -> None:
    model = variant.model()
    (tokens,) = text(model, 6)
    past = histories(model)
    hidden, memory, _ = model(tokens, past)
    opened = model(tokens[:, :2], past, close=False).memory
    order = [2, 0, 3, 1]
    joined = type(opened).concatenate([opened[2:3], opened[torch.tensor([0, 3])], opened[1]])
    continued, closed, _ = model(tokens[order][:, 2:], joined)
    assert gap(continued, hidden[order][:, 2:]) < 1e-12
    assert gap(closed, memory[order]) < 1e-12


def flops(model: LanguageModel, tokens: Tensor, memory: Any, pieces: list[int]) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        in_pieces(model, tokens, memory, pieces)
    return counter.get_total_flops()


def test_token_by_token_costs_what_the_segment_at_once_costs(variant: Variant) -> None:
    """One refresh of the memory a segment; one for each token would cost several times as much."""
    length = 10
    model = variant.model(torch.float32, segment_length=length)
    memory = model.init_memory(1, (variant.longest or 3 * length) if variant.memory_length else 0)
    (tokens,) = text(model, length, lanes=1)
    assert flops(model, tokens, memory, [1] * length) < 1.3 * flops(model, tokens, memory, [length])


@pytest.mark.parametrize("name", ["transformer", "transformer-xl", "lamemo"])
def test_going_on_beyond_the_trained_segment_length_costs_no_more(name: str) -> None:
    model = VARIANTS[name].model(torch.float32, segment_length=3, num_layers=1, model_width=64)
    memory = model.init_memory(1)
    (tokens,) = text(model, 30, lanes=1)
    assert flops(model, tokens, memory, [1] * 30) < 1.5 * flops(model, tokens, memory, [30])
