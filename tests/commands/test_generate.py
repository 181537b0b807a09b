"""`remanence generate`: prompts, samples, pauses, and what it refuses."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from remanence.cli import main
from remanence.generation import Session, Step
from remanence.training import load_run

PROMPT = "what was written "


@pytest.fixture(scope="module")
def run(make_run: Callable[..., Path]) -> Path:
    return make_run()


@pytest.fixture
def generate(run: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run the command and give what it wrote to standard output."""

    def call(*argv: Any, code: int = 0) -> str:
        assert main(["generate", str(run), *map(str, argv)]) == code
        return capsys.readouterr().out

    return call


def test_the_text_is_that_of_a_session(run: Path, generate: Callable[..., str]) -> None:
    session = Session(load_run(run), seed=7)
    session.read(PROMPT)
    assert generate("--prompt", PROMPT, "--max-tokens", 40, "--seed", 7) == session.generate(40)[0]


def test_a_prompt_comes_from_a_flag_a_file_or_standard_input(
    generate: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = generate("--prompt", PROMPT, "--max-tokens", 20)
    (tmp_path / "prompt.txt").write_text(PROMPT, encoding="utf-8")
    assert generate("--prompt-file", tmp_path / "prompt.txt", "--max-tokens", 20) == expected
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(PROMPT.encode())))
    assert generate("-", "--max-tokens", 20) == expected


def test_a_flag_may_hold_bytes_that_are_not_utf8(generate: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "prompt").write_bytes(b"caf\xe9 ")
    expected = generate("--prompt-file", tmp_path / "prompt", "--max-tokens", 20)
    assert generate("--prompt", os.fsdecode(b"caf\xe9 "), "--max-tokens", 20) == expected


def test_without_a_prompt_the_text_begins_after_a_line_break(generate: Callable[..., str]) -> None:
    assert generate("--max-tokens", 20) == generate("--prompt", "\n", "--max-tokens", 20)


def test_several_samples_are_shown_one_after_the_other(generate: Callable[..., str]) -> None:
    shown = generate("--prompt", PROMPT, "--samples", 3, "--max-tokens", 20, "--seed", 4)
    parts = [generate("--prompt", PROMPT, "--max-tokens", 20, "--seed", seed) for seed in (4, 5, 6)]
    expected = ""
    for number, part in enumerate(parts, 1):
        expected += ("\n" if expected and not expected.endswith("\n") else "") + f"--- sample {number} of 3 ---\n{part}"
    assert shown == expected


def test_json_holds_texts_ids_and_settings(generate: Callable[..., str]) -> None:
    flags = ["--prompt", PROMPT, "--samples", 2, "--max-tokens", 20, "--temperature", 0.7, "--top-k", 9, "--seed", 3]
    result = json.loads(generate(*flags, "--json"))
    assert [len(sample["ids"]) for sample in result["samples"]] == [20, 20]
    assert (result["settings"]["temperature"], result["settings"]["top_k"]) == (0.7, 9)
    titled = generate(*flags)
    assert all(sample["text"] in titled for sample in result["samples"])


def test_the_text_ends_before_a_stop_string(generate: Callable[..., str]) -> None:
    text = generate("--prompt", PROMPT, "--max-tokens", 60, "--seed", 1)
    stops = [text[30:32], text[40:43]]
    expected = text[: min(text.index(stop) for stop in stops)]
    flags = [part for stop in stops for part in ("--stop", stop)]
    shown = generate("--prompt", PROMPT, "--max-tokens", 60, "--seed", 1, *flags)
    assert shown == expected


def test_pauses_change_nothing(generate: Callable[..., str], tmp_path: Path) -> None:
    memory = tmp_path / "memory.safetensors"
    whole = generate("--prompt", PROMPT, "--max-tokens", 30, "--seed", 5, "--temperature", 1.3)
    text = generate("--prompt", PROMPT, "--max-tokens", 7, "--seed", 5, "--temperature", 1.3, "--memory-out", memory)
    text += generate("--memory-in", memory, "--max-tokens", 11, "--memory-out", memory)
    text += generate("--memory-in", memory, "--max-tokens", 12)
    assert text == whole


def test_a_stop_string_may_be_cut_by_a_pause(generate: Callable[..., str], tmp_path: Path) -> None:
    memory, flags = tmp_path / "memory.safetensors", ["--prompt", PROMPT, "--seed", 1]
    text = generate(*flags, "--max-tokens", 60)
    stop = text[30:36]
    for count in range(len(text[: text.index(stop)].encode()), len(text[: text.index(stop)].encode()) + 6):
        shown = generate(*flags, "--stop", stop, "--max-tokens", count, "--memory-out", memory)
        shown += generate("--memory-in", memory, "--max-tokens", 20)
        assert shown == text[: text.index(stop)]


def test_going_on_after_a_stop_string_needs_a_prompt(
    run: Path, generate: Callable[..., str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    memory, text = tmp_path / "memory.safetensors", generate("--max-tokens", 30)
    generate("--max-tokens", 30, "--stop", text[10], "--memory-out", memory)
    assert main(["generate", str(run), "--memory-in", str(memory)]) == 0
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("remanence: warning: What was saved has ended at a stop string")
    assert len(generate("--memory-in", memory, "--prompt", "and ", "--stop", "no such text", "--max-tokens", 5)) > 0


def test_a_prompt_read_once_may_be_gone_on_from_many_times(generate: Callable[..., str], tmp_path: Path) -> None:
    memory = tmp_path / "memory.safetensors"
    assert generate("--prompt", PROMPT, "--max-tokens", 0, "--memory-out", memory) == ""
    for seed in (1, 2):
        expected = generate("--prompt", PROMPT, "--max-tokens", 15, "--seed", seed)
        assert generate("--memory-in", memory, "--max-tokens", 15, "--seed", seed) == expected


def test_more_prompt_may_follow_a_pause(generate: Callable[..., str], tmp_path: Path) -> None:
    memory = tmp_path / "memory.safetensors"
    generate("--prompt", PROMPT, "--max-tokens", 0, "--memory-out", memory)
    expected = generate("--prompt", PROMPT + "before", "--max-tokens", 15)
    assert generate("--memory-in", memory, "--prompt", "before", "--max-tokens", 15) == expected


def test_flags_that_do_nothing_are_told(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", str(run), "--max-tokens", "3", "--temperature", "0", "--top-k", "5"]) == 0
    assert capsys.readouterr().err == "remanence: warning: --top-k has no effect at temperature 0.\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_between_two_tokens_and_keeps_the_memory(
    run: Path,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals,
) -> None:
    whole = Session(load_run(run), seed=2).generate(30)[0]
    plain, memory = Session.step, tmp_path / "memory.safetensors"

    def interrupted(session: Session) -> Step | None:
        if session.tokens_read == 9:
            os.kill(os.getpid(), number)
        return plain(session)

    monkeypatch.setattr(Session, "step", interrupted)
    argv = ["generate", str(run), "--seed", "2", "--max-tokens", "500", "--memory-out", str(memory)]
    assert main(argv) == 128 + number
    first = capsys.readouterr()
    assert first.err == ""
    monkeypatch.setattr(Session, "step", plain)
    assert main(["generate", str(run), "--memory-in", str(memory), "--max-tokens", "20"]) == 0
    assert first.out + capsys.readouterr().out == whole


def test_a_reader_that_goes_away_leaves_the_memory(run: Path, tmp_path: Path) -> None:
    memory = tmp_path / "memory.safetensors"
    command = f"{sys.executable} -m remanence generate {run} --max-tokens 3000 --memory-out {memory}"
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command} | head -c 20"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (141, "")
    assert Session.load(memory, load_run(run)).step() is not None


def test_control_characters_are_made_visible_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    from remanence.commands.generate import Screen

    class Terminal(io.StringIO):
        """A terminal that remembers."""

        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    screen = Screen(silent=False)
    screen.text("a\x1b[2J\tb\n")
    screen.text("c\x9b")
    screen.end()
    assert terminal.getvalue() == "a␛[2J\tb\nc\ufffd\n"


REFUSED = {
    "no run": (["{missing}"], "holds no run"),
    "no prompt file": (["{run}", "--prompt-file", "{missing}"], "does not exist; check the path"),
    "several prompts": (["{run}", "-", "--prompt", "x"], "Several prompts were given"),
    "a negative number of tokens": (["{run}", "--max-tokens", "-1"], "--max-tokens is -1"),
    "no samples": (["{run}", "--samples", "0"], "0 samples were asked for"),
    "a negative temperature": (["{run}", "--temperature", "-1"], "A temperature of -1.0"),
    "a top-p above 1": (["{run}", "--top-p", "2"], "A top-p of 2.0"),
    "an empty stop string": (["{run}", "--stop", ""], "stop string is empty"),
    "a negative memory": (["{run}", "--memory-length", "-1"], "memory length is -1"),
    "segments of 0": (["{run}", "--segment-length", "0"], "segment length is 0"),
    "no memory file": (["{run}", "--memory-in", "{missing}"], "does not exist; check the path"),
    "the memory of another model": (["{other}", "--memory-in", "{memory}"], "the memory of a lamemo model"),
    "a damaged memory": (["{run}", "--memory-in", "{damaged}"], "altered"),
    "a length beside a memory": (["{run}", "--memory-in", "{memory}", "--memory-length", "3"], "leave one of the two"),
    "no folder for the memory": (["{run}", "--memory-out", "{missing}/memory"], "which is no folder"),
    "a folder as memory": (["{run}", "--memory-out", "{run}"], "is a folder"),
    "characters the vocabulary lacks": (["{characters}", "--prompt", "é"], "'é'"),
    "a prompt that is not text": (["{characters}", "--prompt-file", "{damaged}"], "not UTF-8"),
    "an unknown flag": (["{run}", "--top", "5"], "no flag --top"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_mistakes_are_one_sentence_and_leave_nothing_behind(
    run: Path, make_run: Callable, tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    argv, expected = REFUSED[case]
    memory, damaged, out = tmp_path / "memory", tmp_path / "damaged", tmp_path / "out"
    Session(load_run(run)).save(memory)
    damaged.write_bytes(memory.read_bytes()[:-1] + b"\xff")
    places = {
        "{run}": run,
        "{missing}": tmp_path / "missing",
        "{other}": make_run("transformer-xl"),
        "{characters}": make_run("transformer", "char"),
        "{memory}": memory,
        "{damaged}": damaged,
    }
    filled = []
    for word in argv:
        for name, place in places.items():
            word = word.replace(name, str(place))
        filled.append(word)
    if "--memory-out" not in filled:
        filled += ["--memory-out", str(out)]
    assert main(["generate", *filled]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("remanence: error: ")
    assert captured.err.count("\n") == 1
    assert expected in captured.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["damaged", "memory"]


def test_the_help_shows_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "--help"]) == 0
    assert "Example: remanence generate " in capsys.readouterr().out


def test_a_file_that_is_no_memory_is_never_replaced(run: Path, tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("mine")
    assert main(["generate", str(run), "--memory-out", str(path), "--max-tokens", "1"]) == 2
    assert "exists and is no memory file" in capsys.readouterr().err and path.read_text() == "mine"


def test_a_memory_file_may_be_replaced(generate: Callable[..., str], tmp_path: Path) -> None:
    for _ in range(2):
        generate("--memory-out", tmp_path / "memory", "--max-tokens", 1)


@pytest.mark.parametrize("flag", ["--prompt-file", "--memory-in"])
def test_a_folder_or_nothing_is_no_file_to_read(run: Path, tmp_path: Path, capsys: Any, flag: str) -> None:
    for path, fault in ((tmp_path, "is a folder"), (tmp_path / "none", "does not exist")):
        assert main(["generate", str(run), flag, str(path)]) == 2
        assert f"{flag} {path} {fault}" in capsys.readouterr().err


def test_a_full_disk_is_told_with_the_file(
    run: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Session, "save", full)
    assert main(["generate", str(run), "--memory-out", str(tmp_path / "memory"), "--max-tokens", "1"]) == 2
    assert "memory could not be written (No space left on device); make room" in capsys.readouterr().err
