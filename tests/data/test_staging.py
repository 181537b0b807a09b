"""A folder that is made in full or not at all."""

from __future__ import annotations

import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from remanence.data.staging import finish, staging
from remanence.errors import InputError


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_finished_folder_takes_its_name(tmp_path: Path) -> None:
    with staging(tmp_path / "out") as folder:
        (folder / "a").write_text("1")
        assert names(tmp_path) == [".out.preparing"]
        finish(folder, tmp_path / "out")
    assert names(tmp_path) == ["out"]
    assert (tmp_path / "out" / "a").read_text() == "1"


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError, SystemExit])
def test_a_folder_that_is_not_finished_vanishes(tmp_path: Path, error: type[BaseException]) -> None:
    with suppress(error), staging(tmp_path / "out") as folder:
        (folder / "a").write_text("1")
        raise error
    assert names(tmp_path) == []


def test_a_finished_folder_replaces_another(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").touch()
    with staging(tmp_path / "out") as folder:
        (folder / "new").touch()
        finish(folder, tmp_path / "out")
    assert names(tmp_path) == ["out"]
    assert names(tmp_path / "out") == ["new"]


def test_what_a_killed_run_left_is_cleared_away(tmp_path: Path) -> None:
    (tmp_path / ".out.preparing" / "tokenizer").mkdir(parents=True)
    (tmp_path / ".out.preparing" / "train.tokens").touch()
    with staging(tmp_path / "out") as folder:
        assert names(folder) == []


def test_what_a_run_killed_while_replacing_moved_away_is_put_back(tmp_path: Path) -> None:
    (tmp_path / ".out.replaced").mkdir()
    (tmp_path / ".out.replaced" / "old").touch()
    with staging(tmp_path / "out"):
        pass
    assert names(tmp_path) == ["out"]
    assert names(tmp_path / "out") == ["old"]


def test_two_processes_do_not_prepare_the_same_folder(tmp_path: Path) -> None:
    program = (
        "import sys, pathlib; from remanence.data.staging import staging\n"
        "with staging(pathlib.Path(sys.argv[1])): print('in', flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "out")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(InputError, match="Another process"), staging(tmp_path / "out"):
            pass
        other.kill()
    with staging(tmp_path / "out") as folder:
        assert names(folder) == []
