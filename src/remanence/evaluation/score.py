"""One number about a model and a text, in every unit in which people ask for it.

    nats per token      n = total nats / scored tokens
    perplexity          e^n
    bits per byte       n / ln 2 · tokens / bytes
    word perplexity     e^(n · tokens / (words + line ends))
    accuracy            scored tokens that the model held the most probable / scored tokens

The counts are those of the whole text. The few tokens that are not scored (the first of the stream, or of each
document) are thereby charged at the mean, so that no protocol looks better for scoring less; where all are scored, word
perplexity is the usual e^(total nats / words). A line end counts as a word because word-level models predict one too
(`<eos>`): the published 245,569 words of WikiText-103's test text hold 4,358 of them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from remanence.errors import InputError
from remanence.evaluation.protocol import Protocol
from remanence.files import write_json

FORMAT = 1


@dataclass(frozen=True)
class Score:
    """What `evaluate` found."""

    nats: float
    """Total over the scored tokens."""
    tokens: int
    """How many tokens were scored."""
    seconds: float
    protocol: Protocol
    counts: dict[str, int]
    """Of the whole text: tokens, bytes, characters, words; a count that is not known is absent."""
    measurements: dict[str, Any] = field(default_factory=dict)
    """What the measurements that were asked for found, by their names."""
    correct: int | None = None
    """How many scored tokens the model held the most probable; None where that was not counted."""

    @property
    def nats_per_token(self) -> float:
        return self.nats / self.tokens

    @property
    def bits_per_token(self) -> float:
        return self.nats_per_token / math.log(2)

    @property
    def perplexity(self) -> float:
        """e^(nats per token); infinite where that is beyond a float."""
        return _exp(self.nats_per_token)

    @property
    def accuracy(self) -> float | None:
        """The share of scored tokens that the model held the most probable."""
        return None if self.correct is None else self.correct / self.tokens

    @property
    def bits_per_pixel(self) -> float | None:
        return self.bits_per_token if self.protocol.unit == "pixel" else None

    @property
    def bits_per_byte(self) -> float | None:
        return self.bits_per_token if self.protocol.unit == "byte" else self._bits_per("bytes")

    @property
    def bits_per_character(self) -> float | None:
        return self.bits_per_token if self.protocol.unit == "character" else self._bits_per("characters")

    @property
    def word_perplexity(self) -> float | None:
        """Perplexity per word of the text, whatever the tokens were: comparable between tokenizers."""
        if self.protocol.unit == "word":
            return self.perplexity
        bits = self._bits_per("words", "lines")
        return None if bits is None else _exp(bits * math.log(2))

    @property
    def headline(self) -> str:
        """The number people quote for such a text: "2.391 bits per byte"."""
        digits = ".3f" if self.measure.startswith("bits") else ".1f" if self.higher_is_better else ",.2f"
        return f"{self.value:{digits}} {self.measure}"

    @property
    def measure(self) -> str:
        """Which number that is: bits per byte, character or pixel, perplexity, word perplexity for sub-word tokens, or
        the accuracy, in %, where a task is scored at the ends of documents alone.
        """
        if self.protocol.scored_last is not None and self.correct is not None:
            return "% accuracy"
        if self.protocol.unit in ("byte", "character", "pixel"):
            return f"bits per {self.protocol.unit}"
        return "word perplexity" if self.protocol.unit == "token" and self.word_perplexity else "perplexity"

    @property
    def higher_is_better(self) -> bool:
        return self.measure == "% accuracy"

    @property
    def value(self) -> float:
        return {
            "% accuracy": 100 * (self.accuracy or 0.0),
            "bits per pixel": self.bits_per_token,
            "bits per byte": self.bits_per_token,
            "bits per character": self.bits_per_token,
            "word perplexity": self.word_perplexity or 0.0,
            "perplexity": self.perplexity,
        }[self.measure]

    def to_json(self) -> dict[str, Any]:
        units = ("nats_per_token", "bits_per_byte", "bits_per_character", "bits_per_pixel", "perplexity")
        units += ("word_perplexity", "accuracy")
        values = {name: getattr(self, name) for name in units}
        return {
            "format": FORMAT,
            "headline": self.headline,
            **{name: None if value is None or math.isinf(value) else value for name, value in values.items()},
            "nats": self.nats,
            "tokens": self.tokens,
            "correct": self.correct,
            "seconds": self.seconds,
            "counts": self.counts,
            "protocol": self.protocol.to_json(),
            "measurements": self.measurements,
        }

    @classmethod
    def from_json(cls, value: Any) -> Score:
        """What `to_json` gave, as a score again. Raises InputError for anything else."""
        # What was not counted when a score was written is absent from it.
        names = [entry.name for entry in dataclasses.fields(cls)]
        entries = {name: value[name] for name in names if name in value} if isinstance(value, dict) else {}
        counts = entries.get("counts")
        sound = (
            all(type(entries.get(name)) in (int, float) for name in ("nats", "seconds"))
            and (type(entries.get("tokens")) is int and entries["tokens"] >= 1)
            and (isinstance(counts, dict) and all(type(count) is int and count >= 0 for count in counts.values()))
            and isinstance(entries.get("measurements", {}), dict)
            and type(entries.get("correct")) in (int, type(None))
        )
        if not sound or "protocol" not in entries:
            raise InputError("What was stored is no whole score; evaluate again.")
        return cls(**{**entries, "protocol": Protocol.from_json(entries["protocol"])})

    def save(self, folder: str | Path, **facts: Any) -> Path:
        """Write `evaluation-<split>-memory<M>-<8 hexadecimals>.json` into a run's folder; `facts` are stored beside
        the score.

        The last part of the name is the hash of protocol and facts: the same evaluation replaces its file, another
        one adds one.
        """
        identity = json.dumps([self.protocol.to_json(), facts], sort_keys=True, default=str).encode()
        short = hashlib.sha256(identity).hexdigest()[:8]
        path = Path(folder) / f"evaluation-{self.protocol.split}-memory{self.protocol.memory_length}-{short}.json"
        write_json(path, self.to_json() | facts)
        return path

    def _bits_per(self, what: str, *more: str) -> float | None:
        tokens, count = self.counts.get("tokens"), self.counts.get(what)
        if not tokens or not count:
            return None
        return self.bits_per_token * tokens / (count + sum(self.counts.get(name, 0) for name in more))


def _exp(value: float) -> float:
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf
