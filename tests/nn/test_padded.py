"""Padding changes how products are computed, not what they are."""

from __future__ import annotations

import copy

import pytest
from tests.models.variants import VARIANTS, gap, text

from remanence.nn.padded import PaddedLinear, pad_linear_maps


@pytest.mark.parametrize("name", ["transformer-xl", "lamemo", "compressive", "infinite-former", "memformer", "rmt"])
def test_padded_linear_maps_give_the_same_outputs_and_gradients(name: str) -> None:
    models = [copy.deepcopy(VARIANTS[name].model()) for _ in range(2)]
    pad_linear_maps(models[1])
    assert any(type(each) is PaddedLinear for each in models[1].modules())
    assert models[1].state_dict().keys() == models[0].state_dict().keys()
    found = []
    for model in models:
        first, second = text(model, *[model.config.segment_length] * 2)
        _, memory, _ = model(first, model.init_memory(len(first)))
        hidden, memory, _ = model(second, memory)
        loss = model.head.loss(hidden, second)
        loss.sum().backward()
        found.append(
            (loss, memory, {key: each.grad for key, each in model.named_parameters() if each.grad is not None})
        )
    assert gap(found[1][0], found[0][0]) < 1e-12
    assert gap(found[1][1], found[0][1]) < 1e-12
    assert found[0][2].keys() == found[1][2].keys()
    assert max(gap(found[0][2][key], found[1][2][key]) for key in found[0][2]) < 1e-10
