"""Making the tokenizer of a corpus from its text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import closing

from remanence.data.encoding import NotText, Task, tasks
from remanence.data.progress import Progress
from remanence.data.settings import Settings
from remanence.data.spool import Part
from remanence.data.tokenizers import Tokenizer
from remanence.data.tokenizers.byte import ByteTokenizer
from remanence.data.tokenizers.char import CharTokenizer
from remanence.data.tokenizers.word import WordTokenizer
from remanence.data.vocabulary import Symbol, by_frequency, word_vocabulary
from remanence.data.workers import Crew

KINDS = ("byte", "char", "word", "bpe")
BPE_SAMPLE = 256 << 20
"""Bytes of the training split that a BPE is trained on at most, spread evenly over it."""


def make_tokenizer(
    kind: str, parts: dict[str, Part], crew: Crew, settings: Settings, drop: bytes, unknown: bool, bar: Progress
) -> Tokenizer:
    """The tokenizer of a kind for the text in `parts`.

    Words and BPE see the training split alone. The alphabet of characters (and of bytes where some are dropped, as in
    published work on enwik8) is that of all splits, since there is no token for an unknown character. `unknown` gives
    words an `<unk>`.
    """
    if kind == "byte" and not drop:
        return ByteTokenizer()
    if kind == "word":
        counts = _count([parts["train"]] if "train" in parts else [], "word", crew, bar)
        return WordTokenizer(word_vocabulary(counts, settings.vocab_size, settings.min_count, unknown))
    if kind == "bpe":
        from remanence.data.tokenizers.subword import train_bpe

        assert settings.vocab_size is not None
        return train_bpe(_texts(parts["train"], bar), settings.vocab_size)
    counts = _count(list(parts.values()), "byte" if kind == "byte" else "char", crew, bar)
    symbols = by_frequency(counts)
    if kind == "byte":
        return ByteTokenizer(bytes(ord(symbol) for symbol in symbols if ord(symbol) not in drop))
    return CharTokenizer(symbols)


def _count(parts: list[Part], kind: Symbol, crew: Crew, bar: Progress) -> Counter[str]:
    bar.stage("Vocabulary", sum(map(len, parts)))
    total: Counter[str] = Counter()
    for part in parts:
        sizes = iter([len(task) for task in tasks(part)])
        with closing(crew.count(tasks(part), kind)) as counted:
            for counts in counted:
                total.update(counts)
                bar.advance(next(sizes))
    return total


def _texts(part: Part, bar: Progress) -> Iterator[str]:
    """The training text in pieces, a sample of it where it is very long."""
    bar.stage("Training", min(len(part), BPE_SAMPLE))
    share = min(1.0, BPE_SAMPLE / len(part))
    for index, task in enumerate(tasks(part)):
        if int((index + 1) * share) > int(index * share):
            yield from _pieces(task)
            bar.advance(len(task))
    # What the library does once it has read everything takes as long again.
    bar.stage("Merging", None)


def _pieces(task: Task) -> Iterator[str]:
    data, begin = task.read(), 0
    for size in task.sizes:
        try:
            yield data[begin : begin + size].decode("utf-8")
        except UnicodeDecodeError as error:
            raise NotText(task.path, task.begin + begin + error.start) from None
        begin += size
