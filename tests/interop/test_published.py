"""What the importer of published weights accepts, and what it refuses by name."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tests.models.unchecked import without_checks

from remanence.errors import InputError
from remanence.interop import from_published, published_layout
from remanence.models import LaMemoConfig, LanguageModel, TransformerXLConfig, build

GOLDEN = Path(__file__).parent.parent / "golden"
FILES = sorted(path.stem for path in GOLDEN.glob("*.npz") if path.stem.startswith(("lamemo", "transformer_xl")))


def golden(name: str) -> tuple[str, dict[str, NDArray[Any]], dict[str, Any]]:
    """Kind, weights and configuration of a golden file."""
    arrays = np.load(GOLDEN / f"{name}.npz", allow_pickle=False)
    weights = {key[8:]: arrays[key] for key in arrays.files if key.startswith("weights/")}
    return "lamemo" if name.startswith("lamemo") else "transformer-xl", weights, json.loads(str(arrays["config"]))


def load(name: str, change: Any = None, **settings: Any) -> LanguageModel:
    """The model of a golden file after a change of its weights or settings."""
    kind, weights, config = golden(name)
    if change is not None:
        change(weights)
    return from_published(kind, weights, config | settings)  # type: ignore[arg-type]


def refused(name: str, change: Any = None, **settings: Any) -> str:
    with pytest.raises(InputError) as error:
        load(name, change, **settings)
    assert "\n" not in str(error.value)
    return str(error.value)


def equal(one: LanguageModel, other: LanguageModel) -> bool:
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def scores(model: LanguageModel) -> torch.Tensor:
    """Log-probabilities of two segments."""
    generator = torch.Generator().manual_seed(0)
    memory = model.init_memory(2)
    for _ in range(2):
        tokens = torch.randint(model.config.vocab_size, (2, 4), generator=generator)
        hidden, memory, _ = model(tokens, memory)
    return model.head.logits(hidden).log_softmax(-1)


LAMEMO, ADAPTIVE = "lamemo_disentangled", "transformer_xl_adaptive-div2"
PROJECTED = "transformer_xl_adaptive-div1-projected"


@pytest.fixture(scope="module", autouse=True)
def types_checked_by_the_library_alone() -> Iterator[None]:
    """The tests' own checks of types would refuse wrong settings before the library can."""
    with without_checks():
        yield


# What is accepted


def test_a_model_comes_in_evaluation_mode_in_the_type_of_the_weights() -> None:
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        kind, weights, config = golden(LAMEMO)
        cast = {name: torch.from_numpy(array).to(dtype) for name, array in weights.items()}
        model = from_published(kind, cast, config)  # type: ignore[arg-type]
        assert not model.training
        assert {parameter.dtype for parameter in model.parameters()} == {dtype}


def test_a_prefix_of_parallel_training_is_taken_off() -> None:
    kind, weights, config = golden(ADAPTIVE)
    prefixed = {f"module.{name}": array for name, array in weights.items()}
    assert equal(from_published(kind, prefixed, config), load(ADAPTIVE))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "buffer",
    ["pos_emb.inv_freq", "layers.0.dec_attn.train_logits_constant", "layers.2.dec_attn.eval_logits_constant"],
)
def test_buffers_are_ignored_present_or_not_whatever_their_type(buffer: str) -> None:
    def put(weights: dict[str, Any]) -> None:
        weights[buffer] = np.zeros(8, dtype=np.float32)

    def take(weights: dict[str, Any]) -> None:
        weights.pop(buffer, None)

    assert equal(load(LAMEMO, put), load(LAMEMO, take))


def test_tensors_that_wait_for_a_gradient_are_taken_as_values() -> None:
    kind, weights, config = golden(LAMEMO)
    leaves = {name: torch.from_numpy(array).requires_grad_() for name, array in weights.items()}
    model = from_published(kind, leaves, config)  # type: ignore[arg-type]
    assert all(parameter.is_leaf and parameter.requires_grad for parameter in model.parameters())
    assert equal(model, load(LAMEMO))


def test_what_was_given_stays_as_it_is_and_is_not_shared() -> None:
    kind, weights, config = golden(ADAPTIVE)
    before, settings = {name: array.copy() for name, array in weights.items()}, json.dumps(config)
    model = from_published(kind, weights, config)  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    assert all(np.array_equal(weights[name], before[name]) for name in weights)
    assert json.dumps(config) == settings


def test_arrays_that_cannot_be_written_to_and_are_not_contiguous_are_accepted() -> None:
    def odd(weights: dict[str, Any]) -> None:
        for name, array in weights.items():
            strided = np.repeat(array, 2, axis=0)[::2]
            strided.flags.writeable = False
            weights[name] = strided

    assert equal(load(LAMEMO, odd), load(LAMEMO))


@pytest.mark.parametrize("name", FILES)
def test_the_layout_takes_every_weight_out_again(name: str) -> None:
    """Exporting by the layout gives back what was given, for every official name."""
    kind, weights, _ = golden(name)
    model = load(name)
    parameters = dict(model.named_parameters())
    layout = published_layout(model, kind)
    named = {key for key in weights if not key.endswith(("inv_freq", "logits_constant"))}
    assert set(layout) == named
    for key, place in layout.items():
        assert np.array_equal(place.of(parameters[place.parameter]).detach().numpy(), weights[key]), key
    assert {place.parameter for place in layout.values()} == set(parameters)


def test_settings_reach_the_configuration() -> None:
    config = load("lamemo_disentangled_clamp-same-length").config
    assert isinstance(config, LaMemoConfig)
    assert (config.clamp_length, config.same_length, config.memory_length) == (6, True, 9)
    assert (config.position, config.window, config.interpolation_epsilon) == ("disentangled", "right", 1e-6)
    assert load("lamemo_disentangled_full-window_pre-norm").config.norm == "pre"
    assert load(LAMEMO).config.clamp_length is None
    zeros = load("transformer_xl_zero-memory").config
    assert isinstance(zeros, TransformerXLConfig) and zeros.memory_init == "zeros"


def test_the_attention_type_alone_names_the_variant() -> None:
    for name, position, window in (
        (LAMEMO, "disentangled", "right"),
        ("lamemo_transformer-xl", "transformer-xl", "right"),
        ("lamemo_disentangled-content", "disentangled-content", "right"),
        ("lamemo_disentangled_full-window", "disentangled", "full"),
    ):
        kind, weights, config = golden(name)
        bare = {key: value for key, value in config.items() if key not in ("position", "window", "model")}
        told = from_published(kind, weights, bare).config  # type: ignore[arg-type]
        assert (told.position, told.window) == (position, window)


def test_biases_of_each_layer_are_known_by_their_shape() -> None:
    def untie(weights: dict[str, Any]) -> None:
        for name in ("r_w_bias", "r_r_bias"):
            weights[name] = np.stack([weights[name]] * 2)

    untied, shared = load("transformer_xl_base", untie), load("transformer_xl_base")
    assert not untied.config.share_position_biases and shared.config.share_position_biases
    assert torch.equal(scores(untied), scores(shared))


def test_the_memory_length_of_the_configuration_may_be_another() -> None:
    assert load("transformer_xl_base", mem_len=11).init_memory(1).length == 11


# Tail slots


def test_turning_the_slots_of_an_adaptive_softmax_twice_is_nothing() -> None:
    def turn(times: int) -> Any:
        def change(weights: dict[str, Any]) -> None:
            for _ in range(times):
                for name in ("crit.cluster_weight", "crit.cluster_bias"):
                    weights[name] = weights[name][::-1].copy()

        return change

    plain, once, twice = (load(ADAPTIVE, turn(times)) for times in range(3))
    assert equal(twice, plain)
    head, tails = slice(0, 20), slice(20, 60)
    assert (scores(once) - scores(plain))[..., head].abs().max() < 1e-12
    assert (scores(once) - scores(plain))[..., tails].abs().max() > 0.1


# What is refused


def test_missing_weights_are_named() -> None:
    told = refused(
        LAMEMO, lambda weights: [weights.pop(name) for name in ("r_r_bias_future", "crit.out_layers.0.bias")]
    )
    assert "2 missing" in told and "r_r_bias_future" in told and "crit.out_layers.0.bias" in told


def test_weights_left_over_are_named() -> None:
    assert "r_w_bias_future" in refused(LAMEMO, lambda weights: weights.update(r_w_bias_future=weights["r_w_bias"]))
    # The weights of a deeper model do not fit a shallower configuration.
    told = refused(LAMEMO, n_layer=2)
    assert "unknown" in told and "layers.2." in told and "..." in told


def test_misshapen_weights_are_named_with_both_shapes() -> None:
    told = refused(LAMEMO, lambda weights: weights.update({"layers.1.dec_attn.q_net.weight": np.zeros((3, 16))}))
    assert "layers.1.dec_attn.q_net.weight is (3, 16) instead of (16, 16)" in told


def test_a_transposed_weight_is_refused_unless_it_is_square() -> None:
    name = "layers.0.pos_ff.CoreNet.0.weight"
    assert name in refused(LAMEMO, lambda weights: weights.update({name: weights[name].T}))


def test_several_faults_are_told_at_once() -> None:
    def spoil(weights: dict[str, Any]) -> None:
        del weights["r_w_bias"]
        weights["extra"] = np.zeros(1)
        weights["r_r_bias"] = np.zeros((1, 1))

    told = refused(LAMEMO, spoil)
    assert all(part in told for part in ("1 missing", "r_w_bias", "1 unknown", "extra", "1 misshapen", "(1, 1)"))


@pytest.mark.parametrize(
    ("file", "one", "other"),
    [
        (LAMEMO, "word_emb.emb_layers.0.weight", "crit.out_layers.0.weight"),
        (ADAPTIVE, "word_emb.emb_layers.2.weight", "crit.out_layers.2.weight"),
        (ADAPTIVE, "word_emb.emb_projs.1", "crit.out_projs.1"),
        (PROJECTED, "word_emb.emb_projs.0", "crit.out_projs.2"),
        (PROJECTED, "crit.out_projs.1", "crit.out_projs.2"),
    ],
)
def test_tied_weights_that_differ_are_named(file: str, one: str, other: str) -> None:
    told = refused(file, lambda weights: weights.update({other: weights[other] + 1}))
    assert other in told and ("tied" in told)
    assert one in told or "word_emb" in told


def test_projections_that_are_not_tied_may_differ() -> None:
    changed = load(ADAPTIVE, lambda weights: weights.update({"crit.out_projs.0": weights["crit.out_projs.0"] + 1}))
    assert not equal(changed, load(ADAPTIVE))


def test_weights_of_several_types_are_refused() -> None:
    told = refused(LAMEMO, lambda weights: weights.update(r_w_bias=weights["r_w_bias"].astype(np.float32)))
    assert "float32" in told and "float64" in told


@pytest.mark.parametrize("value", ["text", ["a", "b"], None, {"a": 1}, np.array(["x"]), np.array([None])], ids=repr)
def test_weights_that_are_no_numbers_are_named(value: Any) -> None:
    assert "r_w_bias" in refused(LAMEMO, lambda weights: weights.update(r_w_bias=value))


def test_whole_numbers_are_no_weights() -> None:
    def whole(weights: dict[str, Any]) -> None:
        for name in weights:
            weights[name] = np.zeros_like(weights[name], dtype=np.int64)

    assert "int64" in refused(LAMEMO, whole)


def test_no_weights_at_all_are_refused() -> None:
    with pytest.raises(InputError, match="missing"):
        from_published("lamemo", {}, golden(LAMEMO)[2])


@pytest.mark.parametrize("name", ["vocab_size", "n_layer", "n_head", "d_model", "d_head", "d_inner", "mem_len"])
def test_a_configuration_without_a_size_is_refused_by_name(name: str) -> None:
    kind, weights, config = golden(LAMEMO)
    del config[name]
    with pytest.raises(InputError, match=name):
        from_published(kind, weights, config)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n_layer", "3"),
        ("n_layer", True),
        ("n_layer", 3.0),
        ("n_layer", 0),
        ("mem_len", -1),
        ("clamp_len", "no"),
        ("attn_type", 2),
        ("attn_type", "three"),
        ("position", "rotary"),
        ("window", "left"),
        ("div_val", "two"),
        ("cutoffs", "20"),
        ("cutoffs", [20, 10]),
        ("cutoffs", 5),
        ("tie_projs", 1),
        ("tie_projs", [True, True]),
        ("d_embed", "wide"),
        ("dropout", "much"),
        ("dropatt", 2.0),
        ("layer_norm_eps", None),
        ("interpolation_eps", "small"),
        ("segment_lengths", "5"),
        ("segment_lengths", 5),
        ("memory_init", "ones"),
    ],
)
def test_settings_of_the_wrong_kind_are_refused_in_a_sentence(name: str, value: Any) -> None:
    file = "transformer_xl_base" if name == "memory_init" else LAMEMO
    assert len(refused(file, **{name: value})) < 400


def test_an_unknown_kind_is_refused() -> None:
    _, weights, config = golden(LAMEMO)
    with pytest.raises(InputError, match="'lamemo', 'transformer-xl' or 'infinite-former'"):
        from_published("memformer", weights, config)  # type: ignore[arg-type]


def test_an_initialised_model_can_be_exported_and_read_back() -> None:
    config = TransformerXLConfig(
        vocab_size=17,
        segment_length=3,
        memory_length=5,
        num_layers=2,
        model_width=6,
        num_heads=3,
        head_width=4,
        feed_forward_width=7,
        cutoffs=(5, 9),
        div_value=2,
    )
    model = build(config, seed=0)
    parameters = dict(model.named_parameters())
    weights = {
        name: place.of(parameters[place.parameter]).detach()
        for name, place in published_layout(model, "transformer-xl").items()
    }
    told = {"vocab_size": 17, "mem_len": 5, "n_layer": 2, "d_model": 6, "n_head": 3, "d_head": 4, "d_inner": 7}
    told |= {"cutoffs": [5, 9], "div_val": 2, "tie_projs": [True, True, True]}
    again = from_published("transformer-xl", weights, told)
    assert equal(again, model)
