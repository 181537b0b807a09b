"""Sources: which files inputs stand for, and reading them, compressed or not."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import lzma
import sys
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from remanence.data.reading import read_all
from remanence.data.sources import Source, find_sources, hash_source, standard_library
from remanence.errors import InputError

TEXT = b"first line\nsecond line, \xc3\xa9\n" * 5000
PACKED: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".bz2": bz2.compress,
    ".zst": zstandard.compress,
}


def read(*sources: Source, threads: int = 2) -> list[bytes]:
    return [b"".join(blocks) for _, blocks in read_all(list(sources), threads)]


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with files in it, also hidden ones."""
    for name in ("b.txt", "a.txt", "sub/c.txt", "sub/d.md", ".hidden", ".git/config"):
        (tmp_path / "texts" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "texts" / name).write_text(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("suffix", PACKED)
def test_compressed_files_are_read_as_their_text(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"text{suffix}"
    path.write_bytes(PACKED[suffix](TEXT))
    assert read(Source("text", path)) == [TEXT]


@pytest.mark.parametrize("suffix", PACKED)
def test_compressed_files_in_several_parts_are_read_to_their_end(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"text{suffix}"
    path.write_bytes(PACKED[suffix](TEXT) + PACKED[suffix](b"more"))
    assert read(Source("text", path)) == [TEXT + b"more"]


@pytest.mark.parametrize("suffix", [".gz", ".xz", ".bz2", ".zst"])
@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"no such thing" + data])
def test_damaged_compressed_files_are_refused(tmp_path: Path, suffix: str, damage: Callable[[bytes], bytes]) -> None:
    path = tmp_path / f"text{suffix}"
    path.write_bytes(damage(PACKED[suffix](bytes(range(256)) * 999)))
    with pytest.raises(InputError, match="cannot be decompressed"):
        read(Source("text", path))


def test_the_hash_of_a_reading_is_that_of_the_file_on_the_disk(tmp_path: Path) -> None:
    path = tmp_path / "text.xz"
    path.write_bytes(lzma.compress(TEXT))
    for reading, blocks in read_all([Source("text", path)], 1):
        size = len(b"".join(blocks))
        assert (reading.bytes, reading.sha256) == (size, hashlib.sha256(path.read_bytes()).hexdigest())
        assert reading.sha256 == hash_source(reading.source)


def test_a_text_with_another_hash_than_published_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "text.gz"
    path.write_bytes(gzip.compress(TEXT))
    right = "sha256:" + hashlib.sha256(TEXT).hexdigest()
    assert read(Source("text", path, digest=right)) == [TEXT]
    with pytest.raises(InputError, match="the published file has sha256:0000"):
        read(Source("text", path, digest="sha256:" + "0" * 64))


def test_a_file_in_an_archive_is_read_without_unpacking_it(tmp_path: Path) -> None:
    path = tmp_path / "texts.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("folder/text", TEXT)
    assert read(Source("text", path, member="folder/text")) == [TEXT]
    assert sorted(tmp_path.iterdir()) == [path]


def test_an_archive_without_the_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "texts.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("other", "")
    with pytest.raises(InputError, match="holds no file text"):
        read(Source("texts.zip", path, member="text"))


def test_an_archive_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "texts.zip").write_bytes(TEXT)
    with pytest.raises(InputError, match="cannot be decompressed"):
        read(Source("texts.zip", tmp_path / "texts.zip", member="text"))


def test_many_files_come_in_order_whatever_the_number_of_threads(tmp_path: Path) -> None:
    sources = []
    for index in range(40):
        path = tmp_path / f"{index}.gz"
        path.write_bytes(gzip.compress(b"%d " % index * (1 + 9000 * (index % 5))))
        sources.append(Source(path.name, path))
    assert read(*sources, threads=1) == read(*sources, threads=7)


def test_reading_that_is_broken_off_leaves_no_thread_behind(tmp_path: Path) -> None:
    before = set(threading.enumerate())
    path = tmp_path / "text"
    path.write_bytes(b"x" * (20 << 20))
    readings = read_all([Source("text", path)] * 4, 3)
    _, blocks = next(readings)
    next(blocks)
    readings.close()
    assert set(threading.enumerate()) <= before


def test_standard_input_is_read_as_it_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(TEXT)))
    assert read(*find_sources(["-"])) == [TEXT]


def test_a_folder_stands_for_its_files_in_order_without_hidden_ones(tree: Path) -> None:
    names = [source.name for source in find_sources(["texts"])]
    assert names == ["texts/a.txt", "texts/b.txt", "texts/sub/c.txt", "texts/sub/d.md"]


def test_a_pattern_stands_for_the_files_that_fit_in_order(tree: Path) -> None:
    assert [source.name for source in find_sources(["texts/*.txt"])] == ["texts/a.txt", "texts/b.txt"]
    assert [source.name for source in find_sources(["texts/**/*.txt"])] == [
        "texts/a.txt",
        "texts/b.txt",
        "texts/sub/c.txt",
    ]


def test_a_file_whose_name_looks_like_a_pattern_is_that_file(tree: Path) -> None:
    (tree / "a[1].txt").write_text("x")
    assert [source.name for source in find_sources(["a[1].txt"])] == ["a[1].txt"]


def test_names_never_tell_where_a_full_path_lies(tree: Path) -> None:
    given = [tree / "texts", tree / "texts" / "a.txt", "../" + tree.name + "/texts/b.txt"]
    assert [source.name for source in find_sources(given)][-2:] == ["a.txt", "b.txt"]
    assert all(not source.name.startswith("/") for source in find_sources(given))
    assert find_sources([tree / "texts"])[0].name == "texts/a.txt"


@pytest.mark.parametrize("given", ["missing.txt", "missing/*.txt", "empty"])
def test_inputs_that_stand_for_nothing_are_refused(tree: Path, given: str) -> None:
    (tree / "empty").mkdir()
    with pytest.raises(InputError, match=r"There is no|No file fits|holds no files"):
        find_sources([given])


def test_no_input_at_all_is_refused() -> None:
    with pytest.raises(InputError, match="Nothing to read"):
        find_sources([])


def test_standard_input_cannot_be_named_twice() -> None:
    with pytest.raises(InputError, match="twice"):
        find_sources(["-", "-"])


def test_the_standard_library_is_modules_in_order_without_packages_and_tests() -> None:
    names = [source.name for source in standard_library()]
    assert {"os.py", "json/decoder.py"} <= set(names)
    assert names == sorted(names, key=lambda name: tuple(name.split("/")))
    assert not [name for name in names if {"site-packages", "test", "tests", "idle_test"} & set(name.split("/"))]
    assert all(name.endswith(".py") for name in names)


def test_zstandard_without_its_library_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "text.zst"
    path.write_bytes(zstandard.compress(TEXT))
    monkeypatch.setitem(sys.modules, "zstandard", None)
    monkeypatch.setitem(sys.modules, "compression", None)
    with pytest.raises(InputError, match=r"remanence\[zstd\]"):
        read(Source("text.zst", path))
