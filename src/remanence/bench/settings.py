"""What a bench is asked to measure, resolved: shape, models, numbers, rounds."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from remanence.errors import InputError

Kind = Literal["train", "evaluate", "generate", "ops"]
OWN = ("transformer", "transformer-xl", "lamemo", "compressive", "infinite-former", "memformer", "rmt")
"""The architectures that are measured unless others are named."""
SLOTS, MEMORY_TOKENS, BASIS = 64, 16, 64
"""What models have whose memory is no queue: slots of a memformer, memory tokens of an rmt, basis functions."""


@dataclass(frozen=True)
class Shape:
    """The sizes of a model, and what it is usually trained with."""

    num_layers: int
    model_width: int
    num_heads: int
    head_width: int
    feed_forward_width: int
    vocabulary: int
    lanes: int
    segment_length: int
    memory_length: tuple[int, ...]
    cutoffs: tuple[int, ...] = ()

    @property
    def model(self) -> dict[str, Any]:
        """The settings that every architecture has."""
        return {
            "num_layers": self.num_layers,
            "model_width": self.model_width,
            "num_heads": self.num_heads,
            "head_width": self.head_width,
            "feed_forward_width": self.feed_forward_width,
            "vocab_size": self.vocabulary,
            "cutoffs": self.cutoffs,
        }


SHAPES: dict[str, Shape] = {
    "wikitext-103-layer": Shape(4, 410, 10, 41, 2100, 256, 4, 150, (150, 600)),
    "wikitext-103-base": Shape(16, 410, 10, 41, 2100, 267_735, 4, 150, (150,), (20_000, 40_000, 200_000)),
    "enwik8-base": Shape(12, 512, 8, 64, 2048, 204, 22, 512, (512,)),
    "small": Shape(4, 256, 4, 64, 1024, 256, 16, 64, (64,)),
    "quick": Shape(2, 32, 2, 16, 64, 61, 2, 8, (8, 16)),
}
"""By name. The layers of Dai et al. 2019 and Ji et al. 2022, their whole models, and two small ones."""


@dataclass(frozen=True)
class Settings:
    """One bench. Lengths are in tokens."""

    kind: Kind
    shape_name: str
    shape: Shape
    models: tuple[str, ...]
    lanes: int
    segment_length: int
    memory_length: tuple[int, ...]
    dtype: Literal["float32", "bfloat16"]
    device: str
    threads: int
    rounds: int
    warmup: int = 2
    """Rounds that are not timed."""
    dropout: float = 0.1
    compile: bool = False
    padded: bool = False
    limit: bool = False
    peers: bool = True
    quick: bool = False
    protocols: tuple[tuple[int, int], ...] = ()
    """Of evaluation: tokens of a segment and positions remembered; the published ones where none is given."""
    places: tuple[int, ...] = ()
    """Tokens read before generation is timed."""
    batches: tuple[int, ...] = ()
    """Texts generated side by side."""
    seed: int = 1111

    def __post_init__(self) -> None:
        for name in ("lanes", "segment_length", "threads", "rounds"):
            if getattr(self, name) < 1:
                raise InputError(f"--{name.replace('_', '-')} is {getattr(self, name)}, but it must be 1 or more.")
        if any(length < 0 for length in self.memory_length) or not self.memory_length:
            raise InputError(f"--memory-length is {list(self.memory_length)}, but it must be numbers of 0 or more.")
        if len(set(self.memory_length)) < len(self.memory_length) or len(set(self.models)) < len(self.models):
            raise InputError("--memory-length and --models must name each length and each model at most once.")
        if not 0 <= self.dropout < 1:
            raise InputError(f"--dropout is {self.dropout:g}, but it must be at least 0 and below 1.")

    def about(self) -> dict[str, Any]:
        """For the results."""
        told = {**dataclasses.asdict(self), "shape": {"name": self.shape_name, **dataclasses.asdict(self.shape)}}
        del told["shape_name"], told["kind"]
        return told
