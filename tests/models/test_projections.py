"""Keys and values kept with a memory, for reading with fixed weights: the same numbers for less work."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.models.variants import LANES, VARIANTS, Variant, equal, gap, histories, text
from torch.utils.flop_counter import FlopCounterMode

from remanence.errors import InputError
from remanence.memory import load_memory
from remanence.models import LanguageModel


def projecting() -> Iterator[Any]:
    """The variants whose memory is larger with projections than without."""
    for name, variant in VARIANTS.items():
        model = variant.model()
        if getattr(model.with_projections(model.init_memory(1)), "keys", ()):
            yield pytest.param(variant, id=name)


def plain(memory: Any) -> dict[str, Any]:
    """Everything but what is kept of the weights' work."""
    return {name: each for name, each in memory.state()[0].items() if not name.startswith(("keys.", "values."))}


PROJECTING = list(projecting())


def test_the_models_with_fixed_slots_are_among_them() -> None:
    names = {str(each.id).partition("-")[0] for each in PROJECTING}
    assert names == {"transformer", "compressive", "infinite"}


@pytest.mark.parametrize("variant", PROJECTING)
def test_numbers_are_those_of_reading_without(variant: Variant) -> None:
    model = variant.model()
    with torch.no_grad():
        memory = histories(model)
        kept = model.with_projections(memory)
        assert kept.nbytes > memory.nbytes
        draws = torch.Generator().manual_seed(3)
        for number, tokens in enumerate(text(model, 5, 2, 1, 1, 7, 5, 3)):
            starts = torch.rand(LANES, generator=draws) < 0.2
            lengths = torch.randint(0, tokens.shape[1] + 1, (LANES,), generator=draws) if number % 3 == 2 else None
            one, memory, _ = model(tokens, memory, starts, lengths)
            other, kept, _ = model(tokens, kept, starts, lengths)
            real = torch.ones_like(tokens, dtype=torch.bool)
            if lengths is not None:
                real = torch.arange(tokens.shape[1]) < lengths[:, None]
            assert gap(one[real], other[real]) < 1e-11
            assert all(gap(plain(kept)[name], each) < 1e-11 for name, each in plain(memory).items())
        assert kept.keys


@pytest.mark.parametrize("variant", PROJECTING)
def test_advancing_keeps_what_reading_keeps(variant: Variant) -> None:
    model = variant.model()
    with torch.no_grad():
        read = advanced = model.with_projections(histories(model))
        for tokens in text(model, 5, 1, 7, 3):
            _, read, _ = model(tokens, read)
            advanced = model.advance(tokens, advanced)
            assert gap(advanced, read) < 1e-11
            assert len(advanced.keys) == len(read.keys)


@pytest.mark.parametrize("variant", PROJECTING)
def test_pieces_lanes_and_lengths_go_on_as_without(variant: Variant, tmp_path: Path) -> None:
    model = variant.model()
    with torch.no_grad():
        memory = histories(model)
        kept = model.with_projections(memory)
        (tokens, after) = text(model, 5, 4)
        memory, kept = memory[[2, 0, 1]], type(kept).concatenate([kept[2], kept[:2]])
        memory, kept = (model(tokens[:3, :2], each, close=False).memory.detach() for each in (memory, kept))
        memory, kept = (model(tokens[:3, 2:], each).memory for each in (memory, kept))
        memory, kept = (each.resize(variant.memory_length + 2).resize(variant.memory_length) for each in (memory, kept))
        kept.save(tmp_path / "memory")
        loaded, _ = load_memory(tmp_path / "memory")
        one = model(after[:3], memory).hidden
        other = model(after[:3], kept).hidden
        assert gap(one, other) < 1e-11
        assert equal(model(after[:3], loaded).hidden, other)


def flops(model: LanguageModel, memory: Any, length: int) -> int:
    (tokens,) = text(model, length, lanes=memory.lanes)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(tokens, memory)
    return counter.get_total_flops()


@pytest.mark.parametrize("name", ["transformer-xl", "compressive-mean"])
def test_a_long_memory_costs_less_to_read(name: str) -> None:
    model = VARIANTS[name].model(model_width=64, head_width=16, num_heads=4)
    with torch.no_grad():
        memory = model.init_memory(2, 64)
        kept = model(text(model, 4, lanes=2)[0], model.with_projections(memory)).memory
    assert flops(model, memory, 4) > 3 * flops(model, kept, 4)


@pytest.mark.parametrize("variant", PROJECTING)
def test_they_are_refused_where_weights_may_change(variant: Variant) -> None:
    model = variant.model()
    (tokens,) = text(model, 3)
    with pytest.raises(InputError, match="serves without gradients only"):
        model(tokens, model.with_projections(model.init_memory(LANES)))


def test_a_model_that_can_save_nothing_gives_the_memory_back() -> None:
    for name in ("lamemo", "memformer", "rmt", "transformer", "transformer-xl-zeros"):
        model = VARIANTS[name].model()
        memory = model.init_memory(2)
        assert model.with_projections(memory) is memory
