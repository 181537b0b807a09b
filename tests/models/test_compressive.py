"""What is particular to the Compressive Transformer: what is squeezed, when, into what, and what that teaches."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.models.oracle import Oracle, State, Vector
from tests.models.variants import LANES, SIZES, VARIANTS, Variant, enliven, equal, gap, histories, read, text, variant
from torch import Tensor

from remanence.errors import InputError
from remanence.memory import Distances
from remanence.models import (
    CompressiveConfig,
    CompressiveMemory,
    CompressiveTransformer,
    LanguageModel,
    TransformerXLConfig,
    build,
)
from remanence.ops.compression import naive

NAMES = [name for name in VARIANTS if name.startswith("compressive")]
LEARNED = [name for name in NAMES if VARIANTS[name].config.auxiliary_kind != "none"]  # type: ignore[attr-defined]


@pytest.fixture(params=NAMES)
def compressive_variant(request: pytest.FixtureRequest) -> Variant:
    """A variant of the Compressive Transformer."""
    return VARIANTS[request.param]


def make(**options: Any) -> CompressiveTransformer:
    model = enliven(build(CompressiveConfig(**SIZES | {"dropout": 0.0} | options), seed=0), seed=4)
    assert isinstance(model, CompressiveTransformer)
    return model.double().eval()


def transformer_xl(**options: Any) -> Any:
    return enliven(build(TransformerXLConfig(**SIZES | {"dropout": 0.0} | options), seed=0), seed=4).double().eval()


# What it equals (specification, section 8)


@pytest.mark.parametrize("same_length", [False, True])
@pytest.mark.parametrize("compression", ["mean", "max", "most-used", "conv"])
def test_with_a_rate_of_one_it_is_a_transformer_xl_with_as_many_slots(compression: Any, same_length: bool) -> None:
    xl = transformer_xl(memory_length=15, segment_length=6, same_length=same_length)
    model = CompressiveTransformer.from_transformer_xl(
        xl, memory_length=6, compressed_length=9, compression_rate=1, compression=compression
    )
    memory, other = model.init_memory(LANES), xl.init_memory(LANES)
    for tokens in text(xl, 6, 6, 3, 6, 1, 6, 6):
        hidden, memory, _ = model(tokens, memory)
        wanted, other, _ = xl(tokens, other)
        assert gap(hidden, wanted) == 0.0
        assert all(equal(ours, theirs) for ours, theirs in zip(memory.hidden, other.hidden, strict=True))
        assert torch.equal(memory.valid, other.valid)


@pytest.mark.parametrize("lengths", [(8, 8, 8, 4, 8), (8, 3, 1, 7, 8)])
def test_without_compressed_slots_it_is_a_transformer_xl(lengths: tuple[int, ...]) -> None:
    xl = transformer_xl(memory_length=8, segment_length=8)
    model = CompressiveTransformer.from_transformer_xl(xl, compressed_length=0, compression_rate=4)
    memory, other = model.init_memory(LANES), xl.init_memory(LANES)
    for tokens in text(xl, *lengths):
        hidden, memory, _ = model(tokens, memory)
        wanted, other, _ = xl(tokens, other)
        assert gap(hidden, wanted) == 0.0
    assert all(equal(ours, theirs) for ours, theirs in zip(memory.hidden, other.hidden, strict=True))


@pytest.mark.parametrize(("rate", "tolerance"), [(2, 0.0), (4, 1e-13), (3, 1e-13)])
def test_convolution_with_every_tap_a_share_of_the_identity_is_the_mean(rate: int, tolerance: float) -> None:
    """Bit for bit where there is one way to add: a matrix product adds four rows in an order of its own."""
    xl = transformer_xl(memory_length=3, segment_length=12)
    sizes: dict[str, Any] = {"compressed_length": 5, "compression_rate": rate}
    conv = CompressiveTransformer.from_transformer_xl(xl, **sizes)
    mean = CompressiveTransformer.from_transformer_xl(xl, **sizes, compression="mean")
    segments = text(xl, 4, 12, 3, 7)
    (logits, memory), (wanted, other) = read(conv, segments), read(mean, segments)
    assert gap(logits, wanted) <= tolerance and gap(memory, other) <= tolerance
    assert memory.valid.sum() > LANES * 3


# Against loops


class CompressiveOracle(Oracle):
    """Reads one lane with lists: `state.hidden` holds the raw rows of each layer, `state.context` the compressed."""

    losses: list[float]

    def transformer_xl(self, stream: list[Vector], state: State) -> tuple[list[Vector], State]:
        config, after = self.config, State(last_length=len(stream))
        self.losses = []
        for layer in range(config.num_layers):
            compressed, raw = state.context[layer], state.hidden[layer]
            joint = [*compressed, *raw, *stream]
            projected = [self.queries_keys_values(layer, row) for row in joint]
            held = len(compressed) + len(raw)
            used, contexts = np.zeros(len(joint)), []
            for number in range(len(stream)):
                context, weights = self.attend(layer, held + number, projected, len(compressed), len(raw))
                contexts.append(context)
                used[: len(weights)] += weights
            self.fold(layer, stream, compressed, raw, used[len(compressed) :], after)
            stream = [self.finish(layer, *pair) for pair in zip(stream, contexts, strict=True)]
        return stream, after

    def attend(self, layer: int, place: int, joint: Any, compressed: int, raw: int) -> tuple[Vector, Vector]:
        """What one query reads, and the attention it pays to each key, over all heads."""
        query, config = joint[place][0], self.config
        context, paid = np.zeros_like(query), np.zeros(place + 1)
        window = config.compressed_slots + self.slots if config.same_length else place + 1
        seen = [key for key in range(place + 1) if place - key < window]
        for head in range(config.num_heads):
            scores = []
            for key in seen:
                distance = place - key
                if config.compressed_position == "centre" and key < compressed:
                    older = compressed - 1 - key
                    distance = place - compressed - raw + raw + older * config.compression_rate
                    distance += (config.compression_rate + 1) // 2
                scores.append(self.score_back(layer, head, query[head], joint[key][1][head], distance))
            weights = np.exp(np.array(scores) - max(scores))
            weights /= weights.sum()
            context[head] = sum(weight * joint[key][2][head] for weight, key in zip(weights, seen, strict=True))
            paid[seen] += weights
        return context, paid

    def fold(self, layer: int, stream: Any, compressed: Any, raw: Any, used: Vector, after: State) -> None:
        config, rate = self.config, self.config.compression_rate
        rate = rate if config.compressed_slots else 1

        def compress(old: Tensor) -> Tensor:
            return self.compress(layer, old, torch.from_numpy(used[: len(old)]))

        tensors = [[torch.from_numpy(row) for row in rows] for rows in (compressed, raw, stream)]
        squeezed, kept, old = naive.evict(
            *tensors, self.slots, config.compressed_slots, rate, compress if config.compressed_slots else torch.clone
        )
        after.context.append([row.numpy() for row in squeezed])
        after.hidden.append([row.numpy() for row in kept])
        if old and config.compressed_slots and config.auxiliary_kind != "none":
            self.losses.append(self.loss(layer, stream, torch.stack(old), compress(torch.stack(old))))

    def compress(self, layer: int, old: Tensor, used: Tensor) -> Tensor:
        rate, name = self.config.compression_rate, f"compressors.{layer}"
        match self.config.compression:
            case "mean":
                return naive.mean_pooling(old, rate)
            case "max":
                return naive.max_pooling(old, rate)
            case "most-used":
                return naive.most_used(old, used, rate)
            case "conv":
                return naive.convolution(old, *self.taps(f"{name}.taps", rate))
            case _:
                return naive.dilated_convolutions(
                    old, *self.taps(f"{name}.first", 3), *self.taps(f"{name}.second", 3), rate
                )

    def taps(self, name: str, count: int) -> tuple[list[Tensor], Tensor]:
        weight, bias = (torch.from_numpy(self.weights[f"{name}.{part}"]) for part in ("weight", "bias"))
        return list(weight.chunk(count, dim=1)), bias

    def loss(self, layer: int, stream: Any, old: Tensor, compressed: Tensor) -> float:
        if self.config.auxiliary_kind == "autoencoding":
            weight, bias = (torch.from_numpy(self.weights[f"rebuilders.{layer}.{part}"]) for part in ("weight", "bias"))
            taps = weight.split(weight.shape[1])
            return float(naive.autoencoding_loss(old, naive.transposed_convolution(compressed, taps, bias)))

        def heads(rows: Any, part: int) -> Tensor:
            made = [self.queries_keys_values(layer, np.asarray(row))[part] for row in rows]
            return torch.from_numpy(np.stack(made, axis=1))

        parts = [heads(stream, 0), *(heads(rows, part) for rows in (old, compressed) for part in (1, 2))]
        return float(naive.attention_loss(*parts))  # type: ignore[arg-type]


def compare(model: Any, slots: int, lengths: list[int], hold: Distances) -> None:
    """Two lanes read with the model; the oracle reads each by itself."""
    oracle = CompressiveOracle(model, slots, hold.back)
    generator = torch.Generator().manual_seed(0)
    segments = [torch.randint(model.vocab_size, (2, length), generator=generator) for length in lengths]
    model.train()
    for lane in range(2):
        memory, state = model.init_memory(2, slots, hold), oracle.fresh()
        state.context = [[] for _ in model.layers]
        for tokens in segments:
            with torch.no_grad():
                hidden, memory, extras = model(tokens, memory)
                logits = model.head.logits(hidden)
            theirs, state = oracle.segment(tokens[lane].tolist(), state)
            assert np.abs(logits[lane].numpy() - theirs).max() < 1e-10
            for ours, raw, compressed in zip(memory.hidden, state.hidden, state.context, strict=True):
                wanted = [*compressed, *raw]
                assert memory.raw[lane] == len(raw) and memory.valid[lane].sum() == len(wanted)
                if wanted:
                    written = ours[lane, ours.shape[1] - len(wanted) :]
                    assert np.abs(written.numpy() - np.stack(wanted)).max() < 1e-10
            if model.config.auxiliary_kind != "none":
                wanted_loss = model.config.auxiliary_weight * sum(oracle.losses)
                assert abs(extras.auxiliary_loss[lane].item() - wanted_loss) < 1e-10


@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(
    options=st.fixed_dictionaries(
        {
            "num_layers": st.sampled_from([1, 2]),
            "norm": st.sampled_from(["post", "pre"]),
            "clamp_length": st.sampled_from([None, 3]),
            "memory_length": st.sampled_from([1, 2, 5]),
            "compressed_length": st.sampled_from([0, 1, 3]),
            "compression_rate": st.sampled_from([1, 2, 3]),
            "compressed_position": st.sampled_from(["slot", "centre"]),
            "same_length": st.booleans(),
        }
    ),
    squeeze=st.sampled_from(
        [("mean", None), ("max", None), ("most-used", None)]
        + [(kind, loss) for kind in ("conv", "dilated") for loss in ("attention", "autoencoding")]
    ),
    lengths=st.lists(st.integers(1, 7), min_size=1, max_size=4),
    back=st.none() | st.integers(1, 6),
    other=st.booleans(),
)
def test_it_is_its_definition(
    options: dict[str, Any], squeeze: tuple[Any, Any], lengths: list[int], back: int | None, other: bool
) -> None:
    sizes: dict[str, Any] = {
        "vocab_size": 7,
        "segment_length": 6,
        "model_width": 4,
        "num_heads": 2,
        "head_width": 3,
        "feed_forward_width": 5,
    }
    model = make(**sizes, **options, compression=squeeze[0], auxiliary=squeeze[1], auxiliary_weight=0.7)
    compare(model, options["memory_length"] + 2 * other, lengths, Distances(back))


def test_centres_are_slots_when_every_row_stands_for_itself() -> None:
    one = make(memory_length=3, compressed_length=4, compression_rate=1, compression="mean")
    other = make(
        memory_length=3, compressed_length=4, compression_rate=1, compression="mean", compressed_position="centre"
    )
    segments = text(one, 5, 5, 2)
    assert gap(read(one, segments)[0], read(other, segments)[0]) == 0.0


def test_sizes_token_by_token_are_those_of_the_specification() -> None:
    model = make(memory_length=8, compressed_length=6, compression_rate=4, segment_length=4)
    memory, sizes = model.init_memory(1), []
    for tokens in text(model, *[1] * 16, lanes=1):
        memory = model(tokens, memory).memory
        sizes.append((int(memory.valid.sum() - memory.raw), int(memory.raw)))
    assert sizes == [(0, n) for n in range(1, 12)] + [(1, n) for n in range(8, 12)] + [(2, 8)]


# Where segments end


def test_any_cut_into_segments_gives_the_same_scores_while_nothing_is_evicted() -> None:
    model = make(memory_length=11, compressed_length=4, compression_rate=5)
    (tokens,) = text(model, 15)
    results = [read(model, list(tokens.split(cut, dim=1))) for cut in ([15], [4, 11], [1] * 15, [3, 7, 5])]
    for logits, memory in results[1:]:
        assert gap(logits, results[0][0]) < 1e-12 and gap(memory, results[0][1]) < 1e-12


def test_once_something_is_evicted_scores_depend_on_where_segments_end() -> None:
    """Rows are squeezed where segments end: a longer segment still reads them as they were."""
    model = make(memory_length=3, compressed_length=4, compression_rate=5)
    (tokens,) = text(model, 20)
    results = [read(model, list(tokens.split(cut, dim=1)))[0] for cut in ([10, 10], [5] * 4)]
    assert gap(results[0][:, :5], results[1][:, :5]) < 1e-12
    assert gap(*results) > 1e-3


# What losses reach


def reached(model: LanguageModel, loss: Tensor) -> set[str]:
    model.zero_grad()
    loss.backward(retain_graph=True)
    return {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}


def taught(names: Any) -> set[str]:
    return {name for name in names if name.startswith(("compressors", "rebuilders"))}


@pytest.mark.parametrize("name", LEARNED)
def test_the_auxiliary_loss_reaches_the_compressor_alone_and_the_task_everything_else(name: str) -> None:
    model: Any = VARIANTS[name].model().train()
    memory = model.init_memory(LANES)
    parameters = {each for each, _ in model.named_parameters()}
    for tokens in text(model, *[7] * 4):
        hidden, memory, extras = model(tokens, memory)
    task = model.head.loss(hidden, tokens).sum()
    assert reached(model, extras.auxiliary_loss.sum()) == taught(parameters)
    assert reached(model, task) == parameters - taught(parameters)
    model.eval()


@pytest.mark.parametrize("auxiliary", ["attention", "autoencoding", "none"])
def test_with_a_gradient_through_the_memory_the_task_teaches_the_compressor_too(auxiliary: Any) -> None:
    options: dict[str, Any] = {"memory_length": 3, "compressed_length": 3, "compression_rate": 5}
    model = make(**options, auxiliary=auxiliary, memory_gradient=True).train()
    memory = model.init_memory(LANES)
    for tokens in text(model, 5, 5, 5):
        hidden, memory, extras = model(tokens, memory)
    compressors = {name for name, _ in model.named_parameters() if name.startswith("compressors")}
    assert compressors <= reached(model, model.head.loss(hidden, tokens).sum())
    if auxiliary != "none":
        parameters = {name for name, _ in model.named_parameters()}
        assert reached(model, extras.auxiliary_loss.sum()) == taught(parameters)


@pytest.mark.parametrize("name", LEARNED)
def test_after_several_steps_of_training_nothing_is_frozen(name: str) -> None:
    """A published implementation froze keys and values for good at the first overflow."""
    chosen = VARIANTS[name]
    model = enliven(build(chosen.config, seed=0), 0).double().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    memory = model.init_memory(LANES)
    for tokens in text(model, *[chosen.config.segment_length] * 7):
        before = {each: p.detach().clone() for each, p in model.named_parameters()}
        hidden, memory, extras = model(tokens, memory)
        optimizer.zero_grad()
        (model.head.loss(hidden, tokens).mean() + extras.auxiliary_loss.mean()).backward()
        optimizer.step()
    assert all(p.requires_grad for p in model.parameters())
    for each, parameter in model.named_parameters():
        changed = (
            (parameter.detach() != before[each]).flatten(1).any(1) if parameter.dim() > 1 else parameter != before[each]
        )
        assert changed.any(), each
        if "queries_keys_values" in each:
            # Queries, keys and values.
            assert all(third.any() for third in changed.chunk(3)), each


def test_the_attention_loss_of_the_identity_is_nothing() -> None:
    xl = transformer_xl(memory_length=3)
    model = CompressiveTransformer.from_transformer_xl(xl, compressed_length=9, compression_rate=1).train()
    _, memory, _ = model(*text(model, 5), model.init_memory(LANES))
    told = model(*text(model, 5, seed=2), memory).extras
    assert told.auxiliary_loss.tolist() == [0.0] * LANES


@pytest.mark.parametrize("name", LEARNED)
def test_the_auxiliary_loss_of_a_lane_is_its_own(name: str) -> None:
    """Lanes that evict nothing lose nothing, and padding and other lanes change nothing."""
    model: Any = VARIANTS[name].model().train()
    past, (tokens,) = histories(VARIANTS[name].model()), text(model, 11)
    model.train()
    lengths = torch.tensor([11, 9, 0, 2])
    together = model(tokens, past, lengths=lengths).extras.auxiliary_loss
    assert together.shape == (LANES,) and together[0] > 0 and together[1] > 0
    assert together[2] == 0 and together[3] == 0
    for lane, length in enumerate(lengths.tolist()):
        if length:
            alone = model(tokens[lane : lane + 1, :length], past[lane]).extras.auxiliary_loss
            assert gap(alone, together[lane : lane + 1]) < 1e-12
    assert model(tokens, past, close=False).extras.auxiliary_loss is None
    model.eval()
    assert model(tokens, past).extras.auxiliary_loss is None


def test_pieces_of_a_segment_lose_in_the_end_what_the_segment_loses_at_once() -> None:
    model: Any = VARIANTS["compressive"].model().train()
    past, (tokens,) = histories(model), text(model, 7)
    whole = model(tokens, past).extras.auxiliary_loss
    opened = model(tokens[:, :3], past, close=False).memory
    assert gap(model(tokens[:, 3:], opened).extras.auxiliary_loss, whole) < 1e-12
    model.eval()


def test_the_weight_scales_the_auxiliary_loss() -> None:
    (tokens,) = text(VARIANTS["compressive"].model(), 9)
    losses = []
    for weight in (1.0, 0.25):
        model = VARIANTS["compressive"].model(auxiliary_weight=weight).train()
        losses.append(model(tokens, model.init_memory(LANES)).extras.auxiliary_loss)
        model.eval()
    assert gap(losses[1], 0.25 * losses[0]) < 1e-15


def test_advancing_leaves_the_memory_of_a_whole_call(compressive_variant: Variant) -> None:
    model = compressive_variant.model(dropout=0.3)
    past, (tokens,) = histories(model), text(model, 7)
    starts, lengths = torch.tensor([True, False, False, False]), torch.tensor([7, 2, 0, 7])
    model.train()
    torch.manual_seed(3)
    wanted = model(tokens, past, starts, lengths).memory
    torch.manual_seed(3)
    assert equal(model.advance(tokens, past, starts, lengths), wanted)
    model.eval()


# Most used


def test_the_most_used_rows_survive() -> None:
    """One head, one layer, a query that finds one token: that token's row is kept, the others are dropped."""
    model = make(
        memory_length=0,
        compressed_length=2,
        compression_rate=5,
        compression="most-used",
        num_layers=1,
    )
    memory = model.init_memory(LANES)
    (tokens,) = text(model, 10)
    opened = model(tokens, memory, close=False).memory
    received = opened.segment.received[0][:, -10:]
    assert torch.allclose(received.sum(1), torch.full((LANES,), 10.0 * 3, dtype=torch.float64))
    kept = model.close(opened).hidden[0][:, -2:]
    best = received.argsort(dim=1, descending=True)[:, :2].sort(dim=1).values
    wanted = opened.segment.hidden[0][torch.arange(LANES)[:, None], best]
    assert equal(kept, wanted)


# Memories


def test_a_memory_tells_its_lengths() -> None:
    model = make(memory_length=7, compressed_length=3, compression_rate=5)
    memory = model.init_memory(2)
    assert (memory.length, memory.compressed_length, memory.slots) == (7, 3, 14)
    memory = model.init_memory(2, 0, compressed_length=6)
    assert (memory.length, memory.compressed_length, memory.slots) == (0, 6, 10)
    memory = model.init_memory(2, 4, compressed_length=0)
    assert (memory.length, memory.compressed_length, memory.slots) == (4, 0, 4)


def test_without_any_slots_every_segment_is_forgotten() -> None:
    model = make(memory_length=7, compressed_length=3, compression_rate=5)
    memory = model.init_memory(LANES, 0, compressed_length=0)
    for tokens in text(model, 5, 3, 5):
        hidden, memory, _ = model(tokens, memory)
        assert gap(hidden, model(tokens, model.init_memory(LANES, 0, compressed_length=0)).hidden) == 0
    assert memory.nbytes == LANES * 8


def test_without_raw_slots_the_compressed_ones_remember() -> None:
    model = make(memory_length=7, compressed_length=3, compression_rate=5)
    memory = model.init_memory(LANES, 0)
    first, second = text(model, 5, 5)
    memory = model(first, memory).memory
    assert memory.raw.tolist() == [0] * LANES and memory.valid.sum(1).tolist() == [1] * LANES
    assert gap(model(second, memory).hidden, model(second, model.init_memory(LANES, 0)).hidden) > 1e-3


@pytest.mark.parametrize("lengths", [(7, 3), (2, 3), (0, 3), (12, 3), (7, 1), (2, 0), (9, 0), (3, 6), (0, 0)])
def test_a_resized_memory_keeps_its_newest_rows_and_what_every_memory_keeps(lengths: tuple[int, int]) -> None:
    model = make(memory_length=7, compressed_length=3, compression_rate=5)
    past = histories(model)
    for tokens in text(model, 9, 9):
        past = model(tokens, past, lengths=torch.tensor([9, 9, 2, 0])).memory
    raw, compressed = lengths
    resized: CompressiveMemory = past.resize(raw, compressed)
    assert (resized.length, resized.compressed_length) == lengths
    group = 5 if compressed else 1
    assert (resized.raw < raw + group).all() and (resized.raw <= past.raw).all()
    held = resized.valid.sum(1) - resized.raw
    assert (held >= 0).all() and (held <= compressed).all()
    for lane, count in enumerate(resized.valid.sum(1).tolist()):
        for ours, theirs in zip(resized.hidden, past.hidden, strict=True):
            assert torch.equal(ours[lane, resized.slots - count :], theirs[lane, past.slots - count :])
            assert not ours[lane, : resized.slots - count].any()
    for tokens in text(model, 4, 6):
        hidden, resized, _ = model(tokens, resized)
        assert torch.isfinite(hidden).all()
    assert resized.resize(raw).state()[1] == resized.state()[1]


def test_impossible_compressed_lengths_of_a_memory_are_refused() -> None:
    model = make(memory_length=7, compressed_length=3, compression_rate=5)
    with pytest.raises(InputError, match="compressed"):
        model.init_memory(2, compressed_length=-1)
    with pytest.raises(InputError, match="compressed"):
        model.init_memory(2).resize(3, -1)
    with pytest.raises(InputError, match="0 or more"):
        model.init_memory(2).resize(-1)


def test_more_compressed_slots_at_test_time_read_as_if_configured() -> None:
    model = make(memory_length=3, compressed_length=2, compression_rate=5)
    other = make(memory_length=3, compressed_length=6, compression_rate=5)
    segments = text(model, *[5] * 8)
    logits, _ = read(model, segments, model.init_memory(LANES, compressed_length=6))
    wanted, _ = read(other, segments)
    assert equal(logits, wanted)
    assert gap(logits, read(model, segments)[0]) > 1e-3


def test_the_recorded_distances_are_the_largest_of_training() -> None:
    sizes: dict[str, Any] = {"memory_length": 7, "compressed_length": 3, "compression_rate": 5}
    assert make(**sizes).distances() == Distances(back=7 + 3 + 4 + 4)
    assert make(**sizes).distances(segment_length=1, memory_length=20) == Distances(back=27)
    assert make(**sizes, clamp_length=6).distances() == Distances(back=6)
    assert make(**sizes, same_length=True).distances() == Distances(back=9)
    # The oldest centre: 4 tokens, 11 raw rows, two whole groups, and 3 to the middle of the third.
    assert make(**sizes, compressed_position="centre").distances() == Distances(back=4 + 11 + 2 * 5 + 3)


@pytest.mark.parametrize("position", ["slot", "centre"])
def test_no_distance_is_larger_than_the_recorded_one(position: Any) -> None:
    model = make(memory_length=2, compressed_length=3, compression_rate=5, compressed_position=position)
    memory = model.init_memory(1)
    held = model.init_memory(1, hold=model.distances())
    less = model.init_memory(1, hold=Distances(model.distances().back - 1))  # type: ignore[operator]
    gaps = []
    for tokens in text(model, *[5] * 3, *[1] * 6, 5, lanes=1):
        hidden, memory, _ = model(tokens, memory)
        held_hidden, held, _ = model(tokens, held)
        less_hidden, less, _ = model(tokens, less)
        assert gap(hidden, held_hidden) < 1e-12
        gaps.append(gap(hidden, less_hidden))
    assert max(gaps) > 1e-6


def test_with_equal_windows_each_query_sees_as_many_keys() -> None:
    model = make(memory_length=3, compressed_length=4, compression_rate=5, same_length=True)
    memory = model.init_memory(LANES)
    for tokens in text(model, *[5] * 8, 3):
        output = model(tokens, memory, extras=True)
        memory = output.memory
    mass = output.extras.attention_mass
    assert (mass[..., :7] > 0).all() and not mass[..., 7:].any()


# Settings


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("compression_rate", {"compression_rate": 0}),
        ("compression_rate", {"compression_rate": -2}),
        ("compression_rate", {"compression_rate": 3}),
        ("compression_rate", {"compression": "dilated", "compression_rate": 10, "segment_length": 10}),
        ("compressed_length", {"compressed_length": -1}),
        ("compression", {"compression": "pool"}),
        ("auxiliary", {"auxiliary": "reconstruction"}),
        ("auxiliary", {"compression": "mean", "auxiliary": "attention"}),
        ("auxiliary", {"compression": "most-used", "auxiliary": "autoencoding"}),
        ("auxiliary", {"compression": "conv", "auxiliary": "none"}),
        ("auxiliary_weight", {"auxiliary_weight": 0.0}),
        ("compressed_position", {"compressed_position": "middle"}),
        ("position", {"position": "learned"}),
        ("memory_init", {"memory_init": "zeros"}),
    ],
)
def test_settings_without_sense_are_refused_by_name(name: str, options: dict[str, Any]) -> None:
    common = SIZES | {"memory_length": 3, "compression_rate": 5}
    with pytest.raises(InputError, match=rf"model\.{name}\b"):
        CompressiveConfig(**common | options)


def test_a_rate_that_does_not_divide_says_why_and_what_else() -> None:
    with pytest.raises(InputError, match="compression_rate is 3, but it must be a divisor of the segment length 5"):
        CompressiveConfig(**SIZES, memory_length=3, compression_rate=3)


def test_what_is_left_out_follows_from_the_rest() -> None:
    common: dict[str, Any] = SIZES | {"memory_length": 3, "compression_rate": 5}
    assert CompressiveConfig(**common).compressed_slots == 3
    assert CompressiveConfig(**common).auxiliary_kind == "attention"
    assert CompressiveConfig(**common, compression="max").auxiliary_kind == "none"
    assert CompressiveConfig(**common, memory_gradient=True, auxiliary="none").auxiliary_kind == "none"


def test_a_compression_that_is_never_used_is_told() -> None:
    common: dict[str, Any] = SIZES | {"memory_length": 3, "compression_rate": 5}
    (told,) = CompressiveConfig(**common, compressed_length=0).without_effect()
    assert "compressed_length is 0" in told
    assert not CompressiveConfig(**common).without_effect()
    assert not CompressiveConfig(**common, compressed_length=0, compression="mean").without_effect()


@pytest.mark.parametrize(
    ("options", "more"),
    [({}, 1), ({"auxiliary": "autoencoding"}, 2), ({"compression": "mean"}, 0)],
    ids=["conv", "autoencoding", "mean"],
)
def test_it_has_the_parameters_of_transformer_xl_and_of_its_compression(options: dict[str, Any], more: int) -> None:
    """Section 6: L (c D^2 + D) for convolutions, and once more for the auto-encoder."""
    sizes: dict[str, Any] = SIZES | {"segment_length": 6, "memory_length": 4}
    with torch.device("meta"):
        plain = build(TransformerXLConfig(**sizes), seed=0)
        model = build(CompressiveConfig(**sizes, compression_rate=3, **options), seed=0)
    counts = [sum(parameter.numel() for parameter in each.parameters()) for each in (model, plain)]
    assert counts[0] - counts[1] == more * 3 * (3 * 10**2 + 10)


def test_a_memory_of_other_sizes_is_refused() -> None:
    model = VARIANTS["compressive"].model()
    (tokens,) = text(model, 3)
    for changes in ({"num_layers": 2}, {"model_width": 12}):
        other = enliven(build(variant("compressive", compression_rate=5, **changes).config, seed=0), 0).double()
        with pytest.raises(InputError, match="memory"):
            model(tokens, other.init_memory(LANES))


def test_a_memory_with_another_rate_is_refused() -> None:
    """Its rows that wait for their group would never be whole."""
    model = make(memory_length=3, compressed_length=3, compression_rate=5)
    other = make(memory_length=3, compressed_length=3, compression_rate=1)
    (tokens,) = text(model, 3)
    with pytest.raises(InputError, match="rate"):
        model(tokens, other.init_memory(LANES))


# Learning


def recall(model: LanguageModel, steps: int, lanes: int = 32) -> float:
    """Train to name, at the end of 16 tokens, the one symbol among the blanks of the first four; accuracy at the end.

    Read in segments of 4: the symbol lies 11 to 14 tokens back, in the past of three segments.
    """
    symbols, blank, cue = 8, 8, 9
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    generator = torch.Generator().manual_seed(1)
    right = 0.0
    for step in range(steps):
        wanted = torch.randint(symbols, (lanes,), generator=generator)
        tokens = torch.full((lanes, 16), blank)
        tokens[torch.arange(lanes), torch.randint(4, (lanes,), generator=generator)] = wanted
        tokens[:, 14] = cue
        targets = torch.full((lanes, 4), -1)
        targets[:, 2] = wanted
        memory, loss = model.init_memory(lanes), torch.zeros(())
        for number, segment in enumerate(tokens.split(4, dim=1)):
            hidden, memory, extras = model(segment, memory)
            if extras.auxiliary_loss is not None:
                loss = loss + extras.auxiliary_loss.mean() / 4
            if number == 3:
                loss = loss + model.head.loss(hidden, targets).sum() / lanes
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step >= steps - 20:
            right += (model.head.logits(hidden[:, 2]).argmax(-1) == wanted).float().mean().item() / 20
    return right


@pytest.mark.parametrize("compression", ["conv", "max", "transformer-xl"])
def test_what_lies_beyond_as_many_plain_slots_is_recalled(compression: Any) -> None:
    """One layer: 2 raw and 6 compressed slots of 2 tokens reach 14 tokens back, 8 slots of Transformer-XL only 8."""
    sizes: dict[str, Any] = {
        "vocab_size": 10,
        "segment_length": 4,
        "num_layers": 1,
        "model_width": 32,
        "num_heads": 2,
        "head_width": 16,
        "feed_forward_width": 64,
        "dropout": 0.0,
    }
    if compression == "transformer-xl":
        assert recall(build(TransformerXLConfig(**sizes, memory_length=8), seed=0), steps=160) < 0.3
    else:
        config = CompressiveConfig(
            **sizes, memory_length=2, compressed_length=6, compression_rate=2, compression=compression
        )
        assert recall(build(config, seed=0), steps=160) > 0.9


# One graph, and kept keys


@pytest.mark.parametrize("name", ["compressive", "compressive-dilated-autoencoding"])
def test_the_auxiliary_loss_is_part_of_one_graph(name: str) -> None:
    torch._dynamo.reset()
    model = VARIANTS[name].model(num_layers=1).train()
    results = []

    def step(tokens: Tensor, memory: Any, starts: Tensor) -> tuple[Tensor, Any]:
        hidden, memory, extras = model(tokens, memory, starts)
        return model.head.loss(hidden, tokens).sum() + extras.auxiliary_loss.sum(), memory

    for call in (step, torch.compile(step, fullgraph=True, dynamic=False, backend="aot_eager")):
        model.zero_grad()
        memory, total = model.init_memory(LANES), torch.zeros(())
        for number, tokens in enumerate(text(model, *[6] * 4)):
            with torch._dynamo.config.patch(error_on_recompile=number > 0):
                loss, memory = call(tokens, memory, torch.arange(LANES) == number)
            total = total + loss
        total.backward()
        results.append({each: p.grad.clone() for each, p in model.named_parameters() if p.grad is not None})
    model.eval()
    assert results[0].keys() == results[1].keys()
    assert max(gap(results[0][each], results[1][each]) for each in results[0]) < 1e-11
    assert any(each.startswith("compressors") for each in results[0])


def test_keys_of_compressed_rows_are_those_projected_again() -> None:
    model = VARIANTS["compressive-centre-pre-norm"].model()
    past, (tokens,) = histories(model), text(model, 6)
    opened = model(tokens[:, :4], past, close=False).memory
    assert (past.valid.sum(1) > past.raw).any()
    for number, layer in enumerate(model.layers):
        rows = torch.cat([past.hidden[number], opened.segment.hidden[number]], dim=1)
        keys, values = layer.project_keys_values(rows)
        assert gap(opened.segment.keys[number], keys) < 1e-12
        assert gap(opened.segment.values[number], values) < 1e-12
