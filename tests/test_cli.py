"""The command line: instant help, one sentence for every mistake, and the right exit code."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from remanence import __version__
from remanence.cli import COMMANDS, main
from remanence.errors import InputError


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Make the command `demo` run a function of the test."""

    def install(function: Any) -> None:
        monkeypatch.setitem(sys.modules, "remanence.commands.demo", SimpleNamespace(main=function))

    return install


def python(code: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, **options)


@pytest.mark.parametrize("argv", [[], ["--help"], ["-h"], ["help"]])
def test_the_help_lists_every_command_and_an_example(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 0
    shown = capsys.readouterr().out
    assert all(f"\n  {name} " in shown for name in COMMANDS) and "\nexample:\n  remanence " in shown
    assert max(map(len, shown.splitlines())) <= 100


@pytest.mark.parametrize("argv", ["--help", "--version", "trian"])
def test_nothing_slow_is_imported_before_a_command_is_chosen(argv: str) -> None:
    slow = "{'torch', 'numpy', 'tyro', 'rich', 'importlib.metadata', 'argparse'}"
    code = f"import sys; from remanence.cli import main; main([{argv!r}]); print(sorted({slow} & set(sys.modules)))"
    done = python(code)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"remanence {__version__}\n"


@pytest.mark.parametrize(("word", "nearest"), [("trian", "train"), ("eval", "evaluate"), ("gen", "generate")])
def test_an_unknown_command_names_the_nearest(word: str, nearest: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([word]) == 2
    assert capsys.readouterr().err == (
        f"remanence: error: There is no command {word}; did you mean {nearest}? See remanence --help.\n"
    )


@pytest.mark.parametrize(("word", "nearest"), [("--versoin", "--version"), ("--hlep", "--help")])
def test_an_unknown_option_names_the_nearest_option(
    word: str, nearest: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([word]) == 2
    assert f"There is no option {word}; did you mean {nearest}?" in capsys.readouterr().err


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."),
        RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."),
    ],
)
def test_too_little_memory_is_told_in_a_sentence(
    error: Exception, command: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(argv: list[str], prog: str) -> int:
        raise error

    command(fail)
    assert main(["demo"]) == 2
    told = capsys.readouterr().err
    assert told.startswith("remanence: error: This machine has not enough memory") and told.count("\n") == 1


def test_a_runtime_error_of_ours_keeps_its_traceback(command: Any) -> None:
    def fail(argv: list[str], prog: str) -> int:
        raise RuntimeError("ours")

    command(fail)
    with pytest.raises(RuntimeError, match="ours"):
        main(["demo"])


def test_a_command_gets_its_arguments_and_gives_the_exit_code(command: Any) -> None:
    given: list[Any] = []
    command(lambda argv, prog: given.append((argv, prog)) or 5)
    assert main(["demo", "--a", "b"]) == 5
    assert given == [(["--a", "b"], "remanence demo")]


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (InputError("The recipe is wrong."), "The recipe is wrong."),
        (OSError(28, "No space left on device", "runs/x/log.jsonl"), "No space left on device: runs/x/log.jsonl."),
        (PermissionError(13, "Permission denied", "x"), "Permission denied: x."),
        (OSError("model.safetensors could not be written"), "model.safetensors could not be written."),
    ],
)
def test_bad_input_and_the_system_fail_in_a_sentence(
    error: Exception, sentence: str, command: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(argv: list[str], prog: str) -> int:
        raise error

    command(fail)
    assert main(["demo"]) == 2
    assert capsys.readouterr().err == f"remanence: error: {sentence}\n"


def test_a_fault_of_ours_keeps_its_traceback(command: Any) -> None:
    def fail(argv: list[str], prog: str) -> int:
        raise ValueError("ours")

    command(fail)
    with pytest.raises(ValueError, match="ours"):
        main(["demo"])


def test_ctrl_c_ends_with_130(command: Any, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(argv: list[str], prog: str) -> int:
        raise KeyboardInterrupt

    command(interrupted)
    assert main(["demo"]) == 130
    assert "Traceback" not in capsys.readouterr().err


def test_the_exit_code_of_a_help_is_kept(command: Any) -> None:
    command(lambda argv, prog: sys.exit(0))
    assert main(["demo", "--help"]) == 0


def test_a_reader_that_goes_away_is_no_error() -> None:
    code = (
        "import sys, types; sys.modules['remanence.commands.demo'] = types.SimpleNamespace("
        "main=lambda argv, prog: [print('x' * 1000) for _ in range(10000)] and 0);"
        "from remanence.cli import main; sys.exit(main(['demo']))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    told = process.stderr.read()
    process.stderr.close()
    assert process.wait() == 141 and told == ""


def test_our_warnings_are_sentences(command: Any) -> None:
    code = (
        "import sys, types, warnings\n"
        "from remanence.config import SettingWarning\n"
        "def run(argv, prog): warnings.warn('training.floor has no effect.', SettingWarning); return 0\n"
        "sys.modules['remanence.commands.demo'] = types.SimpleNamespace(main=run)\n"
        "from remanence.cli import main; sys.exit(main(['demo']))"
    )
    assert python(code).stderr == "remanence: warning: training.floor has no effect.\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself_with_an_example(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--help"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"usage: remanence {name} ")
    assert re.search(rf"Examples?:\s+remanence {name}", shown)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_names_the_nearest_flag(name: str, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["train", str(root / "recipes" / "lamemo-books.toml")] if name == "train" else [name]
    assert main([*argv, "--zzz"]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and told.startswith("remanence: error: There is no flag --zzz; did you mean --")


@pytest.mark.parametrize(("rank", "told"), [("0", 1), ("1", 0)])
def test_commands_that_are_not_shared_refuse_several_processes(
    rank: str, told: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["generate", "runs/x"]) == 2
    assert capsys.readouterr().err.count("generate is done by one process; start it without torchrun") == told
