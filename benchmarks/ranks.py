"""What 1, 2 and 4 processes learn, side by side: every model, every horizon engine, replicated and in shares.

    python benchmarks/ranks.py --name ranks

trains each case of a few updates with dropout, clipping, decay and validations by one process, by torchrun with 2 and
with 4, and compares the weights after the last update and all losses. What was found goes to
benchmarks/results/.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.models.variants import VARIANTS
from tests.training.ranked import STEPS, Case, launch, outcome, train

from remanence.bench.machine import describe
from remanence.data import Corpus
from remanence.data.prepare import prepare
from remanence.files import write_json, write_text
from remanence.models import build
from remanence.training.engines import ENGINES
from remanence.training.ranks import ALONE

RESULTS = Path(__file__).parent / "results"
MODELS = (
    "transformer", "transformer-xl", "transformer-xl-adaptive", "lamemo", "lamemo-full", "compressive",
    "infinite-former", "rmt", "memformer", "memformer-bos-untied",
)  # fmt: skip
TEXT = "the of and memory segment lane token reads what was written before so that a model"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", default="ranks")
    parser.add_argument("--variants", nargs="+", default=MODELS, metavar="VARIANT")
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4])
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    cases = cases_of(arguments.variants)
    with tempfile.TemporaryDirectory() as scratch:
        corpus = make_corpus(Path(scratch))
        folders = {1: Path(scratch) / "1"}
        for case in cases:
            if case == case.alone:
                train(case, corpus, folders[1] / case.name, ALONE)
        print(f"one process: {len(cases)} cases", flush=True)
        for ranks in arguments.ranks:
            folders[ranks] = Path(scratch) / str(ranks)
            began = time.perf_counter()
            launch(ranks, corpus.folder, folders[ranks], cases, seconds=3600)
            print(f"{ranks} processes: {time.perf_counter() - began:.0f} s", flush=True)
        rows: list[dict[str, Any]] = []
        for case in cases:
            alone = outcome(folders[1] / case.alone.name)
            for ranks in arguments.ranks:
                weights, losses = outcome(folders[ranks] / case.name).distance(alone)
                rows.append({**case._asdict(), "ranks": ranks, "weights": weights, "losses": losses})
    report(arguments, rows)


def cases_of(variants: list[str]) -> list[Case]:
    """Every engine that a model can have, its lanes read at once, and in two parts for one of them."""
    cases = []
    for variant in variants:
        config = VARIANTS[variant].config
        carries = build(dataclasses.replace(config, memory_gradient=True), seed=0).memory_carries_gradient
        for engine in ENGINES:
            if engine == "truncated" or carries:
                cases += [Case(variant, engine, 1, distribution) for distribution in ("ddp", "fsdp")]
        cases += [Case(variant, "replay" if carries else "truncated", 2, each) for each in ("ddp", "fsdp")]
    return cases


def make_corpus(folder: Path) -> Corpus:
    """About 20,000 bytes in documents of uneven length."""
    import random

    draw = random.Random(5)
    documents = [" ".join(draw.choices(TEXT.split(), k=draw.randint(1, 60))) + "\n" for _ in range(130)]
    (folder / "text.txt").write_text("\f\n".join(documents), encoding="utf-8")
    return prepare(folder / "text.txt", folder / "prepared", documents="separator", validation=0.1, test=0.1)


def report(arguments: argparse.Namespace, rows: list[dict[str, Any]]) -> None:
    about = describe(torch.device("cpu"), f"python {' '.join(sys.argv)}")
    write_json(RESULTS / f"{arguments.name}.json", {**about, "rows": rows})
    worst = max(rows, key=lambda row: row["weights"])
    lines = [
        "# 1, 2 and 4 processes: the same losses and weights",
        "",
        f"{len(rows)} comparisons of {STEPS} updates (horizon 3, AdamW, dropout 0.1 everywhere, clipped by the norm of "
        "all gradients, document by document, two validations), float32, against one process. Largest difference of a "
        "weight tensor, relative to its norm, and of a loss; rounding of float32 is 6e-8.",
        "",
        f"Largest of all: {worst['weights']:.1e} (weights: {worst['variant']}, {worst['engine']}, "
        f"{worst['distribution']}, {worst['ranks']} processes), {max(row['losses'] for row in rows):.1e} (losses). "
        f"Median: {statistics.median(row['weights'] for row in rows):.1e}, "
        f"{statistics.median(row['losses'] for row in rows):.1e}.",
        "",
        "Each cell: weights, the larger of 2 and 4 processes, DDP / FSDP2. The column of two parts accumulates replay, "
        "or truncated where there is no other.",
        "",
        "| model | " + " | ".join([*ENGINES, "two parts"]) + " |",
        "|---|" + "---|" * (len(ENGINES) + 1),
    ]
    for variant in dict.fromkeys(row["variant"] for row in rows):
        cells = [cell(rows, variant, engine, 1) for engine in ENGINES] + [cell(rows, variant, None, 2)]
        lines.append(f"| {variant} | " + " | ".join(cells) + " |")
    versions = ", ".join(f"{name} {each}" for name, each in {**about["machine"], **about["versions"]}.items() if each)
    lines += ["", f"{about['date']}: `{about['command']}`; {versions}."]
    write_text(RESULTS / f"{arguments.name}.md", "\n".join(lines) + "\n")
    print("\n".join(lines[:8]))


def cell(rows: list[dict[str, Any]], variant: str, engine: str | None, accumulation: int) -> str:
    def largest(distribution: str) -> str:
        found = [
            row["weights"]
            for row in rows
            if row["variant"] == variant and row["distribution"] == distribution
            if row["accumulation"] == accumulation and engine in (None, row["engine"])
        ]
        return f"{max(found):.0e}" if found else "–"

    shown = largest("ddp"), largest("fsdp")
    return "–" if shown == ("–", "–") else " / ".join(shown)


if __name__ == "__main__":
    main()
