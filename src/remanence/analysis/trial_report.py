"""The files that show a comparison over seeds: tables, plots, and a page in the manner of the demo's report."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from html import escape
from pathlib import Path

from matplotlib.figure import Figure

from remanence.analysis import trial_plots as plots
from remanence.analysis import trial_tables as tables
from remanence.analysis.budget import Budget
from remanence.analysis.palette import looks
from remanence.analysis.report import bullets, card, cards, details, facts, figure_of, findings, page, section, table
from remanence.analysis.trial_wording import limits, verdict
from remanence.analysis.trials import Contender, Picture, Trials
from remanence.files import write_text, writing

FIGURES: dict[str, tuple[str, str, Callable[[Trials], Figure]]] = {
    "curves-by-tokens": (
        "Learning, by tokens read",
        "The validation score. A line is the mean over seeds, its band reaches from the lowest to the highest seed.",
        plots.curves_by_tokens,
    ),
    "curves-by-seconds": (
        "Learning, by seconds of training",
        "The same curves against what they cost on this machine.",
        plots.curves_by_seconds,
    ),
    "score-by-memory": (
        "More or less memory at test time",
        "The same trained weights with other memory lengths. A length counts tokens, slots or memory tokens, as the "
        "architecture has it; distances that no weight has seen are held at the largest one trained.",
        plots.by_memory,
    ),
    "score-by-flops": (
        "Score against FLOPs",
        "Of the training of one run, counted. The bar reaches from the lowest to the highest seed.",
        plots.by_flops,
    ),
    "score-by-seconds": (
        "Score against time",
        "Of the training of one run on this machine, the median over seeds.",
        plots.by_seconds,
    ),
    "score-by-memory-bytes": (
        "Score against memory",
        "The bytes that one lane carries from segment to segment, with the memory length of training.",
        plots.by_memory_bytes,
    ),
}


def write_tables(trials: Trials, folder: Path) -> None:
    """The numbers alone: quick, and useful before everything is there."""
    trials.save(folder / "results.json")
    write_text(folder / "table.txt", tables.plain(trials))
    write_text(folder / "table.md", tables.markdown(trials))
    write_text(folder / "table.csv", tables.comma_separated(trials))


def write_report(trials: Trials, folder: Path) -> None:
    """The page, and each plot as a PNG beside it. Something has been scored."""
    (folder / "plots").mkdir(exist_ok=True)
    drawn = {name: draw(trials) for name, (_, _, draw) in FIGURES.items()}
    for name, figure in drawn.items():
        with writing(folder / "plots" / f"{name}.png") as file:
            figure.savefig(file, format="png", dpi=120)
    write_text(folder / "report.html", render(trials, folder, drawn))


def render(trials: Trials, folder: Path, drawn: Mapping[str, Figure]) -> str:
    """The whole page as text; pictures are read from `folder`, and `drawn` has every plot."""
    recipes = "".join(
        details(f"The whole recipe of {each.name}, with its first seed", each.recipe) for each in trials.contenders
    )
    best_is = "higher" if trials.higher_is_better else "lower"
    budget = Budget(trials.budget, trials.amount).words()  # pyright: ignore[reportArgumentType]
    seeds = f"{len(trials.seeds)} seeds" if len(trials.seeds) > 1 else "one seed"
    return page(
        trials.title,
        f"{len(trials.contenders)} recipes, {seeds} each, {budget} of training a run.",
        [
            cards([_card(trials, each) for each in trials.contenders if each.values]),
            section("found", "What was found", findings(verdict(trials))),
            section(
                "scores",
                "Scores and costs",
                table(f"{trials.measure.capitalize()} on the test text ({best_is} is better)", *tables.rows(trials))
                + bullets(tables.failure_lines(trials))
                + table("Mean and spread by memory length at test time", *tables.by_memory_rows(trials)),
            ),
            section("plots", "Plots", f'<div class="plots">{"".join(_figures(trials, drawn))}</div>'),
            section("pairs", "Pair by pair", f"<p>{PAIRS}</p>" + table("Gaps", *tables.gap_rows(trials)))
            if trials.gaps
            else "",
            section("pictures", "Pictures", f'<div class="plots">{_pictures(trials, folder)}</div>')
            if trials.pictures
            else "",
            section("protocol", "How it was measured", facts("How the scores were taken", trials.protocol)),
            section("recipe", "What was trained", facts("What all runs share", trials.settings) + recipes),
            section("limits", "What this does not show", bullets((*trials.notes, *limits(trials)))),
        ],
        [trials.version, trials.date, *(f"{key}: {value}" for key, value in trials.machine.items())],
        trials.command,
    )


PAIRS = (
    "The first minus the second. The error over seeds says how far other seeds could move the gap, that over text how "
    "far another test text could; p is that of Welch's t test for the pair alone. Told apart are those on which every "
    "seed, the test (shared out over all pairs) and the text agree."
)


def _card(trials: Trials, each: Contender) -> str:
    look = looks({other.name: other.architecture for other in trials.contenders})[each.name]
    memory = f"{each.memory_bytes / 1024:,.0f} KiB of memory a lane" if each.memory_bytes else "no memory"
    return card(
        look.colour,
        look.label,
        tables.told(each.values, trials.measure).split(" ")[0],
        trials.measure,
        [
            tables.told(each.values, trials.measure) + f" over {len(each.values)} of {len(trials.seeds)} seeds",
            f"{each.seconds:,.0f} s of training · {each.parameters / 1e6:.2f} M parameters",
            memory,
        ],
    )


def _figures(trials: Trials, drawn: Mapping[str, Figure]) -> list[str]:
    names = ", ".join(look.label for look in looks({e.name: e.architecture for e in trials.contenders}).values())
    by_seed = table("Every seed", *_by_seed(trials))
    by_memory = table("Mean and spread by memory length", *tables.by_memory_rows(trials))
    return [
        figure_of(
            name,
            title,
            text,
            drawn[name],
            f"Chart of {trials.measure} for {names}. {text}",
            _curve_table(trials) if name.startswith("curves") else by_memory if name == "score-by-memory" else by_seed,
        )
        for name, (title, text, _) in FIGURES.items()
    ]


def _curve_table(trials: Trials) -> str:
    found = looks({each.name: each.architecture for each in trials.contenders})
    rows = [
        [
            found[each.name].label,
            f"{group[0].tokens:,}",
            f"{sum(point.seconds for point in group) / len(group):,.1f} s",
            tables.told([point.value for point in group], trials.measure),
        ]
        for each in trials.contenders
        for group in plots.band([trial.validation or trial.training for trial in each.finished])
    ]
    return table("Validation", ["Model", "Tokens", "after", trials.measure.capitalize()], rows)


def _by_seed(trials: Trials) -> tuple[list[str], list[list[str]]]:
    found = looks({each.name: each.architecture for each in trials.contenders})
    rows = []
    for each in trials.contenders:
        values = {trial.seed: tables.told([trial.value], trials.measure) for trial in each.finished}
        cells = [values.get(seed, "–") for seed in trials.seeds]
        rows.append([found[each.name].label, *cells, f"{each.total_flops:.3g}", f"{each.seconds:,.1f} s"])
    return ["Model", *(f"seed {seed}" for seed in trials.seeds), "FLOPs", "training"], rows


def _pictures(trials: Trials, folder: Path) -> str:
    return "".join(_picture(picture, folder) for picture in trials.pictures)


def _picture(picture: Picture, folder: Path) -> str:
    data = base64.b64encode((folder / picture.path).read_bytes()).decode("ascii")
    alternative = escape(picture.caption or picture.title, quote=True)
    return (
        f"<figure><figcaption><h3>{escape(picture.title)}</h3><p>{escape(picture.caption)}</p></figcaption>"
        f'<img src="data:image/png;base64,{data}" alt="{alternative}"></figure>'
    )
