"""Recipes over seeds: what is trained and scored, how it goes on after a stop, and what one failure leaves alone."""

from __future__ import annotations

import csv
import json
import math
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("matplotlib")

from remanence import cli
from remanence.analysis import study
from remanence.analysis.trials import Trials, chance_of
from remanence.config import load_recipe
from remanence.data import Corpus
from remanence.data.prepare import prepare
from remanence.evaluation import LossByStretch, Protocol, evaluate
from remanence.training import Trainer, load_run
from remanence.training.log import read_log
from remanence.training.weights import count_parameters

RECIPE = """name = "{name}"
[data]
corpus = "{corpus}"
[model]
architecture = "{architecture}"
segment_length = 8
{memory}
num_layers = 2
model_width = 16
num_heads = 2
head_width = 8
feed_forward_width = 16
dropout = 0.0
[training]
steps = 6
lanes = {lanes}
learning_rate = 0.01
warmup_steps = 2
precision = "float32"
device = "cpu"
"""


def make_corpus(folder: Path, seed: int = 3) -> Corpus:
    draw = random.Random(seed)
    words = ["memory", "segment", "lane", "token", "reads", "what", "was", "written", "before", "so"]
    text = "".join(" ".join(draw.choices(words, k=8)) + ".\n" for _ in range(120))
    folder.mkdir(exist_ok=True)
    (folder / "text.txt").write_text(text, encoding="utf-8")
    return prepare(folder / "text.txt", folder / "corpus", name="words", validation=0.15, test=0.25)


def write_recipe(folder: Path, architecture: str, name: str = "", corpus: str = "", lanes: int = 4) -> str:
    name = name or architecture
    path = folder / f"{name}.toml"
    memory = "" if architecture == "transformer" else "memory_length = 8"
    corpus = corpus or str(folder / "corpus")
    path.write_text(RECIPE.format(name=name, corpus=corpus, architecture=architecture, memory=memory, lanes=lanes))
    return str(path)


@pytest.fixture
def recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Two recipes in the current folder, and their corpus."""
    make_corpus(tmp_path)
    monkeypatch.chdir(tmp_path)
    return [write_recipe(tmp_path, name) for name in ("transformer", "transformer-xl")]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished comparison of two recipes with three seeds, its folder `out`."""
    folder = tmp_path_factory.mktemp("compare")
    make_corpus(folder)
    paths = [write_recipe(folder, name) for name in ("transformer", "transformer-xl")]
    flags = ["--memory-lengths", "0", "16", "--validations", "2", "--folder", str(folder / "out")]
    assert cli.main(["compare", *paths, "--seeds", "3", *flags]) == 0
    return folder


def run(*words: str) -> int:
    return cli.main(["compare", *words])


def test_the_numbers_of_the_table_are_those_of_the_runs(finished):
    out = finished / "out"
    corpus = Corpus.open(finished / "corpus")
    with open(out / "table.csv", newline="") as file:
        rows = {row["recipe"]: row for row in csv.DictReader(file)}
    assert list(rows) == ["transformer", "transformer-xl"]
    for name, row in rows.items():
        values, stretches = [], []
        for seed in (1, 2, 3):
            trained = load_run(out / "runs" / name / f"seed-{seed}", "last")
            assert trained.recipe.training.seed == seed and trained.step == 6
            length = trained.recipe.model.memory_length
            protocol = Protocol(lanes=16, memory_length=length)
            score = evaluate(trained.model, corpus.split("test"), protocol, measurements=[LossByStretch()])
            values.append(score.nats_per_token / math.log(2))
            stretches.append(score.measurements["loss_by_stretch"])
            assert float(row[f"seed_{seed}"]) == pytest.approx(values[-1], rel=1e-6)
        assert float(row["mean"]) == pytest.approx(sum(values) / 3, rel=1e-6)
        middle = sum(values) / 3
        assert float(row["spread"]) == pytest.approx(math.sqrt(sum((x - middle) ** 2 for x in values) / 2), rel=1e-4)
        assert int(row["parameters"]) == count_parameters(trained.model)
        assert int(row["memory_bytes_per_lane"]) == trained.model.init_memory(lanes=1).nbytes
        assert float(row["tokens"]) == 6 * 4 * 8 and row["memory_kind"] == trained.model.init_memory(lanes=1).kind
        log = read_log(out / "runs" / name / "seed-1" / "log.jsonl")
        assert [each["step"] for each in log if each["kind"] == "validation"] == [3, 6]


def test_gaps_are_paired_on_text_and_spread_over_seeds(finished):
    found = Trials.load(finished / "out" / "results.json")
    none, memory = found.contenders
    (gap,) = found.gaps
    assert (gap.first, gap.second) == ("transformer-xl", "transformer")
    assert gap.value == pytest.approx(statistics.mean(memory.values) - statistics.mean(none.values))
    errors = [statistics.variance(each.values) / 3 for each in (none, memory)]
    assert gap.seed_error == pytest.approx(math.sqrt(sum(errors)))
    assert gap.text_error is not None and 0 < gap.text_error < 1
    assert gap.chance == chance_of(memory.values, none.values)
    total = sum(none.trials[0].stretch_tokens)
    assert sum(none.trials[0].stretch_nats) / total / math.log(2) == pytest.approx(none.trials[0].value)


def test_every_recipe_is_scored_with_the_lengths_it_can_take(finished):
    none, memory = Trials.load(finished / "out" / "results.json").contenders
    assert none.lengths == (0,) and memory.lengths == (0, 8, 16)
    assert len(memory.with_memory(16)) == 3 and none.memory_bytes == 0


def test_counted_operations_are_those_that_a_formula_gives(finished):
    """A Transformer, by hand: projections, attention over T keys and T distances, feed-forward, and the head."""
    none = Trials.load(finished / "out" / "results.json").contenders[0]
    vocabulary = Corpus.open(finished / "corpus").vocab_size
    width, inner, segment, lanes = 16, 16, 8, 4
    layer = 4 * width * width + 2 * width * inner
    # Content with keys, distances with keys, weights with values; and distances are projected, once for all lanes.
    attention = 3 * segment * width + width * width / lanes
    token = 2 * (2 * (layer + attention) + width * vocabulary)
    assert none.evaluation_flops == pytest.approx(token, rel=0.03)
    # Backward costs twice the forward, and the head's logits are computed once more.
    assert none.training_flops == pytest.approx(3 * token + 2 * width * vocabulary, rel=0.1)


def test_everything_is_there_to_look_at(finished):
    out = finished / "out"
    page = (out / "report.html").read_text(encoding="utf-8")
    assert page.count("<svg") == 6 and "Transformer-XL" in page and "3 seeds" in page
    text, markdown = (out / "table.txt").read_text(), (out / "table.md").read_text()
    assert "Bits per byte" in text and markdown.count("\n") == 4
    assert len(list((out / "plots").glob("*.png"))) == 6
    assert not list(out.glob(".counting-*"))


def test_the_same_command_makes_nothing_anew(finished, monkeypatch, capsys):
    monkeypatch.setattr(study, "measure_price", forbidden)
    monkeypatch.setattr(study, "evaluate", forbidden)
    monkeypatch.setattr(Trainer, "run", forbidden)
    assert run("--resume", "--folder", str(finished / "out")) == 0
    said = capsys.readouterr()
    assert "6 of 6 runs are trained and scored already" in said.err and "The report:" in said.out


def forbidden(*arguments: Any, **options: Any) -> None:
    raise AssertionError("this was done already")


def test_a_failing_run_is_told_and_tried_again_and_the_others_are_kept(recipes, monkeypatch, capsys):
    usual = Trainer.run

    def explode(self: Trainer) -> Any:
        if self.recipe.name == "transformer-xl" and self.settings.seed == 1 and self.settings.steps == 6:
            raise RuntimeError("the machine has no more memory")
        return usual(self)

    monkeypatch.setattr(Trainer, "run", explode)
    assert run(*recipes, "--seeds", "2", "--folder", "out") == 1
    said = capsys.readouterr()
    assert "one run failed" in said.err and "Traceback" not in said.err
    assert "transformer-xl, seed 1, failed: RuntimeError: the machine has no more memory" in said.out
    found = Trials.load("out/results.json")
    assert [len(each.finished) for each in found.contenders] == [2, 1] and len(found.failures) == 1
    assert "failed: RuntimeError" in Path("out/report.html").read_text(encoding="utf-8")
    kept = {path: path.stat().st_mtime_ns for path in Path("out/runs").rglob("*.safetensors")}

    monkeypatch.setattr(Trainer, "run", usual)
    assert run(*recipes, "--seeds", "2", "--folder", "out") == 0
    found = Trials.load("out/results.json")
    assert [len(each.finished) for each in found.contenders] == [2, 2] and not found.failures
    assert {path: path.stat().st_mtime_ns for path in kept} == kept and not list(Path("out/failures").iterdir())


def test_a_recipe_that_can_never_be_trained_does_not_keep_the_others_from_it(recipes, monkeypatch, capsys):
    usual = Trainer.run

    def diverge(self: Trainer) -> Any:
        if self.recipe.name == "transformer":
            raise FloatingPointError("not finite")
        return usual(self)

    monkeypatch.setattr(Trainer, "run", diverge)
    assert run(*recipes, "--seeds", "1", "--folder", "out") == 1
    text = capsys.readouterr().out
    row = next(line for line in text.splitlines() if line.startswith("No memory"))
    assert "failed" in row and "0/1" in row
    monkeypatch.setattr(Trainer, "run", usual)
    shutil.rmtree("out")
    monkeypatch.setattr(study, "measure_price", broken)
    assert run(*recipes, "--seeds", "1", "--folder", "out", "--budget", "flops") == 2
    assert "take --budget tokens" in capsys.readouterr().err


def broken(*arguments: Any) -> None:
    raise RuntimeError("no")


def test_a_run_that_killed_the_process_twice_comes_last(recipes, monkeypatch, capsys):
    assert run(*recipes, "--seeds", "1", "--folder", "out") == 0
    shutil.rmtree("out/runs")
    Path("out/.begun.json").write_text(json.dumps({"transformer-seed-1": 2}))
    capsys.readouterr()
    assert run(*recipes, "--seeds", "1", "--folder", "out") == 0
    begun = [line for line in capsys.readouterr().err.splitlines() if line.startswith("Run ")]
    assert "transformer-xl" in begun[0] and "transformer-xl" not in begun[1]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_what_was_stopped_goes_on_to_the_same_numbers(number, recipes, tmp_path):
    flags = ["--seeds", "2", "--training.steps", "60", "--training.save-every", "5", "--validations", "1"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "remanence", "compare", *recipes, *flags, "--folder", "out"]
    child = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    last = tmp_path / "out" / "runs" / "transformer-xl" / "seed-1" / "checkpoints" / "last" / "checkpoint.json"
    limit = time.monotonic() + 120
    while not last.exists() and child.poll() is None and time.monotonic() < limit:
        time.sleep(0.01)
    child.send_signal(number)
    _, error = child.communicate(timeout=60)
    assert child.returncode == (-number if number == signal.SIGKILL else 128 + number), error
    assert "Traceback" not in error
    assert number == signal.SIGKILL or "go on with: remanence compare --resume --folder out" in error
    first = tmp_path / "out" / "runs" / "transformer" / "seed-1" / "checkpoints" / "last" / "model.safetensors"
    made = first.stat().st_mtime_ns
    done = subprocess.run(
        [sys.executable, "-m", "remanence", "compare", "--resume", "--folder", "out"],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "resumed at step" in done.stderr or "transformer-xl" not in done.stderr.split("Run 2")[0]
    assert first.stat().st_mtime_ns == made and not list(Path("out").glob(".counting-*"))
    if number == signal.SIGKILL:
        assert run(*recipes, *flags, "--folder", "whole") == 0
        one, other = (Trials.load(f"{name}/results.json") for name in ("out", "whole"))
        assert [each.values for each in one.contenders] == [each.values for each in other.contenders]


def test_tokens_are_equal_whatever_a_step_reads(recipes, tmp_path):
    recipes.append(write_recipe(tmp_path, "transformer-xl", "wide", lanes=8))
    assert run(*recipes, "--seeds", "1", "--folder", "out", "--amount", "640") == 0
    assert [each.trials[0].tokens for each in Trials.load("out/results.json").contenders] == [640, 640, 640]
    assert json.loads(Path("out/plan.json").read_text())["steps"] == {
        "transformer": 20,
        "transformer-xl": 20,
        "wide": 10,
    }


def test_operations_are_equal_to_within_half_a_step(recipes):
    assert run(*recipes, "--seeds", "1", "--folder", "out", "--budget", "flops", "--training.steps", "40") == 0
    plan = json.loads(Path("out/plan.json").read_text())
    assert plan["steps"]["transformer"] == 40 > plan["steps"]["transformer-xl"]
    for name, price in plan["prices"].items():
        assert abs(price["step_flops"] * plan["steps"][name] - plan["amount"]) <= price["step_flops"] / 2


def test_time_is_shared_by_the_measured_cost_of_a_step(recipes, monkeypatch, capsys):
    seconds = {"transformer": 0.1, "transformer-xl": 0.25}

    def cost(recipe: Any, *rest: Any) -> Any:
        return study.compare.Cost(step=seconds[recipe.name], reading={})

    monkeypatch.setattr(study.compare, "measure_cost", cost)
    assert run(*recipes, "--seeds", "1", "--folder", "out", "--budget", "time", "--amount", "1") == 0
    plan = json.loads(Path("out/plan.json").read_text())
    assert plan["steps"] == {"transformer": 10, "transformer-xl": 4} and plan["step_seconds"] == seconds
    run_of = load_recipe("out/runs/transformer-xl/seed-1/recipe.toml").training
    assert run_of.steps == 4 and run_of.warmup_steps == 1
    assert "measured before the comparison began" in Path("out/report.html").read_text(encoding="utf-8")


def test_settings_are_for_every_recipe_that_has_them(recipes):
    flags = ["--training.lanes", "2", "--model.memory-length", "4", "--seeds", "5", "7", "--validations", "0"]
    assert run(*recipes, *flags, "--folder", "out", "--test-tokens", "500") == 0
    found = Trials.load("out/results.json")
    assert found.seeds == (5, 7) and found.contenders[1].memory_length == 4
    assert all(trial.tokens == 6 * 2 * 8 for each in found.contenders for trial in each.trials)
    assert "500 bytes" in found.protocol["Scored"]


def test_a_picture_that_a_run_left_is_in_the_report(finished, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(finished / "out", out)
    pictures = out / "runs" / "transformer" / "seed-1" / "pictures"
    pictures.mkdir()
    shutil.copy(out / "plots" / "score-by-memory.png", pictures / "samples.png")
    (pictures / "samples.txt").write_text("What it <draws>.")
    assert run("--resume", "--folder", str(out)) == 0
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "data:image/png;base64," in page and "What it &lt;draws&gt;." in page


def other_corpus(folder: Path) -> list[str]:
    make_corpus(folder / "other", seed=4)
    return ["--corpus", str(folder / "other" / "corpus")]


REFUSALS: dict[str, tuple[Callable[[Path], list[str]], str]] = {
    "another seed": (lambda folder: ["--seeds", "3"], "its seeds is 1 2, and not 1 2 3"),
    "another budget": (lambda folder: ["--seeds", "2", "--budget", "flops"], "its budget is tokens, and not flops"),
    "another setting": (
        lambda folder: ["--seeds", "2", "--training.learning-rate", "0.5"],
        "training.learning_rate of transformer was another",
    ),
    "another text": (lambda folder: ["--seeds", "2", *other_corpus(folder)], "made with another text"),
}


def test_a_folder_refuses_another_comparison(recipes, tmp_path, capsys):
    assert run(*recipes, "--seeds", "2", "--folder", "out") == 0
    for change, words in REFUSALS.values():
        capsys.readouterr()
        assert run(*recipes, *change(tmp_path), "--folder", "out") == 2
        error = capsys.readouterr().err
        assert words in error and error.count("\n") == 1
    assert run(recipes[0], "--seeds", "2", "--folder", "out") == 2
    assert "it compares transformer, transformer-xl, and not transformer" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "A recipe comes first"),
        (["--resume"], "needs --folder"),
        (["--resume", "--folder", "nothing"], "There is no comparison in nothing"),
        (["transformer.toml", "--resume", "--folder", "nothing"], "leave --resume out"),
        (["transformer.toml", "transformer.toml"], '2 recipes have the name "transformer"'),
        (["transformer.toml", "elsewhere.toml"], "name one for all by --corpus"),
        (["transformer.toml", "wide.toml", "--seeds", "1", "1"], "seeds that differ"),
        (["transformer.toml", "--seeds", "0"], "1 or more"),
        (["transformer.toml", "--amount", "0"], "must be above 0"),
        (["transformer.toml", "--amount", "1"], "less than one training step"),
        (["transformer.toml", "wide.toml", "--amount", "20"], "wide: A budget of 20 tokens is less than one"),
        (["transformer.toml", "--corpus", "data/none"], "or name another by --corpus."),
        (["transformer.toml", "--data.corpus", "data/none"], "or name another by --data.corpus."),
        (["transformer.toml", "wide.toml", "--training.lanes", "5000"], "transformer: "),
        (["transformer.toml", "--test-tokens", "-1"], "0 or more"),
        (["transformer.toml", "--training.seed", "4"], "give --seeds"),
        (["transformer.toml", "--model.architecture", "lamemo"], "every recipe has its own"),
        (["transformer.toml", "--model.memroy-length", "4"], "There is no flag --model.memroy-length"),
        (["transformer.toml", "--budjet", "time"], "did you mean --budget"),
        (["transformer.toml", "--training.lanes", "5000"], "take fewer lanes"),
        (["transformer.toml", "wide.toml", "--model.num-layers", "0"], "num_layers"),
        (["transformer.toml", "--folder", "corpus"], "holds no comparison"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_trained(words, told, recipes, tmp_path, monkeypatch, capsys):
    write_recipe(tmp_path, "transformer-xl", "wide", lanes=8)
    write_recipe(tmp_path, "transformer-xl", "elsewhere", corpus="data/elsewhere")
    monkeypatch.setattr(study.Study, "_attempt", forbidden)
    assert run(*words) == 2
    error = capsys.readouterr().err
    assert error.startswith("remanence: error: ") and told in error and error.count("\n") == 1


def stopped(*arguments: Any) -> None:
    raise study.Stopped(signal.SIGINT)


def test_what_is_stopped_before_there_is_a_plan_leaves_nothing_and_is_begun_again(recipes, monkeypatch, capsys):
    monkeypatch.setattr(study, "measure_price", stopped)
    assert run(*recipes, "--folder", "some/where/out") == 128 + signal.SIGINT
    error = capsys.readouterr().err
    assert "run the same command again." in error and "--resume" not in error
    assert not Path("some").exists()
    Path("empty").mkdir()
    assert run(*recipes, "--folder", "empty") == 128 + signal.SIGINT
    assert Path("empty").is_dir()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--seeds", "4"], "--seeds is 1 2 3 4, but"),
        (["--budget=time"], "--budget is time, but"),
        (["--memory-lengths", "0"], "--memory-lengths is 0, but"),
        (["--validation-tokens", "7"], "--validation-tokens is 7, but"),
    ],
)
def test_going_on_refuses_options_that_are_others(words, told, finished, monkeypatch, capsys):
    monkeypatch.setattr(study.Study, "run", forbidden)
    assert run("--resume", "--folder", str(finished / "out"), *words) == 2
    error = capsys.readouterr().err
    assert told in error and "was begun with" in error and error.count("\n") == 1


def test_going_on_takes_options_that_are_the_same(finished):
    assert run("--resume", "--folder", str(finished / "out"), "--seeds", "3", "--validations", "2") == 0


def test_a_recipe_that_diverges_while_it_is_counted_is_told_in_one_sentence(recipes, capsys):
    flags = ["--budget", "flops", "--training.learning-rate", "1e30", "--training.clip-norm", "0"]
    assert run(*recipes, *flags, "--folder", "out") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "The FLOPs of transformer cannot be counted: the " in error and error.endswith("take --budget tokens.")
    assert "diverged.json" not in error and ".counting" not in error and "(" not in error
    assert not Path("out").exists()


def test_a_plan_from_before_a_setting_is_of_the_same_comparison(finished, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(finished / "out", out)
    plan = json.loads((out / "plan.json").read_text())
    del plan["asked"]["checkpoint"]
    for recipe in plan["recipes"].values():
        del recipe["model"]["memory_gradient"], recipe["training"]["accumulation"]
    (out / "plan.json").write_text(json.dumps(plan))
    assert run("--resume", "--folder", str(out)) == 0


def test_the_help_comes_without_torch():
    code = "import sys; from remanence.cli import main; main(['compare', '--help']); assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "Example: remanence compare" in done.stdout, done.stderr
