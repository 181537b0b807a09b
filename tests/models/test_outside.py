"""A model from another package: found by its entry point, and held to the same suite."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from remanence.models import architectures, config_class

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "add_a_memory"


def installed(folder: Path, module: str | None = None) -> dict[str, str]:
    """The environment of a process in which the example is installed: what an installer would leave in `folder`."""
    about = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]
    entries = about["entry-points"]["remanence.models"]
    described = folder / "my_memory-0.1.dist-info"
    described.mkdir()
    (described / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {about['name']}\nVersion: {about['version']}\n")
    lines = "".join(f"{name} = {module or value}\n" for name, value in entries.items())
    (described / "entry_points.txt").write_text(f"[remanence.models]\n{lines}")
    path = os.pathsep.join(map(str, (folder, EXAMPLE, ROOT)))
    return {**os.environ, "PYTHONPATH": path, "REMANENCE_TEST_VARIANTS": "my_variants", "OMP_NUM_THREADS": "1"}


def run(environment: dict[str, str], *command: str) -> Any:
    return subprocess.run(
        [sys.executable, *command], env=environment, capture_output=True, text=True, cwd=ROOT, check=False
    )


def test_the_example_is_as_short_as_the_guide_says() -> None:
    assert len((EXAMPLE / "my_memory.py").read_text().splitlines()) < 100


def test_the_example_passes_the_suite_of_all_models(tmp_path: Path) -> None:
    suite = ("-m", "pytest", "-q", "-x", "-n", "0", "-p", "no:cacheprovider", "tests/models", "-k", "my-rmt")
    found = run(installed(tmp_path), *suite)
    assert found.returncode == 0, found.stdout[-3000:]
    # The two variants, each in every test of the suite.
    assert " passed" in found.stdout and int(found.stdout.split(" passed")[0].split()[-1]) > 100


def test_the_example_is_an_architecture_like_any_other(tmp_path: Path) -> None:
    """For recipes, for the report of a wrong name, and with the class of its own configuration."""
    told = "from remanence.models import *; print(architectures()[-1], config_class('my-rmt').__name__)"
    found = run(installed(tmp_path), "-c", told)
    assert found.stdout.split() == ["my-rmt", "MyConfig"], found.stderr


@pytest.mark.parametrize(
    ("value", "told"),
    [("no_such_module:Model", "which cannot be imported (ModuleNotFoundError"), ("pathlib:Path", "must be a Language")],
)
def test_a_promise_that_is_not_kept_is_told_in_a_sentence(tmp_path: Path, value: str, told: str) -> None:
    found = run(installed(tmp_path, value), "-c", "from remanence.models import config_class; config_class('my-rmt')")
    assert "remanence.errors.InputError: The architecture 'my-rmt' is promised by" in found.stderr
    assert told in found.stderr


def test_what_nobody_promises_is_not_there() -> None:
    assert "my-rmt" not in architectures()
    assert config_class("rmt").architecture == "rmt"
