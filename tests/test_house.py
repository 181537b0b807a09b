"""The rules of the house: formatting, lint, types, the order of the layers. `make lint` runs this file alone."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

FOLDERS = ["src", "tests", "examples", "benchmarks"]


def check(root: Path, *command: str) -> None:
    """Run a tool with this environment's Python and show all it says where it finds fault."""
    done = subprocess.run([sys.executable, *command], cwd=root, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.fail(done.stdout + done.stderr, pytrace=False)


def tracked(root: Path, *patterns: str) -> list[Path]:
    """The files that git knows of, or would know of; all of them where this is no git checkout."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *patterns]
    try:
        listed = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout.splitlines()
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs a git checkout")
    return [root / name for name in listed if (root / name).is_file()]


def test_the_code_is_formatted(root: Path) -> None:
    check(root, "-m", "ruff", "format", "--check", "--quiet", *[name for name in FOLDERS if (root / name).is_dir()])


def test_the_linter_finds_nothing(root: Path) -> None:
    check(root, "-m", "ruff", "check", "--quiet", *[name for name in FOLDERS if (root / name).is_dir()])


def test_the_types_fit(root: Path) -> None:
    if shutil.which("node") is None:
        pytest.skip("pyright needs Node.js: install it, or pip install 'pyright[nodejs]' into a folder on the PATH")
    check(root, "-m", "pyright", "--pythonpath", sys.executable)


def test_every_layer_imports_only_from_those_below(root: Path) -> None:
    check(root, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()", "--no-logo")


def test_nothing_that_is_loaded_can_execute_code(root: Path) -> None:
    forbidden = re.compile(
        r"^\s*(import|from) (pickle|cPickle|dill|cloudpickle|joblib|shelve|marshal)|torch\.load\(|weights_only=False"
        r"|allow_pickle=True|\b(?<![.\w])(eval|exec)\("
    )
    found = [
        f"{path.relative_to(root)}:{number}: {line.strip()}"
        for path in tracked(root, "src/*.py", "benchmarks/*.py", "examples/*.py")
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if forbidden.search(line) and not line.lstrip().startswith("#")
    ]
    # The one place where pickles are looked at, which are read as text first and then loaded as weights alone.
    assert [line.partition(": ")[2] for line in found if line.startswith("src/remanence/interop/weights.py:")] == [
        "import pickletools",
        'loaded: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=True)',
    ]
    assert [line for line in found if not line.startswith("src/remanence/interop/weights.py:")] == []


def test_no_path_of_one_machine_is_in_the_project(root: Path) -> None:
    if str(root.parent) in ("/", str(Path.home())):
        pytest.skip("the folder above the clone is too common a path to look for")
    beside = f"{root.parent}/"
    found = [
        str(path.relative_to(root))
        for path in tracked(root)
        if path.suffix not in {".npz", ".png", ".html"} and beside in path.read_text(encoding="utf-8", errors="replace")
    ]
    assert not found
