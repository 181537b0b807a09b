"""In which direction distances must be held when the memory is longer in the test than in training.

    python benchmarks/holding.py RUN --corpus CORPUS --name holding

scores the beginning of the test split with several memory lengths, distances held in no direction, ahead only, back
only, and in both (the default of `remanence evaluate`), and writes what it found to benchmarks/results/.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
from pathlib import Path

import torch

from remanence import __version__
from remanence.data import Corpus, Lanes
from remanence.files import write_json, write_text
from remanence.memory import Distances
from remanence.training import load_run

LANES = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--name", default="holding")
    parser.add_argument("--memory-lengths", type=int, nargs="+", default=[64, 128, 256])
    parser.add_argument("--segments", type=int, default=80, help="segments of 16 lanes to score")
    arguments = parser.parse_args()
    run = load_run(arguments.run, which="last")
    corpus = Corpus.open(arguments.corpus)
    split, segment = corpus.split("test"), run.model.config.segment_length
    trained = run.distances
    holds = {
        "none": None,
        "ahead only": dataclasses.replace(trained, back=None),
        "back only": Distances(back=trained.back),
        "each at its own": trained,
    }
    rows = []
    for length in arguments.memory_lengths:
        for name, hold in holds.items():
            bits, tokens = 0.0, 0
            memory = run.model.init_memory(LANES, length=length, hold=hold)
            for number, batch in enumerate(Lanes.once(split, LANES, segment, "published")):
                if number == arguments.segments:
                    break
                with torch.no_grad():
                    hidden, memory, _ = run.model(batch.tokens, memory, batch.starts, lengths=batch.lengths)
                    bits += float(run.model.head.loss(hidden, batch.targets).sum()) / math.log(2)
                tokens += int((batch.targets >= 0).sum())
            rows.append({"memory_length": length, "held": name, "bits_per_token": bits / tokens, "tokens": tokens})
            print(rows[-1])
    about = {
        "architecture": run.recipe.architecture,
        "trained": f"{run.step} steps, segment {segment}, memory {run.model.config.memory_length}; distances up to "
        f"{trained.back} back and {trained.ahead} ahead",
        "model": f"{run.model.config.num_layers} layers of width {run.model.config.model_width}",
        "corpus": corpus.name,
        "versions": f"remanence {__version__}, torch {torch.__version__}",
    }
    lines = ["# Holding distances", "", *(f"- {label}: {value}" for label, value in about.items()), ""]
    lines += ["| memory at test | held | bits per token |", "|---|---|---|"]
    lines += [f"| {row['memory_length']} | {row['held']} | {row['bits_per_token']:.4f} |" for row in rows]
    results = Path(__file__).parent / "results"
    write_json(results / f"{arguments.name}.json", {"about": about, "rows": rows})
    write_text(results / f"{arguments.name}.md", "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
