"""Encoding: the tokens of a corpus are those of its documents, however the work is cut and shared out."""

from __future__ import annotations

import random
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from remanence.data import Tokenizer
from remanence.data import encoding as encoding_module
from remanence.data.encoding import NotText, tasks
from remanence.data.manifest import token_type
from remanence.data.sources import Source
from remanence.data.spool import Spool, gather
from remanence.data.tokenizers.byte import ByteTokenizer
from remanence.data.tokenizers.char import CharTokenizer
from remanence.data.tokenizers.subword import train_bpe
from remanence.data.tokenizers.word import WordTokenizer
from remanence.data.vocabulary import Symbol
from remanence.data.workers import Crew
from remanence.data.writing import write_split
from remanence.errors import InputError

WORDS = ["the", "and", "it's", "日本", "été", "1984,", "--", "\u00a0", "memory", "\t"]


@pytest.fixture(scope="module")
def texts() -> list[str]:
    """Documents of very different lengths with blank lines, runs of blanks and no newline at the end."""
    draw = random.Random(3)
    made = []
    for length in (0, 1, 5, 40, 4000, 3, 9000, 2):
        pieces = [draw.choice(WORDS) + draw.choice([" ", " ", " ", "\n", "\n\n", "  "]) for _ in range(length)]
        made.append("x" + "".join(pieces))
    return made


@pytest.fixture
def spool(tmp_path: Path, texts: list[str]) -> Spool:
    sources = []
    for index, text in enumerate(texts):
        (tmp_path / f"{index}.txt").write_bytes(text.encode())
        sources.append(Source(f"{index}.txt", tmp_path / f"{index}.txt"))
    return gather(sources, tmp_path / "spool", "file", b"\f", 1)


def tokenizer_of(kind: str, texts: list[str]) -> Tokenizer:
    if kind == "byte":
        return ByteTokenizer()
    if kind == "char":
        return CharTokenizer(sorted(set("".join(texts))))
    if kind == "word":
        return WordTokenizer(["<eos>", *sorted(set("".join(f"{text}\n" for text in texts).split()))])
    return train_bpe(iter(texts), 320)


def expected(tokenizer: Tokenizer, text: str) -> list[int]:
    if tokenizer.unit == "word" and not text.endswith("\n"):
        text += "\n"
    return tokenizer.encode(text).tolist()


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding_module, "_REACH", 150)


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("kind", ["byte", "char", "word", "bpe"])
@pytest.mark.parametrize("piece", [200, 1000, 10**6])
def test_the_tokens_of_a_split_are_those_of_its_documents(
    tmp_path: Path, spool: Spool, texts: list[str], kind: str, piece: int
) -> None:
    tokenizer = tokenizer_of(kind, texts)
    tokenizer.save(tmp_path / "tokenizer")
    dtype = token_type(tokenizer.vocab_size)
    with Crew(1, spool.size) as crew:
        encoded = crew.encode(tasks(spool.whole(), piece, 3 * piece), tmp_path / "tokenizer", b"", dtype)
        entry = write_split(tmp_path, "train", encoded, dtype, lambda size: None)
    tokens = np.fromfile(tmp_path / "train.tokens", dtype)
    begins = np.fromfile(tmp_path / "train.documents", "<i8").tolist()
    found = [part.tolist() for part in np.split(tokens, begins[1:])]
    assert found == [expected(tokenizer, text) for text in texts]
    whole = "".join(texts)
    assert entry["counts"]["tokens"] == len(tokens)
    assert entry["counts"]["bytes"] == len(whole.encode())
    assert entry["counts"]["characters"] == len(whole)
    assert entry["counts"]["words"] == sum(len(text.split()) for text in texts)
    assert entry["counts"]["lines"] == whole.count("\n")


@pytest.mark.usefixtures("small_pieces")
def test_tasks_cover_a_part_and_cut_long_documents_alone(spool: Spool) -> None:
    made = list(tasks(spool.whole(), 300, 1000))
    assert made[0].begin == 0
    assert all(one.begin + len(one) == two.begin for one, two in pairwise(made))
    assert sum(map(len, made)) == spool.size
    assert all(len(task) <= 1000 or len(task.sizes) == 1 for task in made)
    assert sum(sum(task.begins_document) for task in made) == len(spool.documents)
    assert sum(sum(task.ends_document) for task in made) == len(spool.documents)


@pytest.fixture
def crew(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> Iterator[Crew]:
    """Two child processes, whatever the size of the text."""
    with Crew(2, 1 << 40) as crew:
        yield crew


@pytest.mark.parametrize("kind", ["char", "word", "bpe"])
def test_children_give_what_one_process_gives(
    tmp_path: Path, spool: Spool, texts: list[str], crew: Crew, kind: str
) -> None:
    tokenizer = tokenizer_of(kind, texts)
    tokenizer.save(tmp_path / "tokenizer")
    dtype = token_type(tokenizer.vocab_size)
    with Crew(1, 0) as alone:
        one, many = (
            [
                (result.tokens.tolist(), result.documents.tolist(), result.counts)
                for result in some.encode(tasks(spool.whole(), 500, 1000), tmp_path / "tokenizer", b"", dtype)
            ]
            for some in (alone, crew)
        )
    assert many == one


@pytest.mark.parametrize("kind", ["byte", "char", "word"])
def test_children_count_symbols_in_the_order_of_the_text(
    spool: Spool, texts: list[str], crew: Crew, kind: Symbol
) -> None:
    total: Counter[str] = Counter()
    for counts in crew.count(tasks(spool.whole(), 500, 1000), kind):
        total.update(counts)
    whole = "".join(texts)
    symbols = {"byte": map(chr, whole.encode()), "char": whole, "word": [w for text in texts for w in text.split()]}
    assert list(total.items()) == list(Counter(symbols[kind]).items())


def test_children_name_the_byte_that_is_no_text(tmp_path: Path, crew: Crew) -> None:
    (tmp_path / "bad.txt").write_bytes(b"good \xff bad")
    spool = gather([Source("bad.txt", tmp_path / "bad.txt")], tmp_path / "spool", "file", b"\f", 1)
    with pytest.raises(NotText) as caught:
        list(crew.count(tasks(spool.whole()), "char"))
    assert (caught.value.path, caught.value.offset) == (str(spool.path), 5)


def test_a_child_that_dies_is_told_in_a_sentence(spool: Spool, crew: Crew) -> None:
    list(crew.count(tasks(spool.whole(), 500, 1000), "char"))
    for child in crew._children:
        child._process.kill()
    with pytest.raises(InputError, match="fewer --workers"):
        list(crew.count(tasks(spool.whole(), 500, 1000), "char"))


def test_no_child_is_left_when_the_work_is_broken_off(spool: Spool) -> None:
    with suppress(KeyboardInterrupt), Crew(2, 1 << 40) as crew:
        next(crew.count(tasks(spool.whole(), 500, 1000), "char"))
        raise KeyboardInterrupt
    assert [child._process.poll() is not None for child in crew._children] == [True, True]


def test_children_need_no_main_module_that_can_be_imported(
    tmp_path: Path, spool: Spool, crew: Crew, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["__main__"], "__file__", str(tmp_path / "gone.py"), raising=False)
    assert list(crew.count(tasks(spool.whole()), "word"))


@pytest.mark.parametrize(
    ("size", "name"), [(1, "uint8"), (256, "uint8"), (257, "uint16"), (65536, "uint16"), (65537, "uint32")]
)
def test_tokens_take_the_smallest_type_that_holds_the_vocabulary(size: int, name: str) -> None:
    assert token_type(size).name == name
