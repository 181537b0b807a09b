"""The demo, small: what it prints, what it leaves behind, and how it ends when it cannot go on."""

from __future__ import annotations

import functools
import importlib.util
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")

from remanence import cli
from remanence.analysis import Comparison, demo
from remanence.training import load_run

SMALL = demo.Scale(
    segment_length=8,
    memory_length=8,
    memory_lengths=(0, 8, 16),
    num_layers=2,
    model_width=16,
    num_heads=2,
    lanes=4,
    validation_tokens=256,
    lanes_scored=4,
    least_scored=1024,
    most_scored=2048,
    sample_tokens=20,
    prompt_tokens=20,
)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "Demo", functools.partial(demo.Demo, scale=SMALL))


@pytest.fixture
def book(tmp_path: Path) -> Path:
    draw = random.Random(1)
    words = ["memory", "segment", "<lane>", "& token", "naïve", "reads", "what", "was", "written", "before"]
    path = tmp_path / "book.txt"
    path.write_text("".join(" ".join(draw.choices(words, k=8)) + "\n" for _ in range(2500)), encoding="utf-8")
    return path


def test_the_demo_prints_a_table_and_writes_a_report_and_a_second_one_loses_nothing(small, book, tmp_path, capsys):
    out = tmp_path / "out"
    flags = ["--text", str(book), "--out", str(out), "--minutes", "0.1", "--seed", "7"]
    assert cli.main(["demo", *flags]) == 0
    said = capsys.readouterr()
    assert "Bits per byte on unseen text" in said.out and f"The report: {out / 'report.html'}" in said.out
    for name in ("No memory", "Transformer-XL", "LaMemo"):
        assert name in said.out
    assert "prepared in" in said.err and "million tokens" in said.err

    found = Comparison.load(out / "1" / "results.json")
    assert [model.architecture for model in found.models] == ["transformer", "transformer-xl", "lamemo"]
    assert len({(model.steps, model.tokens) for model in found.models}) == 1
    assert [score.memory_length for score in found.models[2].by_memory] == [0, 8, 16]
    assert found.models[2].by_memory[2].held and not found.models[2].by_memory[1].held
    assert len(found.models[0].validation) == 6 and len(found.models[0].training) == 60
    assert len(found.models[2].interpolation) == 1 and not found.models[1].interpolation
    assert len(found.differences) == 3 and found.differences[0].stretches > 1
    assert found.sample and found.sample.architecture == "lamemo" and found.sample.prompt
    assert "seed = 7" in found.recipes["lamemo"] and found.command.startswith("remanence demo --text")
    assert found.notes and "60 steps" in found.notes[0]
    page = (out / "report.html").read_text(encoding="utf-8")
    assert page == (out / "1" / "report.html").read_text(encoding="utf-8")
    assert "book.txt" in page
    assert (out / "1" / "picture.png").stat().st_size < 150_000
    assert load_run(out / "1" / "lamemo", "last").step == found.models[2].steps
    assert not list(out.glob(".*"))

    assert cli.main(["demo", *flags, "--models", "transformer-xl"]) == 0
    said = capsys.readouterr()
    assert "prepared by an earlier demo" in said.err and "LaMemo" not in said.out
    assert [model.architecture for model in Comparison.load(out / "2" / "results.json").models] == ["transformer-xl"]
    assert (out / "1" / "report.html").read_text(encoding="utf-8") == page
    assert (out / "report.html").read_text(encoding="utf-8") != page


def test_without_matplotlib_one_sentence_says_so_before_anything_is_done(tmp_path, monkeypatch, capsys):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "matplotlib" else find(name))
    assert cli.main(["demo", "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("remanence: error: ") and "pip install 'remanence[plots]'" in error
    assert error.count("\n") == 1 and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--minutes", "0"], "must be above 0"),
        (["--minutes", "nan"], "must be above 0"),
        (["--models", "lamemo", "lamemo"], "at most once"),
        (["--seed", "-1"], "0 or more"),
        (["--modles", "lamemo"], "--models"),
        (["--models", "compresive"], "did you mean 'compressive'"),
        (["--text", "missing.txt"], "no text file missing.txt"),
    ],
)
def test_flags_that_cannot_be_are_refused_in_one_sentence(flags, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["demo", *flags]) == 2
    error = capsys.readouterr().err
    assert error.startswith("remanence: error: ") and words in error and error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_text_that_is_too_short_is_refused(tmp_path, capsys):
    (tmp_path / "short.txt").write_text("short")
    assert cli.main(["demo", "--text", str(tmp_path / "short.txt"), "--out", str(tmp_path / "out")]) == 2
    assert "has 5 bytes, but the demo needs 100,000 or more" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_help_shows_an_example_and_comes_without_torch():
    code = "import sys; from remanence.cli import main; main(['demo', '--help']); assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "Example: remanence demo --minutes 10" in done.stdout, done.stderr


def test_ctrl_c_ends_the_demo_in_a_sentence_and_keeps_what_was_trained(book, tmp_path):
    out = tmp_path / "out"
    code = """
import functools, sys
from remanence.analysis import demo
from tests.commands.test_demo import SMALL
from remanence.cli import main
demo.Demo = functools.partial(demo.Demo, scale=SMALL)
sys.exit(main(["demo", "--text", sys.argv[1], "--out", sys.argv[2], "--minutes", "1"]))
"""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(book), str(out)], stderr=subprocess.PIPE, text=True, env=environment
    )
    log = out / "1" / "transformer" / "log.jsonl"
    limit = time.monotonic() + 60
    while not (log.exists() and '"train"' in log.read_text()) and child.poll() is None and time.monotonic() < limit:
        time.sleep(0.05)
    child.send_signal(signal.SIGINT)
    _, error = child.communicate(timeout=60)
    assert child.returncode == 130
    assert "Traceback" not in error and f"what was trained until then is in {out / '1'}" in error
    assert load_run(out / "1" / "transformer", "last").step > 0
    assert not list(out.glob(".*")) and not (out / "report.html").exists()
