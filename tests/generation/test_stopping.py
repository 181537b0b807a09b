"""A text ends at a stop string, of which nothing is ever shown."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remanence.errors import InputError
from remanence.generation.stopping import StopFilter


def shown(text: str, stops: list[str]) -> str:
    """What the rule says, looking at the whole text: it ends where a stop string is whole for the first time."""
    for end in range(1, len(text) + 1):
        whole = [stop for stop in stops if text[:end].endswith(stop)]
        if whole:
            return text[: end - max(map(len, whole))]
    return text


@given(
    text=st.text("abc", max_size=14),
    stops=st.lists(st.text("abc", min_size=1, max_size=4), max_size=3),
    cuts=st.lists(st.integers(0, 14), max_size=4),
)
def test_what_is_shown_depends_neither_on_cuts_nor_on_when(text: str, stops: list[str], cuts: list[int]) -> None:
    edges = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    texts = StopFilter(stops)
    out = "".join(texts.push(text[begin:end]) for begin, end in itertools.pairwise(edges))
    assert out + texts.finish() == shown(text, stops)
    assert texts.stopped == any(stop in text for stop in stops)


@given(text=st.text("ab", max_size=12), stops=st.lists(st.text("ab", min_size=1, max_size=4), max_size=3))
def test_no_more_is_held_back_than_may_become_a_stop_string(text: str, stops: list[str]) -> None:
    texts = StopFilter(stops)
    texts.push(text)
    assert texts.held == "" or any(stop.startswith(texts.held) for stop in stops)


def test_the_beginning_of_a_stop_string_is_held_back_until_it_is_something_else() -> None:
    texts = StopFilter(["\n\n"])
    assert [texts.push(piece) for piece in ["one", "\n", "two", "\n", "\n", "three"]] == [
        "one",
        "",
        "\ntwo",
        "",
        "",
        "",
    ]
    assert texts.stopped


def test_text_held_back_survives_a_pause() -> None:
    first = StopFilter(["END"])
    assert first.push("the EN") == "the "
    second = StopFilter(["END"], first.held, first.stopped)
    assert second.push("D") == ""
    assert second.stopped


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(InputError, match="stop string is empty"):
        StopFilter(["end", ""])
