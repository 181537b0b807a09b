"""What is particular to Transformer-XL: frozen inputs of every layer, re-projected at every segment."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.models.variants import LANES, VARIANTS, Variant, enliven, equal, gap, histories, read, text, variant
from torch.nn import functional as F

from remanence.errors import InputError
from remanence.memory import Distances, newest
from remanence.models import TransformerXLConfig, build

NAMES = [name for name in VARIANTS if name.startswith("transformer-xl")]


@pytest.fixture(params=NAMES)
def xl_variant(request: pytest.FixtureRequest) -> Variant:
    """A variant of Transformer-XL."""
    return VARIANTS[request.param]


def test_any_cut_into_segments_gives_the_same_scores_while_nothing_is_forgotten(xl_variant: Variant) -> None:
    if xl_variant.config.same_length or xl_variant.memory_length == 0:
        pytest.skip("its window is the memory, or it has none")
    if getattr(xl_variant.config, "memory_init", "") == "zeros":
        pytest.skip("its rows of zeros are forgotten one by one")
    model = xl_variant.model()
    (tokens,) = text(model, 11)
    results = [
        read(model, list(tokens.split(cut, dim=1)), model.init_memory(LANES, 11))
        for cut in ([11], [4, 7], [1] * 11, [3, 1, 5, 2])
    ]
    for logits, memory in results[1:]:
        assert gap(logits, results[0][0]) < 1e-12
        assert gap(memory, results[0][1]) < 1e-12


def test_the_memory_holds_the_newest_inputs_of_every_layer(xl_variant: Variant) -> None:
    model = xl_variant.model()
    seen: list[list[Any]] = [[] for _ in model.layers]

    def watch(number: int) -> Any:
        plain = model.layers[number].project

        def project(stream: Any) -> Any:
            seen[number].append(stream)
            return plain(stream)

        return project

    for number, layer in enumerate(model.layers):
        layer.project = watch(number)  # type: ignore[method-assign]
    try:
        _, memory = read(model, text(model, 3, 2, 4))
    finally:
        for layer in model.layers:
            del layer.project
    slots = xl_variant.memory_length
    assert len(memory.hidden) == len(model.layers)
    for inputs, hidden in zip(seen, memory.hidden, strict=True):
        assert equal(torch.cat(inputs, dim=1)[:, 9 - slots :] if slots else hidden, hidden)


def test_rows_of_the_memory_teach_keys_and_values_but_get_no_gradient() -> None:
    """The gradient of W_K is that of a model in which the memory's rows are constants, and they take part in it."""
    model = VARIANTS["transformer-xl"].model(num_layers=1)
    past, (tokens, targets) = histories(model), text(model, 5, 5)
    inner = model.config.num_heads * model.config.head_width
    layer = model.layers[0]
    joint = layer.queries_keys_values.weight
    (whole,) = torch.autograd.grad(model.head.loss(model(tokens, past).hidden, targets).sum(), joint)

    def without_rows(stream: Any) -> Any:
        keys, values = layer._split(F.linear(stream, joint.detach()[inner:]), 2)
        return keys, values

    layer.project_keys_values = without_rows  # type: ignore[method-assign]
    try:
        (rest,) = torch.autograd.grad(model.head.loss(model(tokens, past).hidden, targets).sum(), joint)
    finally:
        del layer.project_keys_values
    share = whole - rest
    assert gap(share[:inner], torch.zeros_like(share[:inner])) < 1e-12
    assert share[inner : 2 * inner].abs().max() > 1e-3
    assert share[2 * inner :].abs().max() > 1e-3


def test_keys_of_an_open_segment_are_those_projected_again() -> None:
    """Kept keys are exact in evaluation: reading on equals reading the whole, at every length of the memory."""
    model = VARIANTS["transformer-xl-pre-norm"].model()
    past, (tokens,) = histories(model), text(model, 6)
    opened = model(tokens[:, :4], past, close=False).memory
    for number, layer in enumerate(model.layers):
        rows = torch.cat([past.hidden[number], opened.segment.hidden[number]], dim=1)
        keys, values = layer.project_keys_values(rows)
        assert gap(opened.segment.keys[number], keys) < 1e-12
        assert gap(opened.segment.values[number], values) < 1e-12


def test_rows_of_zeros_are_attended_to_and_an_empty_memory_is_not() -> None:
    zeros, empty = VARIANTS["transformer-xl-zeros"].model(), VARIANTS["transformer-xl"].model()
    (tokens,) = text(zeros, 5)
    hidden = zeros(tokens, zeros.init_memory(LANES)).hidden
    assert gap(hidden, empty(tokens, empty.init_memory(LANES)).hidden) > 1e-2
    assert (
        gap(zeros(tokens, zeros.init_memory(LANES, 0)).hidden, empty(tokens, empty.init_memory(LANES)).hidden) < 1e-12
    )


def test_rows_of_zeros_count_as_written_after_a_start_and_a_resize() -> None:
    model = VARIANTS["transformer-xl-zeros"].model()
    past = histories(model)
    assert model.init_memory(2).valid.all()
    assert past.reset(torch.tensor([True, False, True, False])).valid.all()
    grown = past.resize(9)
    assert grown.valid.all() and not grown.hidden[0][:, :2].any()


def test_with_equal_windows_each_query_sees_as_many_keys_as_there_are_slots() -> None:
    model = VARIANTS["transformer-xl-same-length"].model()
    memory = model.init_memory(LANES)
    for tokens in text(model, 5, 5, 5):
        output = model(tokens, memory, extras=True)
        memory = output.memory
    mass = output.extras.attention_mass
    assert mass.shape[-1] == 12
    assert (mass[..., :7] > 0).all() and not mass[..., 7:].any()


def test_equal_windows_forget_what_lies_beyond_them() -> None:
    model = VARIANTS["transformer-xl-same-length"].model(num_layers=1)
    memory = model.init_memory(1)
    tokens, last = text(model, 7, 1, lanes=1)
    for place, matters in ((0, False), (1, True)):
        other = tokens.clone()
        other[:, place] += 1 if other[0, place] == 0 else -1
        results = [model(last, model(segment, memory).memory).hidden for segment in (tokens, other)]
        assert (gap(*results) > 1e-6) == matters


def test_clamped_distances_beyond_the_clamp_are_alike() -> None:
    """With one layer, and all keys beyond the clamp, the order of what came before does not matter."""
    for name, matters in (("transformer-xl", True), ("transformer-xl-clamp-untied", False)):
        model = VARIANTS[name].model(num_layers=1, clamp_length=None if matters else 1)
        tokens, last = text(model, 6, 1, lanes=1)
        order = torch.tensor([3, 1, 4, 0, 2, 5])
        results = [
            model(last, model(segment, model.init_memory(1)).memory).hidden for segment in (tokens, tokens[:, order])
        ]
        assert (gap(*results) > 1e-6) == matters


def test_holding_distances_where_clamping_holds_them_is_clamping(xl_variant: Variant) -> None:
    learned = xl_variant.config.position == "learned"
    model = xl_variant.model(clamp_length=None)
    # The published learned table keeps its last clamp_length rows: the largest distance is one less.
    clamped = xl_variant.model(clamp_length=4 if learned else 3)
    slots = 11 if xl_variant.memory_length else 0
    memory, other = model.init_memory(LANES, slots, Distances(back=3)), clamped.init_memory(LANES, slots)
    for tokens in text(model, 5, 5, 2):
        hidden, memory, _ = model(tokens, memory)
        other_hidden, other, _ = clamped(tokens, other)
        assert gap(hidden, other_hidden) < 1e-12


def test_the_recorded_distances_are_the_largest_of_training() -> None:
    model = VARIANTS["transformer-xl"].model()
    assert model.distances() == Distances(back=11)
    assert model.distances(segment_length=1, memory_length=20) == Distances(back=20)
    assert VARIANTS["transformer-xl-clamp-untied"].model().distances() == Distances(back=6)
    assert VARIANTS["transformer-xl-same-length"].model().distances() == Distances(back=6)
    assert VARIANTS["transformer-xl-no-memory"].model().distances() == Distances(back=4)


def test_learned_positions_reuse_their_largest_distance_beyond_training() -> None:
    model = VARIANTS["transformer-xl-learned"].model()
    assert model.learned.table.shape[1] == 12
    memory = model.init_memory(LANES, 30)
    held = model.init_memory(LANES, 30, Distances(back=11))
    for tokens in text(model, *[5] * 5):
        hidden, memory, _ = model(tokens, memory)
        held_hidden, held, _ = model(tokens, held)
    assert gap(hidden, held_hidden) == 0


def test_biases_of_each_layer_equal_shared_ones_when_they_are_alike() -> None:
    shared = VARIANTS["transformer-xl"].model()
    untied = VARIANTS["transformer-xl"].model(share_position_biases=False)
    weights = {
        name: tensor.expand(shared.config.num_layers, *tensor.shape) if name.startswith("biases") else tensor
        for name, tensor in shared.state_dict().items()
    }
    untied.load_state_dict(weights)
    segments = text(shared)
    assert gap(read(untied, segments)[0], read(shared, segments)[0]) < 1e-12


@pytest.mark.parametrize(("old", "new"), [(5, 3), (3, 5), (4, 4), (0, 3), (3, 1)])
def test_newest_keeps_the_last_rows_of_old_and_new(old: int, new: int) -> None:
    rows = torch.arange(2 * (old + new) * 3).reshape(2, old + new, 3)
    kept = newest(rows[:, :old], rows[:, old:])
    assert torch.equal(kept, rows[:, new:])
    counts = torch.tensor([new - 1, 0])
    kept = newest(rows[:, :old], rows[:, old:], counts)
    assert torch.equal(kept[0], rows[0, new - 1 : new - 1 + old])
    assert torch.equal(kept[1], rows[1, :old])


def test_a_memory_of_other_sizes_is_refused() -> None:
    model = VARIANTS["transformer-xl"].model()
    (tokens,) = text(model, 3)
    for changes in ({"num_layers": 2}, {"model_width": 12}):
        other = enliven(build(variant("transformer-xl", **changes).config, seed=0), 0).double()
        with pytest.raises(InputError, match="memory"):
            model(tokens, other.init_memory(LANES))


def test_training_follows_the_definition_step_by_step() -> None:
    """Adam, clipping and a cosine on random data: the curve of a model that recomputes everything from scratch."""
    config = TransformerXLConfig(
        vocab_size=9,
        segment_length=3,
        memory_length=4,
        num_layers=2,
        model_width=6,
        num_heads=2,
        head_width=3,
        feed_forward_width=7,
        dropout=0.0,
    )
    steps = 40
    stream = torch.randint(9, (2, 3 * steps + 1))
    curves = []
    for from_scratch in (False, True):
        model = enliven(build(config, seed=0), 1).double().train()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        memory, curve = model.init_memory(2), []
        for step in range(steps):
            tokens, targets = stream[:, 3 * step : 3 * step + 3], stream[:, 3 * step + 1 : 3 * step + 4]
            given = memory
            hidden, memory, _ = model(tokens, given)
            if from_scratch:
                hidden = definition(model, tokens, given)
                loss = F.cross_entropy(
                    F.linear(hidden, model.embedding.tables[0], model.head.bias).flatten(0, 1), targets.flatten()
                )
            else:
                loss = model.head.loss(hidden, targets).mean()
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.25)
            optimizer.step()
            schedule.step()
            curve.append(loss.detach())
        curves.append(torch.stack(curve))
    assert gap(*curves) < 1e-11
    assert curves[0][-1] != curves[0][0]


def definition(model: Any, tokens: Any, memory: Any) -> Any:
    """Section 2 of the paper with plain autograd: gathers instead of shifts, torch's own softmax."""
    config = model.config
    stream = F.embedding(tokens, model.embedding.tables[0]) * config.model_width**0.5
    for layer, rows in zip(model.layers, memory.hidden, strict=True):
        joint = torch.cat([rows, stream], dim=1)
        heads = (*joint.shape[:2], config.num_heads, config.head_width)
        weights = layer.queries_keys_values.weight.chunk(3)
        queries, keys, values = (F.linear(joint, weight).reshape(heads) for weight in weights)
        queries = queries[:, rows.shape[1] :]
        distance = torch.arange(rows.shape[1], joint.shape[1])[:, None] - torch.arange(joint.shape[1])
        half = torch.arange(config.model_width // 2, dtype=torch.float64)
        angles = distance[..., None] * 10000 ** (-2 * half / config.model_width)
        codes = layer.positions(torch.cat([angles.sin(), angles.cos()], dim=-1))
        codes = codes.reshape(*distance.shape, config.num_heads, config.head_width)
        scores = torch.einsum("bihk,bjhk->bhij", queries + model.biases.content, keys)
        scores = scores + torch.einsum("bihk,ijhk->bhij", queries + model.biases.position, codes)
        seen = (distance >= 0) & torch.cat([memory.valid, torch.ones_like(tokens, dtype=torch.bool)], 1)[:, None, None]
        scores = (scores / config.head_width**0.5).masked_fill(~seen, -torch.inf)
        read = torch.einsum("bhij,bjhk->bihk", scores.softmax(-1), values).flatten(2)
        hidden = layer.norm_attention(stream + layer.output(read))
        fed = layer.feed_forward_out(layer.feed_forward_in(hidden).relu())
        stream = layer.norm_feed_forward(hidden + fed)
    return stream
