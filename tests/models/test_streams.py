"""Long reading without gradients, where rows grow in place, is reading with them, whatever happens to the memory."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.models.variants import LANES, VARIANTS, Variant, gap, tensors

from remanence.analysis.live_bytes import LiveBytes
from remanence.memory import load_memory
from remanence.models import LanguageModel
from remanence.nn.packed import fixed


def slots(memory: Any) -> dict[str, Any]:
    """Everything but what is kept of the weights' work, and what an open segment holds."""
    return {
        name: each for name, each in tensors(memory).items() if not name.startswith(("keys.", "values.", "segment"))
    }


class Pair:
    """The same stream read twice: with gradients and nothing kept, and without gradients and everything kept."""

    def __init__(self, model: LanguageModel) -> None:
        self.model = model
        self.plain = model.init_memory(LANES)
        with torch.no_grad():
            self.kept = model.with_projections(self.plain)
        self.draws = torch.Generator().manual_seed(5)

    def tokens(self, count: int) -> torch.Tensor:
        return torch.randint(self.model.config.vocab_size, (LANES, count), generator=self.draws)

    def read(self, tokens: torch.Tensor, **options: Any) -> None:
        one, self.plain, _ = self.model(tokens, self.plain, **options)
        with torch.no_grad():
            other, kept, _ = self.model(tokens, self.kept, **options)
            # A fork of the same memory with other tokens, before the stream goes on and after it.
            aside = self.model(tokens.flip(0), self.kept, **options).hidden
            again = self.model(tokens, self.kept, **options).hidden
        real = torch.ones_like(tokens, dtype=torch.bool)
        if options.get("lengths") is not None:
            real = torch.arange(tokens.shape[1]) < options["lengths"][:, None]
        assert gap(one[real], other[real]) < 1e-10
        assert gap(again[real], other[real]) < 1e-10
        assert aside.shape == other.shape
        self.kept = kept
        if not self.plain.opened:
            self.plain = self.plain.detach()
            held, wanted = slots(self.kept), slots(self.plain)
            assert held.keys() == wanted.keys()
            assert all(gap(held[name], wanted[name]) < 1e-10 for name in held)

    def both(self, change: Any) -> None:
        self.plain = change(self.plain)
        with torch.no_grad():
            self.kept = change(self.kept)


@pytest.mark.parametrize("variant", [pytest.param(each, id=name) for name, each in VARIANTS.items()])
def test_forks_resets_padding_files_and_lengths(variant: Variant, tmp_path: Path) -> None:
    pair = Pair(variant.model())
    length = variant.memory_length

    def stored(memory: Any) -> Any:
        memory.save(tmp_path / "memory")
        return load_memory(tmp_path / "memory")[0]

    for event in range(18):
        match event % 6:
            case 0:
                pair.read(pair.tokens(4), starts=torch.rand(LANES, generator=pair.draws) < 0.3)
            case 1:
                pair.read(pair.tokens(1))
            case 2:
                pair.read(pair.tokens(4), lengths=torch.randint(0, 5, (LANES,), generator=pair.draws))
            case 3:
                for place in range(5):
                    pair.read(pair.tokens(1), close=place == 4)
                    if place == 2 and event > 6:
                        pair.both(stored)
            case 4:
                pair.read(pair.tokens(2), close=False)
                pair.both(pair.model.close)
                if event > 6:
                    pair.both(lambda memory: memory[[1, 0, 3, 2]])
            case _:
                if event > 6 and length > 1:
                    pair.both(lambda memory: memory.resize(length - 1).resize(length))
                for _ in range(5):
                    pair.read(pair.tokens(1))


@pytest.mark.parametrize("name", ["transformer", "transformer-xl", "lamemo", "infinite-former", "rmt", "memformer"])
def test_what_is_held_does_not_grow_with_the_tokens(name: str) -> None:
    model = VARIANTS[name].model()
    length = model.config.segment_length
    with torch.no_grad():
        memory = model.with_projections(model.init_memory(2))
        held = []
        with LiveBytes() as live:
            for place in range(24 * length):
                memory = model(torch.full((2, 1), place % 7), memory, close=place % length == length - 1).memory
                if place % length == length - 1:
                    gc.collect()
                    held.append(live.now)
                if place == 12 * length - 1:
                    live.peak = live.now
            middle = max(held[:12])
    assert max(held[12:]) <= middle


def test_packed_weights_read_the_same_stream() -> None:
    model = VARIANTS["lamemo"].model(torch.float32, model_width=64, num_heads=4, head_width=16)
    twin = fixed(model)
    draws = torch.Generator().manual_seed(0)
    with torch.no_grad():
        one = other = model.init_memory(2)
        for place in range(23):
            tokens = torch.randint(19, (2, 1), generator=draws)
            hidden, one, _ = model(tokens, one, close=place % 5 == 4)
            packed, other, _ = twin(tokens, other, close=place % 5 == 4)
            torch.testing.assert_close(packed, hidden, rtol=1e-3, atol=1e-3)
