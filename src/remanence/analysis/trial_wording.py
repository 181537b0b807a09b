"""What a comparison over seeds allows to be said, in sentences.

One recipe is called better than another only where every one of its seeds is, where Welch's t test on the seeds says
so at a level that is shared by all pairs that are looked at (Bonferroni), and where it needs fewer bits, by more than
two standard errors over stretches of the test text that both read. Everything else is called what it is: not told
apart.
"""

from __future__ import annotations

from collections.abc import Sequence

from remanence.analysis.palette import looks
from remanence.analysis.trial_tables import told
from remanence.analysis.trials import LEVEL, Contender, Gap, Trials, mean
from remanence.analysis.wording import Finding


def verdict(trials: Trials) -> tuple[Finding, ...]:
    """The best first, then memory against none, then what failed."""
    labels = {
        name: look.label for name, look in looks({each.name: each.architecture for each in trials.contenders}).items()
    }
    ranked = trials.ranked
    found = [_best(trials, ranked, labels)] if ranked else [Finding("No run has been scored.", False)]
    none = next((each for each in ranked if each.architecture == "transformer"), None)
    if none is not None:
        found += [_against_none(trials, each, none, labels) for each in ranked if each is not none]
    if len(ranked) > 2:
        found.append(_rest(trials, ranked, labels))
    found += [
        Finding(f"{each.name} with seed {trial.seed} failed: {trial.failed.rstrip('.')}.", False)
        for each, trial in trials.failures
    ]
    return tuple(found)


def limits(trials: Trials) -> tuple[str, ...]:
    """What the numbers do not show."""
    seeds = len(trials.seeds)
    few = (
        "One seed says nothing about another: no recipe is called better here."
        if seeds == 1
        else f"{seeds} seeds tell a large effect from none, and little else: the spread of so few is itself uncertain "
        f"by about {100 / (2 * (seeds - 1)) ** 0.5:.0f} %, and small gaps that are real go unseen."
    )
    return (
        few,
        f"Pairs are told apart at a level of {LEVEL:.0%} for all {len(trials.gaps)} of them together (Bonferroni), "
        "which is strict; what is not told apart need not be equal.",
        "The settings are those of the recipes. A recipe that was tuned less may be the better one after tuning.",
        "One text and one size. What is better when models are larger, train longer or read something else is open.",
        "Seconds and speeds depend on the machine, on what else it was doing, and on how well each model is written.",
    )


def _best(trials: Trials, ranked: Sequence[Contender], labels: dict[str, str]) -> Finding:
    best, *others = ranked
    number = f"{told(best.values, trials.measure)} {trials.measure}"
    if len(trials.seeds) == 1:
        return Finding(
            f"{labels[best.name]} has the best score, {number}; with one seed that is no more than a number."
        )
    if not others:
        return Finding(f"{labels[best.name]} scores {number}.")
    behind = [each for each in others if _settled(trials, best, each)]
    close = [each for each in others if each not in behind]
    text = f"{labels[best.name]} has the best mean, {number} over {len(best.values)} seeds"
    if not close:
        return Finding(f"{text}, and is told apart from every other.", True)
    if behind:
        text += f"; it is told apart from {_list(behind, labels)}"
        return Finding(f"{text}, but not from {_list(close, labels)}.")
    return Finding(f"{text}, but these seeds tell it apart from none of the others.")


def _against_none(trials: Trials, each: Contender, none: Contender, labels: dict[str, str]) -> Finding:
    gap = trials.gap(none.name, each.name)
    better = gap.value < 0 if trials.higher_is_better else gap.value > 0
    numbers = (
        f"{told(each.values, trials.measure)} against {told(none.values, trials.measure)} {trials.measure}{_error(gap)}"
    )
    name = labels[each.name]
    if not _settled(trials, none, each):
        why = "with one seed" if gap.chance is None else "by these seeds"
        return Finding(f"{name} is not told apart from the model without memory {why}: {numbers}.")
    if better:
        share = abs(gap.value) / mean(none.values)
        return Finding(f"{name} beats the model without memory by {share:.1%}: {numbers}.", True)
    return Finding(f"{name} is worse than the model without memory: {numbers}.", False)


def _rest(trials: Trials, ranked: Sequence[Contender], labels: dict[str, str]) -> Finding:
    apart = sum(map(trials.settled, trials.gaps))
    order = ", ".join(f"{labels[each.name]} {told(each.values, trials.measure)}" for each in ranked)
    return Finding(
        f"In the order of their means: {order}. Of {len(trials.gaps)} pairs {apart} are told apart; the order of the "
        "others may be chance."
    )


def _settled(trials: Trials, first: Contender, second: Contender) -> bool:
    return trials.settled(trials.gap(first.name, second.name))


def _error(gap: Gap) -> str:
    if gap.seed_error is None:
        return ""
    text = "" if gap.text_error is None else f" and ± {gap.text_error:.4f} bits a token over test text"
    return f", a gap of {abs(gap.value):.4f} ± {gap.seed_error:.4f} over seeds{text}"


def _list(some: Sequence[Contender], labels: dict[str, str]) -> str:
    names = [labels[each.name] for each in some]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
