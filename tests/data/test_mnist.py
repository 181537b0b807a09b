"""Images as documents of pixels, and files that are no such images."""

from __future__ import annotations

import gzip
import hashlib
import struct
from pathlib import Path

import numpy as np
import pytest
from tests.data.conftest import Server

from remanence.data import Corpus, mnist
from remanence.data.fetch import Remote
from remanence.data.mnist import FILES, prepare_mnist
from remanence.errors import InputError

ROWS, COLUMNS = 3, 2


def pixels(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, ROWS, COLUMNS)).astype(np.uint8)


def idx(images: np.ndarray, magic: int = 0x0803, count: int | None = None) -> bytes:
    rows, columns = images.shape[1:]
    return struct.pack(">4I", magic, len(images) if count is None else count, rows, columns) + images.tobytes()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / FILES[0]).write_bytes(gzip.compress(idx(pixels(30))))
    (tmp_path / "raw" / FILES[1]).write_bytes(gzip.compress(idx(pixels(4, 1))))
    return tmp_path / "raw"


def test_an_image_is_a_document_in_raster_order_after_a_start_token(folder: Path, tmp_path: Path) -> None:
    corpus = prepare_mnist([folder], tmp_path / "out")
    split = Corpus.open(corpus.folder, verify=True).split("train")
    assert (split.start_token, split.vocab_size, split.unit, split.scored_last) == (256, 257, "pixel", None)
    documents = np.array(split.tokens).reshape(-1, 1 + ROWS * COLUMNS)
    assert (documents[:, 0] == 256).all()
    assert np.array_equal(documents[:, 1:], pixels(30)[:28].reshape(28, -1))
    assert np.array_equal(split.documents, np.arange(28) * 7)


def test_a_twelfth_of_the_training_images_is_for_validation(folder: Path, tmp_path: Path) -> None:
    corpus = prepare_mnist([folder], tmp_path / "out")
    assert {name: len(corpus.split(name).documents) for name in corpus.splits} == {
        "train": 28,
        "validation": 2,
        "test": 4,
    }
    validation = np.array(corpus.split("validation").tokens).reshape(2, -1)[:, 1:]
    assert np.array_equal(validation, pixels(30)[28:].reshape(2, -1))


@pytest.mark.parametrize("levels", [2, 16])
def test_fewer_levels_are_of_equal_width(levels: int, folder: Path, tmp_path: Path) -> None:
    corpus = prepare_mnist([folder], tmp_path / "out", levels=levels)
    split = corpus.split("test")
    documents = np.array(split.tokens).reshape(4, -1)
    assert (documents[:, 0] == levels).all() and corpus.vocab_size == levels + 1
    assert np.array_equal(documents[:, 1:], pixels(4, 1).reshape(4, -1) // (256 // levels))
    assert corpus.name == f"mnist-{levels}"


def test_the_tokenizer_knows_the_shape(folder: Path, tmp_path: Path) -> None:
    tokenizer = prepare_mnist([folder], tmp_path / "out").tokenizer
    assert (tokenizer.rows, tokenizer.columns, tokenizer.levels) == (3, 2, 256)  # pyright: ignore[reportAttributeAccessIssue]
    assert tokenizer.encode("256 0\n13").tolist() == [256, 0, 13]
    assert tokenizer.decode([256, 0, 13]) == "256 0 13"
    stream = tokenizer.stream_decoder()
    assert stream.push([256]) + stream.push([]) + stream.push([0, 13]) + stream.finish() == "256 0 13"


@pytest.mark.parametrize("text", ["257", "-1", "1.5", "x", "١", "9" * 5000])
def test_text_that_is_no_pixel_is_refused(text: str, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="numbers from 0 to 256"):
        prepare_mnist([folder], tmp_path / "out").tokenizer.encode(text)


def test_plain_files_and_other_spellings_are_found(folder: Path, tmp_path: Path) -> None:
    expected = prepare_mnist([folder], tmp_path / "one").fingerprint
    other = tmp_path / "other"
    other.mkdir()
    for name in FILES:
        plain = name.removesuffix(".gz").replace("-idx3", ".idx3")
        (other / plain).write_bytes(gzip.decompress((folder / name).read_bytes()))
    assert prepare_mnist([other], tmp_path / "two").fingerprint == expected
    assert prepare_mnist([folder / name for name in FILES], tmp_path / "three").fingerprint == expected


def test_only_the_published_pixels_are_called_mnist(folder: Path, tmp_path: Path) -> None:
    corpus = prepare_mnist([folder], tmp_path / "out")
    assert corpus.manifest["title"].startswith("Images: 3 x 2") and corpus.manifest["licence"] == "not stated"


def broken(kind: str, folder: Path) -> None:
    path = folder / FILES[0]
    compressed = path.read_bytes()
    images = pixels(30)
    content = {
        "labels": gzip.compress(idx(images, magic=0x0801)),
        "text": b"hello, these are no images at all",
        "empty": b"",
        "short head": gzip.compress(b"\0\0\x08\x03\0\0"),
        "cut": compressed[: len(compressed) // 2],
        "no trailer": compressed[:-8],
        "damaged": compressed[:40] + bytes(byte ^ 0x5A for byte in compressed[40:80]) + compressed[80:],
        "checksum": compressed[:-8] + b"\0\0\0\0" + compressed[-4:],
        "too few": gzip.compress(idx(images, count=31)),
        "too many": gzip.compress(idx(images, count=29)),
        "huge count": gzip.compress(idx(images, count=2**32 - 1)),
        "huge side": gzip.compress(struct.pack(">4I", 0x0803, 1, 2**31, 2**31)),
        "no images": gzip.compress(struct.pack(">4I", 0x0803, 0, 3, 2)),
        "one image": gzip.compress(idx(images[:1])),
        "other size": gzip.compress(idx(images.reshape(30, 2, 3))),
    }[kind]
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("labels", "begins with 0x00000801.*not the labels"),
        ("text", "begins with 0x68656c6c.*; name train-images"),
        ("empty", "ends before the images"),
        ("short head", "ends before the images"),
        ("cut", "cut short|ends before"),
        ("no trailer", "cut short"),
        ("damaged", "damaged"),
        ("checksum", "damaged"),
        ("too few", "ends before the images"),
        ("too many", "goes on after the 29 images"),
        ("huge count", "4,294,967,295 images"),
        ("huge side", "at most 1,024 x 1,024"),
        ("no images", "holds 0 images"),
        ("one image", "must hold 2 or more"),
        ("other size", "2 x 3 and .* of 3 x 2"),
    ],
)
def test_what_is_no_sound_file_of_images_is_refused(kind: str, sentence: str, folder: Path, tmp_path: Path) -> None:
    broken(kind, folder)
    with pytest.raises(InputError, match=sentence):
        prepare_mnist([folder], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_missing_files_and_odd_levels_are_refused(folder: Path, tmp_path: Path) -> None:
    (folder / FILES[1]).unlink()
    with pytest.raises(InputError, match=r"does not hold t10k.* decompressed, t10k-images-idx3-ubyte or"):
        prepare_mnist([folder], tmp_path / "out")
    with pytest.raises(InputError, match="One file was named"):
        prepare_mnist([folder / FILES[0]], tmp_path / "out")
    with pytest.raises(InputError, match="There is no file"):
        prepare_mnist([folder / FILES[0], folder / "none"], tmp_path / "out")
    with pytest.raises(InputError, match="one of 2, 16, 256"):
        prepare_mnist([folder], tmp_path / "out", levels=3)


def test_the_files_are_fetched_and_checked_by_hash(
    folder: Path, tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    remotes = []
    for name in FILES:
        data = (folder / name).read_bytes()
        server.files[f"/there/{name}"] = data
        digest = hashlib.sha256(data).hexdigest()
        remotes.append(Remote(f"mnist/{name}", (f"{server.url}/gone/{name}",), f"sha256:{digest}", len(data)))
    monkeypatch.setattr(mnist, "REMOTES", tuple(remotes))
    corpus = prepare_mnist([], tmp_path / "out", mirror=f"{server.url}/there", cache=tmp_path / "cache")
    assert corpus.fingerprint == prepare_mnist([folder], tmp_path / "again").fingerprint
    (folder / FILES[0]).write_bytes(b"altered")
    server.files[f"/there/{FILES[0]}"] = b"altered"
    with pytest.raises(InputError, match="could not be fetched"):
        prepare_mnist([], tmp_path / "third", mirror=f"{server.url}/there", cache=tmp_path / "other")


def test_the_published_files_are_what_they_should_be(root: Path, tmp_path: Path) -> None:
    shared = root.parent / "shared" / "data" / "mnist"
    if not shared.is_dir():
        pytest.skip("needs MNIST beside the project")
    corpus = prepare_mnist([shared], tmp_path / "out")
    assert corpus.manifest["title"].startswith("MNIST: 28 x 28")
    assert [len(corpus.split(name).documents) for name in corpus.splits] == [55_000, 5_000, 10_000]
