"""A run: what it leaves behind, and that stopping and going on changes nothing."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from remanence.config import Recipe, SettingWarning, TrainingSettings, dump_recipe, load_recipe
from remanence.data import Corpus
from remanence.errors import InputError
from remanence.files import read_json
from remanence.training import Diverged, Result, Trainer
from remanence.training.checkpoint import open_checkpoint
from remanence.training.device import FEWEST_COMPILED, compiles
from remanence.training.log import read_log
from remanence.training.weights import weights

Make = Callable[..., Recipe]
Train = Callable[..., Trainer]
Validate = Callable[..., Any]

TIMINGS = ("seconds", "stalled", "tokens_per_second")


def end_state(folder: Path) -> dict[str, Tensor]:
    """Everything that the last checkpoint holds in tensors: weights, optimizer, memory and generators."""
    checkpoint = open_checkpoint(folder / "checkpoints" / "last")
    parts = checkpoint.parts("")
    assert {"model", "optimizer", "state"} < set(parts)
    return {f"{part}:{name}": tensor for part in parts for name, tensor in checkpoint.tensors(part).items()}


def records(folder: Path, *kinds: str) -> list[dict[str, Any]]:
    """The log without the lines and times that tell how the run was cut."""
    kept = [each for each in read_log(folder / "log.jsonl") if each["kind"] in (kinds or ("train", "validation"))]
    return [{name: value for name, value in each.items() if name not in TIMINGS} for each in kept]


def assert_same_end(one: Path, other: Path) -> None:
    left, right = end_state(one), end_state(other)
    assert left.keys() == right.keys()
    assert [name for name in left if not torch.equal(left[name], right[name])] == []
    assert records(one) == records(other)


def stop_after(trainer: Trainer, segments: int, number: int = signal.SIGTERM) -> Result:
    """Run until a signal arrives while a segment is being read."""
    lanes, count = trainer.state.lanes, 0
    real = lanes.next

    def next_batch() -> Any:
        nonlocal count
        count += 1
        if count == segments:
            os.kill(os.getpid(), number)
        return real()

    lanes.next = next_batch
    return trainer.run()


def test_a_run_leaves_recipe_tokenizer_log_and_checkpoints(
    make_recipe: Make, train: Train, validate: Validate, tmp_path: Path
) -> None:
    recipe = make_recipe(validate_every=6)
    result = train(recipe, tmp_path / "run", validate=validate).run()
    assert sorted(path.name for path in (tmp_path / "run").iterdir() if path.name[0] != ".") == [
        "checkpoints", "log.jsonl", "recipe.toml", "tokenizer",
    ]  # fmt: skip
    assert load_recipe(tmp_path / "run" / "recipe.toml") == recipe
    assert [(each["kind"], each["step"]) for each in read_log(tmp_path / "run" / "log.jsonl")] == [
        ("start", 0), ("train", 3), ("train", 6), ("validation", 6), ("train", 9), ("train", 12), ("validation", 12),
        ("end", 12),
    ]  # fmt: skip
    assert result.steps == 12 and not result.interrupted and [step for step, _ in result.losses] == [3, 6, 9, 12]
    assert result.losses[-1][1] < result.losses[0][1] < 6.0
    assert records(tmp_path / "run")[0]["tokens"] == 3 * 4 * 7


@pytest.mark.parametrize(
    ("architecture", "memory_length", "settings"),
    [
        ("lamemo", 9, {}),
        ("lamemo", 0, {}),
        ("lamemo", 9, {"protocol": "document", "accumulation": 2}),
        ("transformer-xl", 9, {"optimizer": "adamw", "weight_decay": 0.1, "schedule": "linear", "warmup_steps": 3}),
        ("transformer-xl", 3, {"horizon": 2, "protocol": "document"}),
        ("transformer", 0, {"precision": "bfloat16"}),
        ("lamemo", 9, {"precision": "bfloat16"}),
        ("compressive", 9, {"protocol": "document"}),
        ("infinite-former", 5, {"accumulation": 2}),
        ("memformer", 4, {"horizon": 3, "engine": "replay", "protocol": "document"}),
        ("rmt", 3, {"horizon": 2, "engine": "recompute", "accumulation": 2, "precision": "bfloat16"}),
    ],
)
@pytest.mark.filterwarnings("ignore:training.horizon:remanence.config.SettingWarning")
def test_an_interrupted_run_ends_bit_equal_to_an_uninterrupted_one(
    architecture: str,
    memory_length: int,
    settings: dict[str, Any],
    make_recipe: Make,
    train: Train,
    validate: Validate,
    tmp_path: Path,
) -> None:
    recipe = make_recipe(architecture, memory_length, validate_every=5, **settings)
    train(recipe, tmp_path / "whole", validate=validate).run()
    first = stop_after(train(recipe, tmp_path / "cut", validate=validate), 3 * recipe.training.horizon)
    assert first.signal == signal.SIGTERM and first.steps == 3
    torch.manual_seed(99)
    second = stop_after(train(recipe, tmp_path / "cut", validate=validate, resume=True), 4 * recipe.training.horizon)
    assert second.steps == 7
    third = train(recipe, tmp_path / "cut", validate=validate, resume=True).run()
    assert third.steps == 12 and not third.interrupted
    assert_same_end(tmp_path / "whole", tmp_path / "cut")


def test_dropout_goes_on_where_it_was(make_recipe: Make, train: Train, tmp_path: Path) -> None:
    recipe = make_recipe()
    train(recipe, tmp_path / "whole").run()
    stop_after(train(recipe, tmp_path / "cut"), 4)
    trainer = train(recipe, tmp_path / "cut", resume=True)
    trainer.state.restore = lambda checkpoint, real=trainer.state.restore: (real(checkpoint), torch.manual_seed(0))
    trainer.run()
    one, other = end_state(tmp_path / "whole"), end_state(tmp_path / "cut")
    assert not all(torch.equal(one[name], other[name]) for name in one if name.startswith("model:"))


def test_a_signal_during_validation_stops_it_and_it_is_made_up_for(
    make_recipe: Make, train: Train, validate: Validate, tmp_path: Path
) -> None:
    recipe = make_recipe(validate_every=5)
    train(recipe, tmp_path / "whole", validate=validate).run()

    def interrupted(model: torch.nn.Module) -> dict[str, Any]:
        os.kill(os.getpid(), signal.SIGINT)
        pytest.fail("the validation went on")

    result = train(recipe, tmp_path / "cut", validate=interrupted).run()
    assert result.signal == signal.SIGINT and result.steps == 5
    train(recipe, tmp_path / "cut", validate=validate, resume=True).run()
    assert_same_end(tmp_path / "whole", tmp_path / "cut")


def test_a_signal_during_the_last_step_leaves_the_last_validation_to_be_made(
    make_recipe: Make, train: Train, validate: Validate, tmp_path: Path
) -> None:
    recipe = make_recipe(validate_every=5)
    train(recipe, tmp_path / "whole", validate=validate).run()
    assert stop_after(train(recipe, tmp_path / "cut", validate=validate), 12).interrupted
    assert not train(recipe, tmp_path / "cut", validate=validate, resume=True).run().interrupted
    assert records(tmp_path / "whole") == records(tmp_path / "cut")


def test_validating_changes_nothing_in_training(
    make_recipe: Make, train: Train, validate: Validate, tmp_path: Path
) -> None:
    train(make_recipe(), tmp_path / "without").run()
    train(make_recipe(validate_every=2), tmp_path / "with", validate=validate).run()
    one, other = end_state(tmp_path / "without"), end_state(tmp_path / "with")
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_how_often_is_logged_and_saved_changes_nothing(make_recipe: Make, train: Train, tmp_path: Path) -> None:
    train(make_recipe(), tmp_path / "one").run()
    train(make_recipe(log_every=1, save_every=0), tmp_path / "other").run()
    one, other = end_state(tmp_path / "one"), end_state(tmp_path / "other")
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_the_best_validation_is_kept(make_recipe: Make, train: Train, tmp_path: Path) -> None:
    told = iter([3.0, 2.0, 2.5, 2.2])
    kept: list[dict[str, Tensor]] = []

    def validate(model: torch.nn.Module) -> dict[str, float]:
        kept.append({name: tensor.detach().clone() for name, tensor in weights(model).items()})
        return {"nats_per_token": next(told)}

    result = train(make_recipe(validate_every=3), tmp_path / "run", validate=validate).run()
    assert result.best == {"step": 6, "nats_per_token": 2.0}
    best = open_checkpoint(tmp_path / "run" / "checkpoints" / "best")
    assert best.about["step"] == 6 and sorted(best.about["files"]) == ["model.safetensors"]
    assert all(torch.equal(tensor, kept[1][name]) for name, tensor in best.tensors("model").items())


def test_the_end_of_a_run_is_validated_and_saved(
    make_recipe: Make, train: Train, validate: Validate, tmp_path: Path
) -> None:
    train(make_recipe(steps=7, save_every=0, validate_every=5), tmp_path / "run", validate=validate).run()
    assert [each["step"] for each in records(tmp_path / "run", "validation")] == [5, 7]
    assert open_checkpoint(tmp_path / "run" / "checkpoints" / "last").about["step"] == 7


def test_the_seed_decides_everything(make_recipe: Make, train: Train, tmp_path: Path) -> None:
    losses = [train(make_recipe(seed=seed), tmp_path / str(n)).run().losses for n, seed in enumerate((1, 1, 2))]
    assert losses[0] == losses[1] != losses[2]


def test_the_distances_trained_are_those_that_occurred(make_recipe: Make, train: Train, tmp_path: Path) -> None:
    def trained(name: str, **settings: Any) -> dict[str, int | None]:
        train(make_recipe(**settings), tmp_path / name).run()
        return open_checkpoint(tmp_path / name / "checkpoints" / "last").about["distances"]

    # Segments of 7, nine slots: filled after two segments.
    assert trained("one", steps=1) == {"back": 6, "ahead": 1}
    assert trained("two", steps=2) == {"back": 13, "ahead": 7}
    assert trained("long", steps=4) == {"back": 15, "ahead": 9}
    assert trained("xl", architecture="transformer-xl", steps=4) == {"back": 15, "ahead": None}
    assert trained("without", architecture="transformer", steps=4) == {"back": 6, "ahead": None}


def test_a_horizon_over_a_memory_without_gradient_warns(make_recipe: Make, train: Train, tmp_path: Path) -> None:
    with pytest.warns(SettingWarning, match="training.horizon is 1 and training.engine full, so no gradient"):
        train(make_recipe("rmt", 2), tmp_path / "unwritten")
    with pytest.warns(SettingWarning, match="training.horizon is 2, but the memory of lamemo carries no gradient"):
        train(make_recipe(horizon=2), tmp_path / "run")


def test_coasting_steps_are_updates_after_every_segment(make_recipe: Make, train: Train, tmp_path: Path) -> None:
    """Where every segment is scored, that is what a horizon of one does in twice as many steps."""
    shared: dict[str, Any] = {"schedule": "constant", "log_every": 1}
    coasting = make_recipe(horizon=2, engine="truncated", coasting_steps=True, steps=3, **shared)
    train(coasting, tmp_path / "coasting").run()
    train(make_recipe(steps=6, **shared), tmp_path / "plain").run()
    one, other = (
        {name: each for name, each in end_state(tmp_path / name).items() if name.startswith(("model:", "optimizer:"))}
        for name in ("coasting", "plain")
    )
    assert all(torch.equal(one[name], other[name]) for name in one)
    losses = [[each["loss"] for each in records(tmp_path / name, "train")] for name in ("coasting", "plain")]
    assert losses[0] == pytest.approx([sum(losses[1][at : at + 2]) / 2 for at in (0, 2, 4)])
    assert records(tmp_path / "coasting", "train")[-1]["tokens"] == 6 * 4 * 7


def test_a_coasting_step_moves_on_by_the_running_means_alone(make_recipe: Make, train: Train, tmp_path: Path) -> None:
    trainer = train(make_recipe(horizon=2, engine="truncated", coasting_steps=True, steps=2), tmp_path / "run")
    real, seen = trainer.state.lanes.next, []

    def next_batch() -> Any:
        batch = real()
        seen.append(len(seen))
        unscored = torch.full_like(batch.targets, -1)
        return dataclasses.replace(batch, targets=unscored) if len(seen) == 3 else batch

    trainer.state.lanes.next = next_batch
    moved = []
    step = trainer.state.optimizer.step

    def noting(*given: Any) -> Any:
        before = weights(trainer.model)["layers.0.output.weight"].clone()
        gradient = trainer.model.layers[0].output.weight.grad.clone()
        step(*given)
        after = weights(trainer.model)["layers.0.output.weight"]
        moved.append((bool(gradient.any()), float((after - before).detach().norm())))

    trainer.state.optimizer.step = noting
    trainer.run()
    assert [had for had, _ in moved] == [True, True, False, True]
    assert all(distance > 0 for _, distance in moved)


def test_coasting_is_refused_where_a_horizon_has_one_gradient() -> None:
    with pytest.raises(InputError, match="a horizon has one gradient alone"):
        TrainingSettings(horizon=2, engine="replay", coasting_steps=True)


def test_compiled_training_is_one_graph(make_recipe: Make, train: Train, tmp_path: Path) -> None:
    recipe = make_recipe(steps=3, validate_every=0, precision="bfloat16")
    plain = train(recipe, tmp_path / "plain").run()
    (tmp_path / "recipe.toml").write_text(dump_recipe(recipe))
    # In a process of its own, without the shape checks of the tests, which cannot be compiled; and without a code
    # generator, which takes a minute: tracing is what can go wrong here.
    code = (
        "import sys, torch; real = torch.compile\n"
        "torch.compile = lambda function, **options: real(function, backend='eager', fullgraph=True, **options)\n"
        "from remanence.commands.train import main; sys.exit(main(sys.argv[1:], 'remanence train'))"
    )
    argv = [str(tmp_path / "recipe.toml"), "--training.compile", "True", "--folder", str(tmp_path / "compiled")]
    done = subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    # Dropout draws otherwise when compiled.
    assert records(tmp_path / "compiled")[0]["loss"] == pytest.approx(plain.losses[0][1], rel=0.1)


def test_replay_is_not_compiled_where_its_two_sweeps_would_draw_otherwise(
    make_recipe: Make, train: Train, tmp_path: Path
) -> None:
    recipe = make_recipe("rmt", horizon=2, engine="replay", compile=True)
    with pytest.raises(InputError, match="sweep ahead"):
        train(recipe, tmp_path / "drawn")
    recipe = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, dropout=0.0))
    assert train(recipe, tmp_path / "plain").state.compiled


@pytest.mark.parametrize(
    ("wish", "steps", "device", "triton", "compiled"),
    [
        (None, FEWEST_COMPILED, "cuda", True, True),
        (None, FEWEST_COMPILED - 1, "cuda", True, False),
        (None, FEWEST_COMPILED, "cuda", False, False),
        (None, FEWEST_COMPILED, "cpu", True, False),
        (True, 1, "cpu", False, True),
        (False, FEWEST_COMPILED, "cuda", True, False),
    ],
)
def test_long_runs_are_compiled_where_that_is_faster(
    wish: bool | None, steps: int, device: str, triton: bool, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("remanence.training.device.has_triton", lambda: triton)
    assert compiles(wish, steps, torch.device(device)) is compiled


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_loss_that_is_not_finite_stops_the_run_with_what_led_to_it(
    what: str, make_recipe: Make, train: Train, tmp_path: Path
) -> None:
    trainer = train(make_recipe(), tmp_path / "run")
    real, calls = trainer.model.head.loss, []

    def loss(hidden: Tensor, targets: Tensor) -> Tensor:
        calls.append(1)
        nats = real(hidden, targets)
        if len(calls) <= 6:
            return nats
        return nats * float("nan") if what == "loss" else nats + (hidden * 0).sum().sqrt()

    trainer.model.head.loss = loss
    with pytest.raises(Diverged) as error:
        trainer.run()
    sentence = str(error.value)
    assert "at step 7, with the learning rate 0.005" in sentence and "the checkpoint of step 4 is kept" in sentence
    told = read_json(tmp_path / "run" / "diverged.json", "What led to it")
    assert [each["step"] for each in told["recent"]] == list(range(1, 8))
    assert told["recent"][-1]["gradient_norm"] == "nan" and told["recent"][0]["loss"] > 0
    assert told["not_finite"]["gradients"] and told["lanes"]["position"] == 49
    last = open_checkpoint(tmp_path / "run" / "checkpoints" / "last")
    assert last.about["step"] == 4 and all(bool(each.isfinite().all()) for each in last.tensors("model").values())
    assert read_log(tmp_path / "run" / "log.jsonl")[-1]["kind"] == "diverged"


def test_weights_that_are_not_finite_are_never_saved(make_recipe: Make, train: Train, tmp_path: Path) -> None:
    trainer = train(make_recipe(steps=4), tmp_path / "run")
    real = trainer.state.optimizer.step

    def step() -> None:
        real()
        with torch.no_grad():
            next(iter(trainer.model.parameters())).view(-1)[0] = float("inf")

    trainer.state.optimizer.step = step
    with pytest.raises(Diverged, match="no checkpoint was due before"):
        trainer.run()
    assert not (tmp_path / "run" / "checkpoints" / "last").exists()


def test_a_full_disk_stops_the_run_and_leaves_the_checkpoint_before(
    make_recipe: Make, train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from remanence.training import checkpoint

    real, calls = checkpoint.save_file, []

    def save_file(*arguments: Any, **named: Any) -> None:
        calls.append(1)
        if len(calls) > 5:
            raise OSError(28, "No space left on device")
        real(*arguments, **named)

    recipe = make_recipe()
    train(recipe, tmp_path / "whole").run()
    monkeypatch.setattr(checkpoint, "save_file", save_file)
    with pytest.raises(OSError, match="No space left"):
        train(recipe, tmp_path / "cut").run()
    monkeypatch.undo()
    assert open_checkpoint(tmp_path / "cut" / "checkpoints" / "last").about["step"] == 4
    train(recipe, tmp_path / "cut", resume=True).run()
    assert_same_end(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.parametrize("save_every", [0, 4, 100])
def test_a_validation_that_fails_loses_no_step(
    save_every: int, make_recipe: Make, train: Train, validate: Validate, tmp_path: Path
) -> None:
    def fail(model: Any) -> Any:
        raise InputError("There is nothing to score.")

    recipe = make_recipe(validate_every=6, save_every=save_every)
    train(recipe, tmp_path / "whole", validate=validate).run()
    with pytest.raises(InputError, match="nothing to score"):
        train(recipe, tmp_path / "cut", validate=fail).run()
    assert open_checkpoint(tmp_path / "cut" / "checkpoints" / "last").about["step"] == 6
    result = train(recipe, tmp_path / "cut", validate=validate, resume=True).run()
    assert_same_end(tmp_path / "whole", tmp_path / "cut")
    assert open_checkpoint(tmp_path / "cut" / "checkpoints" / "last").about["best"] == result.best


@pytest.mark.parametrize("name", ["validation", "test"])
def test_every_split_is_opened_before_anything_is_trained(
    name: str, corpus: Corpus, make_recipe: Make, train: Train, tmp_path: Path
) -> None:
    shutil.copytree(corpus.folder, tmp_path / "damaged")
    documents = tmp_path / "damaged" / f"{name}.documents"
    documents.write_bytes(b"\xff" + documents.read_bytes()[1:])
    with pytest.raises(InputError, match=f"{name}.documents of the corpus"):
        train(make_recipe(), tmp_path / "run", corpus=Corpus.open(tmp_path / "damaged"))
    assert not (tmp_path / "run").exists()


def test_nothing_is_written_when_the_text_is_too_short(make_recipe: Make, train: Train, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="take fewer lanes"):
        train(make_recipe(lanes=5000), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_tensorboard_is_written_beside_the_log(make_recipe: Make, train: Train, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    train(make_recipe(tensorboard=True), tmp_path / "run").run()
    assert list((tmp_path / "run" / "tensorboard").glob("events*")) and (tmp_path / "run" / "log.jsonl").exists()


def test_tensorboard_that_is_missing_is_told(
    make_recipe: Make, train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from remanence.training import log

    monkeypatch.setattr(log, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"install remanence\[tensorboard\]"):
        train(make_recipe(tensorboard=True), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_log_is_plain_json(make_recipe: Make, train: Train, tmp_path: Path) -> None:
    train(make_recipe(), tmp_path / "run").run()
    for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines():
        assert {"kind", "step"} <= json.loads(line, parse_constant=lambda name: pytest.fail(name)).keys()
