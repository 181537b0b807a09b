"""Softmax heads: probabilities that sum to one, losses that are theirs, however the vocabulary is cut."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from remanence.nn.embedding import TokenEmbedding
from remanence.nn.heads import SoftmaxHead

SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "projected": {"width": 4},
    "projected, untied": {"width": 4, "ties": (False,)},
    "one tail": {"cutoffs": (5,)},
    "two tails": {"cutoffs": (5, 9)},
    "two tails, projected": {"cutoffs": (5, 9), "width": 4},
    "two tails, projected, first untied": {"cutoffs": (5, 9), "width": 4, "ties": (False, True, True)},
    "narrower tails": {"cutoffs": (5, 9), "div_value": 2},
    "narrower tails, untied": {"cutoffs": (5, 9), "div_value": 2, "ties": (False, False, False)},
    "narrower tails, first untied": {"cutoffs": (5, 9), "div_value": 2, "ties": (False, True, True)},
    "tails of one word": {"cutoffs": (1, 2, 12), "div_value": 1},
}


def make(name: str, dtype: torch.dtype = torch.float64) -> tuple[TokenEmbedding, SoftmaxHead]:
    setting = SETTINGS[name]
    cutoffs = setting.get("cutoffs", ())
    embedding = TokenEmbedding(13, 6, setting.get("width", 6), cutoffs, setting.get("div_value", 1))
    head = SoftmaxHead(embedding, setting.get("ties", (True,) * (len(cutoffs) + 1)))
    generator = torch.Generator().manual_seed(0)
    for module in (embedding, head):
        for parameter in module.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator)
    return embedding.to(dtype), head.to(dtype)


def log_probability(embedding: TokenEmbedding, head: SoftmaxHead, hidden: Tensor, word: int) -> Tensor:
    """Section 5 of the specification for one hidden vector and one word."""
    edges = embedding.edges

    def query(number: int) -> Tensor:
        if not len(embedding.projections):
            return hidden
        if str(number) in head.projections:
            return head.projections[str(number)].T @ hidden
        return embedding.projections[min(number, len(embedding.projections) - 1)].T @ hidden

    def rows(number: int) -> Tensor:
        tables = embedding.tables
        return tables[number] if len(tables) > 1 else tables[0][edges[number] : edges[number + 1]]

    def scores(number: int) -> Tensor:
        return rows(number) @ query(number) + head.bias[edges[number] : edges[number + 1]]

    first = scores(0)
    if len(edges) > 2:
        first = torch.cat([first, head.cluster_weight @ query(0) + head.cluster_bias])
    first = first.log_softmax(0)
    if word < edges[1]:
        return first[word]
    number = next(b for b in range(1, len(edges)) if edges[b] <= word < edges[b + 1])
    return first[edges[1] + number - 1] + scores(number).log_softmax(0)[word - edges[number]]


@pytest.mark.parametrize("name", SETTINGS)
def test_losses_and_logits_are_those_of_the_definition(name: str) -> None:
    embedding, head = make(name)
    hidden = torch.randn(1, 13, 6, dtype=torch.float64)
    targets = torch.randperm(13).reshape(1, 13)
    losses, logits = head.loss(hidden, targets), head.logits(hidden).log_softmax(-1)
    for place in range(13):
        for word in range(13):
            wanted = log_probability(embedding, head, hidden[0, place], word)
            torch.testing.assert_close(logits[0, place, word], wanted)
            if word == targets[0, place]:
                torch.testing.assert_close(losses[0, place], -wanted)


@pytest.mark.parametrize("name", [name for name in SETTINGS if "tail" in name])
def test_the_probabilities_of_all_words_sum_to_one(name: str) -> None:
    _, head = make(name)
    logits = head.logits(torch.randn(2, 3, 6, dtype=torch.float64))
    torch.testing.assert_close(logits.exp().sum(-1), torch.ones(2, 3, dtype=torch.float64))


@pytest.mark.parametrize("name", SETTINGS)
def test_gradients_of_the_loss_are_those_through_the_logits(name: str) -> None:
    embedding, head = make(name)
    hidden = torch.randn(2, 7, 6, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(13, (2, 7))
    parameters = [hidden, *embedding.parameters(), *head.parameters()]
    ours = torch.autograd.grad(head.loss(hidden, targets).sum(), parameters, allow_unused=True)
    nats = -head.logits(hidden).log_softmax(-1).gather(-1, targets[..., None]).sum()
    theirs = torch.autograd.grad(nats, parameters, allow_unused=True)
    # A projection that is not tied is the embedding's alone.
    assert [one is None for one in ours] == [other is None for other in theirs]
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("name", SETTINGS)
def test_targets_that_are_not_scored_give_zero(name: str) -> None:
    _, head = make(name)
    hidden = torch.randn(1, 4, 6, dtype=torch.float64)
    losses = head.loss(hidden, torch.tensor([[-1, 3, -100, 12]]))
    assert losses[0, 0] == losses[0, 2] == 0 and (losses[0, [1, 3]] > 0).all()
    assert not head.loss(hidden, torch.full((1, 4), -1)).any()


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_losses_and_logits_are_float32_whatever_the_weights_are(name: str, dtype: torch.dtype) -> None:
    _, head = make(name, dtype)
    _, exact = make(name)
    hidden = torch.randn(2, 3, 6).to(dtype)
    targets = torch.randint(13, (2, 3))
    losses, logits = head.loss(hidden, targets), head.logits(hidden)
    assert losses.dtype == logits.dtype == torch.float32
    tolerance = 1e-4 if dtype == torch.float32 else 0.2
    torch.testing.assert_close(losses.double(), exact.loss(hidden.double(), targets), atol=tolerance, rtol=tolerance)


def test_tied_tables_are_registered_once_under_the_embedding() -> None:
    embedding, head = make("narrower tails")
    assert not set(dict(head.named_parameters())) & {"tables.0", "projections.0"}
    assert not any(parameter is table for parameter in head.parameters() for table in embedding.tables)


def test_untied_projections_are_weights_of_their_own() -> None:
    _, head = make("narrower tails, first untied")
    assert set(head.projections) == {"0"}
    assert len(make("narrower tails, untied")[1].projections) == 3
    assert len(make("plain")[1].projections) == 0


def test_the_loss_of_an_adaptive_softmax_holds_no_logits_of_the_whole_vocabulary() -> None:
    embedding = TokenEmbedding(5000, 4, 4, (100, 1000), 1)
    head = SoftmaxHead(embedding, (True,) * 3)
    for parameter in (*embedding.parameters(), *head.parameters()):
        torch.nn.init.normal_(parameter)
    kept: list[int] = []
    hidden, targets = torch.randn(1, 30, 4, requires_grad=True), torch.randint(5000, (1, 30))
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.numel()) or tensor, lambda t: t):
        head.loss(hidden, targets)
    assert max(kept) <= 5000 * 4
