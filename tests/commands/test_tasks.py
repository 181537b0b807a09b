"""Sorting and MNIST as a user goes through them: prepare, train, evaluate, draw."""

from __future__ import annotations

import gzip
import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest

from remanence.cli import main
from remanence.commands import prepare as command
from remanence.data import Corpus
from remanence.data.mnist import FILES
from remanence.errors import InputError

RECIPE = """
name = "{name}"
[data]
corpus = "{corpus}"
protocol = "document"
[model]
architecture = "{architecture}"
num_layers = 2
segment_length = {segment}
model_width = 12
num_heads = 2
head_width = 6
feed_forward_width = 16
{more}
[training]
steps = 3
lanes = 2
horizon = {horizon}
{engine}
validate_every = 2
validation_tokens = 60
precision = "float32"
"""


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(line: str) -> int:
    return command.main(line.split(), "remanence prepare")


def train(corpus: str, architecture: str, segment: int, horizon: int, more: str) -> None:
    engine = "" if architecture == "memformer" or horizon == 1 else 'engine = "truncated"'
    text = RECIPE.format(
        name="run", corpus=corpus, architecture=architecture, segment=segment, horizon=horizon, more=more, engine=engine
    )
    Path("recipe.toml").write_text(text)
    assert main(["train", "recipe.toml"]) == 0


@pytest.fixture
def images(place: Path) -> Path:
    folder = place / "raw"
    folder.mkdir()
    for name, count in zip(FILES, (24, 9), strict=True):
        pixels = np.random.default_rng(count).integers(0, 256, (count, 4, 3)).astype(np.uint8)
        (folder / name).write_bytes(gzip.compress(struct.pack(">4I", 0x0803, count, 4, 3) + pixels.tobytes()))
    return folder


def test_sorting_is_prepared_trained_and_scored_by_accuracy(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("sorting --length 16 --sequences 6 3 4 --seed 2") == 0
    assert "words" not in capsys.readouterr().out
    train("data/sorting-16", "transformer-xl", 9, 4, "memory_length = 5")
    assert main(["evaluate", "runs/run", "--json"]) == 0
    (score,) = json.loads(capsys.readouterr().out)["scores"]
    assert score["tokens"] == 4 * 20 and score["headline"].endswith("% accuracy")
    assert main(["evaluate", "runs/run"]) == 0
    out = capsys.readouterr().out
    assert "% accuracy" in out and "the last 20 of each document scored once" in out
    log = [json.loads(line) for line in Path("runs/run/log.jsonl").read_text().splitlines()]
    assert any("accuracy" in line for line in log)
    # Of 4 segments a document only the last has answers: 3 updates of 4 would learn from nothing.
    assert main(["train", "recipe.toml", "--training.horizon", "2", "--folder", "runs/misfit"]) == 2
    told = capsys.readouterr().err
    assert "has 4 segments of 9 tokens and only its last 20 tokens are scored" in told
    assert "set training.horizon to 4 or a multiple of it." in told and not Path("runs/misfit").exists()


@pytest.mark.parametrize(
    ("architecture", "more"),
    [("transformer-xl", "memory_length = 5"), ("memformer", 'num_slots = 3\nalignment = "bos"')],
)
def test_images_are_prepared_trained_scored_and_drawn(
    architecture: str, more: str, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(f"mnist {images}") == 0
    train("data/mnist", architecture, 6, 2, more)
    capsys.readouterr()
    assert main(["evaluate", "runs/run", "--json", "--accuracy"]) == 0
    (score,) = json.loads(capsys.readouterr().out)["scores"]
    assert score["tokens"] == 9 * 12 and score["headline"].endswith("bits per pixel")
    assert score["accuracy"] is not None
    for flags in ([], ["--complete"]):
        assert main(["generate", "runs/run", "--images", "3", "--out", "drawn.png", *flags]) == 0
        picture = decoded(Path("drawn.png").read_bytes())
        assert picture.shape[1] == 3 * (3 * 3 + 2) + 2


def decoded(data: bytes) -> np.ndarray:
    """A PNG of greys without filters."""
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    place, chunks = 8, {}
    while place < len(data):
        (size,) = struct.unpack(">I", data[place : place + 4])
        kind, body = data[place + 4 : place + 8], data[place + 8 : place + 8 + size]
        assert zlib.crc32(kind + body) == struct.unpack(">I", data[place + 8 + size : place + 12 + size])[0]
        chunks[kind] = body
        place += 12 + size
    width, height, depth, colour = struct.unpack(">IIBB", chunks[b"IHDR"][:10])
    assert (depth, colour) == (8, 0)
    lines = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8).reshape(height, width + 1)
    assert not lines[:, 0].any()
    return lines[:, 1:]


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("sorting text.txt", "reads nothing"),
        ("sorting --tokenizer word", "--tokenizer means nothing for sorting"),
        ("sorting --levels 2", "--levels means nothing for sorting"),
        ("sorting --from raw", "--from means nothing for sorting"),
        ("sorting --length 0", "length is 0"),
        ("mnist raw --length 3", "--length means nothing for mnist"),
        ("mnist raw --vocab-size 300", "--vocab-size means nothing for mnist"),
        ("mnist raw --from raw", "named twice"),
        ("mnist nowhere", "There is no file or folder nowhere"),
        ("text.txt --length 3", "--length means nothing for text.txt"),
        ("text.txt --levels 2", "--levels means nothing for text.txt"),
    ],
)
def test_flags_that_mean_nothing_are_refused(line: str, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        run(line)


def test_splits_that_are_left_out_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("sorting --length 1 --sequences 5") == 0
    captured = capsys.readouterr()
    assert "--sequences 5 makes neither a validation nor a test split" in captured.err
    assert "sequences of 1 symbol of" in captured.out
    with pytest.raises(InputError, match="sequences is train 5 there and train 5, test 2 here"):
        run("sorting --length 1 --sequences 5 0 2")


def test_a_folder_that_cannot_be_made_is_named(place: Path) -> None:
    (place / "file").write_text("")
    with pytest.raises(InputError, match=r"The folder file/x cannot be made .*; choose one .* by --out"):
        run("sorting --length 1 --sequences 1 1 1 --out file/x")


def test_mnist_is_found_by_from(images: Path) -> None:
    assert run(f"mnist --from {images} --levels 2 --quiet") == 0
    assert Corpus.open("data/mnist-2").start_token == 2


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--images", "0"], "0 images were asked for"),
        (["--images", "2000"], "1 to 1,024"),
        (["--images", "2", "--prompt", "x"], "--prompt means nothing for images"),
        (["--images", "100", "--complete"], "100 images of the test split were asked for"),
        (["--complete"], "--complete is for images"),
        (["--images", "2", "--out", "no/such.png"], "is no folder"),
    ],
)
def test_mistakes_in_drawing_are_refused(
    flags: list[str], sentence: str, images: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(f"mnist {images} --quiet") == 0
    train("data/mnist", "transformer", 6, 1, "")
    assert main(["generate", "runs/run", *flags]) == 2
    assert sentence in capsys.readouterr().err


def test_a_run_on_text_draws_no_images(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("sorting --length 16 --sequences 6 3 --quiet") == 0
    train("data/sorting-16", "transformer", 9, 4, "")
    assert main(["generate", "runs/run", "--images", "2"]) == 2
    assert "draws no images" in capsys.readouterr().err
