"""Text that comes in pieces gets the tokens of the whole text."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from remanence.data.tokenizers.byte import ByteTokenizer
from remanence.data.tokenizers.char import CharTokenizer
from remanence.data.tokenizers.word import WordTokenizer
from remanence.errors import InputError
from remanence.generation import Sampling, Session
from remanence.generation.prompt import BEYOND, ENOUGH, opening, settled

WORDS = ["the", "memory", "of", "a", "Segment,", "lane;", "don't", "2015", "(what)", "was", "—", "naïve\n"]


def prose(words: int) -> str:
    return " ".join(random.Random(3).choices(WORDS, k=words))


def word_tokenizer(text: str, *more: str) -> WordTokenizer:
    return WordTokenizer(["<eos>", *more, *sorted(set(text.split()))])


def subword_tokenizer(text: str) -> Any:
    pytest.importorskip("tokenizers")
    from remanence.data.tokenizers.subword import train_bpe

    return train_bpe(iter([text]), 300)


def tokens_in_pieces(text: str, tokenizer: Any, size: int) -> list[int]:
    """What `Session.read` does with its text, without a model."""
    held, ids = "", []
    for begin in range(0, len(text), size):
        held += text[begin : begin + size]
        ready = settled(held, tokenizer)
        ids += tokenizer.encode(held[:ready]).tolist()
        held = held[ready:]
    return ids + tokenizer.encode(held).tolist()


@pytest.mark.parametrize("size", [1, 7, 500])
@pytest.mark.parametrize("kind", ["byte", "character", "word"])
def test_tokens_do_not_depend_on_how_the_text_is_cut(kind: str, size: int) -> None:
    text = prose(300)
    tokenizer = {
        "byte": ByteTokenizer(),
        "character": CharTokenizer(sorted(set(text))),
        "word": word_tokenizer(text),
    }[kind]
    assert tokens_in_pieces(text, tokenizer, size) == tokenizer.encode(text).tolist()


@pytest.mark.parametrize("size", [997, 5000, 1 << 16])
def test_sub_words_of_a_long_text_are_those_of_the_whole(size: int) -> None:
    text = prose(9000)
    tokenizer = subword_tokenizer(text[:5000])
    assert len(text) > 5 * ENOUGH
    assert tokens_in_pieces(text, tokenizer, size) == tokenizer.encode(text).tolist()


def test_sub_words_are_cut_only_where_that_is_seen_to_change_nothing() -> None:
    class Pairs:
        """Every two characters from the left are one token, so that only even cuts are harmless."""

        unit = "token"

        def encode(self, text: str) -> np.ndarray:
            pairs = itertools.zip_longest(text[::2], text[1::2], fillvalue="\0")
            return np.array([1000 * ord(left) + ord(right) for left, right in pairs], dtype=np.int64)

    text = prose(3000)
    cut = settled(text, Pairs())
    assert cut % 2 == 0
    assert len(text) // 2 < cut <= len(text) - BEYOND


def test_a_text_that_cannot_be_cut_is_held_back_only_so_far() -> None:
    class Whole:
        unit = "token"

        def encode(self, text: str) -> np.ndarray:
            return np.array([hash(text)])

    assert settled("a b" * ENOUGH, Whole()) == 0
    assert settled("a b" * (ENOUGH * 20), Whole()) > 0


def test_an_empty_prompt_is_a_line_break_a_blank_or_the_first_token() -> None:
    assert opening(ByteTokenizer()).tolist() == [10]
    assert opening(word_tokenizer("some words")).tolist() == [0]
    assert opening(CharTokenizer("ab ")).tolist() == [2]
    assert opening(CharTokenizer("xy")).tolist() == [0]


def session_of(make_model: Callable, tokenizer: Any, **settings: Any) -> Session:
    return Session(make_model(vocab_size=tokenizer.vocab_size), tokenizer, seed=2, **settings)


def test_characters_the_vocabulary_lacks_are_named(make_model: Callable) -> None:
    session = session_of(make_model, CharTokenizer("abc "))
    with pytest.raises(InputError, match="'é'"):
        session.read("cab é")


def test_words_the_vocabulary_lacks_are_named(make_model: Callable) -> None:
    session = session_of(make_model, word_tokenizer("a cab"))
    session.read("a cab é")
    with pytest.raises(InputError, match="'é'"):
        session.step()


def test_a_prompt_that_is_not_utf8_is_refused_where_tokens_are_not_bytes(make_model: Callable) -> None:
    session = session_of(make_model, CharTokenizer("abc "))
    with pytest.raises(InputError, match="not UTF-8"):
        session.read_bytes([b"abc \xff"])
    with pytest.raises(InputError, match="not UTF-8"):
        session.read_bytes([b"abc", b"\xc3"])


def test_a_byte_model_reads_any_bytes(make_model: Callable) -> None:
    session = session_of(make_model, ByteTokenizer())
    session.read_bytes([b"\xff\xfe", b"\x00"])
    assert session.step() is not None


def test_words_go_on_after_a_blank(make_model: Callable) -> None:
    tokenizer = word_tokenizer("one two three four five")
    session = session_of(make_model, tokenizer, sampling=Sampling(temperature=0))
    session.read("one two")
    assert next(session.stream(1)).startswith((" ", "\n"))


def test_a_word_is_read_only_when_it_is_whole(make_model: Callable) -> None:
    tokenizer = word_tokenizer("one two three")
    pieces = session_of(make_model, tokenizer)
    for character in "one two three\none":
        pieces.read(character)
    whole = session_of(make_model, tokenizer)
    whole.read("one two three\none")
    assert list(pieces.steps(9)) == list(whole.steps(9))


@pytest.mark.parametrize("kind", ["word", "token"])
def test_a_half_read_word_survives_a_pause(make_model: Callable, tmp_path: Any, kind: str) -> None:
    text = "one two three\nfour fi"
    tokenizer = word_tokenizer(text, "five") if kind == "word" else subword_tokenizer(text * 20)
    whole = session_of(make_model, tokenizer)
    whole.read(text + "ve")
    expected = list(whole.stream(30))
    session = session_of(make_model, tokenizer)
    session.read(text)
    session.save(tmp_path / "session.safetensors")
    session = Session.load(tmp_path / "session.safetensors", make_model(vocab_size=tokenizer.vocab_size), tokenizer)
    session.read("ve")
    found = list(session.stream(13, finish=False))
    session.save(tmp_path / "session.safetensors")
    session = Session.load(tmp_path / "session.safetensors", make_model(vocab_size=tokenizer.vocab_size), tokenizer)
    assert found + list(session.stream(17)) == expected


def test_a_model_with_more_rows_than_tokens_never_draws_one_that_is_none(make_model: Callable) -> None:
    tokenizer = CharTokenizer("ab\n")
    session = Session(make_model(vocab_size=256), tokenizer, sampling=Sampling(temperature=5))
    assert set(session.generate(50)[0]) <= set("ab\n")
