"""What a bench found, as JSON, as a page and on the terminal."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from remanence.files import make_folder, writing

VERSION = 1
"""Of the layout of results.json."""


@dataclass(frozen=True)
class Table:
    """A table of figures for people; the first columns are words."""

    title: str
    headers: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    words: int = 1
    """How many columns stand on the left."""


@dataclass
class Result:
    """What a bench found. `rows` hold every figure, in seconds, bytes and operations."""

    kind: str
    rows: list[dict[str, Any]] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    checks: list[str] = field(default_factory=list)
    """What was found to agree before anything was timed, a sentence each."""
    notes: list[str] = field(default_factory=list)
    """What the figures must be read with, a sentence each."""
    peak: dict[str, Any] = field(default_factory=dict)
    fits: list[dict[str, Any]] = field(default_factory=list)
    about: dict[str, Any] = field(default_factory=dict)
    """Machine, versions, command, date."""
    settings: dict[str, Any] = field(default_factory=dict)

    def note(self, sentence: str) -> None:
        if sentence not in self.notes:
            self.notes.append(sentence)

    def to_json(self) -> dict[str, Any]:
        return {
            "version": VERSION,
            "kind": self.kind,
            "about": self.about,
            "settings": self.settings,
            "peak": self.peak,
            "checks": self.checks,
            "rows": self.rows,
            "fits": self.fits,
            "notes": self.notes,
        }

    def save(self, folder: Path) -> None:
        """Write results.json and results.md, or neither. Raises OSError."""
        make_folder(folder, folder, "--out")
        with writing(folder / "results.json", "w") as figures, writing(folder / "results.md", "w") as page:
            figures.write(json.dumps(self.to_json(), indent=2, ensure_ascii=False) + "\n")
            page.write(self.page())
            # A full disk is met here, before either has its name.
            figures.flush()
            page.flush()

    def page(self) -> str:
        """As Markdown."""
        lines = [f"# remanence bench {self.kind}", "", *(f"- {each}" for each in self.setting()), ""]
        for table in self.tables:
            lines += [f"## {table.title}", "", *_markdown(table), ""]
            if table.caption:
                lines += [table.caption, ""]
        for title, sentences in (("Agreed before timing", self.checks), ("Notes", self.notes)):
            if sentences:
                lines += [f"## {title}", "", *(f"- {each}" for each in sentences), ""]
        return "\n".join(lines)

    def setting(self) -> list[str]:
        """Where, with what and when, a line each."""
        machine, versions = self.about["machine"], self.about["versions"]
        found = [
            f"command: `{self.about['command']}`",
            f"machine: {machine['processor']} ({machine['architecture']}), {machine['cores']} cores, "
            f"{machine['threads']} thread{'s' * (machine['threads'] != 1)}"
            + (f", {machine['gpu']}" if machine["gpu"] else ""),
            "versions: " + ", ".join(f"{name} {number}" for name, number in versions.items()),
            f"date: {self.about['date']}",
            *self.measured(),
        ]
        if machine["allocator"]:
            found.append("allocator: " + ", ".join(f"{name}={value}" for name, value in machine["allocator"].items()))
        if self.peak:
            found.append(
                f"peak of {self.peak['dtype']} matrix products: {self.peak['flops_per_second'] / 1e9:,.0f} GFLOP/s, "
                f"the best of {self.peak['measured']} measurements (the worst {self.peak['slowest_moment'] / 1e9:,.0f})"
            )
        return found

    def measured(self) -> list[str]:
        """Sizes and numbers of what was measured."""
        told = self.settings
        if not told:
            return []
        shape = told["shape"]
        widths = (
            f"{shape['num_layers']} layers of width {shape['model_width']}, {shape['num_heads']} heads of "
            f"{shape['head_width']}, feed-forward {shape['feed_forward_width']}, vocabulary {shape['vocabulary']:,}"
        )
        sizes = [f"{told['dtype']} products", f"{told['rounds']} rounds"]
        if self.kind != "evaluate":
            sizes.insert(0, f"segments of {told['segment_length']} tokens")
        if self.kind != "generate":
            sizes.insert(0, f"{told['lanes']} lane{'s' * (told['lanes'] != 1)}")
        if self.kind in ("train", "ops"):
            sizes.append(f"dropout {told['dropout']:g}")
        quick = ["quick: tiny models and few rounds; the figures mean nothing"] if told["quick"] else []
        return [*quick, f"shape {shape['name']}: {widths}", "measured with: " + ", ".join(sizes)]


def figure(number: float, digits: int = 3) -> str:
    """A number with so many significant digits at least; a small one is never rounded to nothing."""
    if not number:
        return "0"
    places = max(0, digits - 1 - math.floor(math.log10(abs(number))))
    return f"{number:,.{places}f}".replace("-", "\N{MINUS SIGN}")


def filled_columns(table: Table) -> Table:
    """The table without columns that say nothing."""
    full = [
        place for place in range(len(table.headers)) if place < table.words or any(row[place] for row in table.rows)
    ]
    return Table(
        table.title,
        [table.headers[place] for place in full],
        [[row[place] for place in full] for row in table.rows],
        table.caption,
        table.words,
    )


def _markdown(table: Table) -> list[str]:
    rule = ["---" if number < table.words else "---:" for number in range(len(table.headers))]
    return ["| " + " | ".join(row) + " |" for row in (table.headers, rule, *table.rows)]
