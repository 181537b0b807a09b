"""What the numbers say, in sentences that claim no more than was measured."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from remanence.analysis.comparison import Comparison, CurvePoint, ModelFindings
from remanence.analysis.palette import model_label

CLEAR_ERRORS = 4.0
"""A difference is called clear from this many standard errors on."""
CLEAR_SHARE = 0.01
"""... and from this share of the score on: a smaller one is no use to anybody, however sure."""


@dataclass(frozen=True)
class Finding:
    """One sentence of the verdict; `good` is None where nothing is known beforehand that should hold."""

    text: str
    good: bool | None = None


def verdict(comparison: Comparison) -> tuple[Finding, ...]:
    """The findings in the order of their weight: memory against none, the memories among each other, the limits."""
    remembering = [model for model in comparison.models if model.remembers]
    forgetting = next((model for model in comparison.models if not model.remembers), None)
    found = [against_none(comparison, model, forgetting) for model in remembering if forgetting is not None]
    lamemo, recurrent = comparison.model("lamemo"), comparison.model("transformer-xl")
    if lamemo is not None and recurrent is not None:
        found.append(at_equal_tokens(comparison, lamemo, recurrent))
        found.append(at_equal_seconds(comparison, lamemo, recurrent))
    longer = [finding for model in remembering if (finding := at_longer_memory(comparison, model)) is not None]
    return tuple(found + longer)


def against_none(comparison: Comparison, model: ModelFindings, none: ModelFindings) -> Finding:
    """Whether a model with memory clearly beats the one without, as it must."""
    mine, theirs = _trained(comparison, model), _trained(comparison, none)
    gain = theirs - mine
    name = model_label(model.architecture)
    numbers = f"{_bits(mine)} {comparison.unit} against {_bits(theirs)}{_error(comparison, none, model)}"
    if gain <= 0:
        return Finding(f"{name} does not beat the model without memory, so something is wrong: {numbers}.", False)
    if not _clear(comparison, none, model, gain, theirs):
        return Finding(
            f"{name} does not beat the model without memory clearly, so something is wrong or the training was too "
            f"short: {numbers}.",
            False,
        )
    return Finding(f"{name} clearly beats the model without memory, by {gain / theirs:.1%}: {numbers}.", True)


def at_equal_tokens(comparison: Comparison, first: ModelFindings, second: ModelFindings) -> Finding:
    """How two memories compare after reading equally much."""
    mine, theirs = _trained(comparison, first), _trained(comparison, second)
    names = model_label(first.architecture), model_label(second.architecture)
    numbers = f"{_bits(mine)} against {_bits(theirs)} {comparison.unit}{_error(comparison, first, second)}"
    gap = abs(mine - theirs)
    found = comparison.difference(first.architecture, second.architecture)
    if found is not None and gap < 2 * found.error:
        return Finding(
            f"At equal tokens {names[0]} and {names[1]} are closer than this test text can tell apart: {numbers}."
        )
    side = "ahead of" if mine < theirs else "behind"
    return Finding(f"At equal tokens {names[0]} is {gap / theirs:.1%} {side} {names[1]}: {numbers}.")


def at_equal_seconds(comparison: Comparison, first: ModelFindings, second: ModelFindings) -> Finding:
    """How two memories compare after training equally long, and why that comparison favours the quicker one."""
    slow, quick = sorted((first, second), key=lambda model: -model.seconds)
    names = model_label(slow.architecture), model_label(quick.architecture)
    ratio = (slow.seconds / slow.steps) / (quick.seconds / quick.steps)
    text = f"A training step of {names[0]} took {ratio:.2f} times as long as one of {names[1]}"
    then = bits_after(slow.validation, quick.seconds)
    if then is None or not quick.validation:
        return Finding(f"{text}.")
    return Finding(
        f"{text}. When {names[1]} was done, after {quick.seconds:.0f} s, it stood at "
        f"{_bits(quick.validation[-1].value)} {comparison.unit} on the validation text and {names[0]} at "
        f"{_bits(then)}; but the learning rate of {names[0]} had not fallen yet, so a run planned for that time would "
        "come out better than this."
    )


def at_longer_memory(comparison: Comparison, model: ModelFindings) -> Finding | None:
    """Whether a memory longer than in training helps at test time; None where none was tried."""
    trained = _trained(comparison, model)
    length = comparison.memory_length if model.memory_length is None else model.memory_length
    longer = [score for score in model.by_memory if score.memory_length > length]
    if not longer:
        return None
    best = min(longer, key=lambda score: score.value)
    name, change = model_label(model.architecture), (best.value - trained) / trained
    held = " (distances held at the largest one trained)" if best.held else ""
    if abs(change) < 0.001:
        return Finding(
            f"A longer memory at test time changes nothing for {name}: {_bits(best.value)} with "
            f"{best.memory_length} tokens{held}."
        )
    word = "helps" if change < 0 else "does not help"
    return Finding(
        f"A longer memory at test time {word} {name}: {_bits(best.value)} with {best.memory_length} "
        f"tokens{held}, {_bits(trained)} with the {length} of training."
    )


def bits_after(points: Sequence[CurvePoint], seconds: float) -> float | None:
    """The curve's value at a time, on the straight line between its neighbours; None outside of the curve."""
    for before, after in itertools.pairwise(points):
        if before.seconds <= seconds <= after.seconds and after.seconds > before.seconds:
            share = (seconds - before.seconds) / (after.seconds - before.seconds)
            return before.value + share * (after.value - before.value)
    return None


def duration(seconds: float) -> str:
    """287.4 -> "4 min 47 s"."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def _trained(comparison: Comparison, model: ModelFindings) -> float:
    score = comparison.trained(model)
    assert score is not None, f"{model.architecture} was not scored with its training memory"
    return score.value


def _clear(comparison: Comparison, first: ModelFindings, second: ModelFindings, gap: float, score: float) -> bool:
    found = comparison.difference(first.architecture, second.architecture)
    sure = found is None or gap > CLEAR_ERRORS * found.error
    return sure and gap > CLEAR_SHARE * score


def _error(comparison: Comparison, first: ModelFindings, second: ModelFindings) -> str:
    found = comparison.difference(first.architecture, second.architecture)
    return f", a difference of {abs(found.value):.3f} ± {found.error:.3f}" if found else ""


def _bits(value: float) -> str:
    return f"{value:.3f}"
