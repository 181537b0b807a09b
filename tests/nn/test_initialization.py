"""What every parameter is before training."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from remanence.models import LaMemoConfig, LanguageModel, TransformerXLConfig, build

SIZES: dict[str, Any] = {
    "vocab_size": 600,
    "segment_length": 50,
    "memory_length": 50,
    "num_layers": 2,
    "model_width": 64,
    "num_heads": 8,
    "head_width": 32,
    "feed_forward_width": 96,
}


@pytest.fixture(scope="module", params=["lamemo", "learned", "adaptive"])
def model(request: pytest.FixtureRequest) -> LanguageModel:
    """Models that have every kind of parameter between them."""
    if request.param == "lamemo":
        return build(LaMemoConfig(**SIZES, position="disentangled-content"), seed=1)
    if request.param == "learned":
        return build(TransformerXLConfig(**SIZES, position="learned"), seed=1)
    cutoffs = {"cutoffs": (200, 400), "div_value": 2, "tie_projections": (False, True, False)}
    return build(TransformerXLConfig(**SIZES, **cutoffs), seed=1)


def law(name: str) -> tuple[float, float]:
    """Mean and deviation that the table of the published initialisers gives a parameter."""
    if "norm" in name:
        return (1.0, 0.02) if name.endswith("weight") else (0.0, 0.0)
    if "projections" in name:
        return 0.0, 0.01
    if name.endswith(("bias", "cluster_bias", "distance_bias")) and "biases" not in name:
        return 0.0, 0.0
    return 0.0, 0.02


def test_every_parameter_follows_the_published_law(model: LanguageModel) -> None:
    for name, parameter in model.named_parameters():
        mean, deviation = law(name)
        values = parameter.detach().double()
        if deviation == 0:
            assert (values == mean).all(), name
            continue
        count = values.numel()
        assert abs(values.mean() - mean) < 5 * deviation / count**0.5, name
        assert abs(values.std() / deviation - 1) < 5 / (2 * count) ** 0.5, name


def test_no_two_parameters_are_filled_alike(model: LanguageModel) -> None:
    drawn = [parameter.detach().flatten()[:8] for parameter in model.parameters() if parameter.detach().std() > 0]
    heads = {tuple(values.tolist()) for values in drawn}
    assert len(heads) == len(drawn)


def test_initial_values_do_not_depend_on_the_device_or_the_type_of_the_model() -> None:
    config = LaMemoConfig(**SIZES)
    torch.set_default_dtype(torch.float64)
    try:
        exact = build(config, seed=2).state_dict()
    finally:
        torch.set_default_dtype(torch.float32)
    plain = build(config, seed=2).state_dict()
    assert all(torch.equal(exact[name].float(), plain[name]) for name in plain)
