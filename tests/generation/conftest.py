"""Small untrained models that have much to say: large weights make every token depend on all that came before."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch

from remanence.data.tokenizers.byte import ByteTokenizer
from remanence.models import LanguageModel, build, config_class

SEGMENT, MEMORY = 6, 5
ARCHITECTURES = (
    "transformer", "transformer-xl", "lamemo", "compressive", "infinite-former", "memformer", "memformer/bos", "rmt",
)  # fmt: skip


@cache
def _build(name: str, vocab_size: int) -> LanguageModel:
    architecture, _, alignment = name.partition("/")
    own: dict[str, dict[str, Any]] = {
        "transformer": {},
        "compressive": {"memory_length": MEMORY, "compressed_length": 4, "compression_rate": 2},
        "infinite-former": {"memory_length": MEMORY, "num_basis": 6},
        "memformer": {"num_slots": MEMORY, "alignment": alignment or "aligned"},
        "rmt": {"memory_tokens": MEMORY},
    }
    memory = own.get(architecture, {"memory_length": MEMORY})
    config = config_class(architecture)(
        vocab_size=vocab_size,
        segment_length=SEGMENT,
        num_layers=3,
        model_width=12,
        num_heads=2,
        head_width=6,
        feed_forward_width=16,
        **memory,
    )
    model = build(config, seed=5).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(12 if parameter.dim() > 1 else 1)
    return model


@pytest.fixture(scope="session")
def make_model() -> Callable[..., LanguageModel]:
    return lambda architecture="lamemo", vocab_size=256: _build(architecture, vocab_size)


@pytest.fixture(params=ARCHITECTURES)
def model(request: pytest.FixtureRequest) -> LanguageModel:
    return _build(request.param, 256)


@pytest.fixture
def tokenizer() -> ByteTokenizer:
    return ByteTokenizer()
