"""What a bench found, as JSON, as a page and on the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from remanence.files import make_folder, write_json, write_text

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
        """Write results.json and results.md."""
        make_folder(folder, folder, "--out")
        write_json(folder / "results.json", self.to_json())
        write_text(folder / "results.md", self.page())

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
            f"{machine['threads']} threads" + (f", {machine['gpu']}" if machine["gpu"] else ""),
            "versions: " + ", ".join(f"{name} {number}" for name, number in versions.items()),
            f"date: {self.about['date']}",
        ]
        if machine["allocator"]:
            found.append("allocator: " + ", ".join(f"{name}={value}" for name, value in machine["allocator"].items()))
        if self.peak:
            found.append(
                f"peak of {self.peak['dtype']} matrix products: {self.peak['flops_per_second'] / 1e9:,.0f} GFLOP/s, "
                f"the best of {self.peak['measured']} measurements (the worst {self.peak['slowest_moment'] / 1e9:,.0f})"
            )
        return found


def _markdown(table: Table) -> list[str]:
    rule = ["---" if number < table.words else "---:" for number in range(len(table.headers))]
    return ["| " + " | ".join(row) + " |" for row in (table.headers, rule, *table.rows)]
