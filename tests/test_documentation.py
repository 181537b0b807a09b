"""What the documentation shows runs, and what it links to exists."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = [*ROOT.glob("*.md"), *sorted((ROOT / "docs").rglob("*.md"))]


def names(paths: list[Path]) -> list[str]:
    return [str(path.relative_to(ROOT)) for path in paths]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def test_the_example_of_the_readme_runs(tmp_path: Path) -> None:
    (example,) = blocks(ROOT / "README.md", "python")
    done = subprocess.run([sys.executable, "-c", example], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "nats per byte" in done.stdout


def test_the_tutorial_can_be_followed_to_its_end(tmp_path: Path) -> None:
    """Every command and every piece of Python, in order, on a small text and with few steps."""
    page = ROOT / "docs" / "tutorial.md"
    recipe, steps = re.subn(r"^steps = .*$", "steps = 4", blocks(page, "toml")[0], flags=re.MULTILINE)
    assert steps == 1
    (tmp_path / "first.toml").write_text(re.sub(r"^warmup_steps = .*$\n", "", recipe, flags=re.MULTILINE))
    source = (ROOT / "tests" / "conftest.py").read_text(encoding="utf-8")
    for number in range(12):
        (tmp_path / f"text{number}.py").write_text(source)
    text = page.read_text(encoding="utf-8")
    shown = re.findall(
        r"^(?:\$ |    )((?:cat [^\n]*\| )?remanence [^\n]*)$|^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL
    )
    assert len(shown) > 10
    # In one process, because importing torch for each of them would take most of the time.
    follow = """
import json, shlex, sys
from remanence.cli import main
for command, code in json.load(open("shown.json")):
    if code:
        exec(compile(code, "tutorial", "exec"), {})
        continue
    if command.startswith("cat "):
        sys.stdin, command = open("text0.py"), command.split("| ")[1]
    print("$", command, file=sys.stderr)
    if "prepare" in command:
        command = "remanence prepare text*.py --name python-stdlib --validation 0.2 --test 0.2"
    assert main(shlex.split(command)[1:]) == 0, command
"""
    (tmp_path / "shown.json").write_text(json.dumps(shown))
    done = subprocess.run([sys.executable, "-c", follow], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_every_link_leads_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    targets = [target.split("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", text)]
    local = [target for target in targets if target and "://" not in target]
    assert [target for target in local if not (page.parent / target).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_every_command_that_is_shown_exists(page: Path) -> None:
    from remanence.cli import COMMANDS

    text = page.read_text(encoding="utf-8")
    shown = re.findall(r"^(?:    |\$ )?(?:\.venv/bin/)?remanence ([a-z]+)(?: .*)?$", text, re.MULTILINE)
    assert set(shown) <= set(COMMANDS)
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z]+):", makefile, re.MULTILINE))
    for line in re.findall(r"^    make (.+)$", text, re.MULTILINE):
        assert shlex.split(line, comments=True)[0] in targets, line
