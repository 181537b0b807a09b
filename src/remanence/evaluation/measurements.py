"""What may be noted beside the score while a text is read.

A measurement is made for one evaluation and asked for its result at the end; results are plain values that JSON can
hold.

Shapes
    B   lanes
    T   segment
    M   remembered positions, oldest first
    H   heads
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Seen:
    """One segment, after the model read it. All tensors but those of memory and extras are on the CPU."""

    nats: Float[Tensor, "B T"]
    """float64; 0 where nothing was scored."""
    scored: Bool[Tensor, "B T"]
    positions: Int[Tensor, "B T"]
    """How many tokens of the document (or of the lane, where nothing is reset) the model had read before this one."""
    starts: Bool[Tensor, "B"]
    memory: Any
    """The memory with which the segment was read, before `starts` were applied."""
    extras: Any
    correct: Bool[Tensor, "B T"] | None = None
    """Where the target was the most probable token; None where nobody asked."""


class Measurement(abc.ABC):
    """Something that looks at every segment of one evaluation."""

    name: ClassVar[str]
    extras: ClassVar[bool] = False
    """Whether the model has to fill in its extras, which costs time."""

    @abc.abstractmethod
    def add(self, seen: Seen) -> None: ...

    @abc.abstractmethod
    def join(self, parts: Sequence[Self]) -> None:
        """Become what all of them together have seen, each of other lanes in the order of the lanes."""

    @abc.abstractmethod
    def result(self) -> Any: ...


class LossByPosition(Measurement):
    """Mean nats by position in the document (in the lane's stream, where nothing is reset): what context buys.

    A token is at position p when p tokens of its document came before the one it was predicted from, p >= 0.
    `edges` are where bins begin; the last one is open. By default they double: 0, 1, 2, 4, 8, ... The result is a
    list of {"begin", "end" (None: open), "nats" (mean), "tokens"}; bins without a token are left out.
    """

    name = "loss_by_position"

    def __init__(self, edges: Sequence[int] | None = None) -> None:
        self.edges = [0] + [1 << power for power in range(40)] if edges is None else sorted({0, *edges})
        self._boundaries = torch.tensor(self.edges[1:], dtype=torch.int64)
        self._nats = torch.zeros(len(self.edges), dtype=torch.float64)
        self._tokens = torch.zeros(len(self.edges), dtype=torch.int64)

    def add(self, seen: Seen) -> None:
        bins = torch.bucketize(seen.positions[seen.scored], self._boundaries, right=True)
        self._nats += torch.bincount(bins, weights=seen.nats[seen.scored], minlength=len(self.edges))
        self._tokens += torch.bincount(bins, minlength=len(self.edges))

    def join(self, parts: Sequence[Self]) -> None:
        self._nats, self._tokens = _sum([each._nats for each in parts]), _sum([each._tokens for each in parts])

    def result(self) -> list[dict[str, Any]]:
        ends = [*self.edges[1:], None]
        return [
            {"begin": begin, "end": end, "nats": nats / tokens, "tokens": tokens}
            for begin, end, nats, tokens in zip(
                self.edges, ends, self._nats.tolist(), self._tokens.tolist(), strict=True
            )
            if tokens
        ]


class LossBySegmentPosition(Measurement):
    """Mean nats by position in the segment: a model without memory has little to go on at its beginning.

    The result is {"nats": [T means], "tokens": [T counts]}, None as the mean of a position that was never scored.
    """

    name = "loss_by_segment_position"

    def __init__(self) -> None:
        self._nats = torch.zeros(0, dtype=torch.float64)
        self._tokens = torch.zeros(0, dtype=torch.int64)

    def add(self, seen: Seen) -> None:
        missing = seen.nats.shape[1] - len(self._nats)
        if missing > 0:
            self._nats = torch.cat([self._nats, self._nats.new_zeros(missing)])
            self._tokens = torch.cat([self._tokens, self._tokens.new_zeros(missing)])
        length = seen.nats.shape[1]
        self._nats[:length] += seen.nats.sum(dim=0)
        self._tokens[:length] += seen.scored.sum(dim=0)

    def join(self, parts: Sequence[Self]) -> None:
        self._nats, self._tokens = _sum([each._nats for each in parts]), _sum([each._tokens for each in parts])

    def result(self) -> dict[str, list[Any]]:
        counts = self._tokens.tolist()
        means = [total / count if count else None for total, count in zip(self._nats.tolist(), counts, strict=True)]
        return {"nats": means, "tokens": counts}


class LossByStretch(Measurement):
    """Total nats of consecutive stretches of text, for paired comparisons of models on the same tokens.

    A stretch is what one lane reads in `segments` segments in a row. Under the same lanes, segment length and
    protocol, stretches of two models hold the same tokens. The result is {"nats": [...], "tokens": [...]}, empty
    stretches left out.
    """

    name = "loss_by_stretch"

    def __init__(self, segments: int = 16) -> None:
        self.segments = segments
        self._count = 0
        self._nats: list[Tensor] = []
        self._tokens: list[Tensor] = []

    def add(self, seen: Seen) -> None:
        nats, tokens = seen.nats.sum(dim=1), seen.scored.sum(dim=1)
        if self._count % self.segments == 0:
            self._nats.append(nats)
            self._tokens.append(tokens)
        else:
            self._nats[-1] = self._nats[-1] + nats
            self._tokens[-1] = self._tokens[-1] + tokens
        self._count += 1

    def join(self, parts: Sequence[Self]) -> None:
        # A rank without lanes has seen no segment.
        seen = [each for each in parts if each._count]
        self._nats = [torch.cat(each) for each in zip(*(part._nats for part in seen), strict=True)]
        self._tokens = [torch.cat(each) for each in zip(*(part._tokens for part in seen), strict=True)]

    def result(self) -> dict[str, list[Any]]:
        if not self._nats:
            return {"nats": [], "tokens": []}
        nats, tokens = torch.stack(self._nats, dim=1).flatten(), torch.stack(self._tokens, dim=1).flatten()
        return {"nats": nats[tokens > 0].tolist(), "tokens": tokens[tokens > 0].tolist()}


class InterpolationByAge(Measurement):
    """LaMemo's α, the weight of a slot's old content when new context is merged into it (LaMemo, section 3.2).

    The result is [layer][age], the mean over lanes, heads and segments; age 0 is the newest slot. Empty for a model
    that does not merge and for a memory that was never filled.
    """

    name = "interpolation"
    extras = True

    def __init__(self) -> None:
        self._sums: Tensor | None = None
        self._counts: Tensor | None = None

    def add(self, seen: Seen) -> None:
        found = None if seen.extras is None else seen.extras.interpolation
        if not found:
            return
        reading = seen.scored.any(dim=1) & ~seen.starts
        valid = seen.memory.valid.cpu() & reading[:, None]
        layers = torch.stack([layer.detach().cpu().double().mean(dim=-1) for layer in found])
        sums = torch.where(valid, layers, 0.0).sum(dim=1)
        self._sums = sums if self._sums is None else self._sums + sums
        self._counts = valid.sum(dim=0) if self._counts is None else self._counts + valid.sum(dim=0)

    def join(self, parts: Sequence[Self]) -> None:
        sums = [each._sums for each in parts if each._sums is not None]
        counts = [each._counts for each in parts if each._counts is not None]
        if sums:
            self._sums, self._counts = torch.stack(sums).sum(0), torch.stack(counts).sum(0)

    def result(self) -> list[list[float]]:
        if self._sums is None or self._counts is None:
            return []
        filled = self._counts > 0
        means = self._sums[:, filled] / self._counts[filled]
        return means.flip(-1).tolist()


def _sum(totals: Sequence[Tensor]) -> Tensor:
    """The sum of vectors of which some may be shorter than others."""
    length = max(map(len, totals))
    return torch.stack([torch.cat([each, each.new_zeros(length - len(each))]) for each in totals]).sum(0)
