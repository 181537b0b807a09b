"""Preparation: what comes out, that it is whole or absent, and what is refused."""

from __future__ import annotations

import errno
import gzip
import io
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remanence.data import Corpus
from remanence.data import prepare as prepare_module
from remanence.data.prepare import prepare
from remanence.errors import InputError

LINES = "the cat sat on the mat\nan owl was not there\n" * 50


@pytest.fixture
def text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of text in the working folder."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "text.txt"
    path.write_text(LINES)
    return path


def everything(corpus: Corpus) -> str:
    return "".join(corpus.tokenizer.decode(corpus.split(split).tokens) for split in corpus.splits)


def left(folder: Path) -> list[str]:
    """What lies in a folder apart from the text, hidden files too."""
    return sorted(path.name for path in folder.iterdir() if path.name != "text.txt")


@pytest.mark.parametrize(
    "tokenizer", [{"tokenizer": "byte"}, {"tokenizer": "char"}, {"tokenizer": "bpe", "vocab_size": 300}]
)
def test_the_splits_together_give_back_the_text(text: Path, tokenizer: dict[str, Any]) -> None:
    corpus = prepare(text, "out", **tokenizer)
    corpus.verify()
    assert everything(corpus) == LINES


@settings(max_examples=25)
@given(st.lists(st.text(st.characters(codec="utf-8"), min_size=1), min_size=1, max_size=5))
def test_any_text_comes_back_with_its_documents(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    folder = tmp_path_factory.mktemp("any")
    for index, text in enumerate(texts):
        (folder / f"{index}.txt").write_bytes(text.encode())
    corpus = prepare(folder / "*.txt", folder / "out", tokenizer="char", validation=0, test=0)
    split = corpus.split("train")
    found = [corpus.tokenizer.decode(part) for part in np.split(split.tokens, split.documents[1:])]
    assert found == texts


def test_words_of_the_training_split_alone_make_the_vocabulary(text: Path) -> None:
    text.write_text("a b\n" * 90 + "only-here c\n" * 10)
    corpus = prepare(text, "out", tokenizer="word", validation=0, test=0.25)
    assert corpus.tokenizer.decode([0, 1, 2, 3]) == "\na b <unk>"
    assert corpus.vocab_size == 4
    assert corpus.manifest["splits"]["test"]["counts"]["unknown"] == 20


def test_splits_may_be_files_of_their_own(text: Path) -> None:
    Path("valid.txt").write_text("valid\n")
    Path("test1.txt").write_text("test one\n")
    Path("test2.txt").write_text("test two\n")
    corpus = prepare(text, "out", validation="valid.txt", test=["test1.txt", "test2.txt"])
    assert everything(corpus) == LINES + "valid\ntest one\ntest two\n"
    assert len(corpus.split("test").documents) == 2


def test_one_split_may_be_a_fraction_and_another_a_file(text: Path) -> None:
    Path("valid.txt").write_text("valid\n")
    corpus = prepare(text, "out", validation="valid.txt", test=0.2)
    assert 0.15 < len(corpus.split("test")) / len(LINES) < 0.25
    assert len(corpus.split("validation")) == 6


def test_a_split_of_nothing_is_left_out(text: Path) -> None:
    assert prepare(text, "out", validation=0, test=0).splits == ("train",)


def test_a_bpe_that_the_text_is_too_short_for_is_told(text: Path) -> None:
    said: list[str] = []
    assert prepare(text, "out", tokenizer="bpe", vocab_size=5000, say=said.append).vocab_size < 300
    assert "smaller than the 5,000" in said[0]


def test_standard_input_is_prepared(text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(LINES.encode())))
    corpus = prepare("-")
    assert corpus.folder == Path("data/stdin")
    assert everything(corpus) == LINES


def test_the_tokenizer_of_another_corpus_is_taken(text: Path) -> None:
    first = prepare(text, "first", tokenizer="word")
    text.write_text("the owl sat\n" * 30)
    second = prepare(text, "second", tokenizer="first")
    assert second.tokenizer.fingerprint == first.tokenizer.fingerprint


def test_a_tokenizer_file_of_the_tokenizers_library_is_taken(text: Path) -> None:
    prepare(text, "first", tokenizer="bpe", vocab_size=270)
    Path("first/tokenizer/tokenizer.json").rename("mine.json")
    corpus = prepare(text, "second", tokenizer="mine.json")
    assert (corpus.vocab_size, corpus.unit) == (270, "token")
    assert everything(corpus) == LINES


def test_preparing_the_same_again_does_nothing_and_says_so(text: Path) -> None:
    said: list[str] = []
    first = prepare(text, "out")
    before = os.stat("out/train.tokens").st_mtime_ns
    assert prepare(text, "out", say=said.append).fingerprint == first.fingerprint
    assert os.stat("out/train.tokens").st_mtime_ns == before
    assert said == ["out holds this preparation already; nothing was done."]


def test_the_same_text_by_another_name_is_the_same_preparation(text: Path) -> None:
    said: list[str] = []
    prepare("text.txt", "out")
    prepare(text, "out", say=said.append)
    assert said


def test_preparing_the_same_standard_input_again_does_nothing(text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    for _ in range(2):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(LINES.encode())))
        prepare("-", "out", say=said.append)
    assert said == ["out holds this preparation already; nothing was done."]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"other " * 99)))
    with pytest.raises(InputError, match="from other text"):
        prepare("-", "out")


def test_a_corpus_inside_the_folder_of_its_text_is_not_taken_for_text(text: Path) -> None:
    said: list[str] = []
    first = prepare(".", "./out")
    assert prepare(".", "./out", say=said.append).fingerprint == first.fingerprint
    assert said
    assert first.manifest["sources"]["files"] == 1
    with pytest.raises(InputError, match="out is a prepared corpus, not text"):
        prepare("out", "out", overwrite=True)


def test_another_preparation_in_the_same_folder_is_refused(text: Path) -> None:
    prepare(text, "out")
    with pytest.raises(InputError, match=r"another preparation \(tokenizer is 'byte' there and 'char' here\)"):
        prepare(text, "out", tokenizer="char")
    assert Corpus.open("out").unit == "byte"


def test_other_text_in_the_same_folder_is_refused(text: Path) -> None:
    prepare(text, "out")
    text.write_text(LINES.replace("cat", "dog"))
    with pytest.raises(InputError, match="from other text"):
        prepare(text, "out")


def test_another_preparation_replaces_the_folder_when_told_to(text: Path) -> None:
    prepare(text, "out")
    prepare(text, "out", tokenizer="char", overwrite=True)
    assert Corpus.open("out").unit == "character"
    assert left(text.parent) == ["out"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_of_other_things_is_never_replaced(text: Path, overwrite: bool) -> None:
    Path("out").mkdir()
    Path("out/thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="not a prepared corpus"):
        prepare(text, "out", overwrite=overwrite)
    assert Path("out/thesis.tex").exists()


def test_a_damaged_corpus_is_not_taken_for_a_finished_one(text: Path) -> None:
    prepare(text, "out")
    os.truncate("out/train.tokens", 3)
    with pytest.raises(InputError, match="--overwrite"):
        prepare(text, "out")
    prepare(text, "out", overwrite=True).verify()


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, MemoryError])
@pytest.mark.parametrize("function", ["gather", "make_tokenizer", "write_split", "write_json"])
def test_an_interrupt_at_any_stage_leaves_nothing(
    text: Path, monkeypatch: pytest.MonkeyPatch, function: str, error: type[BaseException]
) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(prepare_module, function, interrupt)
    with pytest.raises(error):
        prepare(text, "out")
    assert left(text.parent) == []


def test_a_failed_replacement_leaves_the_old_corpus(text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = prepare(text, "out").fingerprint
    monkeypatch.setattr(prepare_module, "write_json", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        prepare(text, "out", tokenizer="char", overwrite=True)
    assert Corpus.open("out", verify=True).fingerprint == old
    assert left(text.parent) == ["out"]


def test_a_killed_preparation_leaves_no_corpus_and_can_be_run_again(text: Path) -> None:
    program = "from remanence.data.prepare import prepare; prepare('-', 'out')"
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        process.stdin.write(LINES.encode())
        process.stdin.flush()
        while not Path(".out.preparing").exists():
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert left(text.parent) == [".out.preparing"]
    prepare(text, "out").verify()
    assert left(text.parent) == ["out"]


def test_a_full_disk_is_one_sentence_and_leaves_nothing(text: Path) -> None:
    """A limit on the size of files stands in for the disk; it counts in a process of its own."""
    text.write_text(LINES * 50)
    program = (
        "import sys\nfrom remanence.data.prepare import prepare\nfrom remanence.errors import InputError\n"
        "try: prepare('text.txt', 'out')\nexcept InputError as error: sys.exit(str(error))"
    )

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    done = subprocess.run(
        [sys.executable, "-c", program], preexec_fn=limit, capture_output=True, text=True, check=False
    )
    assert done.stderr.startswith("The disk that holds out is full; nothing half-made was kept")
    assert left(text.parent) == []


def test_a_disk_that_fills_up_while_tokens_are_written_leaves_nothing(
    text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(prepare_module, "write_split", full)
    with pytest.raises(InputError, match="is full"):
        prepare(text, "out")
    assert left(text.parent) == []


@pytest.mark.parametrize(
    "tokenizer", [{"tokenizer": "char"}, {"tokenizer": "word"}, {"tokenizer": "bpe", "vocab_size": 300}]
)
def test_bytes_that_are_not_utf8_are_refused_with_their_file(text: Path, tokenizer: dict[str, Any]) -> None:
    Path("z.txt").write_bytes(LINES.encode() + b"\xff\n")
    with pytest.raises(InputError, match=rf"z\.txt is not UTF-8 text \(near byte {len(LINES)}\)"):
        prepare(["text.txt", "z.txt"], "out", **tokenizer, validation=0, test=0)
    assert not Path("out").exists()


def test_bytes_that_are_not_utf8_are_bytes_to_the_byte_tokenizer(text: Path) -> None:
    text.write_bytes(bytes(range(256)) * 9)
    corpus = prepare(text, "out", validation=0, test=0)
    assert corpus.split("train").tokens.tobytes() == bytes(range(256)) * 9


@pytest.mark.parametrize(
    ("inputs", "options", "message"),
    [
        ("missing.txt", {}, "There is no file"),
        ("empty.txt", {}, "is empty"),
        ("none/*.txt", {}, "No file fits"),
        ("wikitext2", {}, "called wikitext-2"),
        (["enwik8", "text.txt"], {}, "prepared alone"),
        ("text.txt", {"tokenizer": "bite"}, "There is no tokenizer bite"),
        ("text.txt", {"tokenizer": "bpe"}, "needs the size of its vocabulary"),
        ("text.txt", {"tokenizer": "bpe", "vocab_size": 100}, "smaller than its 256 bytes"),
        ("text.txt", {"tokenizer": "word", "vocab_size": 1}, "no room for words"),
        ("text.txt", {"vocab_size": 300}, "has no effect with the tokenizer byte"),
        ("text.txt", {"vocab_size": 0}, "at least 1"),
        ("text.txt", {"min_count": 2}, "for the tokenizer word"),
        ("text.txt", {"min_count": 0}, "at least 1"),
        ("text.txt", {"validation": 1.0}, "below 1"),
        ("text.txt", {"validation": -0.1}, "at least 0"),
        ("text.txt", {"validation": 0.5, "test": 0.5}, "must leave some for training"),
        ("text.txt", {"validation": float("nan")}, "at least 0"),
        ("text.txt", {"validation": "text.txt"}, "named for two splits"),
        ("text.txt", {"validation": "missing.txt"}, "There is no file"),
        ("text.txt", {"documents": "page"}, "not by 'page'"),
        ("text.txt", {"documents": "file", "separator": "x"}, "has no effect"),
        ("text.txt", {"separator": ""}, "The separator stands alone"),
        ("text.txt", {"legacy_newlines": True}, "enwik8"),
        ("text.txt", {"from_folder": "."}, "for published corpora"),
        ("text.txt", {"mirror": "http://x"}, "for published corpora"),
        ("python-stdlib", {"from_folder": "."}, "leave --from and --mirror out"),
        ("enwik8", {"legacy_newlines": True, "tokenizer": "char"}, "goes with the byte tokenizer"),
        ("text.txt", {"workers": 0}, "at least 1"),
        (["-", "-"], {}, "twice"),
        ("-", {"validation": "-"}, "twice"),
        ([], {}, "Nothing to read"),
    ],
)
def test_what_cannot_be_prepared_is_one_sentence_and_leaves_nothing(
    text: Path, inputs: Any, options: dict[str, Any], message: str
) -> None:
    Path("empty.txt").touch()
    with pytest.raises(InputError, match=message) as caught:
        prepare(inputs, "out", **options)
    assert str(caught.value).endswith(".") and "\n" not in str(caught.value)
    assert left(text.parent) == ["empty.txt"]


def test_a_file_in_the_way_is_not_replaced(text: Path) -> None:
    Path("out").write_text("mine")
    with pytest.raises(InputError, match="not a prepared corpus"):
        prepare(text, "out", overwrite=True)
    assert Path("out").read_text() == "mine"


def test_a_damaged_compressed_file_leaves_nothing(text: Path) -> None:
    Path("text.txt").write_bytes(gzip.compress(LINES.encode() * 50)[:-50])
    text.rename("text.gz")
    with pytest.raises(InputError, match="cannot be decompressed"):
        prepare("text.gz", "out")
    assert left(text.parent) == ["text.gz"]


def test_the_manifest_tells_command_source_licence_and_hashes_but_no_private_path(text: Path) -> None:
    home = text.parent / "home" / "someone" / "secret project"
    home.mkdir(parents=True)
    (home / "book.txt").write_text(LINES)
    for named in (home, home / "book.txt", home / "*.txt", "../" + os.path.relpath(home, text.parent.parent)):
        corpus = prepare(named, "out", licence="CC0", overwrite=True)
        written = "".join(path.read_text() for path in Path("out").rglob("*.json"))
        assert "someone" not in written
        assert str(text.parent) not in written
        assert corpus.manifest["licence"] == "CC0"
        assert corpus.manifest["sources"]["first"][0]["bytes"] == len(LINES)
        assert corpus.manifest["command"].startswith("remanence prepare ")


@pytest.mark.parametrize(
    ("options", "command"),
    [
        ({}, "remanence prepare text.txt"),
        ({"tokenizer": "bpe", "vocab_size": 300}, "remanence prepare text.txt --tokenizer bpe --vocab-size 300"),
        ({"separator": "\f"}, r"remanence prepare text.txt --documents separator --separator '\f'"),
        ({"validation": "a b.txt", "test": 0}, "remanence prepare text.txt --validation 'a b.txt' --test 0.0"),
    ],
)
def test_the_command_in_the_manifest_repeats_the_preparation(text: Path, options: dict[str, Any], command: str) -> None:
    Path("a b.txt").write_text("x\n")
    assert prepare("text.txt", "out", **options).manifest["command"] == command


def test_many_sources_are_counted_and_hashed_but_not_all_listed(text: Path) -> None:
    Path("many").mkdir()
    for index in range(150):
        Path(f"many/{index}.txt").write_text(f"{index}\n")
    sources = prepare("many", "out").manifest["sources"]
    assert (sources["files"], len(sources["first"])) == (150, 100)


def test_preparing_the_same_elsewhere_gives_the_same_manifest(text: Path) -> None:
    prepare("text.txt", "one")
    prepare("text.txt", "two")
    assert Path("one/manifest.json").read_bytes() == Path("two/manifest.json").read_bytes()


def test_the_number_of_workers_changes_nothing(text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from remanence.data import workers

    monkeypatch.setattr(workers, "SMALL", 0)
    text.write_text("".join(f"{LINES}word{index}\n" for index in range(150)))
    kinds: dict[str, dict[str, Any]] = {"word": {}, "char": {}, "bpe": {"vocab_size": 300}}
    for kind, options in kinds.items():
        fingerprints = {
            prepare(text, f"{kind}{count}", tokenizer=kind, workers=count, **options).fingerprint for count in (1, 3)
        }
        assert len(fingerprints) == 1


@pytest.mark.parametrize(
    ("given", "name"),
    [("text.txt", "text"), (".", "folder"), ("./sub/", "sub"), ("sub/*.txt", "sub"), ("*.txt", "folder")],
)
def test_a_corpus_is_named_after_its_text(text: Path, monkeypatch: pytest.MonkeyPatch, given: str, name: str) -> None:
    Path("folder/sub").mkdir(parents=True)
    for path in ("folder/text.txt", "folder/sub/text.txt"):
        Path(path).write_text(LINES)
    monkeypatch.chdir("folder")
    assert prepare(given).folder == Path("data") / name


def test_preparing_never_imports_torch(text: Path) -> None:
    program = (
        "import sys; from remanence.data.prepare import prepare; prepare('text.txt'); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_nothing_of_a_prepared_folder_is_a_pickle_or_code(text: Path) -> None:
    prepare(text, "out", tokenizer="bpe", vocab_size=300)
    assert {path.suffix for path in Path("out").rglob("*") if path.is_file()} == {".json", ".tokens", ".documents"}
    for path in Path("out").rglob("*.json"):
        json.loads(path.read_text())


def test_memory_stays_bounded_whatever_the_size_of_the_text(text: Path) -> None:
    with open("large.txt", "w") as file:
        for _ in range(80):
            file.write(LINES * 250)
    program = (
        "import sys, resource; from remanence.data.prepare import prepare; prepare(sys.argv[1], 'out', overwrite=True);"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    used = [
        int(subprocess.run([sys.executable, "-c", program, name], capture_output=True, check=True).stdout)
        for name in ("text.txt", "large.txt")
    ]
    assert used[1] - used[0] < 60_000  # of 46 MB of text, in kilobytes; most of it is fixed by the size of a task


def test_a_prepared_corpus_is_no_text(text: Path) -> None:
    prepare(text, "out")
    with pytest.raises(InputError, match="out is a prepared corpus, not text"):
        prepare("out", "again")


@pytest.mark.parametrize("name", ["", "..", "a/b", "a\\b"])
def test_a_name_is_one_plain_folder_name(text: Path, name: str) -> None:
    with pytest.raises(InputError, match="one plain folder name"):
        prepare(text, name=name)


def test_a_damaged_result_is_not_taken_for_the_same_one(text: Path) -> None:
    prepare(text, "out")
    tokens = bytearray(Path("out/train.tokens").read_bytes())
    tokens[3] ^= 1
    Path("out/train.tokens").write_bytes(tokens)
    with pytest.raises(InputError, match=r"was altered.*--overwrite"):
        prepare(text, "out")


def test_a_separator_that_divides_nothing_is_told(text: Path) -> None:
    told: list[str] = []
    prepare(text, "out", separator="zzz", say=told.append)
    assert told and "'zzz' divides nothing" in told[0]
