"""Disks without room, and folders that may not be written."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import numpy as np
from tests.faults.kills import check_prepared, check_steps_kept
from tests.faults.kinds import Case, Missed
from tests.faults.nursery import NOBODY
from tests.faults.setting import Setting, check_refused, hold
from tests.faults.shim import Fault

FileSystem = Literal["tmpfs", "ext4"]
MEGABYTES = 4


def cannot_mount(setting: Setting) -> str | None:
    """Why no file system can be mounted here."""
    try:
        with mounted("tmpfs"):
            return None
    except (OSError, subprocess.SubprocessError) as error:
        return f"no file system may be mounted here ({error})"


def not_root(setting: Setting) -> str | None:
    """Why commands cannot be run as another user here."""
    if os.geteuid():
        return "only root can run commands as another user"
    hidden = [each for each in Path(np.__file__).resolve().parents if not each.stat().st_mode & 0o001]
    return f"another user cannot read what is installed below {hidden[0]}" if hidden else None


@contextmanager
def mounted(system: FileSystem) -> Iterator[Path]:
    """A small disk of its own: tmpfs, or ext4 in a file behind a loop device."""
    with tempfile.TemporaryDirectory() as folder:
        place, image = Path(folder) / "disk", Path(folder) / "image"
        place.mkdir()
        if system == "tmpfs":
            mount = ["mount", "-t", "tmpfs", "-o", f"size={MEGABYTES}m", "none", str(place)]
        else:
            with open(image, "wb") as file:
                file.truncate(MEGABYTES << 20)
            _call("mkfs.ext4", "-q", "-m", "0", "-O", "^has_journal", str(image))
            mount = ["mount", "-o", "loop", str(image), str(place)]
        _call(*mount)
        try:
            yield place
        finally:
            _call("umount", str(place))


def _call(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


@contextmanager
def filled(place: Path, room: int) -> Iterator[None]:
    """The disk of a folder filled but for so many bytes; there is room again at the end."""
    ballast = place / "ballast"
    status = os.statvfs(place)
    with open(ballast, "wb", buffering=0) as file:
        left = max(status.f_bavail * status.f_frsize - room, 0)
        try:
            while left > 0:
                left -= file.write(bytes(min(left, 1 << 16)))
        except OSError:
            pass
    try:
        yield
    finally:
        ballast.unlink()


def train_on_a_small_disk(system: FileSystem):
    """The disk becomes full at a random moment; once there is room again the run goes on."""

    def cases(setting: Setting, draw: random.Random) -> Iterator[Case]:
        while True:
            room = int(draw.triangular(0, 600_000, 250_000))

            def do(folder: Path, room: int = room) -> None:
                with mounted(system) as disk:
                    with filled(disk, room):
                        ended = setting.nursery.run(*setting.train(disk / "run"))
                        if ended.code == 0:
                            raise Missed
                        check_refused(ended)
                        check_steps_kept(disk / "run")
                    setting.finish(disk / "run")

            yield Case(f"{system} with room for {room:,} bytes", do)

    return cases


def prepare_on_a_small_disk(system: FileSystem):
    """Likewise while a corpus is prepared."""

    def cases(setting: Setting, draw: random.Random) -> Iterator[Case]:
        while True:
            room = draw.randint(0, 120_000)

            def do(folder: Path, room: int = room) -> None:
                with mounted(system) as disk:
                    (disk / "inside").mkdir()
                    with filled(disk, room):
                        ended = setting.nursery.run(*setting.prepare(disk / "inside" / "corpus"))
                        if ended.code == 0:
                            raise Missed
                        check_refused(ended)
                        left = [path.name for path in (disk / "inside").iterdir()]
                        hold(not left, f"{', '.join(left)} was left")
                    check_prepared(setting, disk / "inside")

            yield Case(f"{system} with room for {room:,} bytes", do)

    return cases


def train_without_room_from_a_call(setting: Setting, draw: random.Random) -> Iterator[Case]:
    """Every call that needs room fails from a random one on: in a save, in the log, in making the folder."""
    folder = setting.folder / "room"
    calls = setting.nursery.run(*setting.train(folder / "run"), fault=Fault(str(folder), "count")).counted
    while True:
        at = draw.randint(1, calls)

        def do(folder: Path, at: int = at) -> None:
            ended = setting.nursery.run(*setting.train(folder / "run"), fault=Fault(str(folder), "full", at))
            if ended.code == 0:
                raise Missed
            check_refused(ended)
            check_steps_kept(folder / "run")
            setting.finish(folder / "run")

        yield Case(f"no room from call {at} of {calls} on", do)


def read_only(setting: Setting, draw: random.Random) -> Iterator[Case]:
    """Folders that another user owns: what must write refuses in a sentence, what only reads works, and a
    score is told before it turns out that it cannot be kept.
    """
    finished, stopped = setting.folder / "owned", setting.folder / "stopped"
    if not finished.exists():
        setting.nursery.run(*setting.train(finished))
        shutil.copytree(finished, stopped)

    def refused(*argv: str | Path):
        def do(folder: Path) -> None:
            check_refused(setting.nursery.run(*argv, user=NOBODY))

        return do

    def told(*argv: str | Path):
        def do(folder: Path) -> None:
            ended = setting.nursery.run(*argv, user=NOBODY)
            check_refused(ended)
            hold("bits per byte" in ended.out, "the score was not told before")

        return do

    def works(*argv: str | Path):
        def do(folder: Path) -> None:
            folder.chmod(0o777)
            ended = setting.nursery.run(*argv, user=NOBODY)
            hold(ended.code == 0, f"exit code {ended.code}: {ended.told[-300:]}")
            hold("Traceback" not in ended.told, ended.told[-300:])

        return do

    case = setting.folder / "case"
    yield Case("a run in a folder that may not be written", refused("train", setting.recipe, "--folder", case / "run"))
    yield Case("resuming in a folder that may not be written", refused("train", stopped, "--resume"))
    yield Case("preparing into a folder that may not be written", refused(*setting.prepare(case / "corpus")))
    yield Case("replacing a corpus that may not be written", refused(*setting.prepare(setting.corpus, "--overwrite")))
    yield Case("evaluating a run that may not be written", told("evaluate", finished, "--lanes", "2"))
    yield Case("generating from a run that may not be written", works("generate", finished, "--max-tokens", "5"))
    yield Case(
        "keeping a memory where nothing may be written",
        refused("generate", finished, "--max-tokens", "5", "--memory-out", case / "memory.safetensors"),
    )
    yield Case("training on a corpus that may not be written", works("train", setting.recipe, "--folder", case / "new"))
