"""Every kind of call of every variant, while the shapes in its signatures are checked."""

from __future__ import annotations

import pytest
import torch
from tests.models.variants import LANES, Variant, histories, text


def test_every_kind_of_call_keeps_the_shapes_it_promises(variant: Variant) -> None:
    model = variant.model(torch.float32)
    past, (tokens, targets) = histories(model), text(model, 5, 5)
    starts, lengths = torch.tensor([True, False, False, False]), torch.tensor([5, 0, 3, 1])
    hidden, memory, _ = model(tokens, past, starts, lengths, extras=True)
    assert hidden.shape == (LANES, 5, variant.config.model_width)
    assert (memory.lanes, memory.length) == (LANES, variant.memory_length)
    assert model.head.loss(hidden, targets).shape == (LANES, 5)
    assert model.head.logits(hidden).shape == (LANES, 5, variant.config.vocab_size)
    opened = model(tokens[:, :2], past, close=False).memory
    assert (opened.lanes, opened.length, opened.opened) == (LANES, variant.memory_length, 2)
    extended = model(tokens[:, 2:3], opened, close=False, extras=True).memory
    assert model.close(extended).opened == 0


def test_extras_are_told_when_asked_for_only(variant: Variant) -> None:
    model = variant.model(torch.float32)
    past, (tokens,) = histories(model), text(model, 5)
    told = model(tokens, past).extras
    assert told.attention_mass is None and told.interpolation is None and told.auxiliary_loss is None
    if not variant.relative:
        return
    told = model(tokens, past, extras=True).extras
    layers, heads, keys = told.attention_mass.shape
    assert (layers, heads) == (variant.config.num_layers, variant.config.num_heads)
    assert keys == variant.memory_length + 5 or not variant.queue


def test_attention_mass_sums_to_one_over_the_distances(variant: Variant) -> None:
    if not variant.relative:
        pytest.skip("it knows no distances")
    model = variant.model()
    past, (tokens,) = histories(model), text(model, 5)
    opened = model(tokens[:, :2], past, close=False).memory
    for told in (model(tokens, past, extras=True).extras, model(tokens[:, 2:], opened, extras=True).extras):
        total = told.attention_mass.sum(-1)
        assert torch.allclose(total, torch.ones_like(total), atol=1e-6)
