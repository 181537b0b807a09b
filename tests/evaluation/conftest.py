"""Small untrained models, and texts of random tokens with documents of uneven length."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from remanence.data import Split
from remanence.models import LanguageModel, build, config_class

SEGMENT, MEMORY, VOCABULARY = 6, 5, 13
ARCHITECTURES = ("transformer", "transformer-xl", "lamemo", "compressive", "infinite-former", "memformer", "rmt")


@cache
def _build(architecture: str) -> LanguageModel:
    own: dict[str, dict[str, Any]] = {
        "transformer": {},
        "compressive": {"memory_length": MEMORY, "compression_rate": 2},
        "infinite-former": {"memory_length": MEMORY, "num_basis": 6},
        "memformer": {"num_slots": MEMORY},
        "rmt": {"memory_tokens": MEMORY},
    }
    memory = own.get(architecture, {"memory_length": MEMORY})
    config = config_class(architecture)(
        vocab_size=VOCABULARY,
        segment_length=SEGMENT,
        num_layers=3,
        model_width=12,
        num_heads=2,
        head_width=6,
        feed_forward_width=16,
        **memory,
    )
    model = build(config, seed=5).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(12 if parameter.dim() > 1 else 1)
    return model


@pytest.fixture(scope="session")
def make_model() -> Callable[..., LanguageModel]:
    return lambda architecture="lamemo": _build(architecture)


@pytest.fixture(params=ARCHITECTURES)
def model(request: pytest.FixtureRequest) -> LanguageModel:
    return _build(request.param)


@pytest.fixture(scope="session")
def text() -> Split:
    """101 tokens in documents of 17, 1, 30, 2, 7, 40 and 4."""
    tokens = np.random.default_rng(3).integers(0, VOCABULARY, 101).astype(np.uint8)
    documents = np.cumsum([0, 17, 1, 30, 2, 7, 40])
    counts = {"tokens": 101, "bytes": 220, "characters": 200, "words": 50}
    return Split(tokens, VOCABULARY, documents, counts, "token", "test")
