"""The page that shows a comparison: one HTML file that needs nothing beside it, not even a network.

Plots are SVG inside the page, every plot has its numbers in a table under it, colours follow the reader's light or dark
setting, and all text from outside is escaped.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from importlib.resources import files
from string import Template

from matplotlib.figure import Figure

from remanence.analysis import palette, plots
from remanence.analysis.comparison import Comparison, CurvePoint, ModelFindings, PositionScore
from remanence.analysis.palette import Colour, model_colour, model_label
from remanence.analysis.svg import inline_svg
from remanence.analysis.wording import Finding, duration, verdict

LIMITS = (
    "One seed. Another would move every number a little; the ± beside a difference speaks of the test text only.",
    "One text, one small size and a few minutes. Which memory is better when models are large and well trained is "
    "not answered here.",
    "The model without memory sees at most one segment. A longer segment would help it, at a cost that grows with the "
    "square of the length; what is compared here is what a memory adds to the same segment.",
    "Seconds depend on the machine and on what else it was doing.",
)
TRAINED = (
    "Every model had the same text in the same order, the same number of tokens, the same settings and the same seed. "
    "The settings were chosen by short trials of three of the models (no memory, Transformer-XL, LaMemo) together on "
    "the Python standard library; none was chosen for one model alone."
)


def render(comparison: Comparison) -> str:
    """The whole page as text."""
    recipes = "\n".join(
        details(f"The whole recipe of {model_label(name)}", recipe) for name, recipe in comparison.recipes.items()
    )
    shared = facts("What all models share", comparison.settings)
    return page(
        comparison.title,
        _subtitle(comparison),
        [
            cards([_card(comparison, model) for model in comparison.models]),
            section("found", "What was found", findings(verdict(comparison))),
            section("scores", "Scores by memory length", _scores(comparison)),
            section("plots", "What memory does", f'<div class="plots">{"".join(_figures(comparison))}</div>'),
            _sample(comparison),
            section("protocol", "How it was measured", facts("How the scores were taken", comparison.protocol)),
            section("recipe", "What was trained", f"<p>{TRAINED}</p>{shared}{recipes}"),
            section("limits", "What this does not show", bullets((*comparison.notes, *LIMITS))),
        ],
        [comparison.version, comparison.date, *(f"{key}: {value}" for key, value in comparison.machine.items())],
        comparison.command,
    )


def page(title: str, subtitle: str, sections: Sequence[str], about: Sequence[str], command: str) -> str:
    """A whole page around its sections, which are HTML; the other texts are plain.

    about       the version of the library, then what else the foot of the page says
    """
    version, *rest = about
    told = " · ".join(part for part in (f"Remanence {version}", *rest) if part)
    made = f"<p>Made by <code>{escape(command)}</code></p>" if command else ""
    template = Template(files("remanence.analysis").joinpath("report.html").read_text(encoding="utf-8"))
    return template.substitute(
        title=escape(title),
        light=_variables(lambda colour: colour.light),
        dark=_variables(lambda colour: colour.dark),
        subtitle=escape(subtitle),
        body="\n".join(sections),
        footer=f"<p>{escape(told)}</p>{made}",
    )


def section(name: str, heading: str, body: str) -> str:
    """A part of the page; `name` is its id."""
    return f'<section aria-labelledby="{name}"><h2 id="{name}">{escape(heading)}</h2>\n{body}\n</section>'


def cards(each: Sequence[str]) -> str:
    return f'<ul class="cards">{"".join(each)}</ul>'


def card(colour: Colour, heading: str, number: str, unit: str, notes: Sequence[str]) -> str:
    """One number that matters, with a model's name and colour."""
    small = "<br>".join(map(escape, notes))
    return (
        f'<li class="card" style="--model: var(--{colour.name})"><h3>{escape(heading)}</h3>'
        f'<strong>{escape(number)}</strong><p>{escape(unit)}</p><p class="quiet small">{small}</p></li>'
    )


def findings(found: Sequence[Finding]) -> str:
    """Sentences with a mark that says whether they are good news."""
    return f'<ul class="verdict">{"".join(map(_finding, found))}</ul>'


def details(summary: str, text: str) -> str:
    """A text that is shown when it is asked for."""
    return f"<details><summary>{escape(summary)}</summary><pre>{escape(text)}</pre></details>"


def bullets(sentences: Sequence[str]) -> str:
    return f"<ul>{''.join(f'<li>{escape(sentence)}</li>' for sentence in sentences)}</ul>"


def table(
    caption: str, headers: Sequence[str], rows: Sequence[Sequence[str]], strong: Sequence[tuple[int, int]] = ()
) -> str:
    """A table with the first cell of each row as its heading; cells named in `strong` (row, column) are set bold.

    It scrolls inside its own frame where the page is narrower than the table, by keyboard too.
    """
    head = "".join(f'<th scope="col">{escape(header)}</th>' for header in headers)
    body = []
    for i, row in enumerate(rows):
        cells = [f"<strong>{escape(cell)}</strong>" if (i, j) in strong else escape(cell) for j, cell in enumerate(row)]
        body.append(
            f'<tr><th scope="row">{cells[0]}</th>' + "".join(f"<td>{cell}</td>" for cell in cells[1:]) + "</tr>"
        )
    return (
        f'<p class="caption">{escape(caption)}</p>'
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption)}">'
        f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
    )


def facts(caption: str, entries: dict[str, str]) -> str:
    """A table of labels and sentences."""
    rows = "".join(
        f'<tr><th scope="row">{escape(key)}</th><td>{escape(value)}</td></tr>' for key, value in entries.items()
    )
    return f'<p class="caption">{escape(caption)}</p><table class="facts"><tbody>{rows}</tbody></table>'


def _variables(value) -> str:
    return "\n".join(f"  --{colour.name}: {value(colour)};" for colour in palette.ALL)


def _subtitle(comparison: Comparison) -> str:
    tokens = max((model.tokens for model in comparison.models), default=0)
    return (
        f"{len(comparison.models)} models, each trained on the same {tokens / 1e6:.2f} million tokens of "
        f"{comparison.text.source}. Everything together took {duration(comparison.seconds)}."
    )


def _card(comparison: Comparison, model: ModelFindings) -> str:
    score = comparison.trained(model)
    value = f"{score.value:.3f}" if score else "–"
    length = comparison.memory_length if model.memory_length is None else model.memory_length
    memory = f"memory of {length} {'tokens' if length == comparison.memory_length else 'slots'}"
    return card(
        model_colour(model.architecture),
        model_label(model.architecture),
        value,
        comparison.unit,
        [
            memory if model.remembers else "each segment on its own",
            f"{model.seconds:.0f} s of training · {model.parameters / 1e6:.2f} M parameters",
        ],
    )


def _finding(finding: Finding) -> str:
    kind, mark = {True: ("good", "✓"), False: ("bad", "✗"), None: ("", "·")}[finding.good]
    return f'<li class="{kind}" data-mark="{mark}">{escape(finding.text)}</li>'


def score_rows(comparison: Comparison) -> tuple[list[str], list[list[str]], list[tuple[int, int]]]:
    """Headers, rows and the best cell of each memory length, for the table here and the one in the terminal."""
    lengths = comparison.memory_lengths
    headers = ["Model", *(f"memory {length}" for length in lengths), "training", "per step", "weights"]
    rows, strong = [], []
    for model in comparison.models:
        scores = {score.memory_length: score.value for score in model.by_memory}
        rows.append(
            [
                model_label(model.architecture),
                *(f"{scores[length]:.3f}" if length in scores else "–" for length in lengths),
                f"{model.seconds:.0f} s",
                f"{1000 * model.seconds / max(1, model.steps):.0f} ms",
                f"{model.parameters / 1e6:.2f} M",
            ]
        )
    for column in range(1, 1 + len(lengths)):
        values = {row: float(cells[column]) for row, cells in enumerate(rows) if cells[column] != "–"}
        strong += [(row, column) for row, value in values.items() if value == min(values.values()) and len(values) > 1]
    return headers, rows, strong


def _scores(comparison: Comparison) -> str:
    headers, rows, strong = score_rows(comparison)
    return table(
        f"{comparison.unit.capitalize()} on the test text by memory length at test time (lower is better; all were "
        f"trained with {comparison.memory_length} tokens of memory, or none)",
        headers,
        rows,
        strong,
    )


def _figures(comparison: Comparison) -> list[str]:
    names = ", ".join(model_label(model.architecture) for model in comparison.models)
    unit = comparison.unit
    found = [
        figure_of(
            "by-memory",
            "A longer memory at test time",
            "The same trained weights, given more or less memory when they are tested. Distances no weight has seen "
            "are held at the largest one trained.",
            plots.bits_by_memory(comparison),
            f"Line chart of {unit} by memory length at test time for {names}.",
            _memory_table(comparison),
        ),
        figure_of(
            "by-segment",
            "Where in its segment a token stands",
            "Without memory every segment starts from nothing; a memory bridges the cut.",
            plots.bits_by_segment_position(comparison),
            f"Line chart of {unit} by position in the segment for {names}.",
            _position_table(comparison, "Position in segment", lambda model: model.by_segment_position),
        ),
        figure_of(
            "by-document",
            "How much has been read before",
            "Every stretch of text begins with nothing remembered. Stretches are drawn from anywhere, so that text is "
            "equally hard all along the axis; a memory goes on helping where one segment ends.",
            plots.bits_by_document_position(comparison),
            f"Line chart of {unit} by the number of tokens read since the memory was empty, on a logarithmic axis, "
            f"for {names}.",
            _position_table(comparison, "Position in the text", lambda model: model.by_document_position),
        ),
    ]
    found += [
        figure_of(
            f"interpolation-{model.architecture}",
            f"What {model_label(model.architecture)} keeps",
            "Each memory slot mixes what it had read before with what it reads now to its right. α is the share of the "
            "old; 1 means nothing new was taken in. Mean over heads, lanes and test text.",
            plots.interpolation_by_age(model, comparison.segment_length),
            f"Line chart of the interpolation weight alpha of {model_label(model.architecture)} by age of the memory "
            "slot, one line per layer.",
            _interpolation_table(model),
        )
        for model in comparison.models
        if model.interpolation
    ]
    if any(model.training or model.validation for model in comparison.models):
        curves = _curve_table(comparison)
        found += [
            figure_of(
                "by-tokens",
                "Learning, by tokens read",
                "Faint lines: the text being trained on. Marked points: validation text.",
                plots.curves_by_tokens(comparison),
                f"Line chart of {unit} by tokens read for {names}.",
                curves,
            ),
            figure_of(
                "by-seconds",
                "Learning, by seconds of training",
                "The same curves against what they cost. Dotted lines lead from a model's end to its name.",
                plots.curves_by_seconds(comparison),
                f"Line chart of {unit} by seconds of training for {names}.",
                curves,
            ),
        ]
    return found


def figure_of(name: str, title: str, text: str, figure: Figure, description: str, numbers: str) -> str:
    return (
        f"<figure><figcaption><h3>{escape(title)}</h3><p>{escape(text)}</p></figcaption>"
        f"{inline_svg(figure, name, description)}<details><summary>The numbers</summary>{numbers}</details></figure>"
    )


def _memory_table(comparison: Comparison) -> str:
    rows = [
        [
            model_label(model.architecture),
            str(score.memory_length),
            f"{score.value:.4f}",
            f"{score.tokens:,}",
            f"{score.seconds:.1f} s",
            "held" if score.held else "as they are",
        ]
        for model in comparison.models
        for score in model.by_memory
    ]
    headers = ["Model", "Memory", comparison.unit.capitalize(), "Tokens scored", "Time", "Distances"]
    return table("Score and cost of each memory length", headers, rows)


def _position_table(comparison: Comparison, what: str, scores) -> str:
    columns: dict[tuple[int, int], dict[str, PositionScore]] = {}
    for model in comparison.models:
        for score in scores(model):
            columns.setdefault((score.begin, score.end), {})[model.architecture] = score
    names = [model.architecture for model in comparison.models]
    rows = []
    for (begin, end), found in sorted(columns.items()):
        count = max(score.tokens for score in found.values())
        cells = [f"{found[name].value:.3f}" if name in found else "–" for name in names]
        rows.append([f"{begin + 1}–{end}" if end > begin + 1 else str(end), *cells, f"{count:,}"])
    return table(
        f"{comparison.unit.capitalize()} by position, counted from 1", [what, *map(model_label, names), "Tokens"], rows
    )


def _interpolation_table(model: ModelFindings) -> str:
    length = max(map(len, model.interpolation))
    ages = sorted({1, *range(length // 8, length + 1, max(1, length // 8)), length} - {0})
    headers = ["Age of slot", *(f"Layer {index + 1}" for index in range(len(model.interpolation)))]
    rows = [[str(age), *(f"{weights[age - 1]:.3f}" for weights in model.interpolation)] for age in ages]
    return table("Share of the old content kept (α)", headers, rows)


def _curve_table(comparison: Comparison) -> str:
    def cell(point: CurvePoint | None) -> list[str]:
        return [f"{point.value:.3f}", f"{point.seconds:.0f} s"] if point else ["–", "–"]

    curves = [{point.tokens: point for point in model.validation} for model in comparison.models]
    headers = ["Tokens"]
    for model in comparison.models:
        headers += [model_label(model.architecture), "after"]
    rows = [
        [f"{tokens:,}", *(text for curve in curves for text in cell(curve.get(tokens)))]
        for tokens in sorted({tokens for curve in curves for tokens in curve})
    ]
    return table(f"{comparison.unit.capitalize()} on the validation text", headers, rows)


def _sample(comparison: Comparison) -> str:
    sample = comparison.sample
    if sample is None:
        return ""
    return section(
        "sample",
        "What it writes",
        f"<p>{escape(model_label(sample.architecture))} goes on from the grey text ({escape(sample.settings)}). After "
        "so short a training, expect the look of the text rather than its sense.</p>"
        f'<pre><span class="given">{escape(sample.prompt)}</span>{escape(sample.text)}</pre>',
    )
