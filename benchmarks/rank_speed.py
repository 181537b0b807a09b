"""Tokens per second of one process and of several on the same cores.

    python benchmarks/rank_speed.py CORPUS --name rank-speed

trains the same LaMemo in turns: one process with one thread, one with a thread for each core, and a process for each
core, replicated (DDP) and in shares (FSDP2). Each turn is a run of its own through the command line; its speed is the
median of what the lines of its log say, the first left out. What was found goes to benchmarks/results/.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from remanence.bench.machine import describe
from remanence.config import DataSettings, Recipe, TrainingSettings, dump_recipe
from remanence.data import Corpus
from remanence.files import write_json, write_text
from remanence.models import config_class
from remanence.training.log import read_log

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--name", default="rank-speed")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--precision", default="bfloat16")
    arguments = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    ways = {
        "1 process, 1 thread": (1, 1, "ddp"),
        f"1 process, {cores} threads": (1, cores, "ddp"),
        f"{cores} processes, 1 thread each, DDP": (cores, 1, "ddp"),
        f"{cores} processes, 1 thread each, FSDP2": (cores, 1, "fsdp"),
    }
    speeds: dict[str, list[float]] = {way: [] for way in ways}
    losses: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as scratch:
        recipe = Path(scratch) / "recipe.toml"
        write_text(recipe, dump_recipe(make_recipe(arguments)))
        for turn in range(arguments.turns):
            for way, (ranks, threads, distribution) in ways.items():
                folder = Path(scratch) / f"{turn}-{ranks}-{threads}-{distribution}"
                records = train(recipe, folder, ranks, threads, distribution)
                speeds[way].append(statistics.median(each["tokens_per_second"] for each in records[1:]))
                losses[way] = records[-1]["loss"]
                print(f"{way}: {speeds[way][-1]:,.0f} tokens/s, loss {losses[way]:.6f}", flush=True)
    if max(losses.values()) - min(losses.values()) > 1e-2:
        raise SystemExit(f"They do not learn the same: {losses}")
    report(arguments, speeds, losses)


def make_recipe(arguments: argparse.Namespace) -> Recipe:
    """A LaMemo of ordinary proportions, small enough for a few steps in a minute."""
    model = config_class("lamemo")(
        vocab_size=Corpus.open(arguments.corpus).vocab_size, segment_length=128, memory_length=128, num_layers=8,
        model_width=512, num_heads=8, head_width=64, feed_forward_width=2048, dropout=0.1,
    )  # fmt: skip
    training = TrainingSettings(
        steps=arguments.steps, lanes=16, log_every=4, save_every=0, validate_every=0, precision=arguments.precision
    )
    return Recipe("rank-speed", data=DataSettings(str(arguments.corpus.resolve())), model=model, training=training)


def train(recipe: Path, folder: Path, ranks: int, threads: int, distribution: str) -> list[dict[str, Any]]:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] if ranks > 1 else []
    flags = ["--folder", str(folder), "--training.distribution", distribution]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, *launcher, "-m", "remanence", "train", str(recipe), *flags]
    subprocess.run(command, check=True, env=environment, capture_output=True)
    return [each for each in read_log(folder / "log.jsonl") if each["kind"] == "train"]


def report(arguments: argparse.Namespace, speeds: dict[str, list[float]], losses: dict[str, float]) -> None:
    about = describe(torch.device("cpu"), f"python {' '.join(sys.argv)}")
    write_json(RESULTS / f"{arguments.name}.json", {**about, "speeds": speeds, "losses": losses})
    first = statistics.median(next(iter(speeds.values())))
    rows = [
        f"| {way} | {statistics.median(each):,.0f} | {statistics.median(each) / first:.2f} | {min(each):,.0f} to "
        f"{max(each):,.0f} | {losses[way]:.4f} |"
        for way, each in speeds.items()
    ]
    lines = [
        "# Tokens per second of one process and of several",
        "",
        "LaMemo, 8 layers of width 512, segments and memories of 128, 16 lanes in all, dropout 0.1, "
        f"{arguments.precision}; {arguments.turns} turns.",
        "",
        "| | tokens/s, median | against the first | range | loss of the last steps |",
        "|---|---:|---:|---|---:|",
        *rows,
        "",
        f"{about['date']}: `{about['command']}`; {about['machine']['processor']}, {about['machine']['cores']} cores, "
        f"torch {about['versions']['torch']}.",
    ]
    write_text(RESULTS / f"{arguments.name}.md", "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
