"""`remanence evaluate`: what it prints, what it stores, and what it refuses."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from remanence.cli import main
from remanence.commands.evaluate import _by_their_flags
from remanence.data import Corpus
from remanence.errors import InputError
from remanence.evaluation import Protocol, Score, evaluate
from remanence.training import load_run


@pytest.fixture
def run(make_run: Callable[..., Path], tmp_path: Path) -> Path:
    """A copy of the run, so that what one test stores is not seen by the next."""
    return Path(shutil.copytree(make_run(), tmp_path / "run"))


def scores_of(capsys: pytest.CaptureFixture[str], *argv: Any) -> list[dict[str, Any]]:
    assert main(["evaluate", *map(str, argv), "--json"]) == 0
    return json.loads(capsys.readouterr().out)["scores"]


def stored(run: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(run.glob("evaluation-*.json"))]


def test_a_line_for_each_memory_length_and_the_protocol_in_words(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(run), "--memory-length", "0", "5", "20"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    for part in ("memory bits per byte", "small, lamemo", "held", "Read in segments of 6 by 2 lanes", "Memory of 20:"):
        assert part in shown


def test_every_score_is_stored_in_the_run_with_its_protocol(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    printed = scores_of(capsys, run, "--memory-length", "5", "20")
    files = sorted(stored(run), key=lambda entry: entry["protocol"]["memory_length"])
    assert [entry["nats"] for entry in files] == [entry["nats"] for entry in printed]
    assert [entry["protocol"]["held"] for entry in files] == [None, [10, 5]]
    assert {entry["step"] for entry in files} == {3}
    assert all(Score.from_json(entry).headline == entry["headline"] for entry in files)


def test_the_command_gives_the_numbers_of_the_library(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loaded = load_run(run)
    split = Corpus.open(loaded.recipe.data.corpus).split("test")
    expected = evaluate(loaded.model, split, Protocol(lanes=2), trained=loaded.distances)
    assert scores_of(capsys, run)[0]["nats"] == expected.nats


def test_flags_come_before_the_recipe(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--segment-length", 4, "--memory-length", 3, "--lanes", 1, "--protocol", "document", "--clamp-length", 5]
    flags += ["--same-length", "True", "--split", "validation", "--no-hold-distances", "--precision", "bfloat16"]
    protocol = scores_of(capsys, run, *flags, "--checkpoint", "last")[0]["protocol"]
    expected = {
        "segment_length": 4,
        "memory_length": 3,
        "lanes": 1,
        "starts": "document",
        "clamp_length": 5,
        "same_length": True,
        "split": "validation",
        "hold_distances": False,
        "precision": "bfloat16",
        "corpus": "words",
    }
    assert {name: protocol[name] for name in expected} == expected


def test_loss_by_position_and_interpolation_are_shown_when_asked_for(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(run), "--protocol", "document", "--by-position", "--interpolation"]) == 0
    shown = capsys.readouterr().out
    assert "position in the document" in shown
    assert "old content kept" in shown
    measured = stored(run)[0]["measurements"]
    assert measured["loss_by_position"][0]["begin"] == 0
    assert len(measured["interpolation"]) == 1


def test_a_model_that_does_not_blend_says_so(make_run: Callable, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(make_run("transformer")), "--interpolation"]) == 0
    assert "does not blend" in capsys.readouterr().out


def test_words_are_scored_in_perplexity(make_run: Callable, capsys: pytest.CaptureFixture[str]) -> None:
    assert scores_of(capsys, make_run("transformer", "word"))[0]["headline"].endswith(" perplexity")


def test_nothing_but_json_is_printed_when_asked_for(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(run), "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["checkpoint"] in ("best", "last")
    assert captured.err == ""


def test_a_number_is_shown_even_where_it_cannot_be_stored(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device", "evaluation.json")

    monkeypatch.setattr(Score, "save", full)
    assert main(["evaluate", str(run)]) == 2
    captured = capsys.readouterr()
    assert "bits per byte" in captured.out
    assert captured.err == "remanence: error: No space left on device: evaluation.json.\n"


REFUSED = {
    "no run": (["{missing}"], "holds no run"),
    "no corpus": (["{run}", "--corpus", "{missing}"], "no prepared corpus"),
    "another tokenizer": (["{run}", "--corpus", "{words}"], "prepared with another tokenizer (word)"),
    "negative memory": (["{run}", "--memory-length", "-1"], "The memory length is -1"),
    "segments of 0": (["{run}", "--segment-length", "0"], "The segment length is 0"),
    "no lanes": (["{run}", "--lanes", "0"], "The number of lanes is 0"),
    "too many lanes": (["{run}", "--lanes", "99999"], "take fewer lanes or more text"),
    "same length without memory": (["{run}", "--same-length", "True", "--memory-length", "0"], "same length"),
    "memory for a Transformer": (["{transformer}", "--memory-length", "0", "5"], "a transformer has none"),
    "an unknown flag": (["{run}", "--memory-lenght", "5"], "did you mean --memory-length?"),
    "an unknown split": (["{run}", "--split", "dev"], "--split"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_mistakes_are_one_sentence_and_leave_nothing_behind(
    run: Path, make_run: Callable, tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    argv, expected = REFUSED[case]
    places = {
        "{run}": run,
        "{missing}": tmp_path / "missing",
        "{words}": make_run("transformer", "word").parent / "corpus",
        "{transformer}": make_run("transformer"),
    }
    assert main(["evaluate", *(str(places.get(word, word)) for word in argv)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("remanence: error: ")
    assert captured.err.count("\n") == 1
    assert expected in captured.err
    assert stored(run) == []


def test_a_setting_that_the_model_refuses_is_named_by_its_flag() -> None:
    with pytest.raises(InputError, match=r"^--same-length is True, but it must be false"), _by_their_flags():
        raise InputError("model.same_length is True, but it must be false.")


def test_the_help_shows_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "--help"]) == 0
    assert "Example: remanence evaluate " in capsys.readouterr().out


def test_help_does_not_wait_for_torch() -> None:
    import subprocess

    code = "import sys; from remanence.cli import main; main(['evaluate', '--help']); sys.exit('torch' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, env=os.environ, check=False).returncode == 0
    )


def test_a_segment_may_be_longer_than_the_text(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exact, beyond = (scores_of(capsys, run, "--segment-length", length, "--lanes", 1) for length in (10**4, 10**7))
    assert beyond[0]["nats"] == exact[0]["nats"]


def test_every_length_of_a_sweep_is_told_when_it_is_done(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(run), "--memory-length", "0", "5"]) == 0
    captured = capsys.readouterr()
    assert [line.split(":")[0] for line in captured.err.splitlines()] == ["memory 0", "memory 5"]
    assert all(line == line.rstrip() for line in captured.out.splitlines())


def test_newlines_that_were_left_out_are_part_of_the_protocol(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus = Path(shutil.copytree(load_run(run).recipe.data.corpus, tmp_path / "corpus"))
    manifest = json.loads((corpus / "manifest.json").read_text())
    manifest["settings"]["legacy_newlines"] = True
    (corpus / "manifest.json").write_text(json.dumps(manifest))
    assert scores_of(capsys, run, "--corpus", corpus)[0]["protocol"]["corpus"].endswith("legacy_newlines)")
