"""A run that is killed without warning, again and again, ends with the weights of one that was not."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from remanence.config import Recipe, dump_recipe
from remanence.files import read_json
from remanence.training.log import read_log

STEPS, KILLS = 90, 4
TIMINGS = ("seconds", "stalled", "tokens_per_second")


def start(recipe: Path, folder: Path) -> subprocess.Popen[str]:
    resume = ["--resume"] if (folder / "recipe.toml").exists() else []
    command = [sys.executable, "-m", "remanence", "train", str(recipe), "--folder", str(folder), *resume]
    return subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def finish(process: subprocess.Popen[str], code: int = 0) -> str:
    _, told = process.communicate(timeout=600)
    assert process.returncode == code, told
    return told


def reached(folder: Path) -> int:
    """The step of the last line of the log."""
    return max((record["step"] for record in read_log(folder / "log.jsonl")), default=0)


def wait_for(process: subprocess.Popen[str], folder: Path, step: int) -> None:
    deadline = time.monotonic() + 600
    while process.poll() is None and time.monotonic() < deadline:
        if (folder / "log.jsonl").exists() and reached(folder) >= step:
            return
        time.sleep(0.002)


@pytest.fixture
def recipe(make_recipe: Callable[..., Recipe], tmp_path: Path) -> Path:
    made = make_recipe(steps=STEPS, log_every=1, save_every=2, validate_every=9, validation_tokens=400)
    (tmp_path / "recipe.toml").write_text(dump_recipe(made), encoding="utf-8")
    return tmp_path / "recipe.toml"


def test_a_run_killed_at_arbitrary_moments_ends_with_the_same_weights_bit_for_bit(recipe: Path, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    undisturbed = start(recipe, whole)
    draw = random.Random()
    moments = []
    for number in range(KILLS):
        process = start(recipe, cut)
        seen = reached(cut) if (cut / "log.jsonl").exists() else 0
        wait_for(process, cut, min(seen + draw.randint(0, 2 * STEPS // KILLS - 8), STEPS - KILLS + number))
        time.sleep(draw.uniform(0, 0.03))
        process.kill()
        process.communicate()
        moments.append((reached(cut) if (cut / "log.jsonl").exists() else None, process.returncode))
    finish(start(recipe, cut))
    finish(undisturbed)
    assert -signal.SIGKILL in [code for _, code in moments], moments

    one, other = (read_json(run / "checkpoints" / "last" / "checkpoint.json", "it")["files"] for run in (whole, cut))
    assert one == other, moments
    best = [read_json(run / "checkpoints" / "best" / "checkpoint.json", "it") for run in (whole, cut)]
    assert best[0]["files"] == best[1]["files"] and best[0]["step"] == best[1]["step"], moments

    def lines(run: Path) -> list[dict[str, Any]]:
        kept = [each for each in read_log(run / "log.jsonl") if each["kind"] in ("train", "validation")]
        return [{name: value for name, value in each.items() if name not in TIMINGS} for each in kept]

    assert lines(whole) == lines(cut), moments
    assert not [path.name for path in (cut / "checkpoints").iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_ctrl_c_and_sigterm_save_and_tell_how_to_go_on(number: int, code: int, recipe: Path, tmp_path: Path) -> None:
    process = start(recipe, tmp_path / "run")
    wait_for(process, tmp_path / "run", 5)
    process.send_signal(number)
    told = finish(process, code)
    saved = read_json(tmp_path / "run" / "checkpoints" / "last" / "checkpoint.json", "it")["step"]
    assert f"Stopped at step {saved:,} of {STEPS} and saved; go on with: remanence train " in told
    assert "Traceback" not in told and reached(tmp_path / "run") == saved
