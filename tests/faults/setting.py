"""What faults are done to: a small corpus and a small run, and how both come out when nothing disturbs them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import random
import re
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tests.faults.nursery import Command, Ended, Nursery

from remanence.config import DataSettings, Recipe, TrainingSettings, dump_recipe
from remanence.models import config_class
from remanence.training.log import read_log

SENTENCE = "the of and memory segment lane token reads what was written before so that a model knows more"
STEPS = 24
HELD_BACK = ("--documents", "separator", "--validation", "0.1", "--test", "0.1", "--quiet")
UNTOLD = re.compile(r"second|stall|held")
"""Names in the log of what differs from run to run: times and speeds."""


class NotHeld(AssertionError):
    """A promise that was not kept, and how."""


def hold(kept: bool, why: str) -> None:
    if not kept:
        raise NotHeld(why)


@dataclass(frozen=True)
class Saved:
    """A checkpoint on the disk that is whole, by a look of our own at its hashes."""

    step: int
    folder: Path
    files: dict[str, Any]


def whole_checkpoints(run: Path) -> list[Saved]:
    """All that could be resumed from, the newest first; unfinished ones and the best weights are none."""
    found = []
    for folder in (run / "checkpoints").glob("*"):
        saved = whole(folder)
        if saved and folder.name != "best" and not folder.name.endswith(".part"):
            found.append(saved)
    return sorted(found, key=lambda each: -each.step)


def whole(folder: Path) -> Saved | None:
    try:
        about = json.loads((folder / "checkpoint.json").read_text(encoding="utf-8"))
        for name, told in about["files"].items():
            data = (folder / name).read_bytes()
            if len(data) != told["bytes"] or hashlib.sha256(data).hexdigest() != told["sha256"]:
                return None
        return Saved(about["step"], folder, about["files"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def saved_step(run: Path) -> int:
    """The step of the newest whole checkpoint; 0 without one."""
    return max((each.step for each in whole_checkpoints(run)), default=0)


def losses(run: Path) -> list[dict[str, Any]]:
    """What the log says of every step and validation, without times."""
    kept = [each for each in read_log(run / "log.jsonl") if each["kind"] in ("train", "validation")]
    return [{name: value for name, value in each.items() if not UNTOLD.search(name)} for each in kept]


@dataclass
class Setting:
    """A folder of its own, with a corpus and a recipe in it."""

    folder: Path
    nursery: Nursery

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        draw = random.Random(5)
        documents = [" ".join(draw.choices(SENTENCE.split(), k=draw.randint(1, 60))) + "\n" for _ in range(60)]
        self.text = self.folder / "text.txt"
        self.text.write_text("\f\n".join(documents), encoding="utf-8")
        self.corpus = self.folder / "corpus"
        ended = self.nursery.run(*self.prepare(self.corpus))
        assert ended.code == 0, ended.told
        self.recipe = self.write_recipe("recipe")

    def prepare(self, out: Path, *more: str, text: Path | None = None) -> list[str | Path]:
        return ["prepare", text or self.text, "--out", out, *HELD_BACK, *more]

    def write_recipe(self, name: str, corpus: Path | None = None, **training: Any) -> Path:
        model = config_class("lamemo")(
            vocab_size=256,
            segment_length=7,
            num_layers=2,
            model_width=12,
            num_heads=3,
            head_width=4,
            feed_forward_width=20,
            dropout=0.2,
            memory_length=9,
        )
        settings = {"steps": STEPS, "lanes": 4, "learning_rate": 1e-2, "log_every": 1, "save_every": 1}
        own = {"validate_every": 9, "validation_tokens": 200, "precision": "float32", "device": "cpu"}
        made = Recipe(
            "small",
            data=DataSettings(str(corpus or self.corpus)),
            model=model,
            training=TrainingSettings(**{**settings, **own, **training}),
        )
        path = self.folder / f"{name}.toml"
        path.write_text(dump_recipe(made), encoding="utf-8")
        return path

    def train(self, run: Path, recipe: Path | None = None) -> list[str | Path]:
        """The command that begins a run, or goes on with the one that is in the folder."""
        resume = ["--resume"] if (run / "recipe.toml").exists() else []
        return ["train", recipe or self.recipe, "--folder", run, *resume]

    @cached_property
    def undisturbed(self) -> Undisturbed:
        """How the run ends when nothing happens."""
        run = self.folder / "undisturbed"
        ended = self.nursery.run(*self.train(run))
        assert ended.code == 0, ended.told
        return Undisturbed.of(run)

    def finish(self, run: Path, recipe: Path | None = None) -> Ended:
        """Go on with a run to its end, and hold that nothing was lost and nothing came out differently."""
        before = saved_step(run)
        ended = self.nursery.run(*self.train(run, recipe))
        hold(ended.code == 0, f"going on ended with {ended.code}: {ended.told[-400:]}")
        began = [each for each in read_log(run / "log.jsonl") if each["kind"] in ("start", "resume")]
        hold(began[-1]["step"] >= before, f"went on from step {began[-1]['step']}, but {before} was saved")
        self.check(run)
        return ended

    def check(self, run: Path) -> None:
        """Hold that a finished run is that of one which nothing disturbed, and that nothing is left lying about."""
        known, found = self.undisturbed, Undisturbed.of(run)
        for name in (each.name for each in dataclasses.fields(Undisturbed)):
            hold(getattr(found, name) == getattr(known, name), f"another {name} than of the undisturbed run")
        left = [path.name for path in (run / "checkpoints").iterdir() if path.name.startswith(".")]
        hold(not left, f"{', '.join(left)} was left in checkpoints")


@dataclass(frozen=True)
class Undisturbed:
    """All that a run leaves which does not depend on how fast it went."""

    last: dict[str, Any]
    best: dict[str, Any] | None
    """None where nothing was validated."""
    losses: list[dict[str, Any]]

    @classmethod
    def of(cls, run: Path) -> Undisturbed:
        last, best = whole(run / "checkpoints" / "last"), whole(run / "checkpoints" / "best")
        if last is None or (best is None and (run / "checkpoints" / "best").exists()):
            raise NotHeld("the last or the best checkpoint is not whole in the end")
        return cls(last.files, best and best.files, losses(run))


def check_refused(ended: Ended, *codes: int) -> None:
    """Hold that a command ended with one of these exit codes, 2 where none is given, and said why in one sentence."""
    codes = codes or (2,)
    hold("Traceback" not in ended.told, f"a traceback: {ended.told[-600:]}")
    hold(ended.code in codes, f"exit code {ended.code} instead of {' or '.join(map(str, codes))}: {ended.told[-300:]}")
    if ended.code == 2:
        errors = [line for line in ended.told.splitlines() if line.startswith("remanence: error: ")]
        hold(len(errors) == 1, f"{len(errors)} sentences instead of one: {ended.told[-300:]}")
        hold(errors[0].endswith((".", "?")), f"not a sentence: {errors[0]}")


def wait_for_step(command: Command, run: Path, step: int) -> None:
    """Until the log has reached a step, or the command has ended."""
    while command.running:
        try:
            if max((record["step"] for record in read_log(run / "log.jsonl")), default=0) >= step:
                return
        except OSError:
            pass
        time.sleep(0.001)
