"""What gradients reach, what they do not, and that they can be computed twice."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tests.models.variants import Variant, equal, gap, histories, lived, tensors, text
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from remanence.memory import Memory
from remanence.models import LanguageModel


def gradients(model: LanguageModel) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def every_target(model: LanguageModel) -> Tensor:
    """Targets in every bin of an adaptive softmax."""
    size = model.config.vocab_size
    return torch.linspace(0, size - 1, 20).long().reshape(4, 5)


def test_every_parameter_receives_a_gradient(variant: Variant) -> None:
    model = variant.model().train()
    memory = histories(model)
    tokens = every_target(model)
    # What is written shows in a later segment alone.
    losses = []
    for _ in range(2 if model.memory_carries_gradient else 1):
        hidden, memory, extras = model(tokens, memory)
        losses.append(model.head.loss(hidden, tokens.flip(1)).sum())
        if extras.auxiliary_loss is not None:
            losses.append(extras.auxiliary_loss.sum())
    torch.stack(losses).sum().backward()
    without = {name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()}
    assert without == set(variant.idle)
    assert all(torch.isfinite(gradient).all() for gradient in gradients(model).values())


def test_a_memory_from_inference_mode_serves_gradients(variant: Variant) -> None:
    model = variant.model()
    tokens, targets = text(model, 5, 5)
    found = []
    for inference in (False, True):
        with torch.inference_mode(inference):
            memory = lived(model).detach()
        assert all(tensor.is_inference() == inference for tensor in tensors(memory).values())
        model.zero_grad()
        hidden, _, _ = model(tokens, memory)
        model.head.loss(hidden, targets).sum().backward()
        found.append(gradients(model))
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_gradients_are_finite_from_an_empty_memory(variant: Variant) -> None:
    model = variant.model()
    tokens, targets = text(model, 5, 5)
    hidden, _, _ = model(tokens, model.init_memory(4))
    model.head.loss(hidden, targets).sum().backward()
    assert all(torch.isfinite(gradient).all() for gradient in gradients(model).values())


def with_gradient(memory: Memory) -> tuple[Memory, list[Tensor]]:
    """The same memory with floating tensors that wait for a gradient."""
    given, description = memory.state()
    leaves = {
        name: tensor.detach().clone().requires_grad_(tensor.is_floating_point()) for name, tensor in given.items()
    }
    return Memory.from_state(leaves, description), [leaf for leaf in leaves.values() if leaf.requires_grad]


def test_no_gradient_reaches_the_memory_that_was_passed(remembering: Variant) -> None:
    model = remembering.model()
    if model.memory_carries_gradient:
        pytest.skip("its memory carries gradients by definition")
    tokens, targets = text(model, 5, 5)
    memory, leaves = with_gradient(histories(model))
    hidden, _, _ = model(tokens, memory)
    model.head.loss(hidden, targets).sum().backward()
    assert all(leaf.grad is None or not leaf.grad.any() for leaf in leaves)


def test_a_closed_memory_hangs_on_no_graph_unless_it_carries_gradients(variant: Variant) -> None:
    model = variant.model()
    memory = model.init_memory(4)
    for tokens in text(model, 5, 5, 5):
        memory = model(tokens, memory).memory
    attached = any(tensor.requires_grad for tensor in tensors(memory).values())
    assert attached == (model.memory_carries_gradient and variant.memory_length > 0)


def test_detaching_cuts_every_tensor(variant: Variant) -> None:
    model = variant.model()
    (tokens,) = text(model, 3)
    opened = model(tokens, histories(model), close=False).memory
    detached = opened.detach()
    assert equal(detached, opened)
    assert not any(tensor.requires_grad for tensor in tensors(detached).values())


def test_padding_receives_and_gives_no_gradient(variant: Variant) -> None:
    model = variant.model()
    tokens, targets = text(model, 5, 5)
    lengths = torch.tensor([5, 3, 1, 0])
    padding = torch.arange(5) >= lengths[:, None]
    tokens = tokens.masked_fill(padding, variant.config.vocab_size - 1)
    results = []
    for filler in (variant.config.vocab_size - 1, 0):
        model.zero_grad()
        filled = tokens.masked_fill(padding, filler)
        hidden, _, _ = model(filled, histories(model), lengths=lengths)
        model.head.loss(hidden, targets.masked_fill(padding, -1)).sum().backward()
        results.append(gradients(model))
    assert all(gap(results[0][name], results[1][name]) < 1e-12 for name in results[0])


def loss_over(model: LanguageModel, segments: list[Tensor], *, recompute: bool) -> Tensor:
    total, memory = torch.zeros(()), model.init_memory(4)

    def step(tokens: Tensor, memory: Any) -> tuple[Tensor, Any]:
        hidden, memory, _ = model(tokens, memory)
        return model.head.loss(hidden, tokens).sum(), memory

    for tokens in segments:
        loss, memory = checkpoint(step, tokens, memory, use_reentrant=False) if recompute else step(tokens, memory)
        total = total + loss
    return total


def test_recomputed_gradients_are_the_plain_ones_with_dropout_on(variant: Variant) -> None:
    model = variant.model(dropout=0.3, attention_dropout=0.2).train()
    segments = text(model, 5, 5, 3)
    results = []
    for recompute in (False, True):
        model.zero_grad()
        torch.manual_seed(11)
        loss_over(model, segments, recompute=recompute).backward()
        results.append(gradients(model))
    plain, recomputed = results
    assert plain.keys() == recomputed.keys()
    assert all(equal(recomputed[name], plain[name]) for name in plain)


def test_dropout_follows_the_seed(variant: Variant) -> None:
    model = variant.model(dropout=0.3, attention_dropout=0.2).train()
    segments = text(model, 5, 5)
    losses = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        losses.append(loss_over(model, segments, recompute=False))
    assert equal(losses[0], losses[1])
    assert not equal(losses[0], losses[2])


def test_evaluation_mode_drops_nothing_and_draws_nothing(variant: Variant) -> None:
    model = variant.model(dropout=0.3, attention_dropout=0.2)
    plain = variant.model(dropout=0.0)
    (tokens,) = text(model, 5)
    state = torch.get_rng_state()
    hidden = model(tokens, histories(model)).hidden
    assert torch.equal(torch.get_rng_state(), state)
    assert equal(hidden, plain(tokens, histories(plain)).hidden)


def test_a_history_is_the_same_whichever_mode_asks_for_it_first(variant: Variant) -> None:
    """What the tests share may not depend on which of them runs first: sticky memories draw otherwise in training."""
    model = variant.model(dropout=0.3)
    asking = copy.deepcopy(model).train()
    assert equal(histories(asking), lived(model))
    assert asking.training


@pytest.mark.parametrize("which", ["dropout", "attention_dropout"])
def test_each_kind_of_dropout_acts_in_training(variant: Variant, which: str) -> None:
    model = variant.model(**{which: 0.3}).train()
    (tokens,) = text(model, 5)
    past = histories(variant.model())
    assert not equal(model(tokens, past).hidden, model(tokens, past).hidden)
