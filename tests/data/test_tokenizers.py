"""Tokenizers: there and back, in streams, through files, and what they refuse."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from remanence.data import Tokenizer, load_tokenizer
from remanence.data.tokenizers.byte import ByteTokenizer
from remanence.data.tokenizers.char import CharTokenizer
from remanence.data.tokenizers.subword import SubwordTokenizer, train_bpe
from remanence.data.tokenizers.word import WordTokenizer
from remanence.data.vocabulary import by_frequency, count_symbols, word_vocabulary
from remanence.errors import InputError

texts = st.text(st.characters(codec="utf-8"))
TRAINING = "the cat sat on the mat; thé çat sat on the mat. 日本語 日本語\n" * 20


def bpe() -> SubwordTokenizer:
    return train_bpe(iter([TRAINING]), 300)


BPE = bpe()
WORDS = WordTokenizer(["<eos>", "the", "cat", "sat", "<unk>"])
ALL: list[Tokenizer] = [ByteTokenizer(), ByteTokenizer(b"tahe c\xc3\xa9\n"), CharTokenizer("tahe cé\n"), WORDS, BPE]


@given(texts)
def test_bytes_give_back_every_text(text: str) -> None:
    assert ByteTokenizer().decode(ByteTokenizer().encode(text)) == text


@given(texts)
def test_bpe_gives_back_every_text(text: str) -> None:
    assert BPE.decode(BPE.encode(text)) == text


@given(st.lists(st.sampled_from(["the", "cat", "sat", "\n"])))
def test_words_give_back_every_text_that_is_spaced_like_theirs(words: list[str]) -> None:
    ids = WORDS.encode(" ".join(words))
    assert WORDS.encode(WORDS.decode(ids)).tolist() == ids.tolist()


@pytest.mark.parametrize("tokenizer", ALL, ids=lambda tokenizer: f"{tokenizer.name}-{tokenizer.vocab_size}")
@given(data=st.data())
def test_a_stream_says_what_decoding_at_once_says(tokenizer: Tokenizer, data: st.DataObject) -> None:
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=12))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(ids)), max_size=3)))
    stream = tokenizer.stream_decoder()
    pieces = [stream.push(ids[begin:end]) for begin, end in zip([0, *cuts], [*cuts, len(ids)], strict=True)]
    assert "".join(pieces) + stream.finish() == tokenizer.decode(ids)


@pytest.mark.parametrize("tokenizer", [ByteTokenizer(), BPE], ids=["byte", "bpe"])
@given(text=texts)
def test_a_stream_never_shows_half_a_character(tokenizer: Tokenizer, text: str) -> None:
    stream, shown = tokenizer.stream_decoder(), ""
    for index in tokenizer.encode(text):
        shown += stream.push([int(index)])
        assert text.startswith(shown)


@pytest.mark.parametrize("tokenizer", ALL, ids=lambda tokenizer: f"{tokenizer.name}-{tokenizer.vocab_size}")
def test_a_stream_goes_on_from_its_saved_state(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("the cé" if tokenizer.unit != "word" else "the cat").tolist()
    for cut in range(len(ids)):
        one = tokenizer.stream_decoder()
        begun = one.push(ids[:cut])
        other = tokenizer.stream_decoder()
        other.restore(json.loads(json.dumps(one.state())))
        assert begun + other.push(ids[cut:]) + other.finish() == tokenizer.decode(ids)


def test_a_stream_of_ids_that_are_no_text_is_not_held_back_for_ever() -> None:
    half = int(BPE.encode("é")[0]) if len(BPE.encode("é")) > 1 else int(BPE.encode("ß")[0])
    stream = BPE.stream_decoder()
    assert "".join(stream.push([half]) for _ in range(40))


@pytest.mark.parametrize("tokenizer", ALL, ids=lambda tokenizer: f"{tokenizer.name}-{tokenizer.vocab_size}")
def test_a_tokenizer_is_the_same_after_saving_and_loading(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path / "tokenizer")
    loaded = load_tokenizer(tmp_path / "tokenizer")
    text = "the cat" if tokenizer.unit != "character" else "the ca"
    assert loaded.fingerprint == tokenizer.fingerprint
    assert (loaded.name, loaded.unit, loaded.vocab_size) == (tokenizer.name, tokenizer.unit, tokenizer.vocab_size)
    assert loaded.encode(text).tolist() == tokenizer.encode(text).tolist()


def test_different_tokenizers_have_different_fingerprints() -> None:
    assert len({tokenizer.fingerprint for tokenizer in ALL}) == len(ALL)


@pytest.mark.parametrize("tokenizer", ALL, ids=lambda tokenizer: f"{tokenizer.name}-{tokenizer.vocab_size}")
@pytest.mark.parametrize("wrong", [-1, 10**6])
def test_ids_outside_the_vocabulary_are_refused(tokenizer: Tokenizer, wrong: int) -> None:
    with pytest.raises(InputError, match=f"Token id {wrong} is outside"):
        tokenizer.decode([0, wrong])


def test_a_character_that_the_alphabet_lacks_is_named() -> None:
    with pytest.raises(InputError, match="character 'x', which the vocabulary of 3 characters lacks"):
        CharTokenizer("abc").encode("abx")


def test_a_byte_that_the_symbols_lack_is_named() -> None:
    with pytest.raises(InputError, match=r"byte 10 .* lacks"):
        ByteTokenizer(b"abc").encode("a\nb")


def test_a_word_that_the_vocabulary_lacks_is_named_where_there_is_no_unknown() -> None:
    with pytest.raises(InputError, match="word 'dog'"):
        WordTokenizer(["<eos>", "cat"]).encode("cat dog")


def test_unknown_words_get_the_id_of_unk_where_there_is_one() -> None:
    assert WORDS.encode("the dog").tolist() == [1, 4]


def test_words_get_an_end_mark_for_every_newline_also_of_blank_lines() -> None:
    assert WORDS.encode(" \n the  cat \n\nsat").tolist() == [0, 1, 2, 0, 0, 3]


def test_words_are_numbered_by_falling_frequency_and_then_by_first_appearance() -> None:
    counts = Counter(count_symbols("word", b"b a a c b d a"))
    assert word_vocabulary(counts, None, 1, unknown=False) == ["<eos>", "a", "b", "c", "d"]


def test_rare_words_and_words_beyond_the_size_are_left_to_unk() -> None:
    counts = Counter(count_symbols("word", b"b a a c b d a"))
    assert word_vocabulary(counts, None, 2, unknown=True) == ["<eos>", "a", "b", "<unk>"]
    assert word_vocabulary(counts, 3, 1, unknown=True) == ["<eos>", "a", "<unk>"]


def test_an_unk_of_the_text_is_an_ordinary_word() -> None:
    counts = Counter(count_symbols("word", b"<unk> a a <unk> <unk>"))
    assert word_vocabulary(counts, None, 1, unknown=True) == ["<eos>", "<unk>", "a"]


@given(st.text(st.sampled_from("abcdeé日"), max_size=40))
def test_characters_are_counted_in_order_of_first_appearance(text: str) -> None:
    counts = count_symbols("char", text.encode())
    assert list(counts.items()) == list(Counter(text).items())
    assert by_frequency(Counter(counts)) == [symbol for symbol, _ in Counter(text).most_common()]


def test_bytes_from_a_command_line_that_are_no_text_keep_their_value() -> None:
    assert ByteTokenizer().encode("a\udcff").tolist() == [97, 255]


def test_half_a_surrogate_pair_is_refused() -> None:
    with pytest.raises(InputError, match="surrogate"):
        ByteTokenizer().encode("\ud800")


def test_training_bpe_twice_gives_the_same_tokenizer() -> None:
    assert bpe().fingerprint == BPE.fingerprint


def test_a_bpe_smaller_than_the_bytes_is_refused() -> None:
    with pytest.raises(InputError, match="smaller than its 256 bytes"):
        train_bpe(iter(["a"]), 255)


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "tokenizers", None)
    with pytest.raises(InputError, match=r"remanence\[tokenizers\]"):
        train_bpe(iter(["a"]), 300)


def test_special_tokens_padding_and_truncation_of_a_file_are_not_applied(tmp_path: Path) -> None:
    from tokenizers import Tokenizer as Library
    from tokenizers import models, pre_tokenizers, processors

    made = Library(models.WordLevel({"[CLS]": 0, "a": 1, "[PAD]": 2}, unk_token="a"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(single="[CLS] $A", special_tokens=[("[CLS]", 0)])
    made.enable_truncation(2)
    made.enable_padding(length=9, pad_id=2, pad_token="[PAD]")
    made.save(str(tmp_path / "tokenizer.json"))
    assert SubwordTokenizer.from_file(tmp_path / "tokenizer.json").encode("a a a a").tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize("content", ["", "{}", "no json", '{"model": 3}'])
def test_what_is_no_tokenizer_file_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(InputError, match="not a tokenizer"):
        SubwordTokenizer.from_file(tmp_path / "tokenizer.json")


@pytest.mark.parametrize(
    ("settings", "vocabulary"),
    [
        ({"kind": "pickle"}, None),
        ([], None),
        ({"kind": "byte", "symbols": [1, 1]}, None),
        ({"kind": "byte", "symbols": [300]}, None),
        ({"kind": "char"}, None),
        ({"kind": "char"}, ["ab"]),
        ({"kind": "char"}, ["a", "a"]),
        ({"kind": "word"}, ["a", "<eos>"]),
        ({"kind": "word"}, {"<eos>": 0}),
        ({"kind": "bpe"}, None),
    ],
)
def test_a_damaged_tokenizer_folder_is_refused(tmp_path: Path, settings: Any, vocabulary: Any) -> None:
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    if vocabulary is not None:
        (tmp_path / "vocabulary.json").write_text(json.dumps(vocabulary))
    with pytest.raises(InputError):
        load_tokenizer(tmp_path)


def test_ids_may_come_as_arrays_of_any_integer_type() -> None:
    assert ByteTokenizer().decode(np.array([104, 105], np.uint8)) == "hi"
