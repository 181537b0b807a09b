"""How long saving holds training: written in the background, with training waiting for every save, and not at all.

    python benchmarks/checkpoint_stall.py --name checkpoint-stall

trains the same small LaMemo in turns, each in a folder of its own below --scratch, and writes what it found to
benchmarks/results/. A share of 1 % means that 100 seconds of training became 101.
"""

from __future__ import annotations

import argparse
import dataclasses
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from remanence.bench.machine import describe
from remanence.config import DataSettings, Recipe, TrainingSettings
from remanence.data import Corpus
from remanence.data.prepare import prepare
from remanence.files import write_json, write_text
from remanence.models import config_class
from remanence.training import Trainer
from remanence.training.checkpoint import open_checkpoint

HOW = {
    "none": "no checkpoint but the one at the end",
    "background": "written in the background",
    "waiting": "training waits until each is on the disk",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", default="checkpoint-stall")
    parser.add_argument("--scratch", type=Path, help="a folder on the disk to measure")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--every", type=int, nargs="+", default=[20, 5], help="steps between two checkpoints")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=8)
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
        corpus = make_corpus(Path(scratch))
        recipe = make_recipe(arguments, corpus)
        for turn in range(arguments.turns):
            for every, how in [
                (0, "none"),
                *((every, how) for every in arguments.every for how in HOW if how != "none"),
            ]:
                folder = Path(scratch) / f"{turn}-{every}-{how}"
                rows.append({"every": every, "how": how, **measure(recipe, corpus, folder, every, how != "waiting")})
                print(rows[-1], flush=True)
    report(arguments, recipe, rows)


def measure(recipe: Recipe, corpus: Corpus, folder: Path, every: int, background: bool) -> dict[str, Any]:
    training = dataclasses.replace(recipe.training, save_every=every)
    trainer = Trainer(dataclasses.replace(recipe, training=training), corpus, folder, console=Console(quiet=True))
    trainer.keeper.background = background
    began = time.perf_counter()
    result = trainer.run()
    whole = time.perf_counter() - began
    files = open_checkpoint(folder / "checkpoints" / "last").about["files"]
    return {
        "seconds": result.seconds,
        "stalled": result.stalled,
        "whole": whole,
        "bytes": sum(each["bytes"] for each in files.values()),
        "parameters": sum(each.numel() for each in trainer.model.parameters()),
    }


def make_corpus(folder: Path) -> Corpus:
    draw = random.Random(5)
    words = ["".join(draw.choices("etaoinshrdlu", k=draw.randint(2, 9))) for _ in range(3000)]
    (folder / "text.txt").write_text(" ".join(draw.choices(words, k=400_000)), encoding="utf-8")
    return prepare(folder / "text.txt", folder / "corpus")


def make_recipe(arguments: argparse.Namespace, corpus: Corpus) -> Recipe:
    width = arguments.width
    model = config_class("lamemo")(
        vocab_size=corpus.vocab_size,
        segment_length=64,
        memory_length=64,
        num_layers=arguments.layers,
        model_width=width,
        num_heads=4,
        head_width=width // 4,
        feed_forward_width=4 * width,
    )
    training = TrainingSettings(
        steps=arguments.steps, lanes=8, log_every=10, validate_every=0, precision="float32", device="cpu"
    )
    return Recipe("stall", data=DataSettings(str(corpus.folder)), model=model, training=training)


def report(arguments: argparse.Namespace, recipe: Recipe, rows: list[dict[str, Any]]) -> None:
    machine = describe(torch.device("cpu"), "")["machine"]
    saved, parameters = rows[0]["bytes"], rows[0]["parameters"]
    lines = [
        "# How long saving holds training",
        "",
        "Made by `python benchmarks/checkpoint_stall.py`.",
        "",
        f"- model: LaMemo, {recipe.model.num_layers} layers of width {recipe.model.model_width}, {parameters:,} "
        f"parameters; a checkpoint has {saved / 2**20:,.0f} MiB",
        f"- {arguments.steps} steps, the last one saved as well; medians of {arguments.turns} turns, with the "
        "least and the most",
        "- `held`: seconds in which the training loop did nothing but wait for saving, as the log tells them "
        "(`stalled`), and their share of the time of the run",
        "- `steps`: seconds of the steps themselves, which the writing thread may slow down where all cores compute",
        f"- machine: {machine['processor']}, {machine['cores']} cores, {machine['threads']} threads; torch "
        f"{torch.__version__}",
        "",
        "| checkpoint | how | held, s | share | steps, s | whole run, s | the run grew by |",
        "|---|---|---|---|---|---|---|",
    ]
    base = statistics.median(row["whole"] for row in rows if row["how"] == "none")
    for every, how in dict.fromkeys((row["every"], row["how"]) for row in rows):
        mine = [row for row in rows if (row["every"], row["how"]) == (every, how)]
        whole = statistics.median(row["whole"] for row in mine)
        share = statistics.median(row["stalled"] / (row["stalled"] + row["seconds"]) for row in mine)
        when = f"every {every} steps" if every else "at the end"
        lines.append(
            f"| {when} | {HOW[how]} | {spread(mine, 'stalled')} | {share:.1%} | {spread(mine, 'seconds')} | "
            f"{spread(mine, 'whole')} | {whole / base - 1:+.1%} |"
        )
    results = Path(__file__).parent / "results"
    write_text(results / f"{arguments.name}.md", "\n".join(lines) + "\n")
    write_json(results / f"{arguments.name}.json", rows)


def spread(rows: list[dict[str, Any]], key: str) -> str:
    values = [row[key] for row in rows]
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


if __name__ == "__main__":
    main()
