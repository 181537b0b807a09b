"""Opening a prepared corpus: what it gives, and what it refuses."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from remanence.data import Corpus, Split
from remanence.data.prepare import prepare
from remanence.errors import InputError


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "text.txt").write_text("".join(f"document {index}\n\f\n" for index in range(40)))
    return prepare(folder / "text.txt", folder / "out", documents="separator", tokenizer="word").folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy that may be damaged."""
    return Path(shutil.copytree(made, tmp_path / "corpus"))


def change(folder: Path, edit: Callable[[Any], None]) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    edit(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_a_corpus_knows_its_name_unit_vocabulary_and_splits(folder: Path) -> None:
    corpus = Corpus.open(folder)
    assert (corpus.name, corpus.unit, corpus.splits) == ("text", "word", ("train", "validation", "test"))
    assert corpus.vocab_size == corpus.tokenizer.vocab_size


def test_a_split_maps_its_tokens_from_the_file(folder: Path) -> None:
    split = Corpus.open(folder).split("train")
    assert isinstance(split.tokens, np.memmap)
    assert not split.tokens.flags.writeable
    assert split.documents[0] == 0
    assert len(split) == split.counts["tokens"]


def test_the_fingerprint_depends_on_content_alone(folder: Path, tmp_path: Path) -> None:
    same = Path(shutil.copytree(folder, tmp_path / "renamed"))
    change(same, lambda manifest: manifest.update(name="other", licence="other"))
    assert Corpus.open(same).fingerprint == Corpus.open(folder).fingerprint


def test_a_sound_corpus_verifies(folder: Path) -> None:
    Corpus.open(folder, verify=True)


def test_a_split_that_is_not_there_is_refused(folder: Path) -> None:
    with pytest.raises(InputError, match="no 'dev' split; it has train, validation, test"):
        Corpus.open(folder).split("dev")


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="remanence prepare"):
        Corpus.open(tmp_path / "nothing")


def test_a_folder_without_a_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="manifest"):
        Corpus.open(tmp_path)


@pytest.mark.parametrize("name", ["train.tokens", "test.documents"])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(InputError, match=f"lacks its file {name}"):
        Corpus.open(folder)


@pytest.mark.parametrize("name", ["train.tokens", "test.documents"])
def test_a_file_that_was_cut_short_is_named(folder: Path, name: str) -> None:
    (folder / name).write_bytes((folder / name).read_bytes()[:-1])
    with pytest.raises(InputError, match=f"{name} has .* cut short"):
        Corpus.open(folder)


@pytest.mark.parametrize("name", ["train.tokens", "validation.documents"])
def test_an_altered_file_is_found_when_verifying(folder: Path, name: str) -> None:
    data = bytearray((folder / name).read_bytes())
    data[-8] ^= 1
    (folder / name).write_bytes(data)
    with pytest.raises(InputError, match=f"{name} .* another hash"):
        Corpus.open(folder, verify=True)


def test_documents_that_do_not_fit_the_tokens_are_refused(folder: Path) -> None:
    offsets = np.fromfile(folder / "train.documents", "<i8")
    offsets[-1] = 10**9
    offsets.tofile(folder / "train.documents")
    with pytest.raises(InputError, match="does not fit its tokens"):
        Corpus.open(folder).split("train")


def test_another_tokenizer_in_the_folder_is_refused(folder: Path) -> None:
    (folder / "tokenizer" / "settings.json").write_text('{"kind": "byte"}')
    with pytest.raises(InputError, match="not the one the corpus was prepared with"):
        _ = Corpus.open(folder).tokenizer


@pytest.mark.parametrize(
    "edit",
    [
        lambda manifest: manifest.pop("tokenizer"),
        lambda manifest: manifest["tokenizer"].update(vocab_size=0),
        lambda manifest: manifest["tokenizer"].update(vocab_size="9"),
        lambda manifest: manifest["tokenizer"].update(unit="letter"),
        lambda manifest: manifest["tokenizer"].update(fingerprint="0"),
        lambda manifest: manifest["splits"].clear(),
        lambda manifest: manifest["splits"].update({"../../etc": manifest["splits"]["test"]}),
        lambda manifest: manifest["splits"]["test"].pop("counts"),
        lambda manifest: manifest["splits"]["test"]["counts"].update(tokens=-1),
        lambda manifest: manifest["splits"]["test"].update(documents=0),
        lambda manifest: manifest.update(splits=[1]),
        lambda manifest: manifest.update(fingerprint="0"),
    ],
)
def test_a_damaged_manifest_is_one_sentence(folder: Path, edit: Callable[[Any], None]) -> None:
    change(folder, edit)
    with pytest.raises(InputError, match="damaged or edited"):
        Corpus.open(folder)


@pytest.mark.parametrize("content", ["", "[]", '{"format": "other"}', "{", "\udcff"])
def test_what_is_no_manifest_is_refused(folder: Path, content: str) -> None:
    (folder / "manifest.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(InputError, match="manifest"):
        Corpus.open(folder)


def test_a_manifest_of_another_version_is_refused(folder: Path) -> None:
    change(folder, lambda manifest: manifest.update(version=2))
    with pytest.raises(InputError, match=r"version 2 .* reads version 1"):
        Corpus.open(folder)


def test_a_split_can_be_made_of_any_tokens() -> None:
    split = Split(np.array([1, 2, 3], np.uint8), 4)
    assert (len(split), split.documents.tolist(), split.counts) == (3, [0], {"tokens": 3})


def test_opening_a_corpus_does_not_import_torch(made: Path) -> None:

    program = (
        "import sys; from remanence.data import Corpus; Corpus.open(sys.argv[1]); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program, str(made)], check=False).returncode == 0
