"""Counts of bytes, characters, words and lines."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from remanence.data.counting import count

SPACES = "".join(chr(code) for code in range(0x110000) if chr(code).isspace() and not 0xD800 <= code < 0xE000)
texts = st.text(st.one_of(st.characters(codec="utf-8"), st.sampled_from(SPACES), st.sampled_from("aé日\n ")))


@given(texts)
def test_counts_are_those_of_python(text: str) -> None:
    data = text.encode()
    assert count(data) == {
        "bytes": len(data),
        "characters": len(text),
        "words": len(text.split()),
        "lines": text.count("\n"),
    }


@given(texts, st.integers(0, 20))
def test_a_text_counted_in_two_blocks_counts_the_same(text: str, at: int) -> None:
    one, two = text[:at].encode(), text[at:].encode()
    parts = [count(one), count(two, before=one)]
    assert {key: sum(part[key] for part in parts) for key in parts[0]} == count(one + two)


def test_no_word_reaches_over_the_beginning_of_a_document() -> None:
    assert count(b"onetwo three", np.array([0, 3]))["words"] == 3


@given(st.binary())
def test_bytes_that_are_not_utf8_are_counted_too(data: bytes) -> None:
    assert count(data)["bytes"] == len(data)
