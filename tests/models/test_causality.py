"""No future: a token changes no prediction made before it. And there is a past: it changes those made after."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.models.variants import LANES, Variant, equal, gap, histories, text
from torch import Tensor, nn

from remanence.models import LanguageModel


@pytest.mark.parametrize("place", range(5))
def test_changing_a_token_leaves_earlier_logits_bit_identical(variant: Variant, place: int) -> None:
    model = variant.model()
    past, (tokens,) = histories(model), text(model, 5)
    changed = tokens.clone()
    changed[:, place] = (changed[:, place] + 1) % variant.config.vocab_size
    logits = model.head.logits(model(tokens, past).hidden)
    others = model.head.logits(model(changed, past).hidden)
    # A model that scores its own token sees it one place later.
    first = place + 1 - model.shift
    assert equal(others[:, :first], logits[:, :first])
    assert first == 5 or all(gap(others[lane, first], logits[lane, first]) > 1e-3 for lane in range(LANES))


def embeddings(model: LanguageModel, segments: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Embedded tokens of each segment, with gradient, and their logits."""
    memory = histories(model)
    calls: list[Tensor] = []

    def remember(module: nn.Module, given: Any, result: Tensor) -> None:
        calls.append(result)

    handle = model.embedding.register_forward_hook(remember)
    logits, embedded = [], []
    for tokens in segments:
        hidden, memory, _ = model(tokens, memory)
        logits.append(model.head.logits(hidden))
        # A model may embed earlier segments once more; its own tokens come last.
        embedded.append(calls[-1])
    handle.remove()
    return embedded, logits


def test_earlier_logits_have_exactly_no_gradient_for_later_tokens(variant: Variant) -> None:
    model = variant.model()
    embedded, logits = embeddings(model, text(model, 5, 4))
    for segment in range(2):
        for place in range(logits[segment].shape[1]):
            score = logits[segment][:, place].square().sum()
            gradients = torch.autograd.grad(score, embedded, retain_graph=True, allow_unused=True)
            here = gradients[segment]
            assert here is not None
            # One that scores its own token embeds a start symbol in the first place, and each token one place later.
            assert (here[:, place + 1 :] == 0).all()
            assert (here[:, place] != 0).any() == (place + model.shift > 0)
            later = gradients[segment + 1 :]
            assert all(gradient is None or (gradient == 0).all() for gradient in later)


def test_the_previous_segment_changes_the_next_one(remembering: Variant) -> None:
    model = remembering.model()
    past, (tokens, after) = histories(model), text(model, 5, 5)
    changed = tokens.clone()
    changed[:, -1] = (changed[:, -1] + 1) % remembering.config.vocab_size
    one = model(after, model(tokens, past).memory).hidden
    other = model(after, model(changed, past).memory).hidden
    assert all(gap(one[lane, 0], other[lane, 0]) > 1e-3 for lane in range(LANES))


def test_without_memory_the_previous_segment_changes_nothing(variant: Variant) -> None:
    if variant.memory_length or not variant.forgets_at_zero:
        pytest.skip("it has a memory")
    model = variant.model()
    tokens, other, after = text(model, 5, 5, 5)
    one = model(after, model(tokens, model.init_memory(LANES)).memory).hidden
    assert equal(model(after, model(other, model.init_memory(LANES)).memory).hidden, one)


def test_information_travels_further_than_the_memory_is_long(remembering: Variant) -> None:
    """Through the layers a token reaches later ones although its own slot is gone: up to L M tokens."""
    if remembering.config.num_layers == 1 or getattr(remembering.config, "same_length", False):
        pytest.skip("one layer reaches as far as its memory")
    model = remembering.model()
    length = remembering.memory_length
    tokens, between, last = text(model, 1, length, 1)
    changed = (tokens + 1) % remembering.config.vocab_size
    seen = []
    for first in (tokens, changed):
        memory = model(first, model.init_memory(LANES)).memory
        memory = model(between, memory).memory
        seen.append(model(last, memory).hidden)
    assert gap(*seen) > 1e-6
