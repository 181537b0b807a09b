"""Parts that know nothing of each other, and the manifest that joins them."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from remanence.cli import main
from remanence.data import Corpus
from remanence.data.parts import Which, _cuts, join
from remanence.data.prepare import prepare
from remanence.errors import InputError


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    for index in range(9):
        (folder / f"{index}.txt").write_text(f"file {index} " * (10 + 37 * (index % 4)))
    return folder


def parts(text: Path, out: Path, count: int = 3, **more: object) -> Path:
    for index in range(count, 0, -1):
        prepare(text, out, validation=0.0, test=0.0, part=f"{index}/{count}", shard_tokens=300, **more)  # type: ignore[arg-type]
    return out


@pytest.fixture
def prepared(text: Path, tmp_path: Path) -> Path:
    return parts(text, tmp_path / "out")


def test_joined_parts_are_the_text_in_its_order(text: Path, prepared: Path, tmp_path: Path) -> None:
    corpus = join(prepared)
    whole = prepare(text, tmp_path / "whole", validation=0.0, test=0.0)
    split, expected = corpus.split("train"), whole.split("train")
    assert np.asarray(split.tokens).tolist() == expected.tokens[:].tolist()
    assert np.asarray(split.documents).tolist() == expected.documents[:].tolist()
    assert split.counts == expected.counts
    assert corpus.manifest["sources"]["bytes"] == whole.manifest["sources"]["bytes"]
    Corpus.open(prepared, verify=True)


def test_joining_copies_no_tokens_and_can_be_repeated(prepared: Path) -> None:
    join(prepared)
    names = sorted(path.name for path in prepared.iterdir())
    assert names == ["manifest.json", *(f"part-{index:06}-of-000003" for index in (1, 2, 3)), "tokenizer"]
    said: list[str] = []
    join(prepared, say=said.append)
    assert "joins these parts already" in said[0]


def test_held_out_files_are_shared_out_too(text: Path, tmp_path: Path) -> None:
    held = tmp_path / "held"
    held.mkdir()
    for name in "ab":
        (held / name).write_text(name * 50)
    for index in (1, 2, 3):
        prepare(text, tmp_path / "out", validation=held, test=0.0, part=f"{index}/3")
    assert np.asarray(join(tmp_path / "out").split("validation").tokens).tobytes() == b"a" * 50 + b"b" * 50


def test_a_part_that_is_missing_is_named(prepared: Path) -> None:
    shutil.rmtree(prepared / "part-000002-of-000003")
    with pytest.raises(InputError, match=r"1 of 3 parts are missing .*2/3"):
        join(prepared)


def test_parts_of_two_preparations_are_refused(text: Path, prepared: Path) -> None:
    prepare(text, prepared, part="1/4")
    with pytest.raises(InputError, match="parts of 3 and parts of 4"):
        join(prepared)


def test_a_part_of_other_text_or_settings_is_refused(text: Path, prepared: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(text, tmp_path / "other"))
    shutil.rmtree(prepared / "part-000002-of-000003")
    prepare(text, prepared, validation=0.0, test=0.0, part="2/3", shard_tokens=200, name="text0")
    with pytest.raises(InputError, match=r"another (name|shard_tokens)"):
        join(prepared)
    shutil.rmtree(prepared / "part-000002-of-000003")
    (other / "9.txt").write_text("more")
    prepare(other, prepared, validation=0.0, test=0.0, part="2/3", shard_tokens=300)
    with pytest.raises(InputError, match="another list of files"):
        join(prepared)


def test_a_part_with_another_tokenizer_is_refused(text: Path, prepared: Path, tmp_path: Path) -> None:
    made = prepare(text, tmp_path / "char", tokenizer="char")
    shutil.rmtree(prepared / "part-000003-of-000003")
    prepare(text, prepared, validation=0.0, test=0.0, part="3/3", shard_tokens=300, tokenizer=made.folder)
    with pytest.raises(InputError, match="another tokenizer"):
        join(prepared)


def test_a_part_that_was_damaged_on_its_way_is_found(prepared: Path) -> None:
    path = prepared / "part-000001-of-000003" / "train-00000.tokens"
    data = bytearray(path.read_bytes())
    data[7] ^= 1
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"train-00000.tokens has another hash"):
        join(prepared)
    assert not (prepared / "manifest.json").exists()


def test_a_manifest_without_its_sources_is_refused(prepared: Path) -> None:
    for path in prepared.glob("part-*/manifest.json"):
        manifest = json.loads(path.read_text())
        path.write_text(json.dumps(manifest | {"sources": {"files": []}}))
    with pytest.raises(InputError, match="edited by hand"):
        join(prepared)


@pytest.mark.parametrize("part", ["0/3", "4/3", "1", "a/b", "1/", "-1/3", "1/1000000", "٣/٣"])
def test_what_is_no_part_is_refused(text: Path, tmp_path: Path, part: str) -> None:
    with pytest.raises(InputError, match="part"):
        prepare(text, tmp_path / "out", part=part)


def test_parts_need_a_tokenizer_that_exists_and_files_enough(text: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot make a tokenizer"):
        prepare(text, tmp_path / "out", tokenizer="char", part="1/2")
    with pytest.raises(InputError, match="9 files, too few for 10 parts"):
        prepare(text, tmp_path / "out", part="1/10")


@given(st.lists(st.integers(0, 9), max_size=12), st.integers(1, 6))
def test_files_are_shared_out_evenly_in_order_and_none_is_lost(sizes: list[int], count: int) -> None:
    cuts = _cuts(sizes, count)
    assert (cuts[0], cuts[-1], len(cuts)) == (0, len(sizes), count + 1)
    assert cuts == sorted(cuts)
    if len(sizes) >= count:
        assert len(set(cuts)) == count + 1


def test_a_worker_that_is_killed_leaves_nothing_and_does_the_same_work_again(tmp_path: Path) -> None:
    folder = tmp_path / "text"
    folder.mkdir()
    for index in range(2):
        (folder / f"{index}.txt").write_text("many words here\n" * 400_000)
    command = [sys.executable, "-m", "remanence", "prepare", str(folder), "--out", str(tmp_path / "out"), "--part"]
    for delay in (0.0, 0.05):
        with subprocess.Popen([*command, "1/2", "--quiet", "--shard-tokens", "100000"]) as worker:
            while not list((tmp_path / "out").glob(".*/*")) and worker.poll() is None:
                time.sleep(0.005)
            time.sleep(delay)
            worker.send_signal(signal.SIGKILL)
        assert worker.returncode == -signal.SIGKILL
        assert not (tmp_path / "out" / "part-000001-of-000002").exists()
    for index in (1, 2):
        assert main(["prepare", str(folder), "--out", str(tmp_path / "out"), "--part", f"{index}/2", "--quiet"]) == 0
    assert not list((tmp_path / "out").glob(".*"))
    assert main(["prepare", "--join", str(tmp_path / "out"), "--quiet"]) == 0


@pytest.mark.parametrize(
    "argv", [["--join", "out", "text"], ["--join", "out", "--part", "1/2"], ["text", "--part", "1/2"]]
)
def test_flags_that_do_not_go_together_are_refused(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prepare", *argv]) == 2
    assert "leave" in (said := capsys.readouterr().err) or "needs" in said


def test_a_part_knows_its_folder() -> None:
    assert Which.parse("3/64").folder == "part-000003-of-000064"
