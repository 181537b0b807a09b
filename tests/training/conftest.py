"""A small corpus and small recipes that train in less than a second."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from remanence.config import DataSettings, Recipe, TrainingSettings
from remanence.data import Corpus
from remanence.data.prepare import prepare
from remanence.models import config_class
from remanence.training import Trainer

TEXT = "the of and memory segment lane token reads what was written before so that a model knows more"
WORDS = TEXT.split()


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """About 20,000 bytes in documents of uneven length."""
    draw = random.Random(5)
    documents = [" ".join(draw.choices(WORDS, k=draw.randint(1, 60))) + "\n" for _ in range(130)]
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "text.txt").write_text("\f\n".join(documents), encoding="utf-8")
    return prepare(folder / "text.txt", folder / "prepared", documents="separator", validation=0.1, test=0.1)


@pytest.fixture(scope="session")
def make_recipe(corpus: Corpus) -> Callable[..., Recipe]:
    def make(
        architecture: str = "lamemo", memory_length: int = 9, protocol: str = "published", **training: Any
    ) -> Recipe:
        own: dict[str, dict[str, Any]] = {
            "transformer": {},
            "compressive": {"memory_length": memory_length, "compressed_length": 4, "compression_rate": 7},
            "infinite-former": {"memory_length": memory_length, "num_basis": 6},
            "memformer": {"num_slots": memory_length},
            "rmt": {"memory_tokens": memory_length},
        }
        memory = own.get(architecture, {"memory_length": memory_length})
        model = config_class(architecture)(
            vocab_size=256,
            segment_length=7,
            num_layers=2,
            model_width=12,
            num_heads=3,
            head_width=4,
            feed_forward_width=20,
            dropout=0.2,
            **memory,
        )
        settings = {
            "steps": 12,
            "lanes": 4,
            "log_every": 3,
            "save_every": 4,
            "validate_every": 0,
            "precision": "float32",
        }
        return Recipe(
            "small",
            data=DataSettings(str(corpus.folder), protocol),
            model=model,
            training=TrainingSettings(**{"learning_rate": 1e-2, **settings, **training}),
        )

    return make


@pytest.fixture
def train(corpus: Corpus, make_recipe: Callable[..., Recipe]) -> Callable[..., Trainer]:
    """A trainer that shows nothing."""

    def make(recipe: Recipe, folder: Path, **options: Any) -> Trainer:
        options.setdefault("console", Console(quiet=True))
        return Trainer(recipe, options.pop("corpus", corpus), folder, **options)

    return make


@pytest.fixture(scope="session")
def validate() -> Callable[[torch.nn.Module], dict[str, Any]]:
    """A validation that falls from call to call and would draw from the generators if it could."""

    def validate(model: torch.nn.Module) -> dict[str, Any]:
        assert not model.training
        torch.rand(3)
        total = sum(float(parameter.detach().double().square().sum()) for parameter in model.parameters())
        return {"nats_per_token": total, "headline": f"{total:.3f} somethings"}

    return validate


@pytest.fixture
def changed() -> Callable[..., Recipe]:
    """A recipe with some training settings changed."""

    def change(recipe: Recipe, **training: Any) -> Recipe:
        return dataclasses.replace(recipe, training=dataclasses.replace(recipe.training, **training))

    return change
