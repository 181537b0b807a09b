"""Configurations say what they refuse; names find architectures; calls that do not fit say why."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from tests.models.variants import LANES, SIZES, VARIANTS, Variant, equal, histories, text

from remanence.errors import InputError
from remanence.memory import Memory
from remanence.models import (
    LaMemoConfig,
    ModelConfig,
    TransformerConfig,
    TransformerXLConfig,
    architectures,
    build,
    config_class,
)

WRONG: list[tuple[str, dict[str, Any]]] = [
    ("vocab_size", {"vocab_size": 0}),
    ("segment_length", {"segment_length": 0}),
    ("num_layers", {"num_layers": 0}),
    ("model_width", {"model_width": 9}),
    ("model_width", {"model_width": 0}),
    ("num_heads", {"num_heads": -1}),
    ("head_width", {"head_width": 0}),
    ("feed_forward_width", {"feed_forward_width": 0}),
    ("memory_length", {"memory_length": -1}),
    ("dropout", {"dropout": 1.0}),
    ("dropout", {"dropout": -0.1}),
    ("attention_dropout", {"attention_dropout": 1.5}),
    ("dropout", {"dropout": float("nan")}),
    ("layer_norm_epsilon", {"layer_norm_epsilon": 0.0}),
    ("clamp_length", {"clamp_length": 0}),
    ("embedding_width", {"embedding_width": 0}),
    ("cutoffs", {"cutoffs": (5, 5)}),
    ("cutoffs", {"cutoffs": (7, 3)}),
    ("cutoffs", {"cutoffs": (0, 3)}),
    ("cutoffs", {"cutoffs": (5, 19)}),
    ("div_value", {"div_value": 0}),
    ("div_value", {"div_value": 4, "cutoffs": (3, 5)}),
    ("tie_projections", {"cutoffs": (5,), "tie_projections": (True,)}),
    ("same_length", {"same_length": True, "memory_length": 0}),
    ("norm", {"norm": "sandwich"}),
    ("position", {"position": "rotary"}),
]


@pytest.mark.parametrize(("name", "settings"), WRONG, ids=lambda value: str(value).replace(" ", ""))
@pytest.mark.parametrize("cls", [TransformerXLConfig, LaMemoConfig])
def test_impossible_settings_are_refused_by_name(cls: type[ModelConfig], name: str, settings: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=rf"model\.{name}\b"):
        cls(**SIZES | {"memory_length": 3} | settings)


@pytest.mark.parametrize(
    ("name", "settings"),
    [("window", {"window": "left"}), ("interpolation_epsilon", {"interpolation_epsilon": -1e-6})],
)
def test_impossible_settings_of_lamemo_are_refused_by_name(name: str, settings: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=rf"model\.{name}\b"):
        LaMemoConfig(**SIZES | {"memory_length": 3} | settings)


def test_configurations_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        VARIANTS["lamemo"].config.num_layers = 2  # type: ignore[misc]


def test_architectures_are_found_by_name() -> None:
    assert {"transformer", "transformer-xl", "lamemo"} <= set(architectures())
    assert config_class("transformer") is TransformerConfig
    for name in architectures():
        assert config_class(name).architecture == name


def test_an_unknown_architecture_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(InputError, match="'lamemo'"):
        config_class("lamimo")
    with pytest.raises(InputError, match="transformer-xl"):
        config_class("recurrent")


def test_the_suite_covers_every_architecture() -> None:
    assert set(architectures()) <= {variant.config.architecture for variant in VARIANTS.values()}


def test_a_seed_fixes_the_initial_weights_whatever_was_drawn_before(variant: Variant) -> None:
    one = build(variant.config, seed=5).state_dict()
    torch.rand(3)
    other = build(variant.config, seed=5).state_dict()
    different = build(variant.config, seed=6).state_dict()
    assert all(equal(one[name], other[name]) for name in one)
    assert any(not equal(one[name], different[name]) for name in one)


def test_without_a_seed_the_global_generator_decides() -> None:
    config = VARIANTS["lamemo"].config
    torch.manual_seed(3)
    first, second = build(config).embedding.tables[0], build(config).embedding.tables[0]
    torch.manual_seed(3)
    assert equal(build(config).embedding.tables[0], first)
    assert not equal(first, second)


def test_building_with_a_seed_leaves_the_global_generator_alone() -> None:
    state = torch.get_rng_state()
    build(VARIANTS["lamemo"].config, seed=1)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_new_model_is_in_training_mode_and_float32(variant: Variant) -> None:
    model = build(variant.config, seed=0)
    assert model.training
    assert {p.dtype for p in model.parameters()} == {torch.float32}


# Calls


def test_a_memory_of_another_architecture_is_refused(variant: Variant) -> None:
    model = variant.model()
    (tokens,) = text(model, 3)
    other = VARIANTS["transformer-xl" if variant.config.architecture == "lamemo" else "lamemo"].model()
    with pytest.raises(InputError, match=variant.config.architecture):
        model(tokens, other.init_memory(LANES))


def test_another_number_of_lanes_is_refused(variant: Variant) -> None:
    model = variant.model()
    (tokens,) = text(model, 3)
    with pytest.raises(InputError, match="lanes"):
        model(tokens, model.init_memory(LANES + 1))


def test_a_start_inside_an_open_segment_is_refused(variant: Variant) -> None:
    model = variant.model()
    (tokens,) = text(model, 3)
    opened = model(tokens, histories(model), close=False).memory
    with pytest.raises(InputError, match="open segment"):
        model(tokens, opened, torch.ones(LANES, dtype=torch.bool))


def test_padding_of_a_segment_in_pieces_is_refused(variant: Variant) -> None:
    model = variant.model()
    (tokens,) = text(model, 3)
    lengths = torch.tensor([3, 2, 1, 0])
    with pytest.raises(InputError, match="lengths"):
        model(tokens, histories(model), lengths=lengths, close=False)
    opened = model(tokens, histories(model), close=False).memory
    with pytest.raises(InputError, match="lengths"):
        model(tokens, opened, lengths=lengths)


def test_no_tokens_at_all_are_refused(variant: Variant) -> None:
    model = variant.model()
    with pytest.raises(InputError, match="at least one token"):
        model(torch.zeros(LANES, 0, dtype=torch.long), model.init_memory(LANES))


@pytest.mark.parametrize("token", [19, 1000, -1])
def test_ids_outside_the_vocabulary_are_refused(variant: Variant, token: int) -> None:
    model = variant.model()
    (tokens,) = text(model, 3)
    tokens[1, 2] = token
    with pytest.raises(InputError, match="vocabulary"):
        model(tokens, model.init_memory(LANES))


def test_a_memory_shrunk_to_nothing_is_refused_where_windows_are_equal(remembering: Variant) -> None:
    if not remembering.windowed:
        pytest.skip("it has no equal windows")
    model = remembering.model(same_length=True)
    (tokens,) = text(model, 3)
    with pytest.raises(InputError, match="same_length"):
        model(tokens, model.init_memory(LANES).resize(0))


def test_a_memory_saved_by_one_architecture_is_refused_by_another() -> None:
    xl, lamemo = VARIANTS["transformer-xl"].model(), VARIANTS["lamemo"].model()
    rebuilt = Memory.from_state(*histories(lamemo).state())
    (tokens,) = text(xl, 3)
    with pytest.raises(InputError, match="lamemo"):
        xl(tokens, rebuilt)
