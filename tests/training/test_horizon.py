"""Gradients over a horizon: as if all its segments were one graph, and not a segment further."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from remanence.data import Batch
from remanence.memory import Memory, per_slot
from remanence.models import build, config_class
from remanence.training.horizon import accumulate_gradients

LANES, LENGTH, VOCABULARY, WIDTH = 4, 3, 11, 5


@dataclass(frozen=True)
class Carried(Memory, kind="test-carried"):
    """A state that gradients flow through, as none of the first three architectures has."""

    carried: Tensor = per_slot()


class Recurrent(nn.Module):
    """Adds up embeddings in its memory: the smallest model whose memory carries gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.mix = nn.Linear(WIDTH, WIDTH)
        self.out = nn.Linear(WIDTH, VOCABULARY)
        self.head = SimpleNamespace(loss=self._loss)

    def forward(
        self, tokens: Tensor, memory: Carried, starts: Tensor, lengths: Tensor | None = None
    ) -> tuple[Any, ...]:
        memory = memory.reset(starts)
        hidden = torch.tanh(self.mix(memory.carried + self.embedding(tokens).cumsum(dim=1)))
        return hidden, dataclasses.replace(memory, carried=hidden[:, -1:]), None

    def advance(self, tokens: Tensor, memory: Carried, starts: Tensor, lengths: Tensor | None = None) -> Carried:
        return self(tokens, memory, starts, lengths)[1]

    def _loss(self, hidden: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(self.out(hidden).transpose(1, 2), targets, ignore_index=-1, reduction="none")


def batches(count: int, scored: float = 1.0) -> list[Batch]:
    drawn = torch.Generator().manual_seed(2)
    made = []
    for _ in range(count):
        window = torch.randint(VOCABULARY, (LANES, LENGTH + 1), generator=drawn)
        targets = window[:, 1:].masked_fill(torch.rand((LANES, LENGTH), generator=drawn) >= scored, -1)
        made.append(Batch(window[:, :-1], targets, torch.zeros(LANES, dtype=torch.bool)))
    return made


def gradients(model: nn.Module) -> list[Tensor]:
    return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]


def fresh() -> tuple[Recurrent, Carried]:
    torch.manual_seed(4)
    return Recurrent().double(), Carried(torch.zeros(LANES, 1, WIDTH, dtype=torch.float64))


@pytest.mark.parametrize("segments", [1, 2, 5])
def test_gradients_flow_through_all_segments_of_the_horizon(segments: int) -> None:
    read = batches(segments)
    model, memory = fresh()
    accumulate_gradients(model, read, memory)
    ours = gradients(model)
    model.zero_grad()
    total = torch.zeros(())
    for batch in read:
        hidden, memory, _ = model(batch.tokens, memory, batch.starts)
        total = total + model.head.loss(hidden, batch.targets).mean() / segments
    total.backward()
    assert all(torch.allclose(one, other, atol=1e-12) for one, other in zip(ours, gradients(model), strict=True))


def test_no_gradient_flows_between_horizons() -> None:
    model, memory = fresh()
    after = accumulate_gradients(model, batches(2), memory).memory
    assert not after.carried.requires_grad


def test_the_loss_is_the_mean_over_scored_tokens_only() -> None:
    read = batches(3, scored=0.4)
    model, memory = fresh()
    found = accumulate_gradients(model, read, memory)
    nats, count = 0.0, 0
    for batch in read:
        hidden, memory, _ = model(batch.tokens, memory, batch.starts)
        nats += float(model.head.loss(hidden, batch.targets).detach().sum())
        count += int((batch.targets >= 0).sum())
    assert found.scored == count and float(found.loss) == pytest.approx(nats / count)


def test_segments_without_a_scored_token_give_a_zero_loss() -> None:
    model, memory = fresh()
    found = accumulate_gradients(model, batches(2, scored=0.0), memory)
    assert found.scored == 0 and float(found.loss) == 0.0
    assert all(float(gradient.abs().max()) == 0.0 for gradient in gradients(model))


@pytest.mark.parametrize("groups", [2, 4])
@pytest.mark.parametrize("architecture", ["transformer", "transformer-xl", "lamemo"])
def test_reading_the_lanes_in_groups_changes_neither_gradient_nor_memory(architecture: str, groups: int) -> None:
    memory_length = {} if architecture == "transformer" else {"memory_length": 5}
    model = build(
        config_class(architecture)(
            vocab_size=VOCABULARY, segment_length=LENGTH, num_layers=2, model_width=8, num_heads=2, head_width=4,
            feed_forward_width=9, dropout=0.0, **memory_length,
        ),
        seed=3,
    ).double()  # fmt: skip
    memory = model.init_memory(lanes=LANES)
    for batch in batches(2):
        memory = model(batch.tokens, memory, batch.starts).memory
    read = [dataclasses.replace(batch, starts=torch.tensor([True, False, False, True])) for batch in batches(2, 0.7)]
    found = []
    for parts in (1, groups):
        model.zero_grad()
        result = accumulate_gradients(model, read, memory, parts)
        found.append((float(result.loss), gradients(model), result.memory.state()[0]))
    (loss, whole, state), (other_loss, parted, other_state) = found
    assert loss == pytest.approx(other_loss, abs=1e-12)
    assert all(torch.allclose(one, other, atol=1e-12) for one, other in zip(whole, parted, strict=True))
    assert all(torch.allclose(state[name].double(), other_state[name].double(), atol=1e-12) for name in state)


def test_padding_counts_for_nothing() -> None:
    model = build(
        config_class("lamemo")(
            vocab_size=VOCABULARY, segment_length=LENGTH, memory_length=4, num_layers=2, model_width=8, num_heads=2,
            head_width=4, feed_forward_width=9, dropout=0.0,
        ),
        seed=3,
    ).double()  # fmt: skip
    (batch,) = batches(1)
    lengths = torch.tensor([3, 1, 2, 0])
    padding = torch.arange(LENGTH) >= lengths[:, None]
    losses = []
    for filler in (0, 7):
        tokens, targets = batch.tokens.masked_fill(padding, filler), batch.targets.masked_fill(padding, -1)
        padded = Batch(tokens, targets, ~batch.starts, lengths)
        result = accumulate_gradients(model, [padded], model.init_memory(lanes=LANES))
        losses.append(float(result.loss))
        assert result.scored == 6
    assert losses[0] == losses[1]
