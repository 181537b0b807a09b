"""A run's folder alone is enough to use its model."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from remanence.config import Recipe
from remanence.data import Corpus
from remanence.data.tokenizers.char import CharTokenizer
from remanence.errors import DamageWarning, InputError
from remanence.memory import Distances
from remanence.training import Trainer, load_run
from remanence.training.checkpoint import Checkpoint, open_checkpoint, write_description, write_parts
from remanence.training.shelf import Shelf
from remanence.training.weights import weights

Make = Callable[..., Recipe]
Train = Callable[..., Trainer]


@pytest.fixture
def trained(make_recipe: Make, train: Train, tmp_path: Path) -> Trainer:
    told = iter([2.0, 3.0])
    trainer = train(
        make_recipe(steps=6, validate_every=3), tmp_path / "run", validate=lambda model: {"nats_per_token": next(told)}
    )
    trainer.run()
    return trainer


def test_the_last_weights_are_those_of_the_end(trained: Trainer) -> None:
    run = load_run(trained.folder.path, which="last")
    assert run.step == 6 and run.which == "last" and not run.model.training and run.recipe == trained.recipe
    ours, theirs = weights(run.model), weights(trained.model)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_the_best_weights_are_loaded_by_default(trained: Trainer) -> None:
    run = load_run(trained.folder.path)
    assert run.step == 3 and run.which == "best" and run.best == {"step": 3, "nats_per_token": 2.0}
    assert run.distances == Distances(back=15, ahead=9)


def test_a_run_without_validation_has_only_the_last(make_recipe: Make, train: Train, tmp_path: Path) -> None:
    train(make_recipe(steps=2), tmp_path / "run").run()
    assert load_run(tmp_path / "run").which == "last"


def test_corpus_and_tokenizer_are_known_without_the_corpus(trained: Trainer, corpus: Corpus) -> None:
    run = load_run(trained.folder.path)
    assert run.unit == "byte" and run.corpus["name"] == corpus.name and run.corpus["fingerprint"] == corpus.fingerprint
    assert run.corpus["counts"]["train"] == dict(corpus.split("train").counts)
    assert run.tokenizer.decode(run.tokenizer.encode("what remains")) == "what remains"


def test_the_fingerprint_tells_weights_apart(trained: Trainer) -> None:
    best, last = (load_run(trained.folder.path, which=which) for which in ("best", "last"))
    assert best.fingerprint == load_run(trained.folder.path).fingerprint != last.fingerprint


def test_weights_can_be_cast(trained: Trainer) -> None:
    run = load_run(trained.folder.path, dtype=torch.float64)
    assert {parameter.dtype for parameter in run.model.parameters()} == {torch.float64}


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no run"):
        load_run(tmp_path)


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 255
    path.write_bytes(data)


def test_damaged_weights_are_refused(trained: Trainer) -> None:
    damage(trained.folder.path / "checkpoints" / "best" / "model.safetensors")
    with pytest.raises(InputError, match="was altered since it was saved"):
        load_run(trained.folder.path)


@pytest.mark.parametrize("name", ["model", "optimizer"])
def test_instead_of_a_damaged_last_checkpoint_the_one_before_is_loaded(name: str, trained: Trainer) -> None:
    damage(trained.folder.path / "checkpoints" / "last" / f"{name}.safetensors")
    with pytest.warns(DamageWarning, match=rf"{name}.safetensors was altered .*/step-4 of step 4, is used instead"):
        assert load_run(trained.folder.path, which="last").step == 4
    damage(trained.folder.path / "checkpoints" / "step-4" / "model.safetensors")
    with pytest.raises(InputError, match=r"None of the checkpoints in .* is whole: .*last.*step-4"):
        load_run(trained.folder.path, which="last")


@pytest.mark.parametrize("times", [1, 3])
def test_what_is_replaced_while_it_is_read_is_read_anew(
    times: int, trained: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf, real, done = trained.folder.shelf, Checkpoint.tensors, []

    def tensors(self: Checkpoint, part: str) -> Mapping[str, Tensor]:
        # Its hashes have been compared; now training puts the next one there, of the same shapes.
        if len(done) < times:
            done.append(self)
            saved(trained, shelf, 10 + len(done))
        return real(self, part)

    monkeypatch.setattr(Checkpoint, "tensors", tensors)
    run = load_run(trained.folder.path, which="last")
    alone = load_run(trained.folder.path, which="last")
    assert run.step == alone.step == 10 + times and run.fingerprint == alone.fingerprint
    assert all(torch.equal(tensor, weights(run.model)[name]) for name, tensor in weights(trained.model).items())


def test_one_that_is_replaced_again_and_again_is_told(trained: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    real, steps = Checkpoint.tensors, iter(range(10, 1000))

    def tensors(self: Checkpoint, part: str) -> Mapping[str, Tensor]:
        saved(trained, trained.folder.shelf, next(steps))
        return real(self, part)

    monkeypatch.setattr(Checkpoint, "tensors", tensors)
    with pytest.raises(InputError, match="were replaced 20 times while they were read"):
        load_run(trained.folder.path, which="last")


def saved(trained: Trainer, shelf: Shelf, step: int) -> None:
    """Other weights as the last checkpoint."""
    about = dict(open_checkpoint(shelf.last, check=False).about) | {"step": step}
    with torch.no_grad():
        for tensor in weights(trained.model).values():
            tensor.add_(1)
    made = shelf.draft(f"last-{step}.0")
    files = write_parts(made, {"model": {name: each.detach() for name, each in weights(trained.model).items()}})
    write_description(made, {name: about[name] for name in about.keys() - {"format", "files"}}, files)
    shelf.put_last(made, step, keep=1)


def test_a_recipe_that_does_not_fit_the_weights_is_refused(trained: Trainer) -> None:
    path = trained.folder.path / "recipe.toml"
    path.write_text(path.read_text().replace("model_width = 12", "model_width = 24"))
    with pytest.raises(InputError, match=r"model.model_width \(12 there, 24 now\)"):
        load_run(trained.folder.path)


def test_a_run_that_has_not_saved_yet_is_told(trained: Trainer) -> None:
    os.rename(trained.folder.path / "checkpoints", trained.folder.path / "elsewhere")
    with pytest.raises(InputError, match="There is no checkpoint"):
        load_run(trained.folder.path)


def test_another_tokenizer_than_that_of_the_training_is_refused(trained: Trainer) -> None:
    CharTokenizer("abc").save(trained.folder.tokenizer)
    with pytest.raises(InputError, match="is not the tokenizer that the run was trained with"):
        load_run(trained.folder.path)
