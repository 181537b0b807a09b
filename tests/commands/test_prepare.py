"""`remanence prepare` as a user types it."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from remanence.commands import prepare as command
from remanence.data import Corpus
from remanence.errors import InputError

LINES = "the cat sat on the mat\n\f\nan owl was not there\n\f\n" * 50


@pytest.fixture(autouse=True)
def text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text(LINES)
    return tmp_path


def run(line: str) -> int:
    return command.main(line.split(), "remanence prepare")


def test_a_file_becomes_a_corpus_in_the_data_folder(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("text.txt") == 0
    assert Corpus.open("data/text").unit == "byte"
    out = capsys.readouterr().out
    assert "data/text: text" in out and "tokenizer byte, vocabulary of 256" in out


def test_the_summary_tells_the_sizes_of_every_split(capsys: pytest.CaptureFixture[str]) -> None:
    run("text.txt --separator \\f --out out --validation 0")
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line[0] for line in lines[3:]] == ["train", "test"]
    assert lines[3][-1] == "95"


def test_quiet_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    run("text.txt --quiet")
    run("text.txt --quiet")
    assert capsys.readouterr() == ("", "")


def test_a_second_time_is_told_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    run("text.txt")
    capsys.readouterr()
    assert run("text.txt") == 0
    assert "holds this preparation already" in capsys.readouterr().err


def test_flags_reach_the_preparation() -> None:
    run("text.txt --out out --name mine --tokenizer word --min-count 2 --documents none --licence CC0 --workers 1")
    corpus = Corpus.open("out")
    assert (corpus.name, corpus.unit, corpus.manifest["licence"]) == ("mine", "word", "CC0")
    assert corpus.manifest["settings"]["min_count"] == 2
    assert len(corpus.split("train").documents) == 1


@pytest.mark.parametrize(("flags", "splits"), [("--validation 0.2", 3), ("--validation v.txt v2.txt --test 0", 2)])
def test_a_held_out_split_is_a_fraction_or_files(flags: str, splits: int) -> None:
    for name in ("v.txt", "v2.txt"):
        Path(name).write_text("held out\n")
    run(f"text.txt {flags} --out out")
    assert len(Corpus.open("out").splits) == splits


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("text.txt --vocab-sise 3", "There is no flag --vocab-sise; did you mean --vocab-size"),
        ("text.txt --vocab-size many", "whole number"),
        ("text.txt --documents pages", '"file", "separator", "none"'),
        ("", "Nothing to read"),
        ("nothing.txt", "There is no file"),
    ],
)
def test_mistakes_are_one_sentence(line: str, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        run(line)


def test_help_shows_examples_and_every_published_corpus(capsys: pytest.CaptureFixture[str]) -> None:
    from remanence.data.published import PUBLISHED

    with pytest.raises(SystemExit) as stop:
        run("--help")
    assert stop.value.code == 0
    out = capsys.readouterr().out
    assert "remanence prepare wikitext-2" in out
    assert all(name in out for name in PUBLISHED)
    assert "--from DIR" in out


def cli(*arguments: str, typed: str = "") -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "remanence", "prepare", *arguments]
    return subprocess.run(line, input=typed, capture_output=True, text=True, check=False)


def test_the_command_line_ends_with_code_2_and_a_sentence() -> None:
    done = cli("missing.txt")
    assert done.returncode == 2
    assert done.stderr == "remanence: error: There is no file, folder or pattern missing.txt; check the path.\n"


def test_standard_input_is_piped_in() -> None:
    done = cli("-", "--out", "out", typed=LINES)
    assert done.returncode == 0, done.stderr
    assert sum(len(Corpus.open("out").split(split)) for split in ("train", "validation", "test")) == len(LINES)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_leaves_nothing_and_no_process(text: Path, number: signal.Signals, code: int) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "remanence", "prepare", "-", "--out", "out"],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # Whoever runs the tests in the background may have told them to ignore Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        while not (text / ".out.preparing").exists():
            time.sleep(0.01)
        time.sleep(0.1)
        process.send_signal(number)
        assert process.wait(20) == code
    assert sorted(path.name for path in text.iterdir()) == ["text.txt"]


def test_a_percentage_is_told_how_to_be_written() -> None:
    with pytest.raises(InputError, match=r"5% is no fraction of the text; write 0\.05"):
        run("text.txt --validation 5%")
