"""Corpora at addresses: an S3 server and a web server on this machine, memory, and files."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from remanence.cli import main
from remanence.data import Corpus, Lanes, remote
from remanence.data.prepare import prepare
from remanence.data.remote import Remote
from remanence.errors import InputError
from remanence.training.log import read_log

pytest.importorskip("fsspec")


@dataclass
class Server:
    """A server process that can be killed and brought back on the same port."""

    kind: str
    folder: Path
    log: Path
    url: str = ""
    port: int = 0
    process: subprocess.Popen[bytes] | None = None
    environment: dict[str, str] = field(default_factory=dict)

    def start(self) -> None:
        if not self.port:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                self.port = free.getsockname()[1]
        script = Path(__file__).with_name("object_server.py")
        self.process = subprocess.Popen(
            [sys.executable, str(script), self.kind, str(self.folder), str(self.port), str(self.log)],
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            assert self.process.poll() is None, "the server ended"
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
            except OSError:
                time.sleep(0.02)
            else:
                return
        raise AssertionError("the server did not start")

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def ranges(self) -> list[tuple[str, int, int]]:
        """Ranges of token files that were answered, and the log begun anew."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        self.log.unlink(missing_ok=True)
        found = [(path, int(begin), int(last) + 1) for path, begin, last in (line.rsplit(" ", 2) for line in lines)]
        return [(path, begin, end) for path, begin, end in found if path.endswith(".tokens")]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus of one file and the same text in shards, some documents crossing their edges."""
    folder = tmp_path_factory.mktemp("corpora")
    text = "".join(f"document {index} " * (index % 90 + 1) + "\n\f\n" for index in range(300))
    (folder / "text.txt").write_text(text)
    prepare(folder / "text.txt", folder / "served" / "one", documents="separator", tokenizer="char")
    prepare(folder / "text.txt", folder / "served" / "many", documents="separator", tokenizer="char", shard_tokens=9000)
    return folder / "served"


@pytest.fixture(scope="module", params=["s3", "http"])
def server(request: pytest.FixtureRequest, made: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    pytest.importorskip({"s3": "moto", "http": "aiohttp"}[request.param])
    running = Server(request.param, made, tmp_path_factory.mktemp("log") / "ranges")
    running.start()
    address = f"http://127.0.0.1:{running.port}"
    running.url = {"s3": "s3://corpora", "http": f"{address}/corpora"}[running.kind]
    environment = {
        "AWS_ENDPOINT_URL": address,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "no_proxy": "127.0.0.1",
    }
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    yield running
    running.kill()
    for name, value in before.items():
        if value is None:
            os.environ.pop(name)
        else:
            os.environ[name] = value


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of which the small corpora here have many, and short pauses."""
    monkeypatch.setattr(remote, "BLOCK", 1024)
    monkeypatch.setattr(remote, "PAUSE", 0.02)
    monkeypatch.setattr(remote, "LONGEST", 0.2)
    monkeypatch.setattr(remote, "PATIENCE", 30.0)


def same(one: Lanes, other: Lanes, steps: int) -> None:
    for _ in range(steps):
        expected, got = one.next(), other.next()
        assert got.tokens.tolist() == expected.tokens.tolist()
        assert got.targets.tolist() == expected.targets.tolist()
        assert got.starts.tolist() == expected.starts.tolist()


@pytest.mark.parametrize("name", ["one", "many"])
def test_a_corpus_at_an_address_is_that_in_the_folder(server: Server, made: Path, name: str) -> None:
    there, here = Corpus.open(f"{server.url}/{name}", verify=True), Corpus.open(made / name)
    assert there.fingerprint == here.fingerprint
    assert there.tokenizer.fingerprint == here.tokenizer.fingerprint
    for split in here.splits:
        assert np.asarray(there.split(split).tokens).tolist() == np.asarray(here.split(split).tokens).tolist()
        assert np.asarray(there.split(split).documents).tolist() == np.asarray(here.split(split).documents).tolist()


@pytest.mark.parametrize("protocol", ["published", "document"])
@pytest.mark.parametrize("name", ["one", "many"])
def test_lanes_read_from_afar_what_they_read_here(server: Server, made: Path, name: str, protocol: Any) -> None:
    there = Lanes(Corpus.open(f"{server.url}/{name}").split("train"), 4, 50, protocol, seed=1)
    same(Lanes(Corpus.open(made / name).split("train"), 4, 50, protocol, seed=1), there, 150)


def test_no_token_is_fetched_twice_in_an_epoch(server: Server, made: Path) -> None:
    split = Corpus.open(f"{server.url}/many").split("train")
    lanes = Lanes(split, 3, 40)
    server.ranges()
    while lanes.epoch == 0:
        lanes.next()
    ranges = server.ranges()
    assert len(set(ranges)) == len(ranges)
    assert sum(end - begin for _, begin, end in ranges) <= len(split)


def test_a_position_that_is_restored_reads_only_what_lies_there(server: Server, made: Path) -> None:
    lanes = Lanes(Corpus.open(f"{server.url}/many").split("train"), 3, 40)
    for _ in range(200):
        lanes.next()
    time.sleep(0.3)
    server.ranges()
    split = Corpus.open(f"{server.url}/many").split("train")
    again = Lanes(split, 3, 40)
    again.restore(lanes.state())
    assert server.ranges() == []
    got = again.next().tokens.tolist()
    time.sleep(0.5)
    # For each lane the block it is in, one more where a segment crosses its end, and one ahead.
    ranges = server.ranges()
    assert 3 <= len(ranges) <= 9
    assert sum(end - begin for _, begin, end in ranges) <= 9 * 1024 < len(split) / 10
    assert got == lanes.next().tokens.tolist()


def test_what_lanes_read_next_is_there_before_they_ask(server: Server) -> None:
    split = Corpus.open(f"{server.url}/many").split("train")
    lanes = Lanes(split, 2, 40)
    lanes.next()
    time.sleep(0.5)
    server.ranges()
    # A block has 25 segments; the next one was fetched with the first.
    for _ in range(20):
        lanes.next()
    time.sleep(0.3)
    begun = [begin for _, begin, _ in server.ranges()]
    assert len(begun) <= 4


def test_a_server_that_dies_and_comes_back_is_survived(server: Server, made: Path) -> None:
    there = Lanes(Corpus.open(f"{server.url}/many").split("train"), 4, 50, seed=1)
    here = Lanes(Corpus.open(made / "many").split("train"), 4, 50, seed=1)
    same(here, there, 60)
    server.kill()
    back = threading.Timer(1.0, server.start)
    back.start()
    try:
        same(here, there, 150)
    finally:
        back.join()


def test_a_server_that_stays_away_is_told(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "PATIENCE", 0.3)
    lanes = Lanes(Corpus.open(f"{server.url}/many").split("train"), 4, 50, seed=1)
    lanes.next()
    server.kill()
    try:
        with pytest.raises(InputError, match=r"could not be read in \d+ tries over 0 seconds .* check the connection"):
            [lanes.next() for _ in range(400)]
    finally:
        server.start()
    # What failed is asked for again.
    for _ in range(50):
        lanes.next()


def test_what_is_not_there_is_told(server: Server) -> None:
    with pytest.raises(InputError, match=r"no file .*nothing/manifest.json"):
        Corpus.open(f"{server.url}/nothing")


def test_a_shard_of_another_size_is_told(server: Server, made: Path) -> None:
    if server.kind == "s3":
        pytest.skip("the objects of the S3 server are those it was started with")
    copy = Path(shutil.copytree(made / "many", made / "short"))
    with open(copy / "train-00001.tokens", "ab") as file:
        file.write(b"more")
    with pytest.raises(InputError, match=r"train-00001.tokens has \d+ bytes and its manifest says"):
        np.asarray(Corpus.open(f"{server.url}/short").split("train").tokens)


RECIPE = """
name = "small"
[data]
corpus = "{corpus}"
protocol = "{protocol}"
[model]
architecture = "lamemo"
segment_length = 16
memory_length = 16
num_layers = 1
model_width = 12
num_heads = 2
head_width = 6
feed_forward_width = 16
[training]
steps = 40
schedule = "constant"
learning_rate = 0.003
lanes = 4
log_every = 1
save_every = 5
validate_every = 20
precision = "float32"
"""


def train(folder: Path, corpus: str, protocol: str, *flags: str) -> list[tuple[int, float]]:
    """Steps and losses of a run, by the command."""
    recipe = folder.with_suffix(".toml")
    recipe.write_text(RECIPE.format(corpus=corpus, protocol=protocol))
    assert main(["train", str(recipe), "--folder", str(folder), *flags]) == 0
    return [(record["step"], record["loss"]) for record in read_log(folder / "log.jsonl") if "loss" in record]


@pytest.mark.parametrize("protocol", ["published", "document"])
def test_training_from_afar_has_the_losses_of_training_here_resumed_and_through_a_dead_server(
    server: Server, made: Path, tmp_path: Path, protocol: str
) -> None:
    here = train(tmp_path / "here", str(made / "many"), protocol)
    assert len(here) == 40
    train(tmp_path / "there", f"{server.url}/many", protocol, "--training.steps", "20")
    server.kill()
    back = threading.Timer(1.0, server.start)
    back.start()
    try:
        there = train(tmp_path / "there", f"{server.url}/many", protocol, "--resume")
    finally:
        back.join()
    assert there == here


@pytest.mark.parametrize("scheme", ["memory", "file"])
def test_memory_and_files_are_addresses_too(scheme: str, made: Path) -> None:
    import fsspec

    root = f"file://{made}" if scheme == "file" else "memory://corpora"
    if scheme == "memory":
        for path in made.rglob("*"):
            if path.is_file():
                fsspec.filesystem("memory").pipe(f"/corpora/{path.relative_to(made)}", path.read_bytes())
    corpus = Corpus.open(f"{root}/many", verify=True)
    same(Lanes(Corpus.open(made / "one").split("train"), 3, 20), Lanes(corpus.split("train"), 3, 20), 30)


def test_the_cache_holds_no_more_than_it_may(made: Path) -> None:
    place = Remote(f"file://{made}/one")
    blocks = remote.Blocks(place, 4 * 1024)
    size = (made / "one" / "train.tokens").stat().st_size
    data = (made / "one" / "train.tokens").read_bytes()
    for begin in range(0, 9000, 700):
        assert blocks.gather([("train.tokens", size, begin, begin + 900)]) == [data[begin : begin + 900]]
        assert len(blocks._held) <= 4


def test_a_cache_too_small_to_read_ahead_warns_once(made: Path) -> None:
    place = Remote(f"file://{made}/one")
    blocks = remote.Blocks(place, 2 * 1024)
    size = (made / "one" / "train.tokens").stat().st_size
    heads = [("train.tokens", size, 1024), ("train.tokens", size, 4096)]
    with pytest.warns(match="REMANENCE_READ_CACHE"):
        blocks.gather([("train.tokens", size, 0, 10)], heads)
    blocks.gather([("train.tokens", size, 0, 10)], heads)


@pytest.mark.parametrize("value", ["0", "-1", "1.5", "much"])
def test_a_cache_size_that_is_none_is_refused(value: str, made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REMANENCE_READ_CACHE", value)
    with pytest.raises(InputError, match="whole number of MiB"):
        Corpus.open(f"file://{made}/one").split("train").tokens[0]


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://user:secret@host/corpus", "password"),
        ("s3://bucket/corpus?versionId=1", "query"),
        ("nothing://bucket/corpus", "no address that fsspec reads"),
    ],
)
def test_an_address_that_cannot_be_is_refused(url: str, said: str) -> None:
    with pytest.raises(InputError, match=said) as raised:
        Corpus.open(url)
    assert "secret" not in str(raised.value)


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(url: str) -> Any:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr("fsspec.core.url_to_fs", missing)
    with pytest.raises(InputError, match="needs s3fs beside fsspec"):
        Corpus.open("s3://bucket/corpus")
    monkeypatch.setitem(sys.modules, "fsspec.core", None)
    with pytest.raises(InputError, match=r"install `remanence\[remote\]`"):
        Corpus.open("s3://bucket/corpus")


class Files:
    """A file system that answers as it is told."""

    def __init__(self, answer: Callable[[], bytes], size: int | None = 10) -> None:
        self.answer, self.size = answer, size

    def info(self, path: str) -> dict[str, Any]:
        return {"size": self.size}

    def cat_file(self, path: str, start: int, end: int) -> bytes:
        return self.answer()


def failing(error: Exception) -> Callable[[], bytes]:
    def answer() -> bytes:
        raise error

    return answer


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (Files(lambda: bytes(9)), "ended after 9 of 10 bytes"),
        (Files(lambda: bytes(11)), "does not answer range requests"),
        (Files(failing(PermissionError("Access Denied"))), "may not be read"),
        (Files(failing(type("NoCredentialsError", (Exception,), {})("none"))), "needs credentials"),
        (Files(lambda: bytes(10), None), "does not tell its size"),
        (Files(lambda: bytes(10), 10**13), "10,000,000,000,000 bytes"),
    ],
)
def test_what_cannot_be_read_is_one_sentence(files: Files, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_open", lambda url: (files, "root"))
    monkeypatch.setattr(remote, "PATIENCE", 0.1)
    with pytest.raises(InputError, match=said):
        Corpus.open("s3://bucket/corpus")


def test_an_error_that_passes_is_not_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    answers: list[Any] = [OSError("SlowDown"), b"ab", TimeoutError(), b"abcde"]

    def answer() -> bytes:
        if isinstance(each := answers.pop(0), Exception):
            raise each
        return each

    monkeypatch.setattr(remote, "_open", lambda url: (Files(answer), "root"))
    assert Remote("s3://bucket/corpus").range("train.tokens", 0, 5) == b"abcde"
