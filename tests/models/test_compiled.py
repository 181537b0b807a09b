"""One compiled graph serves all segments of a stream, with resets and padding in any of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.models.variants import LANES, VARIANTS, Variant, gap, text
from torch import Tensor

from remanence.models import LanguageModel


@pytest.fixture(autouse=True)
def fresh_compiler() -> None:
    """No test inherits graphs, or their number, from another."""
    torch._dynamo.reset()


def stream(model: LanguageModel, call: Any, *, padded: bool) -> tuple[list[Tensor], Any]:
    """Hidden states of four segments, where lanes start now and then; after the first, nothing may be compiled."""
    length = model.config.segment_length
    generator = torch.Generator().manual_seed(2)
    memory, seen = model.init_memory(LANES), []
    for number, tokens in enumerate(text(model, *[length] * 4)):
        starts = torch.rand(LANES, generator=generator) < 0.4
        lengths = torch.randint(length + 1, (LANES,), generator=generator) if padded else None
        with torch._dynamo.config.patch(error_on_recompile=number > 0):
            hidden, memory, _ = call(tokens, memory, starts, lengths)
        seen.append(hidden)
    return seen, memory


def test_one_graph_reads_all_segments_and_gives_equal_numbers(compiled_variant: Variant) -> None:
    model = compiled_variant.model()
    with torch.no_grad():
        plain, memory = stream(model, model, padded=True)
        compiled, compiled_memory = stream(model, torch.compile(model, fullgraph=True, backend="eager"), padded=True)
    assert max(map(gap, compiled, plain)) < 1e-12
    assert gap(compiled_memory, memory) < 1e-12


@pytest.mark.parametrize("name", ["transformer-xl", "lamemo"])
def test_gradients_of_the_loss_through_one_graph_are_the_plain_ones(name: str) -> None:
    model = VARIANTS[name].model(num_layers=2).train()
    results = []

    def step(tokens: Tensor, memory: Any, starts: Tensor, lengths: None) -> tuple[Tensor, Any, None]:
        hidden, memory, _ = model(tokens, memory, starts, lengths)
        return model.head.loss(hidden, tokens), memory, None

    for call in (step, torch.compile(step, fullgraph=True, backend="aot_eager")):
        model.zero_grad()
        losses, _ = stream(model, call, padded=False)
        torch.cat(losses).sum().backward()
        results.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    assert results[0].keys() == results[1].keys()
    assert max(gap(results[0][name], results[1][name]) for name in results[0]) < 1e-11


def test_an_adaptive_loss_is_not_compiled_anew_for_every_batch() -> None:
    """How many words fall into a tail differs from batch to batch; no shape that is compiled may depend on it."""
    model = VARIANTS["transformer-xl-adaptive"].model(num_layers=1)

    def step(tokens: Tensor, memory: Any, starts: Tensor, lengths: None) -> tuple[Tensor, Any, None]:
        hidden, memory, _ = model(tokens, memory, starts)
        return model.head.loss(hidden, tokens), memory, None

    with torch.no_grad():
        plain, _ = stream(model, step, padded=False)
        compiled, _ = stream(model, torch.compile(step, dynamic=False, backend="eager"), padded=False)
    assert max(map(gap, compiled, plain)) < 1e-12


def test_dropout_is_part_of_the_graph() -> None:
    model = VARIANTS["lamemo"].model(torch.float32, num_layers=1, dropout=0.5, attention_dropout=0.5).train()
    (tokens,) = text(model, 5)
    memory = model.init_memory(LANES)
    call = torch.compile(model, fullgraph=True, backend="eager")
    one, other = (call(tokens, memory).hidden for _ in range(2))
    assert (one == 0).any() and not torch.equal(one, other)


def test_the_real_compiler_gives_numbers_near_the_plain_ones() -> None:
    model = VARIANTS["lamemo"].model(torch.float32, num_layers=2)
    with torch.no_grad():
        plain, memory = stream(model, model, padded=False)
        compiled, compiled_memory = stream(model, torch.compile(model, fullgraph=True), padded=False)
    assert max(map(gap, compiled, plain)) < 1e-4
    assert gap(compiled_memory, memory) < 1e-4
