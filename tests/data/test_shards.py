"""Tokens in many files read as one stream, documents that cross their edges, and the lanes that lie over them."""

from __future__ import annotations

import json
import os
import tracemalloc
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from remanence.data import Corpus, Lanes, Split, shards
from remanence.data.encoding import Encoded
from remanence.data.manifest import divided
from remanence.data.order import order_of
from remanence.data.prepare import prepare
from remanence.data.shards import Maps, Shard, Starts, Tokens
from remanence.data.writing import write_split
from remanence.errors import InputError


@pytest.fixture(autouse=True)
def unflushed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thousands of small files are written here, and none has to survive a power cut."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


def written(folder: Path, text: Split, shard_tokens: int, block: int = 7) -> Split:
    """The tokens of a split written as shards, handed over in blocks that know nothing of documents or shards."""

    def encoded() -> Any:
        for begin in range(0, len(text), block):
            tokens = np.asarray(text.tokens[begin : begin + block])
            starts = np.asarray(text.documents) - begin
            # A document that begins where a block ends may be told by either.
            starts = starts[(starts >= int(begin > 0)) & (starts <= len(tokens))]
            counts = dict.fromkeys(("bytes", "characters", "words", "lines"), 0) | {"tokens": len(tokens)}
            yield Encoded(tokens, starts, counts)

    entry = write_split(folder, "train", encoded(), text.tokens.dtype, lambda size: None, shard_tokens)
    return opened(folder, entry, text.vocab_size)


def opened(folder: Path, entry: dict[str, Any], vocab_size: int) -> Split:
    found = shards.shards_of("train", entry)
    reader = Maps(folder, found, np.dtype("<u2"))
    return Split(Tokens(found, np.dtype("<u2"), reader), vocab_size, Starts(found, reader, "train"), name="train")


def plain(length: int, documents: tuple[int, ...] = (0,)) -> Split:
    """Tokens that tell where they stand."""
    return Split(np.arange(length, dtype="<u2"), 65536, np.array(documents, np.int64), name="train")


@st.composite
def splits(draw: st.DrawFn) -> Split:
    length = draw(st.integers(2, 150))
    return plain(length, (0, *sorted(draw(st.sets(st.integers(1, length - 1), max_size=14)))))


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(splits(), st.integers(1, 40), st.integers(1, 30))
def test_shards_hold_the_stream_and_its_documents(tmp_path: Path, text: Split, size: int, block: int) -> None:
    made = written(tmp_path, text, size, block)
    assert np.asarray(made.tokens).tolist() == text.tokens[:].tolist()
    assert np.asarray(made.documents).tolist() == text.documents[:].tolist()
    assert isinstance(made.documents, Starts)
    ranges = np.concatenate([made.documents.ranges(shard) for shard in range(len(made.documents.shards))])
    assert ranges.tolist() == np.stack([text.documents[:], np.append(text.documents[1:], len(text))], 1).tolist()
    for shard, about in enumerate(made.documents.shards):
        single = [made.documents.range(shard, place) for place in range(about.documents)]
        assert single == [tuple(each) for each in made.documents.ranges(shard).tolist()]
        for outside in (-1, about.documents):
            with pytest.raises(IndexError, match=f"{about.documents} documents begin in the shard"):
                made.documents.range(shard, outside)


def test_a_document_is_looked_up_at_a_cost_that_does_not_grow_with_its_shard() -> None:
    class Many:
        def starts(self, shard: int) -> np.ndarray:
            return np.arange(0, 3_000_000, 3)

        def gather(self, spans: object, heads: object = ()) -> list[np.ndarray]:
            raise AssertionError("no token is needed for it")

    found = [shards.Shard(str(number), 3_000_000, 1_000_000) for number in range(2)]
    starts = Starts(found, Many(), "train")
    split = Split(Tokens(found, np.dtype("<u2"), Many()), 65536, starts, name="train")
    order = order_of(split, shift=1)
    assert order.part(0) == (0, 2)
    tracemalloc.start()
    try:
        assert [order.part(number) for number in (5, 999_999)] == [(15, 17), (2_999_997, 2_999_999)]
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(splits(), st.integers(1, 40))
def test_a_shard_ends_with_a_document_or_at_twice_its_size(tmp_path: Path, text: Split, size: int) -> None:
    found = written(tmp_path, text, size).documents.shards  # pyright: ignore[reportAttributeAccessIssue]
    for shard, following in pairwise(found):
        assert size <= shard.tokens <= 2 * size
        assert following.continues == 0 or shard.tokens == 2 * size


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(splits(), st.integers(1, 40), st.integers(1, 4), st.integers(1, 9))
def test_lanes_over_shards_are_those_over_one_file(
    tmp_path: Path, text: Split, size: int, lanes: int, length: int
) -> None:
    if len(text) < lanes * (length + 1):
        return
    made = written(tmp_path, text, size)
    one, many = Lanes(text, lanes, length, seed=5), Lanes(made, lanes, length, seed=5)
    for _ in range(2 * len(text) // (lanes * length) + 3):
        expected, got = one.next(), many.next()
        assert got.tokens.tolist() == expected.tokens.tolist()
        assert got.targets.tolist() == expected.targets.tolist()
        assert got.starts.tolist() == expected.starts.tolist()
    assert many.state() == one.state()


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(splits(), st.integers(1, 40), st.integers(1, 3))
def test_an_epoch_by_document_reads_each_once_shard_by_shard(
    tmp_path: Path, text: Split, size: int, lanes: int
) -> None:
    made = written(tmp_path, text, size)
    edges = np.append(text.documents[:], len(text))
    long_enough = [begin for begin, end in pairwise(edges.tolist()) if end - begin >= 2]
    if len(long_enough) < lanes:
        return
    walk = Lanes(made, lanes, 200, "document", seed=1)
    seen: list[int] = []
    while len(seen) < len(long_enough):
        seen += walk.next().tokens[:, 0].tolist()
    assert sorted(seen[: len(long_enough)]) == sorted(long_enough)
    assert isinstance(made.documents, Starts)
    homes = [shard for shard in range(len(made.documents.shards)) for _ in made.documents.ranges(shard)]
    home = dict(zip(text.documents[:].tolist(), homes, strict=True))
    order = [home[begin] for begin in seen[: len(long_enough)]]
    assert sum(one != two for one, two in pairwise(order)) == len(set(order)) - 1


def test_a_position_by_document_is_restored_from_the_shards_it_is_in(tmp_path: Path) -> None:
    made = written(tmp_path, plain(400, tuple(range(0, 400, 9))), 50)
    one = Lanes(made, 3, 4, "document", seed=2)
    for _ in range(23):
        one.next()
    other = Lanes(written(tmp_path, plain(400, tuple(range(0, 400, 9))), 50), 3, 4, "document", seed=7)
    other.restore(json.loads(json.dumps(one.state())))
    for _ in range(60):
        assert other.next().tokens.tolist() == one.next().tokens.tolist()


def test_documents_too_short_to_score_do_not_go_on_for_ever(tmp_path: Path) -> None:
    made = written(tmp_path, plain(8, tuple(range(8))), 2)
    with pytest.raises(InputError, match="long enough"):
        Lanes(made, 1, 4, "document").next()


def test_a_hundred_thousand_shards_open_a_bounded_number_of_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = [Shard(f"train-{index:05}", 10, 1) for index in range(100_000)]
    maps: list[Path] = []
    monkeypatch.setattr(np, "memmap", lambda path, *rest, **more: maps.append(path) or np.zeros(10, "<u2"))
    reader = Maps(tmp_path, found, np.dtype("<u2"))
    tokens = Tokens(found, np.dtype("<u2"), reader)
    places = np.arange(0, 1_000_000, 2500)[:, None] + np.arange(21)
    assert tokens[places].shape == (400, 21)
    assert len(maps) == 400 * 3
    assert len(reader._maps) == shards.OPEN


def test_tokens_are_read_like_an_array(tmp_path: Path) -> None:
    tokens = written(tmp_path, plain(100), 7).tokens
    expected = np.arange(100, dtype="<u2")
    assert (len(tokens), tokens.shape, tokens.size, tokens.dtype) == (100, (100,), 100, np.dtype("<u2"))
    for places in (3, -1, slice(5, 60), slice(-9, None), slice(60, 5), slice(0, 90, 8), np.array([[9, 2], [99, 99]])):
        assert np.asarray(tokens[places]).tolist() == expected[places].tolist()
    assert tokens[np.zeros((0,), int)].shape == (0,)
    with pytest.raises(IndexError):
        tokens[np.array([100])]


def test_the_beginning_of_a_split_is_not_read_when_taken(tmp_path: Path) -> None:
    made = written(tmp_path, plain(100, (0, 30, 80)), 20)
    first = made.first(50)
    assert isinstance(first.tokens, Tokens)
    assert (len(first), first.documents[:].tolist()) == (50, [0, 30])
    assert np.asarray(first.tokens).tolist() == list(range(50))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    (folder / "text.txt").write_text("".join(f"document {index}\n\f\n" for index in range(60)))
    return Path(prepare(folder / "text.txt", folder / "out", documents="separator", shard_tokens=100).folder)


def test_a_prepared_corpus_of_shards_has_the_tokens_of_one_file(made: Path, tmp_path: Path) -> None:
    corpus = Corpus.open(made, verify=True)
    one = prepare(made.parent / "text.txt", tmp_path / "one", documents="separator")
    assert len(corpus.manifest["splits"]["train"]["shards"]) == 6
    for name in one.splits:
        assert np.asarray(corpus.split(name).tokens).tolist() == one.split(name).tokens[:].tolist()
        assert np.asarray(corpus.split(name).documents).tolist() == one.split(name).documents[:].tolist()
        assert corpus.split(name).counts == one.split(name).counts


def test_the_same_shards_are_prepared_once(made: Path) -> None:
    said: list[str] = []
    prepare(made.parent / "text.txt", made, documents="separator", shard_tokens=100, say=said.append)
    assert "nothing was done" in said[0]
    with pytest.raises(InputError, match="shard_tokens is 100 there and 50 here"):
        prepare(made.parent / "text.txt", made, documents="separator", shard_tokens=50)


def edited(made: Path, folder: Path, edit: Callable[[Any], None]) -> Path:
    """A manifest with something else in it, hashed as if that belonged there."""
    manifest = json.loads((made / "manifest.json").read_text())
    entry = manifest["splits"]["train"]
    edit(entry["shards"])
    try:
        entry["sha256"] = divided(entry["shards"])
        from remanence.data.manifest import corpus_fingerprint

        manifest["fingerprint"] = corpus_fingerprint(manifest["tokenizer"]["fingerprint"], manifest["splits"])
    except (KeyError, TypeError):
        pass
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


@pytest.mark.parametrize(
    "edit",
    [
        lambda found: found[0].update(file="../train-00000"),
        lambda found: found[0].update(file="/etc/train-00000"),
        lambda found: found[0].update(file="//host/train-00000"),
        lambda found: found[0].update(file="http://host/train-00000"),
        lambda found: found[0].update(file="part-1-of-2/../train"),
        lambda found: found[0].update(file="train-00000\n"),
        lambda found: found[0].update(file="validation-00000"),
        lambda found: found[0].update(file=["train"]),
        lambda found: found[1].update(file="train-00000"),
        lambda found: found[0].update(tokens=2**63),
        lambda found: found[0].update(tokens=found[0]["tokens"] + 1),
        lambda found: found[0].update(tokens=-1),
        lambda found: found[0].update(tokens=True),
        lambda found: found[0].update(documents=found[0]["documents"] + 1),
        lambda found: found[0].update(continues=5),
        lambda found: found[1].update(continues=10**9),
        lambda found: found[0]["sha256"].update(tokens="../" * 22),
        lambda found: found[0].pop("sha256"),
        lambda found: found.clear(),
        lambda found: found.append([]),
    ],
)
def test_shards_that_cannot_be_are_one_sentence(made: Path, tmp_path: Path, edit: Callable[[Any], None]) -> None:
    with pytest.raises(InputError, match="damaged or edited"):
        Corpus.open(edited(made, tmp_path, edit))


def test_a_missing_and_a_shortened_shard_are_named(made: Path, tmp_path: Path) -> None:
    import shutil

    folder = Path(shutil.copytree(made, tmp_path / "corpus"))
    (folder / "train-00003.tokens").write_bytes(b"1")
    with pytest.raises(InputError, match=r"train-00003.tokens has 1 bytes"):
        Corpus.open(folder)
    (folder / "train-00003.tokens").unlink()
    with pytest.raises(InputError, match=r"lacks its file train-00003.tokens"):
        Corpus.open(folder)
