"""Prepare a text, train LaMemo on it, and score it with several memory lengths, without the command line.

    python examples/train_in_python.py TEXT FOLDER [STEPS]

TEXT is any text file of some 100 kB or more; FOLDER gets the prepared text and the run.
"""

from __future__ import annotations

import sys
from pathlib import Path

from remanence import Corpus, LaMemoConfig, Protocol, Recipe, Trainer, evaluate, load_run
from remanence.config import DataSettings, TrainingSettings
from remanence.data.prepare import prepare
from remanence.evaluation import sweep


def main(text: Path, folder: Path, steps: int = 300) -> None:
    corpus: Corpus = prepare(text, folder / "text", tokenizer="byte")
    model = LaMemoConfig(
        vocab_size=corpus.vocab_size, segment_length=32, memory_length=64, num_layers=3, model_width=64, num_heads=4,
        head_width=16, feed_forward_width=256, dropout=0.0,
    )  # fmt: skip
    training = TrainingSettings(
        steps=steps, lanes=8, learning_rate=2e-3, warmup_steps=steps // 10, log_every=max(1, steps // 10),
        validate_every=max(1, steps // 3),
    )  # fmt: skip
    recipe = Recipe("small-lamemo", data=DataSettings(corpus=str(corpus.folder)), model=model, training=training)

    def validate(model):
        score = evaluate(model, corpus.split("validation"), corpus=corpus.name)
        return {"nats_per_token": score.nats_per_token, "headline": score.headline}

    result = Trainer(recipe, corpus, folder / "run", validate=validate).run()
    print(f"{result.steps} steps in {result.seconds:.0f} s; the best validation was {result.best['headline']}")

    run = load_run(folder / "run")
    scores = sweep(run.model, corpus.split("test"), [0, 16, 64, 128], Protocol(lanes=4), trained=run.distances)
    for score in scores:
        print(f"memory {score.protocol.memory_length:>3}: {score.headline}")
    print(*scores[-1].protocol.words(), sep="\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), *map(int, sys.argv[3:]))
