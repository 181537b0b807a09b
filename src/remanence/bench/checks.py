"""What must agree before anything is timed. A fast wrong answer is no answer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from remanence.bench import own
from remanence.bench.result import Result
from remanence.bench.settings import Settings

ALIKE = ("transformer", "transformer-xl", "lamemo")
"""One model while the memory is empty, given the same weights."""
TOKENS = 16
EXACT = 1e-4
"""Nats in float32: how far two ways to the same loss may be apart."""


class Disagreement(RuntimeError):
    """Two candidates that must give the same numbers do not, or one does not do what it is timed for."""


def check_same(what: str, one: Tensor, other: Tensor, tolerance: float) -> float:
    """Raise Disagreement where two tensors are further apart than the tolerance, or not finite; how far they are."""
    if not (torch.isfinite(one).all() and torch.isfinite(other).all()):
        raise Disagreement(f"{what}: there are numbers that are not finite; nothing was timed.")
    apart = (one.double() - other.double()).abs().max().item()
    if apart > tolerance:
        raise Disagreement(f"{what}: the results are {apart:.3g} apart, more than {tolerance:.3g}; nothing was timed.")
    return apart


def finer(read: Tensor, unread: Tensor) -> float:
    """The tolerance for results that hang on a memory: a tenth of what the memory changes, at most `EXACT`.

    Weights before training make so little of what they remember that a memory read wrongly would pass otherwise.
    """
    change = (read.double() - unread.double()).abs().max().item()
    return min(EXACT, change / 10) if change else EXACT


def check_equal_when_empty(settings: Settings, result: Result) -> None:
    """Transformer-XL and LaMemo on an empty memory give the losses of a Transformer with equal weights."""
    names = [name for name in ALIKE if name in settings.models]
    if len(names) < 2:
        return
    length = max(1, min(TOKENS, settings.segment_length))
    generator = torch.Generator().manual_seed(settings.seed)
    drawn = torch.randint(settings.shape.vocabulary, (2, length + 1), generator=generator).to(settings.device)
    losses, weights, apart = [], None, 0.0
    for name in names:
        model = own.make(name, settings, max(settings.memory_length), dropout=0.0)
        if weights is None:
            weights = model.state_dict()
        else:
            model.load_state_dict({key: weights[key] for key in weights if key in model.state_dict()}, strict=False)
        with torch.no_grad():
            hidden, _, _ = model(drawn[:, :-1], model.init_memory(2))
            losses.append(model.head.loss(hidden, drawn[:, 1:]))
    for name, each in zip(names[1:], losses[1:], strict=True):
        apart = max(apart, check_same(f"{name} on an empty memory beside {names[0]}", each, losses[0], EXACT))
    give = "give" if len(names) > 2 else "gives"
    result.checks.append(
        f"{' and '.join(names[1:])} on an empty memory {give} the losses of a {names[0]} with equal weights in "
        f"float32, to {apart:.1e} nats."
    )


def check_learning(candidate: Any, steps: int, result: Result) -> None:
    """After a few steps on one segment its loss is lower, gradients and losses are finite."""
    before = candidate.losses(candidate.empty())[0].float().mean()
    candidate.model.train()
    for _ in range(steps):
        candidate.step()
    after = candidate.losses(candidate.empty())[0].float().mean()
    candidate.model.train()
    if not (torch.isfinite(before) and torch.isfinite(after)) or after >= before:
        raise Disagreement(
            f"{candidate.label} does not learn: its loss was {before.item():.4g} and after {steps} steps on the same "
            f"segment {after.item():.4g}; nothing was timed."
        )
    once(result, f"Every candidate's loss on a segment is finite, and lower after {steps} steps on it.")


def check_reading(candidate: Any, result: Result) -> None:
    """What a candidate with memory has read changes its losses."""
    if candidate.memory_length in (None, 0):
        return
    full = candidate.losses(candidate.state)[0]
    empty = candidate.losses(candidate.empty())[0]
    candidate.model.train()
    if not torch.isfinite(full).all() or torch.equal(full, empty):
        raise Disagreement(f"{candidate.label} does not read its memory, or not to finite losses; nothing was timed.")
    once(result, "Every memory of a chosen length changes the losses, so it is read.")


def once(result: Result, sentence: str) -> None:
    """Tell what was checked, unless it was told before."""
    if sentence not in result.checks:
        result.checks.append(sentence)
