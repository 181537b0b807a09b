"""One table and one JSON file of whatever `gpu.sh` has measured so far: `python benchmarks/gpu_summary.py FOLDER`."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from remanence.files import write_json, write_text


def main() -> None:
    folder = Path(sys.argv[1])
    sections = [line.split("\t") for line in Path(os.environ["SECTIONS"]).read_text(encoding="utf-8").splitlines()]
    measured = {
        name: json.loads(path.read_text(encoding="utf-8"))
        for name, _, _ in sections
        if (path := folder / name / "results.json").is_file()
    }
    write_json(folder / "summary.json", {"sections": sections, "measured": measured})
    environment = folder / "environment.log"
    told = environment.read_text(encoding="utf-8").strip() if environment.is_file() else ""
    write_text(folder / "summary.md", page(told, sections, measured))


def page(told: str, sections: list[list[str]], measured: dict[str, Any]) -> str:
    title = "# A dry run: the figures mean nothing" if os.environ.get("DRY") else "# What the GPU gave"
    lines = [title, "", *told.splitlines(), "", "| section | | seconds |", "|---|---|---|"]
    lines += [f"| {name} | {end} | {seconds} |" for name, end, seconds in sections]
    for what, names in (
        ("Not shown, for the tests had no time to end", stopped(sections, "not shown")),
        ("Cut, and so without figures", stopped(sections, "cut")),
    ):
        lines += ["", f"{what}: {', '.join(names)}."] if names else []
    for name, found in measured.items():
        rows = found["rows"]
        peak = (found.get("peak") or {}).get("flops_per_second")
        lines += ["", f"## {name}", ""]
        if peak:
            lines += [f"Matrix peak during the run: {peak / 1e12:,.1f} TFLOP/s.", ""]
        if name.startswith("train"):
            lines += [
                "| model | M | lanes | ms a step | tokens/s | of the peak | peak memory |",
                "|---|---|---|---|---|---|---|",
            ]
            lines += [
                f"| {row['model']} | {'' if row['memory_length'] is None else row['memory_length']} | {row['lanes']} "
                f"| {1e3 * row['seconds']['median']:,.1f} | {row['tokens_per_second']:,.0f} "
                f"| {100 * row['share_of_peak']:.1f} % | {gigabytes(row['peak_bytes'])} |"
                for row in rows
            ]
        else:
            lines += ["| model | texts | after tokens | tokens/s | ms a token | x GPT-2 |", "|---|---|---|---|---|---|"]
            lines += [
                f"| {row['model']} | {row['batch']} | {row['after_tokens']:,} | {row['tokens_per_second']:,.1f} "
                f"| {1e3 * row['seconds']['median']:,.3f} "
                f"| {'' if row['times_gpt2'] is None else format(row['times_gpt2'], '.2f')} |"
                for row in rows
            ]
    return "\n".join(lines) + "\n"


def stopped(sections: list[list[str]], how: str) -> list[str]:
    return [name for name, end, _ in sections if end.startswith(f"{how}:")]


def gigabytes(number: float | None) -> str:
    return "" if number is None else f"{number / 2**30:.1f} GiB"


if __name__ == "__main__":
    main()
