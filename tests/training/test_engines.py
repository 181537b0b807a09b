"""Four engines, one gradient: replayed, recomputed and plain backpropagation through time are equal."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.models.variants import LANES, VARIANTS, Variant, enliven, gap, text, variant
from torch import Tensor, nn

from remanence.analysis.live_bytes import LiveBytes
from remanence.data import Batch
from remanence.errors import InputError
from remanence.memory import Memory, per_lane, per_slot
from remanence.models import LanguageModel, build
from remanence.training.engines import ENGINES, Segment, replay, truncated
from remanence.training.horizon import Horizon, accumulate_gradients, choose_engine, read_segment

GOLDEN = Path(__file__).parents[1] / "golden" / "memformer_mrbp_pytree.npz"
THROUGH = ("full", "recompute", "replay")
"""The engines whose gradients cross segments."""


@dataclass(frozen=True)
class Number(Memory, kind="test-number"):
    """One number."""

    number: Tensor = per_lane()


@dataclass
class Line:
    """S' = a S + b x, with the loss S'^2 / 2: small enough for a piece of paper."""

    slope: Tensor
    gain: Tensor
    inputs: tuple[float, ...] = (1.0, 2.0, 3.0)

    def __len__(self) -> int:
        return len(self.inputs)

    def idle(self, number: int) -> bool:
        return False

    def read(self, number: int, memory: Any) -> Segment:
        after = self.advance(number, memory)
        loss = after.number.square().sum() / 2
        return Segment(loss, after, (loss,))

    def advance(self, number: int, memory: Any) -> Any:
        return Number(self.slope * memory.number + self.gain * self.inputs[number])

    def last(self, objective: Tensor) -> Tensor:
        return objective


def line() -> Line:
    slope, gain = (torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in (0.5, 1.0))
    return Line(slope, gain)


def empty() -> Number:
    return Number(torch.zeros(1, dtype=torch.float64))


@pytest.mark.parametrize("engine", THROUGH)
def test_a_line_has_the_gradients_that_paper_and_pencil_give(engine: str) -> None:
    cell = line()
    found = ENGINES[engine](cell, empty())
    assert cell.slope.grad is not None and cell.gain.grad is not None
    assert (float(found.told[0]), float(cell.slope.grad), float(cell.gain.grad)) == (12.65625, 15.25, 25.3125)
    if engine == "replay":
        assert found.gradients is not None and found.gradients[0] is not None
        assert float(found.gradients[0]) == 1.65625


def test_a_truncated_line_has_the_gradients_of_its_segments_alone() -> None:
    cell = line()
    truncated(cell, empty())
    assert cell.slope.grad is not None and cell.gain.grad is not None
    assert (float(cell.slope.grad), float(cell.gain.grad)) == (13.125, 18.75)


# The published form of a state with everything in it, and reference values for it


@dataclass(frozen=True)
class Mixed(Memory, kind="test-mixed"):
    """A state with a float, a float that carries no gradient, a growing cache and an integer."""

    s: Tensor = per_lane()
    c: Tensor = per_lane(differentiable=False)
    q: Tensor = per_slot()
    n: Tensor = per_lane()


@dataclass(frozen=True)
class MixedFloats(Mixed, kind="test-mixed-floats"):
    """The same state with gradients through all floats."""

    c: Tensor = per_lane()


class Cell:
    """The reference cell of the golden file, with its stored dropout."""

    def __init__(self, kind: type[Mixed]) -> None:
        stored = np.load(GOLDEN, allow_pickle=False)
        self.values = {name: torch.from_numpy(stored[name]) for name in stored.files if name != "config"}
        self.config = json.loads(str(stored["config"]))
        self.weights = {name: self.values[f"weights/{name}"].clone().requires_grad_() for name in WEIGHTS}
        width, lanes = self.config["d"], self.config["B"]
        self.start = kind(
            s=self.values["s0"].clone(),
            c=self.values["c0"].clone(),
            q=torch.zeros(lanes, 0, width, dtype=torch.float64),
            n=torch.zeros(lanes, dtype=torch.int64),
        )

    def __len__(self) -> int:
        return len(self.values["x"])

    def idle(self, number: int) -> bool:
        return False

    def _step(self, number: int, memory: Any) -> tuple[Tensor, Any]:
        weight = self.weights
        mean = memory.q.mean(1) if memory.q.shape[1] else torch.zeros_like(memory.s)
        hidden = self.values["x"][number] @ weight["W_x"].T + memory.s @ weight["W_s"].T + mean @ weight["W_a"].T
        hidden = torch.tanh(hidden + memory.c @ weight["W_c"].T + 0.1 * memory.n[:, None].double())
        hidden = hidden * self.values["dropout"][number]
        after = dataclasses.replace(
            memory,
            s=0.5 * memory.s + hidden,
            c=0.9 * memory.c + 0.1 * hidden,
            q=torch.cat([memory.q, hidden[:, None]], dim=1)[:, -self.config["cache"] :],
            n=memory.n + 1,
        )
        return hidden, after

    def read(self, number: int, memory: Any) -> Segment:
        hidden, after = self._step(number, memory)
        loss = (hidden @ self.weights["W_O"].T - self.values["y"][number]).square().mean()
        return Segment(self.values["loss_weight"][number] * loss, after, (loss,))

    def advance(self, number: int, memory: Any) -> Any:
        return self._step(number, memory)[1]

    def last(self, objective: Tensor) -> Tensor:
        return objective


WEIGHTS = ("W_x", "W_s", "W_a", "W_c", "W_O")


@pytest.mark.parametrize("engine", THROUGH)
@pytest.mark.parametrize(("kind", "stored"), [(Mixed, "grads"), (MixedFloats, "grads_all")])
def test_a_mixed_state_has_the_reference_gradients(kind: type[Mixed], stored: str, engine: str) -> None:
    cell = Cell(kind)
    found = ENGINES[engine](cell, cell.start)
    for name, weight in cell.weights.items():
        assert weight.grad is not None
        assert gap(weight.grad, cell.values[f"{stored}/{name}"]) < 1e-11, name
    assert abs(float(found.told[0]) - float(cell.values["loss"].sum())) < 1e-12
    assert gap(found.memory.s, cell.values["s"][-1]) < 1e-12
    assert gap(found.memory.c, cell.values["c"][-1]) < 1e-12
    assert gap(found.memory.q, cell.values["q_final"]) < 1e-12
    assert (found.memory.n == cell.values["n_final"]).all()


@pytest.mark.parametrize(("kind", "suffix"), [(Mixed, ""), (MixedFloats, "_all")])
def test_replay_hands_the_gradient_on_to_the_memory_it_was_given(kind: type[Mixed], suffix: str) -> None:
    """The reference has it for the memory before every segment; replay of the segments from there on gives it."""
    cell = Cell(kind)
    given = replay(cell, cell.start, check=True).gradients
    assert given is not None and given[0] is not None
    assert gap(given[0], cell.values[f"carry_s{suffix}"][0]) < 1e-11
    if suffix:
        assert given[1] is not None
        assert gap(given[1], cell.values["grad_all_c0"]) < 1e-11


def test_a_gradient_that_must_not_cross_is_missed_when_it_does() -> None:
    """Negative control: the two states differ by far more than rounding."""
    stored = Cell(Mixed).values
    assert gap(stored["grads/W_x"], stored["grads_all/W_x"]) > 1e-2


# Models


def carrying(variant: Variant, seed: int = 3, **changes: Any) -> LanguageModel:
    """A model whose memory carries gradients, in training mode with dropout."""
    config = dataclasses.replace(variant.config, memory_gradient=True, dropout=0.3, attention_dropout=0.2, **changes)
    return enliven(build(config, seed=seed), seed=seed).double().train()


def segments(model: LanguageModel, count: int) -> list[Batch]:
    """Segments with resets on the way, some tokens not scored, and lanes that pause."""
    drawn = torch.Generator().manual_seed(8)
    made = []
    for number, tokens in enumerate(text(model, *[4] * count)):
        targets = torch.randint(model.vocab_size, tokens.shape, generator=drawn)
        targets = targets.masked_fill(torch.rand(tokens.shape, generator=drawn) < 0.2, -1)
        starts = torch.rand(LANES, generator=drawn) < (0.2 if number else 2)
        lengths = torch.where(torch.rand(LANES, generator=drawn) < 0.2, 2, 4) if number == 2 else None
        if lengths is not None:
            targets = targets.masked_fill(torch.arange(4) >= lengths[:, None], -1)
        made.append(Batch(tokens, targets, starts, lengths))
    return made


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: each.grad.clone() for name, each in model.named_parameters() if each.grad is not None}


def by(engine: str, model: LanguageModel, count: int, groups: int = 1) -> tuple[Horizon, dict[str, Tensor]]:
    model.zero_grad()
    torch.manual_seed(5)
    found = accumulate_gradients(model, segments(model, count), model.init_memory(LANES), groups, engine=engine)
    return found, gradients(model)


def remembering() -> Iterator[Any]:
    for name, each in VARIANTS.items():
        if each.memory_length:
            yield pytest.param(each, id=name)


@pytest.mark.parametrize("variant", list(remembering()))
@pytest.mark.parametrize("count", [1, 2, 6])
def test_all_engines_give_the_gradients_of_plain_backpropagation_with_dropout_on(variant: Variant, count: int) -> None:
    model = carrying(variant)
    plain, expected = by("full", model, count)
    for engine in ("recompute", "replay"):
        found, ours = by(engine, model, count)
        assert ours.keys() == expected.keys()
        # Sums in another order; the gradients themselves are of the order of 1 to 1e3.
        assert all(gap(ours[name], expected[name]) <= 1e-12 * (1 + expected[name].abs().max()) for name in ours)
        assert abs(float(found.loss - plain.loss)) < 1e-12 and found.scored == plain.scored
        assert abs(float(found.auxiliary - plain.auxiliary)) < 1e-12
        assert gap(found.memory, plain.memory) < 1e-12
    if count > 1:
        _, cut = by("truncated", model, count)
        assert any(name not in cut or gap(cut[name], expected[name]) > 1e-6 for name in expected)


@pytest.mark.parametrize("variant", list(remembering()))
def test_the_sweep_for_the_memories_gives_the_memories_of_the_replay(variant: Variant) -> None:
    """The critical path alone gives what the whole call gives, bit for bit."""
    model = carrying(variant)
    memory: Any = model.init_memory(LANES)
    for batch in segments(model, 4):
        with torch.no_grad():
            torch.manual_seed(2)
            quick = model.advance(batch.tokens, memory, batch.starts, batch.lengths)
            torch.manual_seed(2)
            memory = model(batch.tokens, memory, batch.starts, batch.lengths).memory
        assert gap(quick, memory) == 0
        assert quick.state()[1] == memory.state()[1]


@pytest.mark.parametrize("engine", THROUGH)
@pytest.mark.parametrize("name", ["transformer-xl", "lamemo", "compressive", "infinite-former", "memformer", "rmt"])
def test_groups_of_lanes_add_up_to_the_gradient_of_all(name: str, engine: str) -> None:
    model = carrying(VARIANTS[name]).eval()
    plain, expected = by("full", model, 3)
    found, ours = by(engine, model, 3, groups=2)
    assert all(gap(ours[each], expected[each]) <= 1e-12 * (1 + expected[each].abs().max()) for each in expected)
    assert abs(float(found.loss - plain.loss)) < 1e-12
    assert gap(found.memory, plain.memory) < 1e-12


@pytest.mark.parametrize("engine", ["recompute", "replay"])
@pytest.mark.parametrize("name", ["transformer-xl", "compressive", "infinite-former", "memformer", "rmt"])
def test_bfloat16_gradients_are_those_of_plain_backpropagation(name: str, engine: str) -> None:
    model = carrying(VARIANTS[name]).float()
    found = []
    for each in ("full", engine):
        model.zero_grad()
        torch.manual_seed(5)
        accumulate_gradients(model, segments(model, 4), model.init_memory(LANES), engine=each, around=autocast)
        found.append(torch.cat([gradient.flatten() for gradient in gradients(model).values()]))
    assert float((found[0] - found[1]).norm() / found[0].norm()) < 1e-3


def autocast() -> Any:
    return torch.autocast("cpu", dtype=torch.bfloat16)


@pytest.mark.parametrize("engine", list(ENGINES))
def test_the_global_generator_is_left_as_if_one_number_had_been_drawn(engine: str) -> None:
    model = carrying(VARIANTS["transformer-xl"])
    by(engine, model, 3)
    after = torch.get_rng_state()
    torch.manual_seed(5)
    torch.randint(2**62, ())
    assert torch.equal(after, torch.get_rng_state())


def test_dropout_that_is_not_replayed_gives_other_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: what makes the engines equal is that a segment read twice draws the same."""
    model = carrying(VARIANTS["transformer-xl"])
    _, expected = by("full", model, 4)
    seeds = iter(range(100))
    monkeypatch.setattr(
        "remanence.training.horizon.torch.manual_seed", lambda seed: torch.default_generator.manual_seed(next(seeds))
    )
    _, ours = by("replay", model, 4)
    worst = max(float((ours[name] - expected[name]).norm() / expected[name].norm()) for name in expected)
    assert worst > 1e-2


def test_weights_that_change_between_the_sweeps_are_noticed() -> None:
    """Negative control of the check: the second sweep must read with the weights of the first."""
    cell = line()

    def read_after_an_update(number: int, memory: Any, read: Callable[..., Segment] = cell.read) -> Segment:
        segment = read(number, memory)
        cell.slope.data = cell.slope.data + 0.1
        return segment

    replay(line(), empty(), check=True)
    cell.read = read_after_an_update  # type: ignore[method-assign]
    with pytest.raises(AssertionError, match="another memory"):
        replay(cell, empty(), check=True)


def test_a_gradient_reaches_the_first_segment_only_where_the_memory_carries_one() -> None:
    """Token 3 is read in the first segment, where nothing is scored; the embedding is not the softmax's table."""
    for engine in ENGINES:
        model = carrying(VARIANTS["transformer-xl"], tie_embedding=False)
        first, second = torch.full((LANES, 2), 3), torch.full((LANES, 2), 5)
        nothing, starts = torch.full((LANES, 2), -1), torch.zeros(LANES, dtype=torch.bool)
        read = [Batch(first, nothing, starts), Batch(second, second, starts)]
        accumulate_gradients(model, read, model.init_memory(LANES), engine=engine)
        table = model.embedding.tables[0].grad
        assert table is not None
        assert bool(table[3].any()) == (engine != "truncated")
        assert table[5].any()


def test_a_segment_in_which_nothing_is_scored_is_read_without_a_graph() -> None:
    model = carrying(VARIANTS["transformer-xl"])
    graphs = []

    def read(*given: Any) -> Any:
        graphs.append(torch.is_grad_enabled())
        return read_segment(*given)

    batches = segments(model, 3)
    batches[0] = dataclasses.replace(batches[0], targets=torch.full_like(batches[0].targets, -1))
    accumulate_gradients(model, batches, model.init_memory(LANES), engine="truncated", read=read)
    assert graphs == [False, True, True]


def test_an_engine_that_cannot_apply_is_refused() -> None:
    model = VARIANTS["transformer-xl"].model()
    assert choose_engine(model, None) == choose_engine(model, "truncated") == "truncated"
    with pytest.raises(InputError, match=r"memory_gradient to true, or training.engine to .truncated.\."):
        choose_engine(model, "replay")
    carries = VARIANTS["transformer-xl"].model(memory_gradient=True)
    assert choose_engine(carries, None) == "full"
    assert choose_engine(carries, "replay") == "replay"


SMALL_MEMORIES: dict[str, dict[str, Any]] = {
    "transformer-xl": {"memory_length": 2, "memory_gradient": True},
    "lamemo": {"memory_length": 2, "memory_gradient": True},
    "compressive": {"memory_length": 2, "compressed_length": 2, "compression_rate": 2, "memory_gradient": True},
    "infinite-former": {"memory_length": 2, "num_basis": 4, "memory_gradient": True},
    "memformer": {"num_slots": 2, "writer_heads": 2},
    "rmt": {"memory_tokens": 2},
}


def peak(architecture: str, engine: str, count: int) -> tuple[int, int]:
    """Peak of live bytes over a horizon of so many segments, and the bytes of one memory."""
    sizes: dict[str, Any] = {"num_layers": 2, "segment_length": 20, "feed_forward_width": 40}
    model = enliven(build(variant(architecture, **sizes, **SMALL_MEMORIES[architecture]).config), seed=1)
    drawn = torch.randint(model.vocab_size, (LANES, 20))
    batches = [Batch(drawn, drawn, torch.zeros(LANES, dtype=torch.bool)) for _ in range(count)]
    memory = model.init_memory(LANES)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    with LiveBytes() as live:
        accumulate_gradients(model, batches, memory, engine=engine)
    return live.peak, memory.nbytes


@pytest.mark.parametrize("engine", ["recompute", "replay"])
@pytest.mark.parametrize("architecture", SMALL_MEMORIES)
def test_the_peak_grows_by_no_more_than_the_stored_memories(architecture: str, engine: str) -> None:
    peak(architecture, engine, 2)
    short, nbytes = peak(architecture, engine, 2)
    long, _ = peak(architecture, engine, 18)
    # Besides the memories: a few numbers for every segment.
    assert long - short <= 16 * (nbytes + 400)
    # What grows with a plain graph is every activation.
    assert peak(architecture, "full", 18)[0] - short > 8 * (long - short)


@pytest.mark.parametrize("architecture", SMALL_MEMORIES)
def test_the_peak_of_truncated_segments_does_not_grow_at_all(architecture: str) -> None:
    peak(architecture, "truncated", 2)
    assert peak(architecture, "truncated", 18)[0] <= peak(architecture, "truncated", 2)[0] + 16 * 200
