"""What was found when several models read the same text under the same budget.

`Comparison` is the one object that the table, the plots and the report are made from. It is plain data: it goes to
`results.json` and comes back equal, so a report can be drawn again without training again.

Units
    value      a score in the unit of the text: bits per byte, perplexity per word, ...
    tokens     tokens seen so far, all lanes together
    seconds    wall-clock time of training alone, validation left out
"""

from __future__ import annotations

import dataclasses
import types
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from remanence.errors import InputError
from remanence.files import read_json, write_json

FORMAT = 2
"""Raised whenever a field changes its meaning; a file of another format is refused."""


@dataclass(frozen=True)
class CurvePoint:
    """How well a model did at one moment of its training."""

    tokens: int
    seconds: float
    value: float


@dataclass(frozen=True)
class MemoryScore:
    """The score of a trained model with one memory length at test time."""

    memory_length: int
    value: float
    tokens: int
    seconds: float
    held: bool = False
    """True where distances were held at the largest one seen in training."""


@dataclass(frozen=True)
class PositionScore:
    """The mean over the tokens at positions begin <= position < end, counted from 0."""

    begin: int
    end: int
    value: float
    tokens: int


@dataclass(frozen=True)
class Difference:
    """How much worse one model is than another on the very same tokens: `bits` = first - second.

    `error` is the standard error over `stretches` stretches of text. It says how far the choice of test text could
    move the difference; it knows nothing of the choice of seed.
    """

    first: str
    second: str
    value: float
    error: float
    stretches: int


@dataclass(frozen=True)
class ModelFindings:
    """One model: what it cost, how it learnt, and how it scores."""

    architecture: str
    parameters: int
    steps: int
    tokens: int
    seconds: float
    training: tuple[CurvePoint, ...] = ()
    validation: tuple[CurvePoint, ...] = ()
    by_memory: tuple[MemoryScore, ...] = ()
    by_document_position: tuple[PositionScore, ...] = ()
    by_segment_position: tuple[PositionScore, ...] = ()
    interpolation: tuple[tuple[float, ...], ...] = ()
    """Mean weight of the old content, [layer][age]: age 0 is the newest slot. Empty for models that do not merge."""
    memory_length: int | None = None
    """The memory length of training; that of the comparison unless given. Not every memory counts tokens."""

    def at_memory(self, length: int) -> MemoryScore | None:
        """The score with this memory length; a model scored without memory only has that one score for all lengths."""
        if self.remembers:
            return next((score for score in self.by_memory if score.memory_length == length), None)
        return self.by_memory[0] if self.by_memory else None

    @property
    def remembers(self) -> bool:
        return any(score.memory_length > 0 for score in self.by_memory)


@dataclass(frozen=True)
class TextFacts:
    """The text that was read: `parts` gives the bytes of each split."""

    name: str
    source: str
    parts: dict[str, int]
    fingerprint: str


@dataclass(frozen=True)
class Sample:
    """Text that a model wrote: `prompt` was given, `text` is what it went on with."""

    architecture: str
    prompt: str
    text: str
    settings: str


@dataclass(frozen=True)
class Comparison:
    """Several models under one budget on one text."""

    title: str
    unit: str
    text: TextFacts
    models: tuple[ModelFindings, ...]
    segment_length: int
    memory_length: int
    protocol: dict[str, str]
    """What was scored and how, as label -> sentence."""
    settings: dict[str, str]
    """What all models share, as label -> value."""
    recipes: dict[str, str]
    """The whole recipe of each model, as TOML."""
    machine: dict[str, str]
    differences: tuple[Difference, ...] = ()
    sample: Sample | None = None
    seconds: float = 0.0
    """Wall-clock time of everything, from the start of the command to the report."""
    date: str = ""
    version: str = ""
    command: str = ""
    notes: tuple[str, ...] = ()

    def model(self, architecture: str) -> ModelFindings | None:
        return next((model for model in self.models if model.architecture == architecture), None)

    def trained(self, model: ModelFindings) -> MemoryScore | None:
        """The score of a model with the memory length it was trained with."""
        return model.at_memory(self.memory_length if model.memory_length is None else model.memory_length)

    def difference(self, first: str, second: str) -> Difference | None:
        """The measured difference first - second, turned round where it was taken the other way."""
        for found in self.differences:
            if (found.first, found.second) == (first, second):
                return found
            if (found.first, found.second) == (second, first):
                return dataclasses.replace(found, first=first, second=second, value=-found.value)
        return None

    @property
    def memory_lengths(self) -> tuple[int, ...]:
        """All memory lengths that any model was scored with, ascending."""
        return tuple(sorted({score.memory_length for model in self.models for score in model.by_memory}))

    def save(self, path: str | Path) -> None:
        write_json(path, {"format": FORMAT} | dataclasses.asdict(self))

    @classmethod
    def load(cls, path: str | Path) -> Comparison:
        """Read what `save` wrote. Raises InputError when the file is missing, damaged or of another format."""
        value = read_json(path, "the results of the comparison")
        if not isinstance(value, dict) or value.pop("format", None) != FORMAT:
            raise InputError(f"{path} does not hold results in format {FORMAT}; run the comparison again.")
        try:
            return restore(cls, value)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path} does not hold a whole comparison ({error}); run the comparison again.") from None


def restore(kind: Any, value: Any) -> Any:
    """Rebuild a value of the annotated type `kind` from what JSON made of it."""
    if kind is typing.Any:
        return value
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        known = typing.get_type_hints(kind)
        if set(value) - set(known):
            raise KeyError(f"unknown entries {sorted(set(value) - set(known))}")
        build: Any = kind
        return build(**{name: restore(known[name], entry) for name, entry in value.items()})
    if origin is tuple and isinstance(value, list):
        return tuple(restore(arguments[0], entry) for entry in value)
    if origin is dict:
        return {str(key): restore(arguments[1], entry) for key, entry in value.items()}
    if origin is types.UnionType:
        return None if value is None and type(None) in arguments else restore(arguments[0], value)
    if origin is typing.Literal:
        if value not in arguments:
            raise TypeError(f"{value!r} where one of {arguments} belongs")
        return value
    if kind is float and isinstance(value, int):
        return float(value)
    if not isinstance(value, kind):
        raise TypeError(f"{value!r} where {kind.__name__} belongs")
    return value
