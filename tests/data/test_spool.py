"""Gathering: where documents begin, and where text is cut into splits."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remanence.data import spool as spool_module
from remanence.data.sources import Source
from remanence.data.spool import DocumentRule, Spool, cut_at, divide, gather
from remanence.errors import InputError

shares = st.floats(0.01, 0.4)


def gathered(folder: Path, *texts: bytes, rule: DocumentRule = "separator", separator: bytes = b"\f") -> Spool:
    sources = []
    for index, text in enumerate(texts):
        path = folder / f"{index}.txt"
        path.write_bytes(text)
        sources.append(Source(path.name, path))
    return gather(sources, folder / "spool", rule, separator, 2)


def documents(spool: Spool) -> list[bytes]:
    edges = [*spool.documents, spool.size]
    return [spool.read(begin, end) for begin, end in pairwise(edges)]


def test_documents_by_file_are_the_files(tmp_path: Path) -> None:
    assert documents(gathered(tmp_path, b"one\n", b"", b"two", rule="file")) == [b"one\n", b"two"]


def test_without_documents_the_files_are_one_stream(tmp_path: Path) -> None:
    assert documents(gathered(tmp_path, b"one", b"two", rule="none")) == [b"onetwo"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"one\n\f\ntwo\n", [b"one\n", b"two\n"]),
        (b"one\n\f\ntwo", [b"one\n", b"two"]),
        (b"\f\none\n\f\n\f\ntwo\n\f\n", [b"one\n", b"two\n"]),
        (b"one\n\f", [b"one\n"]),
        (b"one\f\ntwo \f\n\fthree\n", [b"one\f\ntwo \f\n\fthree\n"]),
        (b"one\r\n\f\r\ntwo\r\n", [b"one\r\n", b"two\r\n"]),
        (b"\n\n\f\n\n", [b"\n\n", b"\n"]),
    ],
)
def test_a_separator_counts_only_alone_on_its_line(tmp_path: Path, text: bytes, expected: list[bytes]) -> None:
    assert documents(gathered(tmp_path, text)) == expected


def test_files_end_documents_too_where_separators_do(tmp_path: Path) -> None:
    assert documents(gathered(tmp_path, b"one\n\f\ntwo", b"three\n")) == [b"one\n", b"two", b"three\n"]


def test_a_separator_may_be_any_text(tmp_path: Path) -> None:
    text = b"one\n<|end|>\ntwo <|end|>\n<|end|>\n"
    assert documents(gathered(tmp_path, text, separator=b"<|end|>")) == [b"one\n", b"two <|end|>\n"]


@given(st.lists(st.sampled_from([b"\n", b"\f", b"a", b"\f\n", b"bb\n"]), max_size=12), st.integers(1, 5))
def test_separators_are_found_wherever_blocks_and_long_lines_are_cut(parts: list[bytes], size: int) -> None:
    text = b"".join(parts)
    blocks = [text[at : at + size] for at in range(0, len(text), size)]
    found: list[bytes] = []
    for begins, piece in spool_module._documents(iter(blocks), b"\f"):
        if begins or not found:
            found.append(b"")
        found[-1] += piece
    expected = re.split(rb"(?m)^\f(?:\n|\Z)", text)
    assert [document for document in found if document] == [document for document in expected if document]


def test_a_line_longer_than_memory_allows_is_passed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool_module, "_LONGEST_LINE", 1 << 20)
    text = b"x" * (3 << 20) + b"\f\n\f\nend\n"
    assert [len(document) for document in documents(gathered(tmp_path, text))] == [(3 << 20) + 2, 4]


def test_an_empty_file_that_was_named_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").touch()
    with pytest.raises(InputError, match=r"empty\.txt is empty"):
        gather([Source("empty.txt", tmp_path / "empty.txt", given=True)], tmp_path / "spool", "file", b"\f", 1)


def test_files_without_any_text_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="hold no text"):
        gathered(tmp_path, b"", b"\f\n")


def test_a_byte_knows_the_file_it_came_from(tmp_path: Path) -> None:
    spool = gathered(tmp_path, b"one\n", b"", b"two\n", rule="file")
    assert [spool.origin(offset) for offset in (0, 3, 4, 7)] == [
        ("0.txt", 0),
        ("0.txt", 3),
        ("2.txt", 0),
        ("2.txt", 3),
    ]


def test_splits_part_where_a_document_begins(tmp_path: Path) -> None:
    texts = [b"x" * 9 + b"\n" for _ in range(20)]
    parts = divide(gathered(tmp_path, *texts, rule="file"), {"train": 0.8, "validation": 0.1, "test": 0.1})
    assert {name: (part.begin, part.end) for name, part in parts.items()} == {
        "train": (0, 160),
        "validation": (160, 180),
        "test": (180, 200),
    }


def test_a_split_moves_to_a_document_nearby(tmp_path: Path) -> None:
    parts = divide(gathered(tmp_path, b"x" * 93, b"y" * 107, rule="file"), {"train": 0.5, "test": 0.5})
    assert len(parts["train"]) == 93


def test_a_long_document_is_cut_at_a_line_instead_of_moving_the_split_far(tmp_path: Path) -> None:
    text = b"a line of text\n" * 100
    parts = divide(gathered(tmp_path, text, rule="file"), {"train": 0.9, "validation": 0.05, "test": 0.05})
    assert [len(part) % 15 for part in parts.values()] == [0, 0, 0]
    assert abs(len(parts["train"]) - 1350) <= 15


def test_text_without_lines_is_cut_between_characters(tmp_path: Path) -> None:
    parts = divide(gathered(tmp_path, "日本語".encode() * 40, rule="none"), {"train": 0.5, "test": 0.5})
    for part in parts.values():
        part.spool.read(part.begin, part.end).decode()


@given(st.lists(st.integers(1, 400), min_size=1, max_size=30), shares, st.one_of(st.just(0.0), shares))
def test_splits_cover_the_text_in_order(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], validation: float, test: float
) -> None:
    folder = tmp_path_factory.mktemp("spool")
    spool = gathered(folder, *[b"word " * size for size in sizes], rule="file")
    try:
        parts = divide(spool, {"train": 1 - validation - test, "validation": validation, "test": test})
    except InputError:
        assert spool.size * 0.01 < 8
        return
    edges = [(part.begin, part.end) for part in parts.values()]
    assert edges[0][0] == 0
    assert edges[-1][1] == spool.size
    assert all(one[1] == two[0] for one, two in pairwise(edges))


def test_a_text_too_short_for_its_splits_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="too few to give the"):
        divide(gathered(tmp_path, b"ab", rule="file"), {"train": 0.9, "validation": 0.05, "test": 0.05})


def test_published_sizes_cut_at_the_byte(tmp_path: Path) -> None:
    parts = cut_at(gathered(tmp_path, b"0123456789", rule="none"), {"train": 7, "validation": 2, "test": 1})
    assert [spool.read(part.begin, part.end) for part in parts.values() for spool in [part.spool]] == [
        b"0123456",
        b"78",
        b"9",
    ]


def test_the_documents_of_a_part_begin_with_the_part(tmp_path: Path) -> None:
    spool = gathered(tmp_path, b"aaaa", b"bbbb", b"cccc", rule="file")
    parts = cut_at(spool, {"train": 6, "validation": 6, "test": 0})
    assert parts["train"].documents().tolist() == [0, 4]
    assert parts["validation"].documents().tolist() == [6, 8]
