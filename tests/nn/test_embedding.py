"""Token embeddings: one table, or narrower ones for rarer words."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from remanence.nn.embedding import TokenEmbedding

SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {"embedding_width": 6, "cutoffs": (), "div_value": 1},
    "projected": {"embedding_width": 4, "cutoffs": (), "div_value": 1},
    "one table": {"embedding_width": 6, "cutoffs": (5, 9), "div_value": 1},
    "one table, projected": {"embedding_width": 4, "cutoffs": (5, 9), "div_value": 1},
    "narrower tables": {"embedding_width": 6, "cutoffs": (5, 9), "div_value": 2},
    "narrower tables, wide first": {"embedding_width": 9, "cutoffs": (5,), "div_value": 3},
}


def make(name: str) -> TokenEmbedding:
    embedding = TokenEmbedding(13, 6, **SETTINGS[name])
    for parameter in embedding.parameters():
        torch.nn.init.normal_(parameter)
    return embedding.double()


@pytest.mark.parametrize("name", SETTINGS)
def test_each_word_has_the_vector_of_the_definition(name: str) -> None:
    embedding = make(name)
    edges = (0, *SETTINGS[name]["cutoffs"], 13)
    tokens = torch.arange(13).reshape(1, 13)
    embedded = embedding(tokens)
    for word in range(13):
        number = next(b for b in range(len(edges)) if edges[b] <= word < edges[b + 1])
        if SETTINGS[name]["div_value"] == 1:
            number, vector = 0, embedding.tables[0][word]
        else:
            vector = embedding.tables[number][word - edges[number]]
        if len(embedding.projections):
            vector = embedding.projections[number] @ vector
        torch.testing.assert_close(embedded[0, word], vector * math.sqrt(6))


@pytest.mark.parametrize("name", SETTINGS)
def test_each_word_teaches_its_own_row_alone(name: str) -> None:
    embedding = make(name)
    embedding(torch.tensor([[2, 7]])).sum().backward()
    rows = torch.cat([table.grad.abs().sum(1) for table in embedding.tables if table.grad is not None])
    assert torch.equal(rows.nonzero().flatten(), torch.tensor([2, 7]))


def test_tables_grow_narrower_by_the_divisor() -> None:
    embedding = TokenEmbedding(100, 16, 16, (20, 40), 4)
    assert [tuple(table.shape) for table in embedding.tables] == [(20, 16), (20, 4), (60, 1)]
    assert [tuple(projection.shape) for projection in embedding.projections] == [(16, 16), (16, 4), (16, 1)]


def test_one_table_needs_no_projection_where_widths_agree() -> None:
    assert len(TokenEmbedding(13, 6, 6, (5, 9), 1).projections) == 0
    assert len(TokenEmbedding(13, 6, 4, (5, 9), 1).projections) == 1
