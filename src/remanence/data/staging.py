"""A folder that is made in full or not at all."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from remanence.errors import InputError
from remanence.files import flush_folder, make_folder

FULL = tuple(getattr(errno, name) for name in ("ENOSPC", "EFBIG", "EDQUOT") if hasattr(errno, name))
"""Errors that say that a disk has no room."""

try:
    import fcntl
except ImportError:  # Windows has no such locks; two preparations at once are the user's to avoid there.
    fcntl = None


@contextmanager
def staging(target: Path, flag: str = "--out") -> Iterator[Path]:
    """An empty folder beside `target` that takes its place when `finish` is called on it, and vanishes otherwise.

    What a killed run left behind is cleared away. `flag` names the target on the command line. Raises InputError while
    another process stages the same target.
    """
    make_folder(target.parent, target, flag)
    folder = target.parent / f".{target.name}.preparing"
    lock = _lock(folder, target, flag)
    try:
        _recover(target)
        for left in folder.iterdir():
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        yield folder
    finally:
        # After `finish` the name is gone and nothing is removed here.
        shutil.rmtree(folder, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def finish(folder: Path, target: Path) -> None:
    """Give a staged folder its name; one that is there already is replaced."""
    replaced = _replaced(target)
    if target.exists():
        os.rename(target, replaced)
    os.rename(folder, target)
    shutil.rmtree(replaced, ignore_errors=True)
    flush_folder(target.parent)


def _replaced(target: Path) -> Path:
    return target.parent / f".{target.name}.replaced"


def _recover(target: Path) -> None:
    """Put back what a run that was killed between two renames had moved away."""
    replaced = _replaced(target)
    if replaced.exists():
        if target.exists():
            shutil.rmtree(replaced)
        else:
            os.rename(replaced, target)


def _lock(folder: Path, target: Path, flag: str) -> int | None:
    """Hold the folder until this process ends, however it ends."""
    while True:
        make_folder(folder, target, flag)
        if fcntl is None:
            return None
        handle = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(handle)
            raise InputError(
                f"Another process is preparing {target} right now; wait for it or name another folder."
            ) from None
        # The one that held it may have renamed or removed it in between.
        if folder.exists() and os.path.samestat(os.fstat(handle), folder.stat()):
            return handle
        os.close(handle)
