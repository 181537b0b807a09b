"""Which token comes next, given the logits.

    p = softmax(logits / temperature), then, each on what the one before left and renormalised:
    top-k    the k most probable tokens
    top-p    the smallest set of most probable tokens whose mass reaches top_p
    min-p    tokens at least min_p times as probable as the most probable one

Between equally probable tokens the lower id goes first, so that every set is defined. One uniform number per token
picks from the result by the inverse of its cumulative sum in id order.

Shapes
    B   lanes: samples
    V   vocabulary
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from remanence.errors import InputError


@dataclass(frozen=True)
class Sampling:
    """How to choose tokens. The defaults change nothing about the model's own distribution.

    Raises InputError for values that mean nothing.
    """

    temperature: float = 1.0
    """Below 1 sharpens, above 1 flattens, 0 always takes the most probable token."""
    top_k: int = 0
    """0 keeps all."""
    top_p: float = 1.0
    """1 keeps all."""
    min_p: float = 0.0
    """0 keeps all."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise InputError(f"A temperature of {self.temperature} was given; it must be 0 or a positive number.")
        if self.top_k < 0:
            raise InputError(
                f"A top-k of {self.top_k} was given; it must be 0 (keep all) or the number of tokens to keep."
            )
        if not 0 < self.top_p <= 1:
            raise InputError(f"A top-p of {self.top_p} was given; it must be above 0 and at most 1 (keep all).")
        if not 0 <= self.min_p <= 1:
            raise InputError(f"A min-p of {self.min_p} was given; it must lie between 0 (keep all) and 1.")

    @property
    def greedy(self) -> bool:
        return self.temperature == 0

    @property
    def idle(self) -> list[str]:
        """Names of the settings that were given and have no effect: filters, when the temperature is 0."""
        defaults = Sampling(temperature=self.temperature)
        names = [
            field.name
            for field in dataclasses.fields(self)
            if getattr(self, field.name) != getattr(defaults, field.name)
        ]
        return names if self.greedy else []

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def probabilities(logits: Float[Tensor, "B V"], sampling: Sampling) -> Float[Tensor, "B V"]:
    """The distribution that is drawn from, float64. Greedy: all mass on the most probable token.

    Raises InputError when a logit is not a number.
    """
    if not torch.isfinite(logits.amax(dim=-1)).all():
        raise InputError(
            "The model's logits are not numbers: its weights have diverged or are damaged; use another checkpoint."
        )
    scores = logits.double()
    if sampling.greedy:
        return torch.nn.functional.one_hot(scores.argmax(dim=-1), scores.shape[-1]).double()
    # Subtracting the maximum first keeps a tiny temperature from overflowing.
    scores = (scores - scores.amax(dim=-1, keepdim=True)) / sampling.temperature
    mass = scores.softmax(dim=-1)
    if sampling.top_k or sampling.top_p < 1:
        ordered, order = mass.sort(dim=-1, descending=True, stable=True)
        if sampling.top_k:
            ordered[:, sampling.top_k :] = 0.0
            ordered = ordered / ordered.sum(dim=-1, keepdim=True)
        if sampling.top_p < 1:
            before = ordered.cumsum(dim=-1) - ordered
            ordered = ordered.masked_fill(before >= sampling.top_p, 0.0)
        mass = torch.zeros_like(mass).scatter_(-1, order, ordered)
    if sampling.min_p:
        mass = mass.masked_fill(mass < sampling.min_p * mass.amax(dim=-1, keepdim=True), 0.0)
    return mass / mass.sum(dim=-1, keepdim=True)


def draw(logits: Float[Tensor, "B V"], sampling: Sampling, generators: Sequence[torch.Generator]) -> Int[Tensor, " B"]:
    """One token per lane, on the CPU, each from its own generator, which greedy choice leaves alone.

    A lane's tokens depend on its own generator only, never on how many lanes there are. The choice is made where the
    logits are: of a large vocabulary nothing but the tokens leaves a GPU.
    """
    mass = probabilities(logits, sampling)
    if sampling.greedy:
        return mass.argmax(dim=-1).cpu()
    uniform = torch.stack([torch.rand((), generator=generator, dtype=torch.float64) for generator in generators])
    return pick(mass, uniform.to(mass.device)).cpu()


def pick(mass: Float[Tensor, "B V"], uniform: Float[Tensor, " B"]) -> Int[Tensor, " B"]:
    """The first token at which the cumulative mass exceeds `uniform`, a number in [0, 1) per lane."""
    cumulative = mass.cumsum(dim=-1)
    # The sum may end a rounding error below 1, or above: the last token with mass is the last that can be picked.
    target = (uniform * cumulative[:, -1])[:, None]
    found = torch.searchsorted(cumulative, target, right=True).squeeze(-1)
    last = mass.shape[-1] - 1 - (mass > 0).flip(-1).int().argmax(dim=-1)
    return torch.minimum(found, last)
