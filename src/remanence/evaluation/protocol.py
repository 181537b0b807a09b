"""Exactly how a score was computed.

A `Protocol` begins as a request, in which None means "as the model was trained", and is completed against a model
and a text before anything is scored. The completed one is printed and stored with the number: two scores may be
compared when their protocols differ in nothing but the model.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch

from remanence.config.tables import read_table
from remanence.errors import InputError, SettingWarning
from remanence.evaluation.holding import distances_to_hold, exceeds
from remanence.memory import Distances
from remanence.models import LanguageModel
from remanence.training.precision import choose

Reach = tuple[int | None, int | None]
"""Distances back and ahead, in tokens; None is no limit."""

DEFAULT_LANES = 8
"""Enough to keep two cores busy; each lane begins cold, so fewer lanes are cleaner and slower."""


@dataclass(frozen=True)
class Protocol:
    """How to score, and once completed, how it was scored. Lengths and distances are in tokens.

    Raises InputError for values that mean nothing.
    """

    starts: Literal["published", "document"] = "published"
    """published: one stream, nothing is ever forgotten; document: the memory is forgotten where a document begins."""
    segment_length: int | None = None
    memory_length: int | None = None
    clamp_length: int | None = None
    """Distances above it are read as it, in both directions. When given, it takes the place of holding."""
    compressed_length: int | None = None
    """Compressed slots of a model that has them; None for all others."""
    same_length: bool | None = None
    lanes: int | None = None
    hold_distances: bool = True
    """Hold distances at the largest trained ones where the memory or the segment is longer than in training."""
    precision: Literal["auto", "float32", "bfloat16"] = "float32"
    """float32 means the precision of the weights themselves; auto takes bfloat16 where this machine is faster in
    it."""

    corpus: str = ""
    split: str = ""
    unit: str = ""
    """What a token is: byte, character, word, symbol, pixel or token (a sub-word)."""
    scored_last: int | None = None
    """Only so many last tokens of every document were scored; None where all were."""
    start_token: bool = False
    """Whether every document begins with a constant token, which is not scored."""
    shift: int = 1
    """Outputs score the token after theirs (1), or their own (0), from a start symbol that the model brings."""
    architecture: str = ""
    vocab_size: int | None = None
    text_tokens: int | None = None
    scored_tokens: int | None = None
    reached: Reach | None = None
    """Largest distances (back, ahead) that these lengths bring about."""
    trained: Reach | None = None
    """Largest distances (back, ahead) that training brought about, where that is known."""
    held: Reach | None = None
    """Where distances were held (back, ahead); None where they were not."""
    weights: str = ""
    device: str = ""

    def __post_init__(self) -> None:
        for name, value, least in (
            ("segment length", self.segment_length, 1),
            ("memory length", self.memory_length, 0),
            ("clamp length", self.clamp_length, 1),
            ("compressed length", self.compressed_length, 0),
            ("number of lanes", self.lanes, 1),
        ):
            if value is not None and value < least:
                raise InputError(f"The {name} is {value}; it must be at least {least}.")
        if self.starts not in ("published", "document"):
            raise InputError(f"The protocol {self.starts!r} is not known; choose published or document.")
        if self.precision not in ("auto", "float32", "bfloat16"):
            raise InputError(f"The precision {self.precision!r} is not known; choose auto, float32 or bfloat16.")

    @property
    def complete(self) -> bool:
        return self.reached is not None

    @property
    def exceeded(self) -> bool:
        """Whether these lengths bring about distances that training did not, as far as is known."""
        if self.reached is None or self.trained is None:
            return False
        return exceeds(Distances(*self.reached), Distances(*self.trained))

    def completed(self, model: LanguageModel, trained: Distances | None = None, **facts: Any) -> Protocol:
        """Fill in what was left open, from the model's configuration, and decide where distances are held.

        trained     largest distances seen in training, recorded with the weights; None when nobody knows them
        facts       the fields that only the text can tell (corpus, split, unit)

        Warns (SettingWarning) where the configuration says, by a method `changed_by`, that segments of this length
        make it another model than the trained one.
        """
        config = model.config
        segment_length = config.segment_length if self.segment_length is None else self.segment_length
        memory_length = config.memory_length if self.memory_length is None else self.memory_length
        changed_by = getattr(config, "changed_by", None)
        change = None if changed_by is None else changed_by(segment_length)
        if change is not None:
            warnings.warn(change, SettingWarning, stacklevel=2)
        clamp_length = getattr(config, "clamp_length", None) if self.clamp_length is None else self.clamp_length
        same_length = getattr(config, "same_length", False) if self.same_length is None else self.same_length
        compressed_length = self.compressed_length
        if compressed_length is None:
            compressed_length = getattr(config, "compressed_slots", None)
        if same_length and not memory_length:
            raise InputError(
                "With same length every token sees as far as the memory is long, and a memory of 0 shows it nothing; "
                "give a memory length of 1 or more, or turn same length off."
            )
        with as_tested(model, clamp_length, same_length, compressed_length):
            reached = model.distances(segment_length=segment_length, memory_length=memory_length)
            held = None
            if self.hold_distances and self.clamp_length is None:
                held = distances_to_hold(model, trained, segment_length, memory_length)
        weight = next(model.parameters())
        return dataclasses.replace(
            self,
            segment_length=segment_length,
            memory_length=memory_length,
            clamp_length=clamp_length,
            compressed_length=compressed_length,
            same_length=same_length,
            lanes=DEFAULT_LANES if self.lanes is None else self.lanes,
            architecture=config.architecture,
            vocab_size=config.vocab_size,
            shift=model.shift,
            reached=_pair(reached),
            trained=None if trained is None else _pair(trained),
            held=None if held is None else _pair(held),
            precision=choose(self.precision, weight.device),
            weights=str(weight.dtype).removeprefix("torch."),
            device=_device_name(weight.device),
            **facts,
        )

    def words(self) -> list[str]:
        """The completed protocol as four sentences for a person: what was scored, how it was read, memory, numbers."""
        assert self.complete
        return [
            self._scored_in_words(),
            self._reading_in_words(),
            f"Memory of {self._memory_in_words()}: {self._distances_in_words()}.",
            f"Computed in {self._precision_in_words()} on {self.device}, summed in float64.",
        ]

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Protocol:
        """What `to_json` gave, after JSON made lists of the distances. Raises InputError for anything else."""
        return read_table(cls, value, "protocol")

    def _scored_in_words(self) -> str:
        text = f"Split {self.split} of {self.corpus}" if self.corpus else f"Split {self.split}"
        plural = f"{self.unit}s" if self.unit else "tokens"
        published = self.starts == "published"
        if self.scored_last is not None:
            which = f"the last {self.scored_last:,} of each document"
        elif self.shift:
            which = f"every one but the first of {'the stream' if published else 'each document'}"
        else:
            which = "every one but the start of each document" if self.start_token and not published else "every one"
        return f"{text}, {self.text_tokens:,} {plural}: {which} scored once, {self.scored_tokens:,} in all."

    def _reading_in_words(self) -> str:
        lanes = "one lane" if self.lanes == 1 else f"{self.lanes} lanes"
        text = f"Read in segments of {self.segment_length:,} by {lanes}"
        if self.same_length:
            text += ", every token seeing equally far (same length)"
        if self.starts == "document":
            return f"{text}; the memory is forgotten where a document begins (document protocol)."
        return f"{text}; the memory is empty where a lane begins and never forgotten (published protocol)."

    def _memory_in_words(self) -> str:
        compressed = "" if self.compressed_length is None else f" and {self.compressed_length:,} compressed"
        return f"{self.memory_length:,}{compressed}"

    def _distances_in_words(self) -> str:
        assert self.reached is not None
        if self.reached == (None, None):
            return "positions are those within a segment, at any length of memory"
        reach = _in_words(self.reached)
        if self.held is not None:
            return f"distances reach {reach} and are held at the largest of training, {_in_words(self.held)}"
        if self.clamp_length is not None:
            return f"distances are clamped at {self.clamp_length:,}"
        if self.trained is None:
            return f"distances reach {reach}, and what training reached is not known"
        if self.exceeded:
            return (
                f"distances reach {reach}, beyond the largest of training, {_in_words(self.trained)}, and are not held"
            )
        return f"distances reach {reach}, all seen in training"

    def _precision_in_words(self) -> str:
        return "bfloat16 (autocast)" if self.precision == "bfloat16" else self.weights


def in_words(protocols: Sequence[Protocol]) -> list[str]:
    """Several completed protocols together: what they share is said once."""
    columns = zip(*(protocol.words() for protocol in protocols), strict=True)
    return [sentence for column in columns for sentence in dict.fromkeys(column)]


@contextmanager
def as_tested(
    model: LanguageModel, clamp_length: int | None, same_length: bool | None, compressed_length: int | None = None
) -> Iterator[None]:
    """The model in evaluation mode and with these settings, on which no weight depends; as before afterwards."""
    config, training = model.config, model.training
    try:
        model.eval()
        settings = {"clamp_length": clamp_length, "same_length": same_length}
        own = {
            name: getattr(config, name, default) for name, default in (("clamp_length", None), ("same_length", False))
        }
        if settings != own:
            if not hasattr(config, "clamp_length"):
                raise InputError(
                    f"A clamp length or same length was asked for, but the attention of the {config.architecture} "
                    "knows no distances; leave both out."
                )
            model.config = dataclasses.replace(config, **settings)
        if compressed_length != getattr(config, "compressed_slots", None) and compressed_length is not None:
            if not hasattr(config, "compressed_slots"):
                raise InputError(
                    f"A compressed length was asked for, but a {config.architecture} compresses nothing; leave it out."
                )
            model.config = dataclasses.replace(model.config, compressed_length=compressed_length)
        yield
    finally:
        model.config = config
        model.train(training)


def _pair(distances: Distances) -> Reach:
    return distances.back, distances.ahead


def _in_words(reach: Reach) -> str:
    back, ahead = ("any distance" if value is None else f"{value:,}" for value in reach)
    return f"{back} back and {ahead} ahead" if reach[1] else f"{back} back"


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type.upper()
