"""Published corpora: fetched or found, prepared as in their papers, and held against the published sizes."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import lzma
import random
import urllib.parse
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from remanence.data import Corpus
from remanence.data import prepare as prepare_module
from remanence.data.fetch import Remote
from remanence.data.prepare import prepare
from remanence.data.published import PUBLISHED, Books, Published, Text
from remanence.errors import InputError

from .conftest import Server

TEXTS = {
    "wiki.train.tokens": " \n = A <unk> = \n \n the cat sat on the mat . \n the end\n",
    "wiki.valid.tokens": " the cat \n",
    "wiki.test.tokens": " the mat . \n \n",
}


def zipped(files: dict[str, bytes]) -> bytes:
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name), data)
    return memory.getvalue()


def sha256(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def known(monkeypatch: pytest.MonkeyPatch, corpus: Published) -> None:
    monkeypatch.setattr(prepare_module, "PUBLISHED", {**PUBLISHED, corpus.name: corpus})


@pytest.fixture
def wikitext(monkeypatch: pytest.MonkeyPatch, server: Server) -> Published:
    """WikiText in very small, on a server."""
    archive = zipped({f"wikitext-2/{name}": text.encode() for name, text in TEXTS.items()})
    server.files["/wikitext-2-v1.zip"] = archive
    splits = ("train", "validation", "test")
    small = replace(
        PUBLISHED["wikitext-2"],
        archive=Remote("wikitext-2-v1.zip", (f"{server.url}/wikitext-2-v1.zip",), sha256(archive)),
        texts=tuple(
            Text(split, name, "wikitext-2", sha256(text.encode()))  # type: ignore[arg-type]
            for split, (name, text) in zip(splits, TEXTS.items(), strict=True)
        ),
        expected={"words": {"train": 18, "validation": 3, "test": 5}},
        expected_vocabulary=11,
    )
    known(monkeypatch, small)
    return small


def tokens(corpus: Corpus, split: str) -> str:
    return corpus.tokenizer.decode(corpus.split(split).tokens)


def test_wikitext_is_fetched_and_prepared_by_the_published_rules(wikitext: Published, tmp_path: Path) -> None:
    corpus = prepare("wikitext-2", tmp_path / "out", cache=tmp_path / "cache")
    assert corpus.tokenizer.decode([0]) == "\n"
    assert tokens(corpus, "train") == "\n= A <unk> =\n\nthe cat sat on the mat .\nthe end\n"
    assert tokens(corpus, "test") == "the mat .\n\n"
    assert corpus.unit == "word"
    assert corpus.split("test").counts["words"] == 5


def test_sub_words_of_wikitext_count_words_as_published(wikitext: Published, tmp_path: Path) -> None:
    corpus = prepare("wikitext-2", tmp_path / "out", cache=tmp_path / "cache", tokenizer="bpe", vocab_size=260)
    assert corpus.split("train").counts["words"] == 18
    assert tokens(corpus, "test") == TEXTS["wiki.test.tokens"]


def test_a_fetched_corpus_is_not_fetched_twice(wikitext: Published, server: Server, tmp_path: Path) -> None:
    said: list[str] = []
    prepare("wikitext-2", tmp_path / "out", cache=tmp_path / "cache")
    prepare("wikitext-2", tmp_path / "out", cache=tmp_path / "cache", say=said.append)
    prepare("wikitext-2", tmp_path / "other", cache=tmp_path / "cache", tokenizer="byte")
    assert len(server.asked) == 1
    assert said == [f"{tmp_path / 'out'} holds this preparation already; nothing was done."]


def test_a_mirror_is_tried_first(wikitext: Published, server: Server, tmp_path: Path) -> None:
    server.files["/mine/wikitext-2-v1.zip"] = server.files["/wikitext-2-v1.zip"]
    prepare("wikitext-2", tmp_path / "out", cache=tmp_path / "cache", mirror=f"{server.url}/mine")
    assert [path for path, _ in server.asked] == ["/mine/wikitext-2-v1.zip"]


@pytest.mark.parametrize("mirror", ["ftp://host/x", "http://user:secret@host/x", "file:///x"])
def test_a_mirror_must_be_a_plain_address(wikitext: Published, tmp_path: Path, mirror: str) -> None:
    with pytest.raises(InputError, match="http or https") as caught:
        prepare("wikitext-2", tmp_path / "out", mirror=mirror)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("layout", ["flat", "compressed", "nested", "archive"])
def test_files_that_lie_there_already_are_taken(
    wikitext: Published, server: Server, tmp_path: Path, layout: str
) -> None:
    folder = tmp_path / "files"
    (folder / "wikitext-2").mkdir(parents=True)
    for name, text in TEXTS.items():
        if layout == "flat":
            (folder / name).write_text(text)
        elif layout == "compressed":
            (folder / f"{name}.xz").write_bytes(lzma.compress(text.encode()))
        elif layout == "nested":
            (folder / "wikitext-2" / name).write_text(text)
    if layout == "archive":
        (folder / "wikitext-2-v1.zip").write_bytes(server.files["/wikitext-2-v1.zip"])
    corpus = prepare("wikitext-2", tmp_path / "out", from_folder=folder)
    assert len(corpus.split("train")) == 18
    assert not server.asked


def test_a_file_whose_hash_differs_from_the_published_one_is_refused(wikitext: Published, tmp_path: Path) -> None:
    for name, text in TEXTS.items():
        (tmp_path / name).write_text(text.replace("mat", "rug"))
    with pytest.raises(InputError, match="the published file has sha256:"):
        prepare("wikitext-2", tmp_path / "out", from_folder=tmp_path)
    assert not (tmp_path / "out").exists()


def test_an_archive_whose_hash_differs_from_the_published_one_is_refused(wikitext: Published, tmp_path: Path) -> None:
    (tmp_path / "wikitext-2-v1.zip").write_bytes(zipped({}))
    with pytest.raises(InputError, match="the published file has sha256:"):
        prepare("wikitext-2", tmp_path / "out", from_folder=tmp_path)


def test_a_folder_without_the_files_is_refused(wikitext: Published, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"does not hold wiki\.train\.tokens"):
        prepare("wikitext-2", tmp_path / "out", from_folder=tmp_path)
    with pytest.raises(InputError, match="There is no folder"):
        prepare("wikitext-2", tmp_path / "out", from_folder=tmp_path / "nowhere")


@pytest.mark.parametrize(
    "change", [{"expected": {"words": {"train": 19}}}, {"expected_vocabulary": 12}], ids=["tokens", "vocabulary"]
)
def test_another_size_than_published_is_refused(
    wikitext: Published, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]
) -> None:
    known(monkeypatch, replace(wikitext, **change))
    with pytest.raises(InputError, match="the published one has 1"):
        prepare("wikitext-2", tmp_path / "out", cache=tmp_path / "cache")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("option", [{"validation": 0.1}, {"test": "x.txt"}])
def test_published_splits_are_not_cut_anew(wikitext: Published, tmp_path: Path, option: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="splits of wikitext-2 are published"):
        prepare("wikitext-2", tmp_path / "out", **option)


def hutter(monkeypatch: pytest.MonkeyPatch, name: str, text: bytes, sizes: tuple[int, int, int]) -> None:
    """enwik8 or text8 with another, small text."""
    splits = dict(zip(("train", "validation", "test"), sizes, strict=True))
    vocabulary = len(set(text)) if name == "text8" else None
    known(
        monkeypatch,
        replace(
            PUBLISHED[name],
            texts=(Text("all", name, digest=sha256(text)),),
            sizes=splits,
            expected={"bytes": splits},
            expected_vocabulary=vocabulary,
        ),
    )


def test_enwik8_is_cut_at_the_byte_and_keeps_every_byte(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    text = "<page>\n  é日\n</page>\n".encode() * 5
    hutter(monkeypatch, "enwik8", text, (len(text) - 11, 7, 4))
    (tmp_path / "enwik8").write_bytes(text)
    corpus = prepare("enwik8", tmp_path / "out", from_folder=tmp_path)
    assert b"".join(corpus.split(split).tokens.tobytes() for split in corpus.splits) == text
    assert [len(corpus.split(split)) for split in corpus.splits] == [len(text) - 11, 7, 4]
    assert corpus.vocab_size == 256


def test_enwik8_loses_its_newlines_and_unused_bytes_when_asked_to(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    text = b"aaa\nbb\n\nc\naab\nb\n"
    hutter(monkeypatch, "enwik8", text, (9, 4, 3))
    monkeypatch.setattr(prepare_module, "LEGACY_ENWIK8_SYMBOLS", 3)
    (tmp_path / "enwik8").write_bytes(text)
    corpus = prepare("enwik8", tmp_path / "out", from_folder=tmp_path, legacy_newlines=True)
    assert corpus.vocab_size == 3
    assert [tokens(corpus, split) for split in corpus.splits] == ["aaabbc", "aab", "b"]
    assert corpus.split("train").counts["bytes"] == 6
    assert corpus.tokenizer.encode("abc").tolist() == [0, 1, 2]
    assert "--legacy-newlines" in corpus.manifest["command"]


def test_text8_has_one_token_a_character_for_all_splits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    text = b" anarchism originated as zebra"
    hutter(monkeypatch, "text8", text, (20, 6, 4))
    (tmp_path / "text8.xz").write_bytes(lzma.compress(text))
    corpus = prepare("text8", tmp_path / "out", from_folder=tmp_path)
    assert corpus.unit == "character"
    assert "".join(tokens(corpus, split) for split in corpus.splits) == text.decode()


def test_a_prefix_of_a_published_text_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    hutter(monkeypatch, "enwik8", b"0123456789", (5, 3, 2))
    (tmp_path / "enwik8").write_bytes(b"01234567")
    with pytest.raises(InputError, match="another version or was altered"):
        prepare("enwik8", tmp_path / "out", from_folder=tmp_path)


@pytest.fixture
def books(monkeypatch: pytest.MonkeyPatch, server: Server) -> dict[str, bytes]:
    """PG-19 in very small, in a bucket that lists its files a page at a time."""
    draw = random.Random(1)
    files = {
        f"{split}/{number}.txt": " ".join(draw.choices(["once", "upon", "a", "time", "there", "was"], k=30)).encode()
        for split, numbers in (("train", (30, 4, 100)), ("validation", (5,)), ("test", (6, 7)))
        for number in numbers
    }
    items: dict[str, list[dict[str, str]]] = {"train/": [], "validation/": [], "test/": []}
    for name, text in files.items():
        server.files[f"/deepmind-gutenberg/{name}"] = text
        md5 = base64.b64encode(hashlib.md5(text).digest()).decode()
        items[name.split("/")[0] + "/"].append({"name": name, "size": str(len(text)), "md5Hash": md5})
    items["train/"].append({"name": "train/../../evil.txt", "size": "1", "md5Hash": ""})
    for prefix, listed in items.items():
        query = {"prefix": prefix, "fields": "nextPageToken,items(name,size,md5Hash)", "maxResults": "1000"}
        address = f"/storage/v1/b/deepmind-gutenberg/o?{urllib.parse.urlencode(query)}"
        server.files[address] = json.dumps({"items": listed[:2], "nextPageToken": "more"}).encode()
        server.files[f"{address}&pageToken=more"] = json.dumps({"items": listed[2:]}).encode()
    corpus = PUBLISHED["pg19"]
    assert isinstance(corpus, Books)
    small = replace(
        corpus, host=server.url, vocab_size=260, expected={"documents": {"train": 3, "validation": 1, "test": 2}}
    )
    known(monkeypatch, small)
    return files


def test_pg19_is_fetched_book_by_book(books: dict[str, bytes], tmp_path: Path) -> None:
    corpus = prepare("pg19", tmp_path / "out", cache=tmp_path / "cache")
    assert corpus.manifest["splits"]["train"]["documents"] == 3
    assert tokens(corpus, "test") == (books["test/6.txt"] + books["test/7.txt"]).decode()
    assert not list(tmp_path.rglob("evil*"))


def test_pg19_goes_on_with_the_books_that_are_missing(books: dict[str, bytes], server: Server, tmp_path: Path) -> None:
    prepare("pg19", tmp_path / "out", cache=tmp_path / "cache")
    (tmp_path / "cache" / "pg19" / "train" / "4.txt").unlink()
    server.asked.clear()
    prepare("pg19", tmp_path / "other", cache=tmp_path / "cache", tokenizer="byte")
    assert [path for path, _ in server.asked if path.endswith(".txt")] == ["/deepmind-gutenberg/train/4.txt"]


def test_pg19_is_taken_from_folders_of_books(books: dict[str, bytes], server: Server, tmp_path: Path) -> None:
    for name, text in books.items():
        (tmp_path / "files" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "files" / name).write_bytes(text)
    corpus = prepare("pg19", tmp_path / "out", from_folder=tmp_path / "files", tokenizer="byte")
    assert len(corpus.split("train").documents) == 3
    assert not server.asked


def test_pg19_with_a_book_missing_is_refused(books: dict[str, bytes], tmp_path: Path) -> None:
    for name, text in list(books.items())[1:]:
        (tmp_path / "files" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "files" / name).write_bytes(text)
    with pytest.raises(InputError, match="2 documents and the published one has 3"):
        prepare("pg19", tmp_path / "out", from_folder=tmp_path / "files", tokenizer="byte")


def test_python_stdlib_needs_no_network_and_has_a_document_a_module(tmp_path: Path) -> None:
    corpus = prepare("python-stdlib", tmp_path / "out")
    assert corpus.split("train").counts["bytes"] > 4_000_000
    assert len(corpus.split("train").documents) > 200
    assert corpus.manifest["licence"] == "PSF-2.0"


def test_every_published_corpus_says_where_it_comes_from() -> None:
    for name, corpus in PUBLISHED.items():
        assert corpus.name == name
        assert corpus.licence and corpus.homepage.startswith("http")
        assert corpus.archive is None or len(corpus.archive.urls) == 2


def test_wikitext_2_comes_out_with_the_published_sizes(shared: Path, tmp_path: Path) -> None:
    corpus = prepare("wikitext-2", tmp_path / "out", from_folder=shared / "data" / "wikitext-2")
    assert [len(corpus.split(split)) for split in corpus.splits] == [2_088_628, 217_646, 245_569]
    assert corpus.vocab_size == 33_278


@pytest.mark.parametrize(("split", "name", "count"), [("validation", "valid", 217_646), ("test", "test", 245_569)])
def test_wikitext_103_held_out_text_has_the_published_hash_and_sizes(
    shared: Path, tmp_path: Path, split: str, name: str, count: int
) -> None:
    path = shared / "data" / "wikitext-103" / f"wiki.{name}.tokens.xz"
    digest = next(text.digest for text in PUBLISHED["wikitext-103"].texts if text.where == split)
    assert sha256(lzma.decompress(path.read_bytes())) == digest
    corpus = prepare(path, tmp_path / "out", tokenizer="word", validation=0, test=0)
    assert len(corpus.split("train")) == count == PUBLISHED["wikitext-103"].expected["words"][split]


def test_dropping_newlines_from_the_start_of_enwik8_loses_as_many_as_published(shared: Path, tmp_path: Path) -> None:
    text = lzma.decompress((shared / "data" / "enwik8-prefix" / "enwik8.prefix.xz").read_bytes())
    assert len(text) - len(text.translate(None, b"\n")) == 46_678


def test_the_start_of_text8_has_27_symbols(shared: Path, tmp_path: Path) -> None:
    corpus = prepare(shared / "data" / "text8-prefix", tmp_path / "out", tokenizer="char")
    assert corpus.vocab_size == 27
