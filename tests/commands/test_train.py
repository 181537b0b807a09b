"""`remanence train`, from the command line to the folder of the run."""

from __future__ import annotations

import json
import signal
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from remanence.cli import main
from remanence.commands import train
from remanence.config import load_recipe
from remanence.data.corpus import Split
from remanence.data.prepare import prepare
from remanence.errors import InputError
from remanence.training import load_run
from remanence.training.log import read_log

RECIPE = """
name = "small"
[data]
corpus = "{corpus}"
[model]
architecture = "lamemo"
segment_length = 6
memory_length = 8
num_layers = 2
model_width = 12
num_heads = 3
head_width = 4
feed_forward_width = 20
[training]
steps = 6
lanes = 3
learning_rate = 0.01
log_every = 2
save_every = 3
validate_every = 3
"""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    lines = [f"line {number} says what {number * number % 97} said\n" for number in range(300)]
    documents = ["".join(lines[begin : begin + 10]) for begin in range(0, 300, 10)]
    (folder / "text.txt").write_text("\f\n".join(documents), encoding="utf-8")
    prepare(folder / "text.txt", folder / "prepared", documents="separator", validation=0.2, test=0.1)
    return folder / "prepared"


@pytest.fixture
def recipe(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    Path("small.toml").write_text(RECIPE.format(corpus=corpus), encoding="utf-8")
    return "small.toml"


def fails(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one sentence with which a command line is refused."""
    capsys.readouterr()
    assert main(["train", *argv]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("remanence: error: ") and err.count("\n") == 1 and err.endswith((".\n", "?\n"))
    return err


def test_a_recipe_becomes_a_run(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", recipe]) == 0
    run = load_run("runs/small")
    assert run.unit == "byte" and run.model.config.vocab_size == 256
    (last,) = [each for each in read_log(Path("runs/small/log.jsonl")) if each["kind"] == "validation"][-1:]
    assert last["bits_per_byte"] > 0 and last["headline"].endswith("bits per byte") and last["tokens"] > 1000
    told = capsys.readouterr().err
    assert "small: lamemo, " in told and "bits per byte, the best so far" in told and "6 steps in " in told


@pytest.mark.parametrize("architecture", ["transformer", "transformer-xl", "lamemo"])
@pytest.mark.filterwarnings("ignore:model.memory_length:UserWarning")
def test_another_model_is_a_flag_away(architecture: str, recipe: str) -> None:
    flags = ["--model.architecture", architecture, "--folder", "here", "--training.steps", "2", "--name", architecture]
    assert main(["train", recipe, *flags]) == 0
    run = load_run("here")
    assert run.recipe.architecture == architecture and run.recipe.name == architecture and run.step == 2


@pytest.mark.parametrize("protocol", ["published", "document"])
def test_memory_may_be_nothing(protocol: str, recipe: str) -> None:
    assert main(["train", recipe, "--model.memory-length", "0", "--data.protocol", protocol]) == 0
    assert load_run("runs/small").distances.back == 5


def test_a_run_is_resumed_by_its_folder_or_its_recipe(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", recipe]) == 0
    before = Path("runs/small/checkpoints/last/model.safetensors").read_bytes()
    assert main(["train", "runs/small", "--resume"]) == 0
    assert main(["train", recipe, "--resume", "--training.log-every", "1"]) == 0
    assert Path("runs/small/checkpoints/last/model.safetensors").read_bytes() == before
    assert "resumed at step 6" in capsys.readouterr().err
    assert load_run("runs/small").recipe.training.log_every == 1


def test_validation_reads_no_more_than_asked(recipe: str) -> None:
    assert main(["train", recipe, "--training.validation-tokens", "200"]) == 0
    validations = [each for each in read_log(Path("runs/small/log.jsonl")) if each["kind"] == "validation"]
    assert [each["tokens"] for each in validations] == [199, 199]


def test_validation_that_cannot_be_scored_is_told_before_training(
    tmp_path: Path, recipe: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.txt").write_text("only to be read " * 50)
    (tmp_path / "validation.txt").write_text("x")
    prepare(tmp_path / "text.txt", tmp_path / "short", validation=tmp_path / "validation.txt", test=0.0)
    flags = ["--data.corpus", str(tmp_path / "short")]
    told = fails([recipe, *flags], capsys)
    assert "There is nothing to score in the validation split of text; prepare" in told
    assert not Path("runs").exists()
    assert main(["train", recipe, *flags, "--training.validate-every", "0"]) == 0


def test_documents_too_short_to_score_name_the_flag(recipe: str) -> None:
    split = Split(np.zeros(40, np.uint8), 256, np.array([0, 1, 2]), name="validation")
    corpus: Any = SimpleNamespace(name="short", split=lambda name: split)
    settings = load_recipe(recipe, ["--data.protocol", "document", "--training.validation-tokens", "2"])
    with pytest.raises(InputError, match=r"first 2 tokens of .* short; raise training.validation_tokens from 2"):
        train.validation_split(corpus, settings)


def test_a_corpus_without_validation_is_trained_on(tmp_path: Path, recipe: str) -> None:
    (tmp_path / "text.txt").write_text("only to be read " * 50)
    prepare(tmp_path / "text.txt", tmp_path / "only", validation=0.0, test=0.0)
    assert main(["train", recipe, "--data.corpus", str(tmp_path / "only")]) == 0
    assert load_run("runs/small").which == "last"


def test_the_help_of_a_recipe_shows_its_own_settings(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", recipe, "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "--model.memory-length INT" in shown and "(default: 8)" in shown and "--model.window {right,full}" in shown
    assert main(["train", recipe, "--model.architecture", "transformer-xl", "--help"]) == 0
    shown = capsys.readouterr().out
    assert "--model.memory-init" in shown and "--model.window" not in shown


def test_the_help_without_a_recipe_shows_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--help"]) == 0
    shown = capsys.readouterr().out
    for flag in (
        "--model.memory-length",
        "--training.steps",
        "--evaluation.same-length",
        "--data.protocol",
        "--resume",
    ):
        assert flag in shown


def test_settings_without_effect_warn(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert main(["train", recipe, "--training.schedule", "constant", "--training.floor", "0.5"]) == 0
    assert "remanence: warning: training.floor has no effect, because" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        ([], "A recipe comes first"),
        (["--training.steps", "4"], "A recipe comes first"),
        (["small.toml", "--out", "x"], "did you mean --folder?"),
        (["small.toml", "--folder", "/dev/null/x"], "The folder /dev/null/x cannot be made"),
        (["small.toml", "--model.num-slots", "5"], "did you mean --model.memory-length?"),
        (["smal.toml"], "did you mean small.toml?"),
        (["small.toml", "--model.memory-lenth", "4"], "did you mean --model.memory-length?"),
        (["small.toml", "--model.memory-length", "-1"], "model.memory_length is -1, but it must be 0 or more"),
        (["small.toml", "--model.segment-length", "0"], "model.segment_length is 0, but it must be 1 or more"),
        (["small.toml", "--evaluation.segment-length", "0"], "evaluation.segment_length is 0"),
        (["small.toml", "--training.lanes", "0"], "training.lanes is 0, but it must be at least 1"),
        (["small.toml", "--training.lanes", "4000"], "take fewer lanes"),
        (["small.toml", "--data.corpus", "data/nowhere"], "There is no prepared corpus at data/nowhere"),
        (["small.toml", "--model.vocab-size", "100"], "has 256 token ids, but the recipe's model.vocab_size is 100"),
        (["small.toml", "--resume"], "holds no run"),
        (["small.toml", "--training.device", "abacus"], 'The device "abacus" was asked for'),
        (["small.toml", "--training.learning-rate", "inf"], "training.learning_rate is inf, but it must be a number"),
        (["."], "There is no run in ."),
        (["runs/none", "--resume"], "There is no run in runs/none"),
        (["small.toml", "--training.validation-tokens", "1"], "training.validation_tokens is 1, but it must be 0"),
        (["small.toml", "--data.corpus", "data/wikitext-2"], "make it with `remanence prepare wikitext-2`"),
        (["small.toml", "--data.corpus", ""], "data.corpus is missing"),
        (["small.toml", "--name", "../evil"], 'error: name is "../evil", but it names a folder in runs'),
        (["small.toml", "--name", ""], 'error: name is ""'),
        (["small.toml", "--training.steps", "0"], "error: training.steps is 0, but it must be at least 1.\n"),
    ],
)
def test_what_cannot_be_trained_is_told_in_a_sentence_and_nothing_is_written(
    argv: list[str], told: str, recipe: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert told in fails(argv, capsys)
    assert sorted(path.name for path in Path().iterdir()) == ["small.toml"]


def test_what_cannot_be_resumed_is_told_in_a_sentence(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", recipe]) == 0
    assert "already holds a run" in fails([recipe], capsys)
    assert "add --resume" in fails(["runs/small"], capsys)
    assert "training.seed (1111 there, 5 now) differs" in fails([recipe, "--resume", "--training.seed", "5"], capsys)
    for name in ("last", "step-3"):
        description = Path("runs/small/checkpoints") / name / "checkpoint.json"
        description.write_text(json.dumps(json.loads(description.read_text()) | {"step": 7}))
    told = fails([recipe, "--resume"], capsys)
    assert "None of the checkpoints in runs/small/checkpoints is whole" in told and told.count("was altered") == 2


@pytest.mark.filterwarnings("always::remanence.errors.DamageWarning")
def test_a_damaged_checkpoint_is_passed_over_and_told(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", recipe]) == 0
    capsys.readouterr()
    Path("runs/small/checkpoints/last/state.safetensors").write_bytes(b"")
    assert main(["train", recipe, "--resume"]) == 0
    told = capsys.readouterr().err
    assert told.startswith("remanence: warning: runs/small/checkpoints/last/state.safetensors has 0 bytes instead of ")
    assert "; the checkpoint before it, runs/small/checkpoints/step-3 of step 3, is used instead.\n" in told
    assert "resumed at step 3" in told and load_run("runs/small", which="last").step == 6


def test_a_loss_that_is_not_finite_is_told_in_a_sentence(
    recipe: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from remanence.training import trainer

    def read_segment(model: Any, batch: Any, memory: Any) -> Any:
        loss = sum(parameter.sum() for parameter in model.parameters()) * torch.tensor(float("inf"))
        return loss, torch.zeros(()), memory

    monkeypatch.setattr(trainer, "read_segment", read_segment)
    assert main(["train", recipe]) == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.startswith("remanence: error: The loss became inf and the norm of the gradient")
    assert "at step 1, with the learning rate 0.01; no checkpoint was due before" in told
    assert Path("runs/small/diverged.json").exists()


def test_steps_are_recorded_and_the_weights_are_the_same(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", recipe, "--profile", "2", "--training.steps", "9", "--folder", "one"]) == 0
    assert main(["train", recipe, "--training.steps", "9", "--folder", "other"]) == 0
    assert load_run("one").fingerprint == load_run("other").fingerprint
    trace, table = Path("one/profile/steps-7-8.trace.json"), Path("one/profile/steps-7-8.txt")
    assert f"Steps 7 to 8 were recorded: {trace} " in " ".join(capsys.readouterr().err.split())
    assert sorted(Path("one/profile").iterdir()) == [trace, table] and not Path("other/profile").exists()
    names = [event.get("name", "") for event in json.loads(trace.read_text())["traceEvents"]]
    # Step 6 was recorded as well, but the run validated after it; what is kept is two steps in a row.
    assert sum(name.startswith("Optimizer.step#Adam") for name in names) == 2
    told = table.read_text()
    assert told.startswith("Steps 7 to 8: ") and "Self CPU" in told and "aten::" in told


def test_steps_are_recorded_in_a_run_that_goes_on(recipe: str) -> None:
    assert main(["train", recipe, "--training.schedule", "constant", "--folder", "run"]) == 0
    assert main(["train", "run", "--resume", "--training.steps", "13", "--profile", "1"]) == 0
    # Steps of this process: 5 pass after the 6 that were made before.
    assert Path("run/profile/steps-12-12.trace.json").is_file()
    assert main(["train", "run", "--resume", "--training.steps", "30", "--profile", "3"]) == 0
    assert len(list(Path("run/profile").glob("*.txt"))) == 2


@pytest.mark.parametrize(
    ("steps", "told"),
    [
        ("0", "--profile is 0, but it is a number of steps to record, 1 or more."),
        ("-3", "--profile is -3"),
        ("some", '--profile is "some", but it must be'),
        ("2", "this run makes at most 1 in a row, without saving or validating; give at most 1."),
    ],
)
def test_recording_what_is_not_there_is_refused(recipe: str, steps: str, told: str, capsys: Any) -> None:
    assert told in fails([recipe, "--profile", steps], capsys)
    assert not Path("runs").exists()


def test_a_run_with_too_few_steps_left_is_not_touched(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", recipe, "--training.schedule", "constant", "--folder", "run"]) == 0
    log = Path("run/log.jsonl").read_text()
    assert "makes at most 0 in a row, without saving or validating; raise training.steps." in fails(
        ["run", "--resume", "--training.steps", "8", "--profile", "1"], capsys
    )
    assert Path("run/log.jsonl").read_text() == log


def test_what_was_recorded_is_written_when_a_run_is_stopped(recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = train.Trainer._step

    def step(self: Any, journal: Any) -> None:
        plain(self, journal)
        if self.state.progress.step == 8:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(train.Trainer, "_step", step)
    assert main(["train", recipe, "--training.steps", "20", "--profile", "3", "--folder", "run"]) == 143
    assert Path("run/profile/steps-7-8.trace.json").is_file() and Path("run/profile/steps-7-8.txt").is_file()
