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


@cache
def _build(name: str, vocab_size: int) -> LanguageModel:
    architecture, _, alignment = name.partition("/")
    memory: dict[str, Any] = {} if architecture == "transformer" else {"memory_length": MEMORY}
    if architecture == "memformer":
        memory = {"num_slots": MEMORY, "alignment": alignment or "aligned"}
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


@pytest.fixture(params=["transformer", "transformer-xl", "lamemo", "memformer", "memformer/bos"])
def model(request: pytest.FixtureRequest) -> LanguageModel:
    return _build(request.param, 256)


@pytest.fixture
def tokenizer() -> ByteTokenizer:
    return ByteTokenizer()
