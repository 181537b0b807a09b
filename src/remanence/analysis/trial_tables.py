"""The table of a comparison over seeds: the same cells as text, Markdown and CSV."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence

from remanence.analysis.palette import looks
from remanence.analysis.trials import Contender, Trials, mean, spread

HEADERS = (
    "Model",
    "Score",
    "±",
    "Validation",
    "Seeds",
    "Parameters",
    "Memory",
    "Bytes/lane",
    "kFLOPs/token",
    "reading",
    "Tokens/s",
    "reading",
    "Tokens",
    "Seconds",
)


def rows(trials: Trials) -> tuple[list[str], list[list[str]]]:
    """Headers and cells, one row for each recipe in the order given."""
    headers = [trials.measure.capitalize() if name == "Score" else name for name in HEADERS]
    found = looks({each.name: each.architecture for each in trials.contenders})
    return headers, [_row(each, found[each.name].label, trials) for each in trials.contenders]


def plain(trials: Trials) -> str:
    """For a terminal or a file: columns that line up."""
    headers, cells = rows(trials)
    widths = [max(map(len, column)) for column in zip(headers, *cells, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(width) if index == 0 else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in (headers, *cells)
    ]
    return "\n".join([*lines, *failure_lines(trials)]) + "\n"


def markdown(trials: Trials) -> str:
    headers, cells = rows(trials)
    rule = ["---", *["---:"] * (len(headers) - 1)]
    lines = [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in (headers, rule, *cells)]
    return "\n".join([*lines, *(f"\n{line}" for line in failure_lines(trials))]) + "\n"


def comma_separated(trials: Trials) -> str:
    """Every number in full, and the score of every seed."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    names = ("recipe", "architecture", "measure", "mean", "spread", "validation", "parameters", "memory_kind")
    names += ("memory_length", "memory_bytes_per_lane", "training_flops_per_token", "evaluation_flops_per_token")
    names += ("training_tokens_per_second", "evaluation_tokens_per_second", "tokens", "seconds", "steps")
    writer.writerow([*names, *(f"seed_{seed}" for seed in trials.seeds)])
    for each in trials.contenders:
        by_seed = {trial.seed: trial for trial in each.trials}
        values = [
            *(mean(each.values), spread(each.values), _validation(each), each.parameters, each.memory_kind),
            *(each.memory_length, each.memory_bytes, each.training_flops, each.evaluation_flops),
            *(each.training_speed, each.evaluation_speed, _tokens(each), each.seconds, each.steps),
        ]
        scores = [
            "" if seed not in by_seed else "failed" if by_seed[seed].failed else by_seed[seed].value
            for seed in trials.seeds
        ]
        shown = ["" if value is None or (isinstance(value, float) and math.isnan(value)) else value for value in values]
        writer.writerow([each.name, each.architecture, trials.measure, *shown, *scores])
    return buffer.getvalue()


def failure_lines(trials: Trials) -> list[str]:
    return [f"{each.name}, seed {trial.seed}, failed: {trial.failed}" for each, trial in trials.failures]


def by_memory_rows(trials: Trials) -> tuple[list[str], list[list[str]]]:
    """Mean and spread of every recipe at every memory length it was scored with."""
    lengths = sorted({length for each in trials.contenders for length in each.lengths})
    found = looks({each.name: each.architecture for each in trials.contenders})
    cells = [
        [found[each.name].label, *(told(each.with_memory(length), trials.measure) for length in lengths)]
        for each in trials.contenders
    ]
    return ["Model", *(f"memory {length:,}" for length in lengths)], cells


def gap_rows(trials: Trials) -> tuple[list[str], list[list[str]]]:
    """Every pair of recipes: how far apart, and how sure that is."""
    found = looks({each.name: each.architecture for each in trials.contenders})
    headers = [
        "Pair",
        trials.measure.capitalize(),
        "± over seeds",
        "Bits a token",
        "± over text",
        "p (Welch)",
        "Told apart",
    ]
    cells = [
        [
            f"{found[gap.first].label} - {found[gap.second].label}",
            f"{gap.value:+.{_digits(trials.measure)}f}",
            "–" if gap.seed_error is None else f"{gap.seed_error:.{_digits(trials.measure)}f}",
            f"{gap.bits:+.4f}",
            "other text" if gap.text_error is None else f"{gap.text_error:.4f}",
            "–" if gap.chance is None else f"{gap.chance:.2g}",
            "yes" if trials.settled(gap) else "no",
        ]
        for gap in trials.gaps
    ]
    return headers, cells


def told(values: Sequence[float], measure: str) -> str:
    """A mean with its spread: "2.013 ± 0.004"."""
    if not values:
        return "–"
    digits, about = _digits(measure), spread(values)
    return f"{mean(values):,.{digits}f}" + ("" if about is None else f" ± {about:.{digits}f}")


def _row(each: Contender, label: str, trials: Trials) -> list[str]:
    digits, about = _digits(trials.measure), spread(each.values)
    return [
        label,
        _number(mean(each.values), digits) if each.values else "failed" if each.trials else "–",
        "–" if about is None else f"{about:.{digits}f}",
        _number(_validation(each), digits),
        f"{len(each.finished)}/{len(trials.seeds)}",
        f"{each.parameters:,}",
        f"{each.memory_kind} {each.memory_length:,}",
        f"{each.memory_bytes:,}",
        _number(each.training_flops / 1e3, 1),
        _number(each.evaluation_flops / 1e3, 1),
        _number(each.training_speed, 0),
        _number(each.evaluation_speed, 0),
        _number(_tokens(each), 0),
        _number(each.seconds, 1),
    ]


def _validation(each: Contender) -> float:
    return mean([trial.validation_value for trial in each.finished if trial.validation_value is not None])


def _tokens(each: Contender) -> float:
    return mean([trial.tokens for trial in each.finished])


def _digits(measure: str) -> int:
    return 4 if measure.startswith("bits") else 2


def _number(value: float, digits: int) -> str:
    return "–" if math.isnan(value) else f"{value:,.{digits}f}"
