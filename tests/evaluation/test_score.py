"""One score in all units, and in words."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest

from remanence.evaluation import Protocol, Score
from remanence.evaluation.protocol import in_words


def score_of(unit: str, nats: float, tokens: int, counts: dict[str, int], **changes: Any) -> Score:
    protocol = Protocol(
        segment_length=4,
        memory_length=8,
        lanes=2,
        same_length=False,
        corpus="small",
        split="test",
        unit=unit,
        text_tokens=counts["tokens"],
        scored_tokens=tokens,
        reached=(11, 8),
        trained=(7, 4),
        held=(7, 4),
        weights="float32",
        device="CPU",
    )
    return Score(nats, tokens, 1.0, dataclasses.replace(protocol, **changes), counts)


def test_bytes_are_told_in_bits_per_byte() -> None:
    score = score_of("byte", 20 * math.log(8), 20, {"tokens": 21, "bytes": 21, "characters": 14, "words": 3})
    assert score.headline == "3.000 bits per byte"
    assert score.bits_per_byte == pytest.approx(3)
    assert score.bits_per_character == pytest.approx(3 * 21 / 14)
    assert score.perplexity == pytest.approx(8)


def test_characters_are_told_in_bits_per_character() -> None:
    score = score_of("character", 20 * math.log(2), 20, {"tokens": 21, "bytes": 42, "characters": 21})
    assert score.headline == "1.000 bits per character"
    assert score.bits_per_byte == pytest.approx(0.5)


def test_words_are_told_in_perplexity() -> None:
    score = score_of("word", 9 * math.log(30), 9, {"tokens": 10, "bytes": 55, "words": 10})
    assert score.headline == "30.00 perplexity"
    assert score.word_perplexity == score.perplexity


def test_sub_words_are_told_in_perplexity_per_word() -> None:
    nats = 12 * math.log(5)
    score = score_of("token", nats, 12, {"tokens": 12, "bytes": 40, "words": 6})
    assert score.word_perplexity == pytest.approx(math.exp(nats / 6))
    assert score.headline == "25.00 word perplexity"


def test_line_ends_count_as_words_because_word_level_models_predict_them() -> None:
    score = score_of("token", 12.0, 12, {"tokens": 12, "bytes": 40, "words": 6, "lines": 2})
    assert score.word_perplexity == pytest.approx(math.exp(12 / 8))


def test_tokens_that_were_not_scored_are_charged_at_the_mean() -> None:
    counts = {"tokens": 12, "bytes": 40, "words": 6}
    all_scored = score_of("token", 12 * 1.3, 12, counts)
    some_scored = score_of("token", 9 * 1.3, 9, counts)
    assert some_scored.word_perplexity == pytest.approx(all_scored.word_perplexity)
    assert some_scored.bits_per_byte == pytest.approx(all_scored.bits_per_byte)


def test_counts_that_are_unknown_leave_their_units_out() -> None:
    score = score_of("token", 5.0, 4, {"tokens": 5})
    assert (score.bits_per_byte, score.bits_per_character, score.word_perplexity) == (None, None, None)
    assert score.headline == f"{math.exp(1.25):.2f} perplexity"


def test_a_hopeless_perplexity_is_infinite_and_absent_from_json() -> None:
    score = score_of("word", 9000.0, 9, {"tokens": 10, "words": 10})
    assert math.isinf(score.perplexity)
    assert json.loads(json.dumps(score.to_json(), allow_nan=False))["perplexity"] is None


def test_a_score_comes_back_from_json_as_it_went() -> None:
    score = score_of("byte", 20.5, 20, {"tokens": 21, "bytes": 21})
    assert Score.from_json(json.loads(json.dumps(score.to_json()))) == score


def test_the_same_evaluation_replaces_its_file_and_another_adds_one(tmp_path: Path) -> None:
    counts = {"tokens": 21, "bytes": 21}
    first = score_of("byte", 20.5, 20, counts).save(tmp_path, step=7)
    again = score_of("byte", 19.5, 20, counts).save(tmp_path, step=7)
    other = score_of("byte", 19.5, 20, counts, lanes=1).save(tmp_path, step=7)
    assert first == again != other
    assert sorted(tmp_path.glob("evaluation-test-memory8-*.json")) == sorted([first, other])
    stored = json.loads(first.read_text())
    assert (stored["nats"], stored["step"], stored["protocol"]["held"]) == (19.5, 7, [7, 4])


def test_the_protocol_says_where_distances_were_held() -> None:
    words = " ".join(score_of("byte", 20.5, 20, {"tokens": 21}).protocol.words())
    assert "reach 11 back and 8 ahead and are held at the largest of training, 7 back and 4 ahead" in words
    assert "every one but the first of the stream scored once, 20 in all" in words


def test_the_protocol_says_where_distances_went_beyond_training() -> None:
    words = " ".join(score_of("byte", 20.5, 20, {"tokens": 21}, held=None).protocol.words())
    assert "beyond the largest of training, 7 back and 4 ahead, and are not held" in words


def test_the_protocol_says_that_a_model_knows_no_distances() -> None:
    near = {"reached": (None, None), "trained": (None, None), "held": None}
    words = " ".join(score_of("byte", 20.5, 20, {"tokens": 21}, **near).protocol.words())
    assert "positions are those within a segment" in words and "distances" not in words


def test_the_protocol_says_that_documents_reset_the_memory() -> None:
    words = " ".join(score_of("byte", 20.5, 20, {"tokens": 21}, starts="document").protocol.words())
    assert "the memory is forgotten where a document begins" in words
    assert "the first of each document" in words


def test_several_protocols_say_once_what_they_share() -> None:
    protocol = score_of("byte", 20.5, 20, {"tokens": 21}).protocol
    words = in_words([protocol, dataclasses.replace(protocol, memory_length=9)])
    assert len(words) == 5
    assert [sentence[:12] for sentence in words[2:4]] == ["Memory of 8:", "Memory of 9:"]
