"""What is particular to the Transformer without memory."""

from __future__ import annotations

import pytest
import torch
from tests.models.variants import LANES, VARIANTS, equal, gap, text

from remanence.errors import InputError
from remanence.memory import Distances
from remanence.models import TransformerConfig, build
from remanence.nn.positions import sinusoids


def test_it_is_a_transformer_xl_whose_memory_has_no_slots() -> None:
    model, other = VARIANTS["transformer"].model(), VARIANTS["transformer-xl-no-memory"].model()
    other.load_state_dict(model.state_dict())
    memory, other_memory = model.init_memory(LANES), other.init_memory(LANES)
    for tokens in text(model):
        hidden, memory, _ = model(tokens, memory)
        other_hidden, other_memory, _ = other(tokens, other_memory)
        assert equal(hidden, other_hidden)


@pytest.mark.parametrize("name", ["transformer", "transformer-absolute"])
def test_a_memory_of_any_length_is_refused(name: str) -> None:
    model = VARIANTS[name].model()
    assert model.init_memory(2, 0).length == 0
    with pytest.raises(InputError, match="transformer"):
        model.init_memory(2, 3)


def test_absolute_positions_are_added_to_the_embedding_and_nowhere_else() -> None:
    model = VARIANTS["transformer-absolute"].model()
    assert not any("positions" in name or "biases" in name for name, _ in model.named_parameters())
    tokens = torch.full((1, 5), 3)
    hidden = model(tokens, model.init_memory(1)).hidden
    assert gap(hidden[:, 1], hidden[:, 2]) > 1e-3
    # Without the codes all places hold the same, and attention cannot tell them apart.
    seen = []
    handle = model.layers[0].register_forward_pre_hook(lambda module, given: None)
    plain = model.layers[0].project
    model.layers[0].project = lambda stream: seen.append(stream) or plain(stream)
    model(tokens, model.init_memory(1))
    del model.layers[0].project
    handle.remove()
    codes = sinusoids(torch.arange(5), model.config.model_width, torch.float64)
    assert gap(seen[0][0], model.embedding(tokens)[0] + codes) < 1e-12


def test_absolute_places_are_counted_within_the_segment() -> None:
    model = VARIANTS["transformer-absolute"].model()
    (tokens,) = text(model, 5)
    first, memory, _ = model(tokens, model.init_memory(LANES))
    assert equal(model(tokens, memory).hidden, first)


def test_its_largest_distance_lies_within_the_segment() -> None:
    assert VARIANTS["transformer"].model().distances() == Distances(back=4)
    assert VARIANTS["transformer-pre-norm-clamp"].model().distances() == Distances(back=2)


def test_clamping_absolute_positions_is_refused_or_changes_nothing() -> None:
    sizes = VARIANTS["transformer-absolute"].config
    model = VARIANTS["transformer-absolute"].model()
    try:
        clamped = VARIANTS["transformer-absolute"].model(clamp_length=2)
    except InputError:
        return
    assert sizes.clamp_length is None
    (tokens,) = text(model, 5)
    assert equal(clamped(tokens, clamped.init_memory(LANES)).hidden, model(tokens, model.init_memory(LANES)).hidden)


def test_its_configuration_has_no_memory_length_to_set() -> None:
    with pytest.raises(TypeError, match="memory_length"):
        TransformerConfig(**dict.fromkeys(("vocab_size", "memory_length"), 2))  # type: ignore[arg-type]


def test_a_fresh_model_guesses_nearly_evenly() -> None:
    """Initial weights are small: the loss begins near log V."""
    for name in ("transformer", "transformer-xl", "lamemo"):
        model = build(VARIANTS[name].config, seed=0).eval()
        tokens, targets = text(model, 5, 5)
        nats = model.head.loss(model(tokens, model.init_memory(LANES)).hidden, targets).mean().item()
        assert abs(nats - torch.tensor(19.0).log().item()) < 0.2
