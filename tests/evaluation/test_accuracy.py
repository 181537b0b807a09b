"""How often the right token was the most probable one: counted by hand, told in the headline, kept in files."""

from __future__ import annotations

import dataclasses
import json
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from remanence.data import Lanes, Split
from remanence.evaluation import Protocol, Score, evaluate
from remanence.evaluation import perplexity as reading
from remanence.models import LanguageModel
from remanence.training.units import unit_of


@pytest.fixture
def task(text: Split) -> Split:
    """The text with only the last three tokens of its documents scored."""
    counts = {"tokens": 101, "bytes": 0, "characters": 0, "words": 0}
    return dataclasses.replace(text, scored_last=3, unit="symbol", counts=counts)


def by_hand(model: LanguageModel, split: Split) -> tuple[int, int]:
    """Right and scored tokens, one document after the other with a fresh memory, from the whole logits."""
    right = scored = 0
    edges = [*split.documents.tolist(), len(split)]
    for begin, end in pairwise(edges):
        document = torch.as_tensor(split.tokens[begin:end].astype(np.int64))[None]
        memory = model.init_memory(lanes=1)
        for place in range(0, end - begin - 1, 6):
            piece = document[:, place : min(place + 6, end - begin - 1)]
            with torch.no_grad():
                hidden, memory, _ = model(piece, memory)
                best = model.head.logits(hidden)[0].argmax(-1)
            for offset, token in enumerate(best.tolist()):
                target = place + offset + 1
                if split.scored_last is None or end - begin - target <= split.scored_last:
                    scored += 1
                    right += token == int(document[0, target])
    return right, scored


@pytest.mark.parametrize("lanes", [1, 3])
def test_accuracy_is_counted_over_the_scored_tokens(model: LanguageModel, task: Split, lanes: int) -> None:
    score = evaluate(model, task, Protocol(starts="document", lanes=lanes))
    assert (score.correct, score.tokens) == by_hand(model, task)
    assert score.accuracy == score.correct / score.tokens  # pyright: ignore[reportOptionalOperand]


def test_accuracy_of_all_tokens_is_counted_when_asked_for(model: LanguageModel, text: Split) -> None:
    protocol = Protocol(starts="document", lanes=2)
    score = evaluate(model, text, protocol, accuracy=True)
    assert (score.correct, score.tokens) == by_hand(model, text)
    plain = evaluate(model, text, protocol)
    assert plain.correct is None and plain.accuracy is None and plain.nats == score.nats
    assert score.measure == plain.measure


def test_logits_are_held_for_a_few_positions_at_a_time(
    model: LanguageModel, text: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = evaluate(model, text, accuracy=True).correct
    monkeypatch.setattr(reading, "ROWS", 2)
    assert evaluate(model, text, accuracy=True).correct == whole


class Told(torch.nn.Module):
    """A head that says what it is told: the logits are the hidden states."""

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden


def test_predictions_made_by_hand() -> None:
    model: Any = torch.nn.Module()
    model.head = Told()
    hidden = torch.zeros(2, 3, 4)
    hidden[0, 0, 2] = hidden[0, 1, 1] = hidden[1, 2, 3] = 1.0
    targets = torch.tensor([[2, 3, -1], [-1, -1, 3]])
    expected = [[True, False, False], [False, False, True]]
    assert reading._correct(model, hidden, targets).tolist() == expected


def test_the_headline_of_a_task_is_its_accuracy(model: LanguageModel, task: Split) -> None:
    score = evaluate(model, task, Protocol(starts="document", lanes=2))
    score = dataclasses.replace(score, correct=5, tokens=8)
    assert (score.headline, score.measure, score.value, score.higher_is_better) == (
        "62.5 % accuracy",
        "% accuracy",
        62.5,
        True,
    )
    assert "symbols: the last 3 of each document scored once" in score.protocol.words()[0]


def test_images_are_told_in_bits_per_pixel(model: LanguageModel, text: Split) -> None:
    counts = {"tokens": 101, "bytes": 0, "characters": 0, "words": 0}
    images = dataclasses.replace(text, unit="pixel", start_token=2, counts=counts)
    score = evaluate(model, images, Protocol(starts="document", lanes=2))
    assert score.measure == "bits per pixel" and score.value == score.bits_per_pixel == score.bits_per_token
    assert not score.higher_is_better and score.bits_per_byte is None and score.word_perplexity is None
    assert unit_of("pixel", counts).name == "bits per pixel" and unit_of("symbol", counts).name == "perplexity"


def test_a_score_keeps_its_accuracy_in_a_file_and_reads_one_without(model: LanguageModel, task: Split) -> None:
    score = evaluate(model, task, Protocol(starts="document", lanes=2))
    kept = json.loads(json.dumps(score.to_json()))
    assert Score.from_json(kept) == score and kept["accuracy"] == score.accuracy
    for name in ("scored_last", "start_token", "shift"):
        del kept["protocol"][name]
    del kept["correct"]
    old = Score.from_json(kept)
    assert old.correct is None and old.protocol.shift == 1 and old.measure == "perplexity"


def test_a_model_that_scores_its_own_tokens_is_given_them(model: LanguageModel, text: Split) -> None:
    class Own(type(model)):
        shift = 0  # pyright: ignore[reportAssignmentType]

    given = list(Lanes.once(text, 2, 6, "document", 0))
    kind = model.__class__
    model.__class__ = Own
    try:
        score = evaluate(model, text, Protocol(starts="document", lanes=2))
    finally:
        model.__class__ = kind
    assert score.tokens == len(text) == sum(batch.scored for batch in given)
    assert score.protocol.shift == 0 and "every one scored once" in score.protocol.words()[0]
