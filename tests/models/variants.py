"""What the suite of all models runs on. A new architecture is one line of `VARIANTS`, and passes or does not.

An architecture that lives elsewhere joins by `REMANENCE_TEST_VARIANTS=package.module`, whose own `VARIANTS` are added.
"""

from __future__ import annotations

import dataclasses
import importlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from remanence.memory import Memory
from remanence.models import LanguageModel, ModelConfig, build, config_class

SIZES: dict[str, Any] = {
    "vocab_size": 19,
    "segment_length": 5,
    "num_layers": 3,
    "model_width": 10,
    "num_heads": 3,
    "head_width": 5,
    "feed_forward_width": 13,
}
LANES = 4


@dataclass(frozen=True)
class Variant:
    """One configuration, and what the suite must know of it that no configuration says."""

    config: ModelConfig
    idle: frozenset[str] = frozenset()
    """Parameters that no loss can reach, by the definition of the variant."""
    compiled: bool = False
    """Whether the tests that compile, which take seconds, run on it."""

    @property
    def memory_length(self) -> int:
        return self.config.memory_length  # type: ignore[attr-defined]

    def model(self, dtype: torch.dtype = torch.float64, **changes: Any) -> LanguageModel:
        """A model in evaluation mode whose weights make every output depend on all that it may see.

        Equal models are built once; a test that alters weights takes a copy.
        """
        model = _model(dataclasses.replace(self.config, **changes), dtype)
        model.zero_grad()
        return model.eval()


def variant(
    architecture: str, *, idle: tuple[str, ...] = (), compiled: bool = False, dropout: float = 0.0, **settings: Any
) -> Variant:
    """A tiny configuration with all settings odd: M = 7 where the architecture has a memory, T = 5."""
    cls = config_class(architecture)
    if "memory_length" in {field.name for field in dataclasses.fields(cls)}:
        settings = {"memory_length": 7} | settings
    return Variant(cls(**SIZES | {"dropout": dropout} | settings), frozenset(idle), compiled)


VARIANTS: dict[str, Variant] = {
    "transformer": variant("transformer", compiled=True),
    "transformer-absolute": variant("transformer", position="absolute"),
    "transformer-pre-norm-clamp": variant("transformer", norm="pre", clamp_length=2),
    "transformer-xl": variant("transformer-xl", compiled=True),
    "transformer-xl-learned": variant("transformer-xl", position="learned"),
    "transformer-xl-learned-clamp": variant("transformer-xl", position="learned", clamp_length=4),
    "transformer-xl-zeros": variant("transformer-xl", memory_init="zeros"),
    "transformer-xl-pre-norm": variant("transformer-xl", norm="pre", memory_length=3),
    "transformer-xl-same-length": variant("transformer-xl", same_length=True),
    "transformer-xl-clamp-untied": variant("transformer-xl", clamp_length=6, share_position_biases=False),
    "transformer-xl-adaptive": variant(
        "transformer-xl", cutoffs=(7, 12), div_value=2, tie_projections=(False, True, True)
    ),
    "transformer-xl-adaptive-plain": variant("transformer-xl", cutoffs=(7, 12), embedding_width=6),
    "transformer-xl-no-memory": variant("transformer-xl", memory_length=0),
    "lamemo": variant("lamemo", compiled=True),
    "lamemo-signed": variant("lamemo", position="transformer-xl"),
    "lamemo-content": variant("lamemo", position="disentangled-content"),
    "lamemo-full": variant("lamemo", window="full", compiled=True),
    "lamemo-long": variant("lamemo", memory_length=17, segment_length=3),
    "lamemo-full-long": variant("lamemo", window="full", memory_length=11, segment_length=3),
    "lamemo-pre-norm-short": variant("lamemo", norm="pre", memory_length=3),
    "lamemo-clamp-same-length": variant("lamemo", clamp_length=4, same_length=True),
    "lamemo-untied-adaptive": variant("lamemo", share_position_biases=False, cutoffs=(7, 12), div_value=2),
    "lamemo-one-layer": variant("lamemo", num_layers=1, idle=("ahead_biases.position",)),
    "lamemo-no-memory": variant("lamemo", memory_length=0, idle=("ahead_biases.position",)),
}

for _module in filter(None, os.environ.get("REMANENCE_TEST_VARIANTS", "").split(",")):
    VARIANTS |= importlib.import_module(_module).VARIANTS


@cache
def _model(config: ModelConfig, dtype: torch.dtype) -> LanguageModel:
    return enliven(build(config, seed=3), seed=3).to(dtype)


def enliven(model: LanguageModel, seed: int) -> LanguageModel:
    """Weights large enough that attention is sharp; the initial ones hardly tell one key from another."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        values = torch.randn(parameter.shape, generator=generator)
        if "norm" in name and name.endswith("weight"):
            parameter.data = 1 + 0.2 * values
        elif parameter.dim() == 1 or "biases" in name or "table" in name:
            parameter.data = 0.5 * values
        else:
            parameter.data = 1.5 * values / parameter.shape[-1] ** 0.5
    return model


def text(model: LanguageModel, *lengths: int, lanes: int = LANES, seed: int = 1) -> list[Tensor]:
    """Segments of random tokens, each (lanes, length); by default three of the trained length."""
    generator = torch.Generator().manual_seed(seed)
    lengths = lengths or (model.config.segment_length,) * 3
    return [torch.randint(model.config.vocab_size, (lanes, length), generator=generator) for length in lengths]


def read(model: LanguageModel, segments: list[Tensor], memory: Any = None) -> tuple[Tensor, Any]:
    """Logits of all segments in a row, (B, T1 + T2 + .., V), and the memory after them."""
    memory = model.init_memory(segments[0].shape[0]) if memory is None else memory
    logits = []
    for tokens in segments:
        hidden, memory, _ = model(tokens, memory)
        logits.append(model.head.logits(hidden))
    return torch.cat(logits, dim=1), memory


def histories(model: LanguageModel) -> Any:
    """A memory whose four lanes have lived through different things: three segments, two, one, and none."""
    if model not in _histories:
        memory = model.init_memory(LANES)
        with torch.no_grad():
            for number, tokens in enumerate(text(model, 4, 2, 3, seed=7)):
                memory = model(tokens, memory, torch.arange(LANES) == number).memory
        _histories[model] = memory.reset(torch.arange(LANES) == 3)
    return _histories[model]


_histories: WeakKeyDictionary[LanguageModel, Any] = WeakKeyDictionary()


def tensors(memory: Memory) -> dict[str, Tensor]:
    """What a save of the memory would write."""
    return memory.state()[0]


def gap(one: Any, other: Any) -> float:
    """Largest absolute difference of two tensors, or of all that two memories hold."""
    if isinstance(one, Memory):
        ours, theirs = tensors(one), tensors(other)
        assert ours.keys() == theirs.keys(), ours.keys() ^ theirs.keys()
        return max((gap(ours[name], theirs[name]) for name in ours), default=0.0)
    assert one.shape == other.shape, (one.shape, other.shape)
    assert one.dtype == other.dtype, (one.dtype, other.dtype)
    return (one.double() - other.double()).abs().max().item() if one.numel() else 0.0


def equal(one: Any, other: Any) -> bool:
    """Bit for bit."""
    if isinstance(one, Memory):
        ours, theirs = tensors(one), tensors(other)
        return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    return one.dtype == other.dtype and torch.equal(one, other)


def cuts(length: int) -> Iterator[list[int]]:
    """Ways of reading a segment in pieces: token by token, the first alone, the last alone, thirds."""
    yield [1] * length
    if length > 2:
        yield [1, length - 1]
        yield [length - 1, 1]
        yield [2, 1, *([length - 3] if length > 3 else [])]
