"""Excerpts are fair to lanes and to documents, and models differ in their architecture alone."""

import numpy as np
import pytest

from remanence.analysis import compare
from remanence.analysis.small import configure
from remanence.data.corpus import Split
from remanence.errors import InputError
from remanence.models import LaMemoConfig, TransformerConfig


def make_split(sizes: list[int]) -> Split:
    """Documents whose tokens tell which document they are of."""
    tokens = np.concatenate([np.full(size, number, np.uint8) for number, size in enumerate(sizes)])
    begins = np.cumsum([0, *sizes[:-1]]).astype(np.int64)
    return Split(tokens, 256, begins, {"tokens": len(tokens), "bytes": len(tokens)}, "byte", "test")


def test_an_excerpt_takes_the_beginnings_of_documents_and_no_long_one_outweighs_the_rest():
    text = compare.excerpt(make_split([1000, 50, 80, 60]), tokens=200, lanes=4, seed=1)
    assert len(text) == 200 and text.counts == {"tokens": 200, "bytes": 200}
    assert (np.diff(np.append(text.documents, len(text))) <= 50).all()
    assert len(set(text.tokens.tolist())) == 4
    for begin, end in zip(text.documents, np.append(text.documents[1:], len(text)), strict=True):
        assert len(set(text.tokens[begin:end].tolist())) == 1


def test_an_excerpt_from_anywhere_takes_parts_of_documents_too():
    tokens = np.arange(250, dtype=np.uint8)
    split = Split(tokens, 256, np.array([0, 100], np.int64), {}, "byte", "validation")
    text = compare.excerpt(split, 40, 2, seed=3, anywhere=True)
    first, second = np.split(text.tokens.astype(int), [text.documents[1]])
    assert {int(part[0]) // 100 for part in (first, second)} == {0, 1}
    assert (np.diff(first) == 1).all() and (np.diff(second) == 1).all() and len(first) == len(second) == 20
    assert first[0] not in (0, 100) and second[0] not in (0, 100)


def test_an_excerpt_depends_on_the_seed_alone():
    split = make_split([30] * 50)
    one, same, other = (compare.excerpt(split, 120, 4, seed) for seed in (1, 1, 2))
    assert one.tokens.tolist() == same.tokens.tolist() != other.tokens.tolist()


def test_an_excerpt_of_less_text_than_asked_for_is_all_of_it():
    assert len(compare.excerpt(make_split([30, 20]), 10_000, 2, seed=0)) == 50


def test_one_document_gives_its_beginning():
    text = compare.excerpt(make_split([500]), 100, 4, seed=0)
    assert len(text) == 100 and text.documents.tolist() == [0]


def test_documents_of_one_token_are_left_out():
    with pytest.raises(InputError, match="longer text"):
        compare.excerpt(make_split([1, 1]), 100, 1, seed=0)


def test_the_beginning_keeps_the_documents_that_begin_in_it():
    text = compare.beginning(make_split([30, 30, 30]), 60)
    assert len(text) == 60 and text.documents.tolist() == [0, 30]


def test_settings_that_an_architecture_lacks_are_left_out():
    settings = {
        "vocab_size": 256,
        "segment_length": 8,
        "memory_length": 8,
        "num_layers": 1,
        "model_width": 8,
        "num_heads": 1,
        "head_width": 8,
        "feed_forward_width": 8,
    }
    lamemo, transformer = (configure(name, **settings) for name in ("lamemo", "transformer"))
    assert isinstance(lamemo, LaMemoConfig) and lamemo.memory_length == 8
    assert isinstance(transformer, TransformerConfig) and transformer.memory_length == 0


def test_a_prompt_is_whole_lines_from_the_middle_of_the_longest_document():
    lines = "".join(f"line {number}\n" for number in range(100))
    text = ("short\n" + lines).encode()
    split = Split(np.frombuffer(text, np.uint8), 256, np.array([0, 6], np.int64), {}, "byte", "test")

    class Bytes:
        def decode(self, ids):
            return bytes(ids.tolist()).decode()

    prompt = compare.prompt_from(split, Bytes(), 40)
    assert 40 <= len(prompt) < 60
    assert prompt.endswith("\n") and prompt.startswith("line ") and "short" not in prompt
