"""Where text comes from: files, folders, patterns, standard input, archives."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import sysconfig
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from remanence.data.manifest import FORMAT
from remanence.errors import InputError

STDIN = "-"


@dataclass(frozen=True)
class Source:
    """One file of text, or standard input when `path` is None."""

    name: str
    """How manifests and errors call it: never a folder above what the user named."""
    path: Path | None
    member: str | None = None
    """The file inside a zip archive."""
    given: bool = False
    """Named by the user as it stands; such a file must not be empty."""
    digest: str | None = None
    """What the text must hash to, decompressed, where that is known: "sha256:..." or "md5:..."."""

    @property
    def size(self) -> int:
        """Bytes on the disk; 0 for standard input."""
        return 0 if self.path is None else self.path.stat().st_size


def find_sources(inputs: Iterable[str | Path]) -> list[Source]:
    """The files that inputs stand for: a file, a folder (all files in it, sorted, hidden ones left out), a pattern
    with *, ** or ? (sorted), or "-" for standard input.

    Raises InputError when one stands for nothing.
    """
    sources: list[Source] = []
    for given in inputs:
        text = os.fspath(given)
        if text == STDIN:
            if any(source.path is None for source in sources):
                raise InputError('Standard input ("-") was given twice and can be read once; give it once.')
            sources.append(Source("standard input", None, given=True))
        elif os.path.isdir(text):
            if is_prepared(Path(text)):
                raise InputError(f"{text} is a prepared corpus, not text; name the files that it was made from.")
            found = _files_in(Path(text))
            if not found:
                raise InputError(f"The folder {text} holds no files; check the path.")
            sources += [Source(_shown(text, path.relative_to(text)), path) for path in found]
        elif os.path.exists(text):
            sources.append(Source(_shown(text), Path(text), given=True))
        elif glob.has_magic(text):
            found = sorted(Path(path) for path in glob.glob(text, recursive=True) if os.path.isfile(path))
            if not found:
                raise InputError(f"No file fits the pattern {text}; check it, or quote it if the shell reads it first.")
            sources += [Source(_shown(str(path)), path) for path in found]
        else:
            raise InputError(f"There is no file, folder or pattern {text}; check the path.")
    if not sources:
        raise InputError('Nothing to read was named; name files, folders, patterns, a known corpus or "-".')
    return sources


def is_prepared(folder: Path) -> bool:
    """Whether a folder holds a prepared corpus."""
    try:
        manifest = json.loads((folder / "manifest.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(manifest, dict) and manifest.get("format") == FORMAT


def standard_library() -> list[Source]:
    """The modules of the running interpreter's standard library, sorted, without its tests.

    Left out, so that machines agree and nothing local is read: installed packages, test folders (many systems do not
    ship them), files made at build time or by the administrator, and files that are not valid UTF-8.
    """
    root = Path(sysconfig.get_path("stdlib"))
    left_out = {"site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test", "config"}
    sources = []
    for path in _files_in(root, left_out):
        inside = path.relative_to(root)
        local = inside.name.startswith(("_sysconfigdata", "_sysconfig_vars")) or inside.name in (
            "sitecustomize.py",
            "usercustomize.py",
        )
        if path.suffix == ".py" and not local and _is_utf8(path):
            sources.append(Source(inside.as_posix(), path))
    if not sources:
        raise InputError(f"The standard library of this Python has no source files at {root}; use another Python.")
    return sources


def hash_source(source: Source) -> str:
    """SHA-256 of a file as it lies on the disk, as a `Reading` reports it."""
    assert source.path is not None
    with open(source.path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _files_in(folder: Path, left_out: Collection[str] = ()) -> list[Path]:
    """All files below a folder, sorted by path, without hidden files and folders and folders of some names."""
    found = []
    for here, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".") and name not in left_out]
        found += [Path(here, name) for name in files if not name.startswith(".")]
    return sorted((path for path in found if path.is_file()), key=lambda path: path.relative_to(folder).parts)


def _shown(given: str, inside: Path | None = None) -> str:
    """A path as the user typed it when it is relative, and without its folders when that could tell where they live."""
    path = Path(given)
    if path.is_absolute() or ".." in path.parts:
        path = Path(path.resolve().name)
    return (path if inside is None else path / inside).as_posix()


def _is_utf8(path: Path) -> bool:
    try:
        path.read_bytes().decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
