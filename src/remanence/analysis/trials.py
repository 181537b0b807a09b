"""Several recipes, each trained with several seeds: what was found, and what it allows to be said.

    mean       over the seeds that finished
    spread     sample standard deviation over them, sqrt(Σ (xᵢ - x̄)² / (n - 1)); there is none for one seed

Like `Comparison` it is plain data that goes to `results.json` and comes back equal.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from remanence.analysis.comparison import CurvePoint, MemoryScore, restore
from remanence.analysis.measurements import paired
from remanence.errors import InputError
from remanence.files import read_json, write_json

FORMAT = 1
"""Raised whenever a field changes its meaning; a file of another format is refused."""
LEVEL = 0.05
"""The chance, over all pairs together, of calling two recipes apart that are not."""


@dataclass(frozen=True)
class Trial:
    """One recipe with one seed. `failed` says why there are no scores; it is empty where there are."""

    seed: int
    folder: str
    failed: str = ""
    steps: int = 0
    tokens: int = 0
    """Read in training."""
    seconds: float = 0.0
    """Of training, without validation and saving."""
    training: tuple[CurvePoint, ...] = ()
    validation: tuple[CurvePoint, ...] = ()
    validation_value: float | None = None
    """The score of the validation split after the last step."""
    by_memory: tuple[MemoryScore, ...] = ()
    value: float = math.nan
    """The score of the test split with the recipe's own memory length."""
    bits: float = math.nan
    """Bits per scored token, likewise."""
    stretch_nats: tuple[float, ...] = ()
    """Total nats of stretches of the test text, which are the same for all trials that read in the same way."""
    stretch_tokens: tuple[int, ...] = ()
    evaluation_speed: float = math.nan
    """Tokens read a second."""

    @property
    def training_speed(self) -> float:
        """Tokens trained on a second."""
        return self.tokens / self.seconds if self.seconds else math.nan


@dataclass(frozen=True)
class Contender:
    """One recipe with all its seeds."""

    name: str
    architecture: str
    parameters: int
    memory_kind: str
    memory_length: int
    """The one its score was taken with."""
    memory_bytes: int
    """A lane."""
    training_flops: float
    """Of one token."""
    evaluation_flops: float
    """Of one token."""
    step_tokens: int
    steps: int
    """Planned."""
    recipe: str
    """As TOML, with the first seed."""
    trials: tuple[Trial, ...] = ()

    @property
    def finished(self) -> tuple[Trial, ...]:
        return tuple(trial for trial in self.trials if not trial.failed)

    @property
    def values(self) -> list[float]:
        return [trial.value for trial in self.finished]

    @property
    def total_flops(self) -> float:
        """Of the training of one run."""
        return self.training_flops * self.step_tokens * self.steps

    @property
    def seconds(self) -> float:
        """Of the training of one run, the median over seeds: one that was disturbed does not decide."""
        return median([trial.seconds for trial in self.finished])

    @property
    def training_speed(self) -> float:
        """Tokens trained on a second, likewise."""
        return median([trial.training_speed for trial in self.finished])

    @property
    def evaluation_speed(self) -> float:
        """Tokens read a second in evaluation, likewise."""
        return median([trial.evaluation_speed for trial in self.finished])

    @property
    def lengths(self) -> tuple[int, ...]:
        """The memory lengths it was scored with."""
        return tuple(sorted({score.memory_length for trial in self.finished for score in trial.by_memory}))

    def with_memory(self, length: int) -> list[float]:
        """The scores of all seeds with one memory length."""
        return [each.value for trial in self.finished for each in trial.by_memory if each.memory_length == length]


@dataclass(frozen=True)
class Gap:
    """How far two recipes are apart: first minus second, the mean over seeds."""

    first: str
    second: str
    value: float
    """In the unit of the scores."""
    bits: float
    """Per scored token."""
    text_error: float | None
    """Standard error of `bits` over stretches of text that both read: how far another test text could move it. None
    where they were not scored on the same stretches."""
    seed_error: float | None
    """Standard error of `value` over seeds; None where one of them has fewer than two."""
    chance: float | None
    """Of a gap in `value` at least as large between recipes that are alike, by Welch's t test, for this pair alone."""
    apart: bool
    """Whether every seed of one is better than every seed of the other."""

    def settled(self, pairs: int, higher_is_better: bool) -> bool:
        """Whether seeds and text both say the same one is better, when so many pairs are looked at (Bonferroni).

        pairs               that are looked at together
        higher_is_better    of `value`; fewer bits are always better
        """
        if self.chance is None or not self.apart or self.chance * pairs >= LEVEL:
            return False
        if self.text_error is None:
            return True
        towards = math.copysign(1, -self.value if higher_is_better else self.value)
        return towards * self.bits > 2 * self.text_error


@dataclass(frozen=True)
class Picture:
    """A picture that a run left in its folder `pictures`."""

    title: str
    caption: str
    path: str


@dataclass(frozen=True)
class Trials:
    """Everything that was found."""

    title: str
    measure: str
    """What the scores are: bits per byte, perplexity, % accuracy, ..."""
    higher_is_better: bool
    budget: str
    """tokens, time or flops."""
    amount: float
    text: str
    """What was read, in words."""
    seeds: tuple[int, ...]
    contenders: tuple[Contender, ...]
    protocol: dict[str, str]
    settings: dict[str, str]
    machine: dict[str, str]
    gaps: tuple[Gap, ...] = ()
    pictures: tuple[Picture, ...] = ()
    date: str = ""
    version: str = ""
    command: str = ""
    notes: tuple[str, ...] = ()

    @property
    def ranked(self) -> list[Contender]:
        """Those with a score, the best mean first."""
        scored = [each for each in self.contenders if each.values]
        return sorted(scored, key=lambda each: mean(each.values), reverse=self.higher_is_better)

    @property
    def failures(self) -> list[tuple[Contender, Trial]]:
        return [(each, trial) for each in self.contenders for trial in each.trials if trial.failed]

    def settled(self, gap: Gap) -> bool:
        """Whether the gap says which recipe is better, among all the gaps there are."""
        return gap.settled(len(self.gaps), self.higher_is_better)

    def gap(self, first: str, second: str) -> Gap:
        """The gap first - second, turned round where it was taken the other way."""
        for found in self.gaps:
            if (found.first, found.second) == (first, second):
                return found
            if (found.first, found.second) == (second, first):
                return dataclasses.replace(found, first=first, second=second, value=-found.value, bits=-found.bits)
        raise KeyError((first, second))

    def save(self, path: str | Path) -> None:
        write_json(path, {"format": FORMAT} | _finite(dataclasses.asdict(self)))

    @classmethod
    def load(cls, path: str | Path) -> Trials:
        """Read what `save` wrote. Raises InputError when the file is missing, damaged or of another format."""
        value = read_json(path, "the results of the comparison")
        if not isinstance(value, dict) or value.pop("format", None) != FORMAT:
            raise InputError(f"{path} does not hold results in format {FORMAT}; run the comparison again.")
        try:
            return restore(cls, value)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path} does not hold a whole comparison ({error}); run the comparison again.") from None


def mean(values: Sequence[float]) -> float:
    return statistics.fmean(values) if values else math.nan


def median(values: Sequence[float]) -> float:
    return statistics.median(values) if values else math.nan


def spread(values: Sequence[float]) -> float | None:
    """Sample standard deviation; None of fewer than two values."""
    return statistics.stdev(values) if len(values) > 1 else None


def gaps(contenders: Sequence[Contender]) -> tuple[Gap, ...]:
    """Every pair of recipes that have a score; the later one comes first."""
    scored = [each for each in contenders if each.values]
    return tuple(_gap(second, first) for first, second in itertools.combinations(scored, 2))


def chance_of(first: Sequence[float], second: Sequence[float]) -> float | None:
    """The two-sided p of Welch's t test; None where there are fewer than two values on a side.

        t = (x̄ - ȳ) / sqrt(a + b),  a = s²ₓ / n,  b = s²ᵧ / m,  ν = (a + b)² / (a² / (n - 1) + b² / (m - 1))

    (Welch 1947). Values without any spread give 0 where the means differ and 1 where they do not.
    """
    if len(first) < 2 or len(second) < 2:
        return None
    one, other = (statistics.variance(values) / len(values) for values in (first, second))
    gap = abs(mean(first) - mean(second))
    if one + other == 0:
        return 0.0 if gap else 1.0
    freedom = (one + other) ** 2 / (one**2 / (len(first) - 1) + other**2 / (len(second) - 1))
    return _two_sided(gap / math.sqrt(one + other), freedom)


def _two_sided(t: float, freedom: float, steps: int = 4000) -> float:
    """The chance that |T| exceeds t for Student's T with `freedom` degrees, by Simpson's rule.

    With T = sqrt(ν) tan θ its density is proportional to cos^(ν - 1) θ; the tail from θ = atan(t / sqrt(ν)) to π / 2 is
    divided by that from 0, which is sqrt(π) Γ(ν / 2) / Γ((ν + 1) / 2) / 2.
    """
    low = math.atan(t / math.sqrt(freedom))
    width = (math.pi / 2 - low) / steps
    heights = [max(0.0, math.cos(low + width * index)) ** (freedom - 1) for index in range(steps + 1)]
    tail = width / 3 * (heights[0] + 4 * sum(heights[1::2]) + 2 * sum(heights[2:-1:2]) + heights[-1])
    whole = math.sqrt(math.pi) * math.exp(math.lgamma(freedom / 2) - math.lgamma((freedom + 1) / 2)) / 2
    return min(1.0, tail / whole)


def _gap(first: Contender, second: Contender) -> Gap:
    mine, theirs = first.values, second.values
    variances = [statistics.variance(values) / len(values) for values in (mine, theirs) if len(values) > 1]
    bits = mean([trial.bits for trial in first.finished]) - mean([trial.bits for trial in second.finished])
    return Gap(
        first=first.name,
        second=second.name,
        value=mean(mine) - mean(theirs),
        bits=bits,
        text_error=_text_error(first.finished, second.finished),
        seed_error=math.sqrt(sum(variances)) if len(variances) == 2 else None,
        chance=chance_of(mine, theirs),
        apart=max(mine) < min(theirs) or max(theirs) < min(mine),
    )


def _text_error(first: Sequence[Trial], second: Sequence[Trial]) -> float | None:
    stretches = {trial.stretch_tokens for trial in (*first, *second)}
    if len(stretches) != 1:
        return None
    (tokens,) = stretches
    if len(tokens) < 2:
        return None
    nats = [
        [mean(column) for column in zip(*(each.stretch_nats for each in some), strict=True)] for some in (first, second)
    ]
    return paired(nats[0], nats[1], tokens)[1]


def _finite(value):
    """The same without NaN, which JSON does not have; `restore` fills it in again."""
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items() if not (isinstance(each, float) and math.isnan(each))}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return value
