"""In bfloat16 and float32 the numbers stay finite, and near those of float64."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tests.models.variants import Variant, gap, histories, tensors, text

from remanence.models import LanguageModel


def calm(variant: Variant, dtype: torch.dtype) -> LanguageModel:
    """Weights at which a rounding error is not blown up by saturated softmaxes."""
    model = copy.deepcopy(variant.model(torch.float64))
    for name, parameter in model.named_parameters():
        if "norm" not in name:
            parameter.data = parameter.data * 0.4
    return model.to(dtype)


def outputs(model: LanguageModel, memory: Any) -> Any:
    """Logits and losses of two segments, the first with a lane that starts, and the memory after them."""
    tokens, after = text(model, 5, 5)
    first, memory, _ = model(tokens, memory, torch.tensor([True, False, False, False]), torch.tensor([5, 0, 3, 5]))
    second, memory, _ = model(after, memory)
    hidden = torch.cat([first, second], dim=1)
    return model.head.logits(hidden), model.head.loss(hidden, torch.cat([tokens, after], dim=1)), memory


def test_float32_stays_near_float64(variant: Variant) -> None:
    exact, model = calm(variant, torch.float64), calm(variant, torch.float32)
    wanted, nats, _ = outputs(exact, histories(exact))
    logits, loss, _ = outputs(model, histories(model))
    assert logits.dtype == loss.dtype == torch.float32
    assert gap(logits.double(), wanted) < 1e-4
    assert gap(loss.double(), nats) < 1e-4


@pytest.mark.parametrize("how", ["autocast", "weights"])
def test_bfloat16_is_finite_and_near_float64(variant: Variant, how: str) -> None:
    exact = calm(variant, torch.float64)
    _, nats, _ = outputs(exact, histories(exact))
    model = calm(variant, torch.bfloat16 if how == "weights" else torch.float32)
    with torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast"):
        logits, loss, memory = outputs(model, histories(model))
    assert logits.dtype == loss.dtype == torch.float32
    assert torch.isfinite(logits).all()
    assert all(torch.isfinite(tensor).all() for tensor in tensors(memory).values() if tensor.is_floating_point())
    assert gap(loss.double(), nats) < 0.15 * max(1.0, nats.max().item())


@pytest.mark.parametrize("how", ["autocast", "weights"])
def test_bfloat16_learns_from_an_empty_memory(variant: Variant, how: str) -> None:
    model = calm(variant, torch.bfloat16 if how == "weights" else torch.float32).train()
    tokens, targets = text(model, 5, 5)
    with torch.autocast("cpu", torch.bfloat16, enabled=how == "autocast"):
        memory = model.init_memory(4)
        for _ in range(2):
            hidden, memory, extras = model(tokens, memory)
        loss = model.head.loss(hidden, targets).sum()
        if extras.auxiliary_loss is not None:
            loss = loss + extras.auxiliary_loss.sum()
    loss.backward()
    for name, parameter in model.named_parameters():
        if name in variant.idle and parameter.grad is None:
            continue
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.dtype == parameter.dtype


def test_bfloat16_token_by_token_stays_near_the_segment_at_once(variant: Variant) -> None:
    model = calm(variant, torch.bfloat16)
    memory, (tokens, targets) = histories(model), text(model, 5, 5)
    loss = model.head.loss(model(tokens, memory).hidden, targets)
    for place in range(3):
        hidden, memory, _ = model(tokens[:, place, None], memory, close=False)
        one = model.head.loss(hidden, targets[:, place, None])
        assert gap(one, loss[:, place, None]) < 0.15 * max(1.0, loss.max().item())


def test_a_memory_cast_to_another_type_goes_on_in_it(variant: Variant) -> None:
    exact, model = calm(variant, torch.float64), calm(variant, torch.float32)
    (tokens,) = text(model, 5)
    past = histories(exact)
    hidden, memory, _ = model(tokens, past.to(dtype=torch.float32))
    assert hidden.dtype == torch.float32
    assert gap(hidden.double(), exact(tokens, past).hidden) < 1e-4
    kinds = {name: tensor.dtype for name, tensor in tensors(memory).items()}
    assert kinds == {name: tensor.dtype for name, tensor in tensors(model.init_memory(4)).items()}
