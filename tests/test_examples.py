"""The examples run, on little text and for few steps."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


def load(name: str) -> ModuleType:
    specification = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert specification and specification.loader
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_a_memory_is_carried_by_hand(capsys):
    load("memory_by_hand").main()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 and lines[1].endswith("True") and lines[3].endswith("True")
    assert "resized to 256: 64 positions are filled" in lines[2]


def test_a_model_is_trained_scored_heard_and_looked_into(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    text = tmp_path / "text.txt"
    text.write_text("".join(path.read_text(encoding="utf-8") for path in sorted(EXAMPLES.glob("*.py"))) * 2)

    load("train_in_python").main(text, tmp_path, steps=6)
    said = capsys.readouterr().out
    assert "6 steps in" in said and "memory 128: " in said and "held at the largest of training" in said

    load("stream_generation").main(tmp_path / "run", tokens=20)
    assert capsys.readouterr().out.endswith("the same text: True\n")

    load("what_lamemo_keeps").main(tmp_path / "run", tmp_path / "kept.svg")
    said = capsys.readouterr().out
    assert "layer 2: the newest slot keeps" in said and (tmp_path / "kept.svg").stat().st_size > 1000


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_every_example_is_short_and_says_how_it_is_run(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) < 60
    assert f"python examples/{path.name}" in text
