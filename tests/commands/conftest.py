"""A corpus and a run, small enough to be made anew by every process that tests."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from remanence.config import DataSettings, EvaluationSettings, Recipe, TrainingSettings
from remanence.data.prepare import prepare
from remanence.models import config_class
from remanence.training import Trainer

WORDS = [
    "the",
    "of",
    "and",
    "memory",
    "segment",
    "lane",
    "token",
    "reads",
    "what",
    "was",
    "written",
    "before",
    "so",
    "that",
    "a",
    "model",
    "knows",
    "more",
]


@pytest.fixture(scope="session")
def make_run(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The folder of a run of three steps; its corpus has 20 documents in each of validation and test."""
    made: dict[tuple[str, str], Path] = {}

    def make(architecture: str = "lamemo", tokenizer: str = "byte") -> Path:
        if (architecture, tokenizer) in made:
            return made[architecture, tokenizer]
        folder = tmp_path_factory.mktemp(f"{architecture}-{tokenizer}")
        draw = random.Random(5)
        for name in ("train", "validation", "test"):
            documents = [" ".join(draw.choices(WORDS, k=draw.randint(9, 20))) + "\n" for _ in range(20)]
            (folder / f"{name}.txt").write_text("\f".join(documents), encoding="utf-8")
        corpus = prepare(
            folder / "train.txt",
            folder / "corpus",
            name="words",
            tokenizer=tokenizer,
            documents="separator",
            separator="\f",
            validation=folder / "validation.txt",
            test=folder / "test.txt",
        )
        memory = {} if architecture == "transformer" else {"memory_length": 5}
        model = config_class(architecture)(
            vocab_size=corpus.vocab_size,
            segment_length=6,
            num_layers=2,
            model_width=12,
            num_heads=2,
            head_width=6,
            feed_forward_width=16,
            **memory,
        )
        recipe = Recipe(
            "small",
            data=DataSettings(str(corpus.folder)),
            model=model,
            training=TrainingSettings(steps=3, lanes=4, validate_every=0, learning_rate=0.01, precision="float32"),
            evaluation=EvaluationSettings(lanes=2),
        )
        Trainer(recipe, corpus, folder / "run", console=Console(quiet=True)).run()
        made[architecture, tokenizer] = folder / "run"
        return folder / "run"

    return make
