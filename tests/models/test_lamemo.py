"""What is particular to LaMemo: slots that look ahead, each to every token once, and blend what they see."""

from __future__ import annotations

import copy
import dataclasses
import math
from typing import Any

import pytest
import torch
from tests.models.variants import LANES, VARIANTS, Variant, enliven, equal, gap, histories, text, variant
from torch import Tensor

from remanence.errors import InputError
from remanence.memory import Distances
from remanence.models import LaMemo, LaMemoConfig, LanguageModel, TransformerXLConfig, build, lamemo
from remanence.ops.look_ahead import look_ahead

NAMES = [name for name in VARIANTS if name.startswith("lamemo")]


@pytest.fixture(params=NAMES)
def lamemo_variant(request: pytest.FixtureRequest) -> Variant:
    """A variant of LaMemo."""
    return VARIANTS[request.param]


# Section 3: what a slot has read

MERGES = [[16] * 4, [8, 8, 16], [16, 16, 5], [16, 1, 1, 1], [3, 11, 2, 7, 16, 1, 1, 9]]


@pytest.mark.parametrize("position", ["disentangled", "transformer-xl", "disentangled-content"])
@pytest.mark.parametrize("lengths", MERGES, ids=lambda lengths: "-".join(map(str, lengths)))
def test_what_the_first_layer_has_read_is_one_softmax(lengths: list[int], position: str) -> None:
    """However the text is cut, slot i holds a softmax over all up to itself and all to its right up to the edge."""
    model = variant("lamemo", position=position, num_layers=2, interpolation_epsilon=0.0).model()
    slots = sum(lengths)
    memory, read = model.init_memory(1, slots), torch.zeros(1, 0, dtype=torch.long)
    with torch.no_grad():
        for tokens in text(model, *lengths, lanes=1):
            memory = model(tokens, memory).memory
            read = torch.cat([read, tokens], dim=1)
        edge = slots - lengths[-1]
        context, logsum = one_softmax(model, read, edge)
    assert gap(memory.context[0][0], context) < 1e-12
    assert gap(memory.logsum[0][0], logsum) < 1e-12


def one_softmax(model: LanguageModel, tokens: Tensor, edge: int) -> tuple[Tensor, Tensor]:
    """Context (N, H, K) and log-sum (N, H) in layer 0 of rows that read j <= i, and i < j <= edge."""
    config, layer = model.config, model.layers[0]
    rows = model.embedding(tokens)
    queries, keys, values = (part[0].transpose(0, 1) for part in layer.project(rows))
    content, position = (bias for bias in model.biases.of(0))
    own_content, own_position = model.ahead_biases.of(0)
    own_content = content if own_content is None else own_content
    own_position = position if own_position is None else own_position
    contexts, logsums = [], []
    for i in range(len(queries)):
        scores = []
        for j in range(max(i, edge) + 1):
            ahead = j > i
            u, v = (own_content, own_position) if ahead else (content, position)
            distance = i - j if not ahead or config.position == "transformer-xl" else j - i
            half = config.model_width // 2
            angles = [distance * 10000 ** (-2 * k / config.model_width) for k in range(half)]
            code = torch.tensor([math.sin(a) for a in angles] + [math.cos(a) for a in angles], dtype=torch.float64)
            table = (layer.positions.weight @ code).reshape(config.num_heads, -1)
            score = ((queries[i] + u) * keys[j]).sum(-1) + ((queries[i] + v) * table).sum(-1)
            scores.append(score / math.sqrt(config.head_width))
        stacked = torch.stack(scores)
        contexts.append((stacked.softmax(0)[..., None] * values[: len(scores)]).sum(0))
        logsums.append(stacked.logsumexp(0))
    return torch.stack(contexts), torch.stack(logsums)


def test_the_first_token_of_a_segment_changes_what_old_slots_hold_and_no_other_does() -> None:
    model = VARIANTS["lamemo"].model()
    past, (tokens,) = histories(model), text(model, 5)
    changed = {}
    for place in (0, 1, 4):
        other = tokens.clone()
        other[:, place] = (other[:, place] + 1) % model.config.vocab_size
        memory = model(other, past, close=False).memory
        plain = model(tokens, past, close=False).memory
        changed[place] = gap(memory.context[0], plain.context[0])
    assert changed[0] > 1e-3
    assert changed[1] == changed[4] == 0


def test_slots_are_refreshed_once_a_segment_however_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    model = VARIANTS["lamemo"].model()
    calls: list[int] = []

    def counted(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        return look_ahead(*arguments, **options)

    monkeypatch.setattr(lamemo, "look_ahead", counted)
    tokens, others = text(model, 5, 4)
    memory = histories(model)
    for place in range(5):
        memory = model(tokens[:, place, None], memory, close=False).memory
    assert len(calls) == model.config.num_layers - 1
    memory = model(others[:, :1], model.close(memory), close=False).memory
    model.close(model(others[:, 1:], memory, close=False).memory)
    assert len(calls) == 2 * (model.config.num_layers - 1)


def test_the_window_follows_the_previous_length_not_this_one() -> None:
    """A long segment and then single tokens: each slot still reads all that is new, and nothing twice."""
    config = VARIANTS["lamemo"].config
    model = VARIANTS["lamemo"].model()
    memory = model.init_memory(1, 9)
    windows = []
    for tokens in text(model, 6, 1, 1, 4, 2, lanes=1):
        assert isinstance(model, LaMemo)
        window = model._window(memory, None)
        windows.append([int(count) for count in window.visible[0, window.active[0]].sum(1)])
        memory = model(tokens, memory).memory
    assert config.segment_length == 5
    # Slots oldest first; the slots of the last segment see what lies to their right, older ones its rest and the edge.
    assert windows == [[], [6, 5, 4, 3, 2, 1], [1] * 7, [1] * 8, [4, 4, 4, 4, 4, 4, 3, 2, 1]]


# Section 3.4: interpolation


def test_alpha_lies_between_zero_and_one(lamemo_variant: Variant) -> None:
    if lamemo_variant.memory_length == 0 or lamemo_variant.config.num_layers == 1:
        pytest.skip("nothing is interpolated")
    model = lamemo_variant.model()
    past, (tokens,) = histories(model), text(model, 4)
    told = model(tokens, past, extras=True).extras.interpolation
    assert len(told) == model.config.num_layers - 1
    for alpha in told:
        assert alpha.shape == (LANES, past.length, model.config.num_heads)
        written = alpha[past.valid]
        assert (written > 0).all() and (written < 1).all()
        assert (alpha[~past.valid] == 1).all()


def test_the_masses_of_a_slot_only_grow() -> None:
    model = VARIANTS["lamemo"].model()
    past, (tokens,) = histories(model), text(model, 4)
    memory = model(tokens[:, :1], past, close=False).memory
    for before, after in zip(past.logsum, memory.logsum, strict=True):
        assert (after[past.valid] > before[past.valid]).all()
        assert equal(after[~past.valid], before[~past.valid])


# Section 3.6 and 3.7: what falls together with Transformer-XL


def transformer_xl_of(model: LanguageModel, **changes: Any) -> LanguageModel:
    """A Transformer-XL with the weights that a LaMemo shares with it."""
    both = {field.name for field in dataclasses.fields(TransformerXLConfig)} - {"position", "memory_init"}
    config = TransformerXLConfig(**{name: getattr(model.config, name) for name in both} | changes)
    other = build(config, seed=0).double().eval()
    kept = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("ahead_biases")}
    assert other.state_dict().keys() == kept.keys()
    other.load_state_dict(kept)
    return other


def test_the_first_segment_is_that_of_transformer_xl(lamemo_variant: Variant) -> None:
    model = lamemo_variant.model()
    other = transformer_xl_of(model)
    (tokens,) = text(model, 5)
    assert gap(*(one(tokens, one.init_memory(LANES)).hidden for one in (model, other))) < 1e-12


def test_without_slots_it_is_transformer_xl_without_memory(lamemo_variant: Variant) -> None:
    if lamemo_variant.config.same_length:
        pytest.skip("same_length needs a memory")
    model = lamemo_variant.model(memory_length=0)
    other = transformer_xl_of(model, memory_length=0)
    memory, other_memory = model.init_memory(LANES), other.init_memory(LANES)
    for tokens in text(model, 5, 2, 5):
        hidden, memory, _ = model(tokens, memory)
        other_hidden, other_memory, _ = other(tokens, other_memory)
        assert gap(hidden, other_hidden) < 1e-12


def test_one_layer_is_transformer_xl_of_one_layer() -> None:
    model = VARIANTS["lamemo-one-layer"].model()
    other = transformer_xl_of(model)
    memory, other_memory = model.init_memory(LANES), other.init_memory(LANES)
    for tokens in text(model, 5, 2, 5):
        hidden, memory, _ = model(tokens, memory)
        other_hidden, other_memory, _ = other(tokens, other_memory)
        assert gap(hidden, other_hidden) < 1e-12


def test_signed_distances_equal_disentangled_ones_without_sines_and_with_equal_biases() -> None:
    signed = VARIANTS["lamemo-signed"].model()
    disentangled = VARIANTS["lamemo"].model()
    signed, disentangled = copy.deepcopy(signed), copy.deepcopy(disentangled)
    with torch.no_grad():
        for layer in signed.layers:
            layer.positions.weight[:, : signed.config.model_width // 2] = 0
    disentangled.load_state_dict(signed.state_dict() | {"ahead_biases.position": signed.biases.position.detach()})
    memory, other_memory = signed.init_memory(LANES), disentangled.init_memory(LANES)
    for tokens in text(signed, 5, 2, 5, 4):
        hidden, memory, _ = signed(tokens, memory)
        other_hidden, other_memory, _ = disentangled(tokens, other_memory)
        assert gap(hidden, other_hidden) < 1e-12
    assert gap(memory, other_memory) < 1e-12


def test_the_last_layer_looks_ahead_to_no_purpose_and_so_not_at_all() -> None:
    """Its state is not stored, and its look-ahead biases receive no gradient where each layer has its own."""
    model = VARIANTS["lamemo-untied-adaptive"].model()
    past, (tokens, targets) = histories(model), text(model, 5, 5)
    assert len(past.context) == len(past.logsum) == model.config.num_layers - 1
    model.head.loss(model(tokens, past).hidden, targets).sum().backward()
    gradient = model.ahead_biases.position.grad
    assert gradient[:-1].flatten(1).any(1).all()
    assert not gradient[-1].any()


def test_the_memory_holds_what_the_specification_counts() -> None:
    """Section 11: M D + (L - 1) M H (K + 1) numbers a lane, beside a flag for each slot and one length."""
    config = VARIANTS["lamemo"].config
    memory = VARIANTS["lamemo"].model(torch.float32).init_memory(1)
    slots, heads = 7, config.num_heads
    numbers = slots * config.model_width + (config.num_layers - 1) * slots * heads * (config.head_width + 1)
    assert memory.nbytes == 4 * numbers + slots + 8


def test_published_wikitext_memory_has_the_published_size() -> None:
    config = LaMemoConfig(
        vocab_size=7,
        segment_length=150,
        memory_length=150,
        num_layers=16,
        model_width=410,
        num_heads=10,
        head_width=41,
        feed_forward_width=8,
    )
    assert build(config, seed=0).init_memory(1).nbytes == 4 * 1_006_500 + 150 + 8


def test_log_sums_stay_exact_in_a_model_of_bfloat16() -> None:
    model = VARIANTS["lamemo"].model(torch.bfloat16)
    past, (tokens,) = model.init_memory(LANES), text(model, 5)
    for memory in (past, model(tokens, past).memory, model(tokens, past, close=False).memory):
        assert all(logsum.dtype == torch.float32 for logsum in memory.logsum)
        assert memory.embedding.dtype == torch.bfloat16
        moved = memory.to(dtype=torch.float16)
        assert all(logsum.dtype == torch.float32 for logsum in moved.logsum)
        assert moved.embedding.dtype == torch.float16
        if memory.segment is not None:
            assert all(logsum.dtype == torch.float32 for logsum in moved.segment.logsum)


def test_casting_to_float64_and_back_loses_nothing_of_the_log_sums() -> None:
    model = VARIANTS["lamemo"].model(torch.float32)
    past = histories(model)
    assert equal(past.to(dtype=torch.float64).to(dtype=torch.float32), past)


# Section 3.5: gradients


def test_look_ahead_biases_learn_from_the_loss_of_the_tokens() -> None:
    model = VARIANTS["lamemo-content"].model()
    tokens, targets = text(model, 5, 5)
    model.head.loss(model(tokens, histories(model)).hidden, targets).sum().backward()
    assert model.ahead_biases.position.grad.abs().max() > 1e-4
    assert model.ahead_biases.content.grad.abs().max() > 1e-4


def test_look_ahead_biases_are_idle_while_nothing_is_remembered() -> None:
    model = VARIANTS["lamemo"].model()
    tokens, targets = text(model, 5, 5)
    model.head.loss(model(tokens, model.init_memory(LANES)).hidden, targets).sum().backward()
    gradient = model.ahead_biases.position.grad
    assert gradient is None or not gradient.any()


def test_tokens_of_earlier_segments_give_the_embedding_no_gradient() -> None:
    model = VARIANTS["lamemo"].model()
    table = model.embedding.tables[0]
    earlier, later = torch.tensor([[1, 2, 3, 4]]), torch.tensor([[5, 6, 7]])
    memory = model(earlier, model.init_memory(1)).memory
    hidden = model(later, memory).hidden
    (gradient,) = torch.autograd.grad(hidden.square().sum(), table)
    assert not gradient[1:5].any()
    assert gradient[5:8].any(1).all()


def test_the_edge_has_a_gradient_through_the_slots() -> None:
    """The slots read the first token, and later tokens read the slots: one more way for its gradient."""
    model = VARIANTS["lamemo"].model()
    past, (tokens,) = histories(model)[:1], text(model, 3, lanes=1)
    seen: list[Tensor] = []
    handle = model.embedding.register_forward_hook(lambda module, given, result: seen.append(result))
    hidden = model(tokens, past).hidden
    cut = model(tokens, past.reset(torch.tensor([True]))).hidden
    handle.remove()
    assert torch.autograd.grad(hidden[:, 2].sum(), seen[0])[0][:, 0].any()
    assert torch.autograd.grad(cut[:, 2].sum(), seen[1])[0][:, 0].any()


# Held distances


def test_holding_both_directions_where_clamping_holds_them_is_clamping(lamemo_variant: Variant) -> None:
    if lamemo_variant.config.position == "transformer-xl" or lamemo_variant.memory_length == 0:
        pytest.skip("signed distances ahead are never clamped; without slots nothing is ahead")
    model = lamemo_variant.model(clamp_length=None)
    clamped = lamemo_variant.model(clamp_length=3)
    memory = model.init_memory(LANES, 11, Distances(back=3, ahead=3))
    other = clamped.init_memory(LANES, 11)
    for tokens in text(model, 5, 5, 2, 5):
        hidden, memory, _ = model(tokens, memory)
        other_hidden, other, _ = clamped(tokens, other)
        assert gap(hidden, other_hidden) < 1e-12
    assert gap(memory, other) < 1e-12


@pytest.mark.parametrize("name", ["lamemo", "lamemo-signed", "lamemo-full-long"])
def test_each_direction_is_held_by_its_own_limit(name: str) -> None:
    model = VARIANTS[name].model()
    results = {}
    for hold in (None, Distances(ahead=2), Distances(back=2), Distances(back=2, ahead=2), Distances(99, 99)):
        memory = model.init_memory(LANES, 11, hold)
        for tokens in text(model, 5, 5, 5):
            hidden, memory, _ = model(tokens, memory)
        results[hold] = hidden
    plain = results[None]
    assert gap(results[Distances(99, 99)], plain) < 1e-12
    held = [results[hold] for hold in (Distances(ahead=2), Distances(back=2), Distances(back=2, ahead=2))]
    assert all(gap(one, plain) > 1e-3 for one in held)
    assert all(gap(held[i], held[j]) > 1e-3 for i, j in ((0, 1), (0, 2), (1, 2)))


def test_the_recorded_distances_are_the_largest_of_training() -> None:
    model = VARIANTS["lamemo"].model()
    assert model.distances() == Distances(back=11, ahead=7)
    assert model.distances(segment_length=2, memory_length=30) == Distances(back=31, ahead=30)
    assert VARIANTS["lamemo-clamp-same-length"].model().distances() == Distances(back=4, ahead=4)
    assert VARIANTS["lamemo-signed"].model(clamp_length=4).distances() == Distances(back=4, ahead=7)
    assert VARIANTS["lamemo-signed"].model(same_length=True).distances() == Distances(back=6, ahead=7)


def test_holding_at_the_trained_distances_changes_nothing_at_the_trained_lengths(lamemo_variant: Variant) -> None:
    model = lamemo_variant.model()
    memory, held = model.init_memory(LANES), model.init_memory(LANES, hold=model.distances())
    for tokens in text(model):
        hidden, memory, _ = model(tokens, memory)
        held_hidden, held, _ = model(tokens, held)
        assert gap(hidden, held_hidden) < 1e-12


# Initial values and refusals


def test_published_look_ahead_biases_are_ten_times_as_large() -> None:
    sizes = {"num_heads": 64, "head_width": 32, "model_width": 16}
    normal = build(LaMemoConfig(**settings(sizes)), seed=1)
    xavier = build(LaMemoConfig(**settings(sizes), look_ahead_init="xavier"), seed=1)
    reach = math.sqrt(6 / (64 + 32))
    values = xavier.ahead_biases.position.detach()
    assert values.abs().max() <= reach
    assert values.abs().max() > 0.98 * reach
    assert abs(values.std().item() - reach / math.sqrt(3)) < 0.05 * reach
    assert abs(normal.ahead_biases.position.detach().std().item() - 0.02) < 0.002
    # Nothing else differs.
    for (name, one), other in zip(normal.named_parameters(), xavier.parameters(), strict=True):
        assert name.startswith("ahead_biases") or torch.equal(one, other)


def settings(sizes: dict[str, int]) -> dict[str, Any]:
    common = {"vocab_size": 5, "segment_length": 3, "memory_length": 3, "num_layers": 2, "feed_forward_width": 3}
    return common | sizes


@pytest.mark.parametrize("position", ["transformer-xl", "disentangled-content"])
def test_unpublished_combinations_are_refused(position: str) -> None:
    with pytest.raises(InputError, match="window"):
        variant("lamemo", position=position, window="full")


def test_a_memory_of_other_sizes_is_refused() -> None:
    model = VARIANTS["lamemo"].model()
    (tokens,) = text(model, 3)
    for changes in ({"num_layers": 2}, {"model_width": 12}, {"num_heads": 5}, {"head_width": 3}):
        other = enliven(build(variant("lamemo", **changes).config, seed=0), 0).double()
        with pytest.raises(InputError, match="memory"):
            model(tokens, other.init_memory(LANES))
