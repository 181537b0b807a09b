"""Parameter counts of the published configurations, without allocating them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from remanence.models import LaMemoConfig, LanguageModel, TransformerXLConfig, build
from remanence.models.base import ModelConfig

ENWIK8: dict[str, Any] = {
    "segment_length": 512,
    "memory_length": 512,
    "num_layers": 12,
    "model_width": 512,
    "num_heads": 8,
    "head_width": 64,
    "feed_forward_width": 2048,
}
ENWIK8_LARGE = ENWIK8 | {
    "segment_length": 768,
    "memory_length": 768,
    "num_layers": 24,
    "model_width": 1024,
    "head_width": 128,
    "feed_forward_width": 3072,
}
WT103: dict[str, Any] = {
    "segment_length": 150,
    "memory_length": 150,
    "num_layers": 16,
    "model_width": 410,
    "num_heads": 10,
    "head_width": 41,
    "feed_forward_width": 2100,
}
WT103_LARGE: dict[str, Any] = {
    "segment_length": 384,
    "memory_length": 384,
    "num_layers": 18,
    "model_width": 1024,
    "num_heads": 16,
    "head_width": 64,
    "feed_forward_width": 4096,
}
NVIDIA: dict[str, Any] = {
    "segment_length": 192,
    "memory_length": 192,
    "num_layers": 16,
    "model_width": 512,
    "num_heads": 8,
    "head_width": 64,
    "feed_forward_width": 2048,
}
WORDS = 267_735
CUTOFFS = (20_000, 40_000, 200_000)
TIES = (False, True, True, True)


def meta(config: ModelConfig) -> LanguageModel:
    with torch.device("meta"):
        return build(config, seed=0)


def count(model: LanguageModel) -> int:
    assert all(parameter.is_meta for parameter in model.parameters())
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("config", "parameters"),
    [
        (TransformerXLConfig(vocab_size=204, **ENWIK8), 41_055_436),
        (TransformerXLConfig(vocab_size=27, **ENWIK8), 40_964_635),
        (TransformerXLConfig(vocab_size=204, **ENWIK8_LARGE), 277_231_820),
        (TransformerXLConfig(vocab_size=WORDS, **WT103), 151_106_305),
        (TransformerXLConfig(vocab_size=WORDS, cutoffs=CUTOFFS, tie_projections=TIES, **WT103), 151_107_538),
        (
            TransformerXLConfig(
                vocab_size=WORDS,
                cutoffs=CUTOFFS,
                tie_projections=TIES,
                div_value=4,
                **WT103_LARGE,
            ),
            285_170_506,
        ),
        (
            TransformerXLConfig(vocab_size=WORDS, cutoffs=(19_997, 39_997, 199_997), tie_projections=TIES, **NVIDIA),
            191_950_298,
        ),
    ],
    ids=["enwik8", "text8", "enwik8-large", "wt103-full-softmax", "wt103", "wt103-large", "nvidia"],
)
def test_transformer_xl_has_the_published_number_of_parameters(config: ModelConfig, parameters: int) -> None:
    assert count(meta(config)) == parameters


@pytest.mark.parametrize(
    ("sizes", "vocab_size", "parameters"),
    [
        (WT103, WORDS, (151_106_305, 151_106_715, 151_107_125)),
        (ENWIK8, 204, (41_055_436, 41_055_948, 41_056_460)),
        (ENWIK8, 27, (40_964_635, 40_965_147, 40_965_659)),
    ],
    ids=["wt103", "enwik8", "text8"],
)
def test_lamemo_has_the_published_number_of_parameters(
    sizes: dict[str, Any], vocab_size: int, parameters: tuple[int, int, int]
) -> None:
    named = zip(("transformer-xl", "disentangled", "disentangled-content"), parameters, strict=True)
    for position, expected in named:
        model = meta(LaMemoConfig(vocab_size=vocab_size, position=position, **sizes))  # type: ignore[arg-type]
        assert count(model) == expected
    full = meta(LaMemoConfig(vocab_size=vocab_size, window="full", **sizes))
    assert count(full) == parameters[1]


@pytest.mark.parametrize(("sizes", "layers"), [(WT103, 41_066_400), (ENWIK8, 40_949_760)], ids=["wt103", "enwik8"])
def test_the_layers_have_the_published_number_of_parameters(sizes: dict[str, Any], layers: int) -> None:
    for config in (TransformerXLConfig(vocab_size=27, **sizes), LaMemoConfig(vocab_size=27, **sizes)):
        model = meta(config)
        assert sum(parameter.numel() for parameter in model.layers.parameters()) == layers
