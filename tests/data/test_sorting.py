"""The sorting task: as published bit for bit, and each sequence by itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from remanence.data import Corpus
from remanence.data.sorting import BLOCK, SEPARATOR, SYMBOLS, by_count, document, prepare_sorting, sequence
from remanence.errors import InputError

GOLDEN = Path(__file__).resolve().parent.parent / "golden" / "infinite_former_sort.npz"


def lines(corpus: Corpus) -> np.ndarray:
    """All documents of a corpus, one a row."""
    return np.concatenate([corpus.split(name).tokens for name in corpus.splits]).reshape(
        sum(len(corpus.split(name).documents) for name in corpus.splits), -1
    )


@pytest.mark.parametrize("case", [0, 1])
def test_the_published_generator_is_replayed_bit_for_bit(case: int, tmp_path: Path) -> None:
    with np.load(GOLDEN) as golden:
        stored, told = golden[f"data/{case}/lines"], golden[f"data/{case}/n_counts_seed"]
    length, *counts, seed = map(int, told)
    corpus = prepare_sorting(length, tmp_path / "out", sequences=tuple(counts), seed=seed, generator="published")
    assert np.array_equal(lines(corpus), stored)


def test_symbols_are_sorted_by_count_then_by_first_appearance_then_by_name() -> None:
    symbols = np.array([5, 3, 5, 9, 3, 0], np.uint8)
    rest = [symbol for symbol in range(SYMBOLS) if symbol not in (5, 3, 9, 0)]
    assert by_count(symbols).tolist() == [5, 3, 9, 0, *rest]
    assert document(symbols).tolist() == [*symbols.tolist(), SEPARATOR, 5, 3, 9, 0, *rest]


def test_the_distribution_goes_from_one_to_the_other() -> None:
    begin, end = np.zeros(SYMBOLS, int), np.zeros(SYMBOLS, int)
    begin[4], end[11] = 9, 3
    drawn = sequence(begin, end, 3 * BLOCK, np.random.default_rng(0).random)
    assert set(drawn.tolist()) == {4, 11} and drawn[-1] == 11
    early, late = drawn[: BLOCK // 2], drawn[-BLOCK // 2 :]
    assert (early == 4).mean() > 0.9 and (late == 11).mean() > 0.9


def test_the_probabilities_are_those_of_one_piece() -> None:
    begin, end = np.random.default_rng(1).integers(1, 10, (2, SYMBOLS))
    length = BLOCK + 77
    uniform = np.random.default_rng(2).random(length)
    share = np.arange(1, length + 1)[:, None] / length
    cumulative = np.cumsum((1 - share) * (begin / begin.sum()) + share * (end / end.sum()), axis=1)
    expected = (cumulative / cumulative[:, -1:] <= uniform[:, None]).sum(1)
    assert np.array_equal(sequence(begin, end, length, np.random.default_rng(2).random), expected)


def test_splits_and_indices_are_independent(tmp_path: Path) -> None:
    few = prepare_sorting(30, tmp_path / "few", sequences=(2, 0, 3), seed=5)
    many = prepare_sorting(30, tmp_path / "many", sequences=(4, 2, 3), seed=5)
    other = prepare_sorting(30, tmp_path / "other", sequences=(2,), seed=6)
    assert few.splits == ("train", "test") and other.splits == ("train",)
    for split in few.splits:
        assert np.array_equal(few.split(split).tokens, many.split(split).tokens[: len(few.split(split))])
    assert not np.array_equal(few.split("train").tokens, other.split("train").tokens)
    assert not np.array_equal(many.split("train").tokens[:51], many.split("train").tokens[51:102])


def test_the_corpus_says_what_is_scored(tmp_path: Path) -> None:
    corpus = prepare_sorting(30, tmp_path / "out", sequences=(2, 1, 1))
    split = Corpus.open(corpus.folder, verify=True).split("train")
    assert (split.scored_last, split.start_token, split.unit, split.vocab_size) == (20, None, "symbol", 22)
    assert split.documents.tolist() == [0, 51]
    assert corpus.name == "sorting-30" and "--length 30" in corpus.manifest["command"]
    assert corpus.tokenizer.decode(split.tokens[30:32]) == f"20 {split.tokens[31]}"


def test_the_same_again_does_nothing_and_another_is_refused(tmp_path: Path) -> None:
    said: list[str] = []
    prepare_sorting(30, tmp_path / "out", sequences=(2,))
    prepare_sorting(30, tmp_path / "out", sequences=(2,), say=said.append)
    assert len(said) == 1 and "nothing was done" in said[0]
    with pytest.raises(InputError, match=r"seed is 0 there and 1 here.*--overwrite"):
        prepare_sorting(30, tmp_path / "out", sequences=(2,), seed=1)
    prepare_sorting(30, tmp_path / "out", sequences=(2,), seed=1, overwrite=True)


def test_another_fact_is_another_corpus(tmp_path: Path) -> None:
    corpus = prepare_sorting(30, tmp_path / "out", sequences=(2,))
    path = corpus.folder / "manifest.json"
    path.write_text(path.read_text().replace('"scored_last": 20', '"scored_last": 19'))
    with pytest.raises(InputError, match="edited by hand"):
        Corpus.open(corpus.folder)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"length": 0}, "length is 0"),
        ({"length": 10**9}, "at most 10,000,000"),
        ({"sequences": (0, 2)}, "at least 1"),
        ({"sequences": (1, 2, 3, 4)}, "up to three"),
        ({"sequences": (1, -2)}, "1 -2"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**32}, "at most 4294967295"),
        ({"name": "a/b"}, "plain folder name"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, object], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=sentence):
        prepare_sorting(out=tmp_path / "out", **settings)  # pyright: ignore[reportArgumentType]
    assert not (tmp_path / "out").exists()
