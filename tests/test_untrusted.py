"""Files that nobody vouches for: each of these once cost memory, time or a traceback, and is one sentence now."""

from __future__ import annotations

import dataclasses
import json
import lzma
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from remanence.analysis.request import Plan
from remanence.analysis.study import Study
from remanence.analysis.trials import Trial
from remanence.config import TrainingSettings, load_recipe
from remanence.data import Lanes, published
from remanence.data.corpus import Split
from remanence.data.mnist import Images
from remanence.data.reading import read_all
from remanence.data.sources import Source
from remanence.data.tokenizers import load_tokenizer
from remanence.data.tokenizers.byte import ByteTokenizer
from remanence.errors import InputError
from remanence.evaluation import Score
from remanence.files import parse_json, read_header, read_json, write_json
from remanence.memory import Memory, load_memory
from remanence.models import build, config_class, outline
from remanence.training.checkpoint import ABOUT, FORMAT, Checkpoint, _checksum, open_checkpoint, write_description
from remanence.training.optimizer import build_optimizer, restore_optimizer
from remanence.training.parts import read_page
from remanence.training.run import check_about
from remanence.training.state import Progress, _described

MODEL = """name = "small"
[model]
architecture = "transformer-xl"
segment_length = 7
num_layers = 2
model_width = 12
num_heads = 3
head_width = 4
feed_forward_width = 20
memory_length = 5
"""


def refused(attempt: Callable[[], Any]) -> str:
    """The sentence with which something is refused."""
    with pytest.raises(InputError) as error:
        attempt()
    assert str(error.value).isprintable()
    return str(error.value)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        # The parser would keep every beginning of the key: 32 MB for 8 kB, 4 GB for 64 kB.
        (".".join(["a"] * 4000) + " = 1", "parts"),
        ('[ "a".' + ".".join(["b"] * 40) + "]\n" + "c.d = 1\n" * 10, "parts"),
        ("x = " + "[" * 5000 + "]" * 5000, "deep"),
        ("x = " + "[" * 70 + "]" * 70, "deep"),
        ("x = " + "9" * 5000, "digits"),
        ("x = 0x" + "f" * 5000, "64 bits"),
        ("#" * ((1 << 20) + 1), "bytes"),
        # Hours, for a pattern that looks for the end of the blanks at each of them.
        (" " * 500_000 + "?", "TOML"),
        ("[" + " " * 500_000 + "?", "TOML"),
        ("a" * 500_000, "TOML"),
    ],
    ids=["dotted-key", "dotted-table", "nested", "less", "digits", "hexadecimal", "long", "blanks", "table", "letters"],
)
def test_a_recipe_that_explodes_is_refused(tmp_path: Path, text: str, word: str) -> None:
    (tmp_path / "recipe.toml").write_text(text)
    assert word in refused(lambda: load_recipe(tmp_path / "recipe.toml"))


@pytest.mark.parametrize(
    "lines",
    [
        "num_basis = 1000000\nbasis_widths = [1e-9]",
        "num_basis = 1000000",
        "num_basis = 12\nbasis_widths = [1e-300]",
        f"num_basis = 12\nnum_resamples = {1 << 62}",
        f"num_basis = 12\ndiv_value = {1 << 62}\ncutoffs = {list(range(1, 2000))}",
    ],
)
def test_a_recipe_does_not_compute_what_it_only_names(tmp_path: Path, lines: str) -> None:
    text = MODEL.replace("transformer-xl", "infinite-former").replace("segment_length = 7", "segment_length = 1000000")
    (tmp_path / "recipe.toml").write_text(text + lines)
    refused(lambda: load_recipe(tmp_path / "recipe.toml"))


@pytest.mark.parametrize(
    ("text", "word"), [("[" * 5000, "deep"), ("[" * 70 + "]" * 70, "deep"), ("1" * 30, "64 bits"), ("1" * 5000, "64")]
)
def test_json_that_explodes_is_refused(tmp_path: Path, text: str, word: str) -> None:
    (tmp_path / "a.json").write_text(text)
    assert word in refused(lambda: read_json(tmp_path / "a.json", "The manifest"))


def test_json_that_is_too_large_is_refused_before_it_is_parsed(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("[]" + " " * 100)
    assert "more than the 50 bytes" in refused(lambda: read_json(tmp_path / "a.json", "The manifest", most=50))


def test_half_of_a_character_is_refused_and_a_whole_one_read() -> None:
    with pytest.raises(ValueError, match="half of a character"):
        parse_json('{"a": "\\ud800"}')
    assert parse_json('"\\ud83d\\ude00"') == "\U0001f600"


def test_whole_numbers_of_64_bits_are_read() -> None:
    assert parse_json(f"[{2**64 - 1}, {-(2**63)}]") == [2**64 - 1, -(2**63)]


def test_a_message_obeys_no_file(tmp_path: Path) -> None:
    (tmp_path / "settings.json").write_text(json.dumps({"kind": "\x1b[2J\n" + "x" * 9000}))
    told = refused(lambda: load_tokenizer(tmp_path))
    assert len(told) < 2100 and "\x1b" not in told
    assert str(InputError("a\x1b[2Jb\nc\ud800")) == "a\\x1b[2Jb\\nc\\ud800"


@pytest.mark.parametrize(
    "settings",
    [
        {"kind": "byte", "symbols": 10**15},
        {"kind": "byte", "symbols": {"1": 2}},
        {"kind": "symbol", "size": 10**12},
        {"kind": "pixel", "levels": 10**12, "rows": 3, "columns": 3},
        {"kind": ["byte"]},
        {"kind": {}},
    ],
)
def test_a_tokenizer_allocates_nothing_by_a_number_alone(tmp_path: Path, settings: Any) -> None:
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    refused(lambda: load_tokenizer(tmp_path))


@pytest.mark.parametrize("held", [10**15, [1] * 100, "abc"])
def test_a_decoder_takes_back_only_what_it_held(held: Any) -> None:
    with pytest.raises((TypeError, ValueError)):
        ByteTokenizer().stream_decoder().restore({"held": held})


def header(entries: dict[str, Any], body: bytes = b"") -> bytes:
    text = json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text + body


@pytest.mark.parametrize(
    "content",
    [
        b"",
        (10**18).to_bytes(8, "little") + b"{}",
        header({"a": {"dtype": "F32", "shape": [10**6, 10**6], "data_offsets": [0, 4 * 10**12]}}),
        header({"a": {"dtype": "F32", "shape": [2**63] * 99, "data_offsets": [0, 4]}}, b"1234"),
        header({"a": {"dtype": "F32", "shape": [1e300, 2**63, 2**63], "data_offsets": [0, 4]}}, b"1234"),
        header({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, b"1234"),
        header({"a": {"dtype": "F32", "shape": [True], "data_offsets": [0, 4]}}, b"1234"),
        header({"a": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}}, b"1234"),
        header({"a": ["F32", [1], [0, 4]]}, b"1234"),
        header({"__metadata__": {"a": 1}}),
        b"\x02" + bytes(7) + b"[]",
    ],
)
def test_a_header_that_promises_more_than_the_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"."):
        read_header(tmp_path / "a.safetensors")
    refused(lambda: load_memory(tmp_path / "a.safetensors"))


def small(architecture: str = "transformer-xl", **more: Any) -> Any:
    settings = {
        "vocab_size": 11,
        "segment_length": 7,
        "num_layers": 2,
        "model_width": 12,
        "num_heads": 3,
        "head_width": 4,
        "feed_forward_width": 20,
        "memory_length": 5,
    }
    return config_class(architecture)(**{**settings, **more})


@pytest.mark.parametrize(
    "change",
    [
        {"num_layers": 10**9},
        {"vocab_size": 10**9, "cutoffs": tuple(range(1, 60))},
        {"model_width": 1 << 62},
        {"num_heads": 1 << 40, "head_width": 1 << 40},
    ],
)
def test_a_model_is_outlined_only_where_a_file_could_hold_it(change: dict[str, Any]) -> None:
    refused(lambda: outline(small(**change), tensors=40))


def test_an_outline_takes_no_memory() -> None:
    model = outline(small(model_width=1 << 20, feed_forward_width=1 << 20), tensors=40)
    assert all(weight.is_meta for weight in model.parameters())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("kind", ["transformer-xl"]),
        ("hidden", 10**9),
        ("hidden", -1),
        ("hidden", "2"),
        ("hold", {"back": -5, "ahead": None}),
        ("hold", {"back": 10, "sideways": 1}),
        ("zeros", 7),
        ("segment", {"kind": "transformer-xl"}),
        ("valid", {"kind": "transformer-xl"}),
    ],
)
def test_a_memory_is_what_its_fields_say(name: str, value: Any) -> None:
    model = outline(small(), tensors=40)
    with torch.device("meta"):
        tensors, description = model.init_memory(lanes=2).state()
    refused(lambda: Memory.from_state(tensors, {**description, name: value}))


@pytest.mark.parametrize(
    "tensor", [torch.zeros(2, 5), torch.zeros(2, 5, 13), torch.zeros(2, 4, 12), torch.zeros(2, 5, 12).long()]
)
def test_the_tensors_of_a_memory_have_the_shapes_and_types_of_their_fields(tensor: torch.Tensor) -> None:
    with torch.device("meta"):
        tensors, description = outline(small(), tensors=40).init_memory(lanes=2).state()
    refused(lambda: Memory.from_state({**tensors, "hidden.1": tensor.to("meta")}, description))


@pytest.mark.parametrize("value", [[], None, {}, {"protocol": {}}, {"nats": "1"}, {"nats": 1.0, "tokens": 0}])
def test_what_is_no_score_is_refused(value: Any) -> None:
    refused(lambda: Score.from_json(value))


@pytest.mark.parametrize("architecture", ["7", '["lamemo"]', "true"])
def test_an_architecture_that_is_no_text_is_refused(tmp_path: Path, architecture: str) -> None:
    (tmp_path / "recipe.toml").write_text(MODEL.replace('"transformer-xl"', architecture))
    assert "architecture" in refused(lambda: load_recipe(tmp_path / "recipe.toml"))


@pytest.mark.parametrize("about", [{}, {"files": {"../../a": {"bytes": 1, "sha256": ""}}}, {"files": {"a": 1}}])
def test_a_checkpoint_names_plain_files(tmp_path: Path, about: dict[str, Any]) -> None:
    write_json(tmp_path / ABOUT, (about := {"format": FORMAT, **about}) | {"checksum": _checksum(about)})
    assert "which files" in refused(lambda: open_checkpoint(tmp_path))


@pytest.mark.parametrize(
    "change", [{"recipe": None}, {"step": -1}, {"corpus": {}}, {"best": 3}, {"distances": {"back": "far"}}]
)
def test_a_checkpoint_says_what_a_run_is_made_of(change: dict[str, Any]) -> None:
    about = {"recipe": {}, "step": 1, "corpus": {"unit": "byte"}, "best": None, "distances": {"back": 1, "ahead": None}}
    check_about(about, "here")
    refused(lambda: check_about({**about, **change}, "here"))


def test_an_archive_whose_directory_leads_before_the_file_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("text", "text")
    content = bytearray((tmp_path / "a.zip").read_bytes())
    for version in (content, content.replace(b"PK\x05\x06" + bytes(4), b"PK\x05\x06\xff\xff\xff\x7f")):
        # Where the directory begins stands six bytes before the end.
        version[-6:-2] = (2**31).to_bytes(4, "little")
        (tmp_path / "a.zip").write_bytes(version)
        assert "decompressed" in refused(lambda: text_of(tmp_path / "a.zip", "text"))


@pytest.mark.parametrize("change", [{"nextPageToken": "\ud800"}, {"items": [{"size": 1e999}]}, {"items": 3}])
def test_a_damaged_list_of_books_is_refused(monkeypatch: pytest.MonkeyPatch, change: Any) -> None:
    item = {"name": "train/1.txt", "md5Hash": "1B2M2Y8AsgTpgAmY7PhCfg==", "size": 1}
    if isinstance(change.get("items"), list):
        change = {"items": [{**item, **change["items"][0]}]}
    monkeypatch.setattr(published, "fetch_json", lambda url: {"items": [item], **change})
    books: Any = published.PUBLISHED["pg19"]
    assert "damaged" in refused(lambda: list(books._listed("http://localhost", "train")))


def text_of(path: Path, member: str | None = None) -> bytes:
    return b"".join(block for _, blocks in read_all([Source(path.name, path, member)], 1) for block in blocks)


def test_a_window_that_is_not_affordable_is_refused(tmp_path: Path) -> None:
    filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 20}]
    content = bytearray(lzma.compress(b"text", format=lzma.FORMAT_XZ, check=lzma.CHECK_NONE, filters=filters))
    # The size of the window is one byte of the header of the block, followed by a checksum of the header.
    place = content.index(bytes([0x21, 0x01])) + 2
    content[place] = 39
    length = (content[12] + 1) * 4
    content[12 + length - 4 : 12 + length] = struct.pack("<I", zlib.crc32(bytes(content[12 : 12 + length - 4])))
    (tmp_path / "a.xz").write_bytes(content)
    assert "emory" in refused(lambda: text_of(tmp_path / "a.xz"))


def test_an_archive_packed_with_lzma_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("text", "text")
    assert "not read" in refused(lambda: text_of(tmp_path / "a.zip", "text"))


def test_several_streams_of_xz_are_one_text(tmp_path: Path) -> None:
    (tmp_path / "a.xz").write_bytes(lzma.compress(b"one ") + bytes(8) + lzma.compress(b"two"))
    assert text_of(tmp_path / "a.xz") == b"one two"


def test_images_are_read_a_few_at_a_time(tmp_path: Path) -> None:
    (tmp_path / "images").write_bytes(struct.pack(">4I", 0x0803, 10_000_000, 1024, 1024))
    images = Images.open(tmp_path / "images")
    assert "ends before" in refused(images.digest)


DESCRIPTION = {
    "lanes": {},
    "machine": {},
    "precision": "float32",
    "progress": {"step": 3, "best": None, "losses": [[1, 2.5]]},
}


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("lanes", []),
        ("machine", None),
        ("precision", "float8"),
        ("precision", ["float32"]),
        ("progress", {"step": 4}),
        ("progress", 3),
    ],
)
def test_a_description_that_no_run_is_resumed_from(tmp_path: Path, place: str, value: Any) -> None:
    about = {"step": 3, "memory": {}, "resumption": {**DESCRIPTION, place: value}}
    assert "lacks what a run is resumed from" in refused(lambda: _described(Checkpoint(tmp_path, about)))


@pytest.mark.parametrize(
    "told",
    [
        {"tokens": -1},
        {"step": 2.5},
        {"step": True},
        {"reach": 1 << 63},
        {"seconds": "1"},
        {"unknown": 1},
        {"losses": {}},
        {"losses": [[1]]},
        {"losses": [[1, "2.5"]]},
        {"best": {"step": 1}},
        {"best": 3},
    ],
    ids=str,
)
def test_progress_that_is_none(told: dict[str, Any]) -> None:
    assert Progress.from_json(DESCRIPTION["progress"]).losses == [(1, 2.5)]
    assert "progress" in refused(lambda: Progress.from_json(told))


@pytest.mark.parametrize(
    "change",
    [
        {"seed": -1},
        {"epoch": 1 << 63},
        {"position": 10**9},
        {"position": None},
        {"reading": [0]},
        {"reading": [0, 10**9]},
        {"read": [0, -1]},
        {"read": "ab"},
    ],
    ids=str,
)
def test_a_position_that_no_lane_can_have(change: dict[str, Any]) -> None:
    lanes = Lanes(Split(np.zeros(90, np.uint8), 256, np.arange(0, 90, 9)), 2, 4, protocol="document")
    lanes.next()
    lanes.restore(lanes.state())
    assert "no place of these lanes" in refused(lambda: lanes.restore({**lanes.state(), **change}))


@pytest.mark.parametrize(
    "change",
    [
        {"weight/exp_avg": None},
        {"weight/exp_avg_sq": torch.zeros(3, 2)},
        {"weight/step": torch.zeros(2, 3)},
        {"weight/exp_avg": torch.zeros(2, 3, dtype=torch.float64)},
        {"weight/more": torch.zeros(2, 3)},
        {"other/step": torch.zeros(())},
    ],
    ids=lambda change: next(iter(change)),
)
def test_optimizer_state_that_its_kernels_would_not_take(change: dict[str, Any]) -> None:
    model = nn.Linear(3, 2, bias=False)
    optimizer = build_optimizer(model, TrainingSettings())
    means = {f"weight/{name}": torch.zeros(2, 3) for name in ("exp_avg", "exp_avg_sq")}
    state = {"weight/step": torch.tensor(1.0), **means, **change}
    given = {name: tensor for name, tensor in state.items() if tensor is not None}
    assert "does not fit the model" in refused(lambda: restore_optimizer(optimizer, model, given))


@pytest.mark.parametrize(
    "page",
    [[], {"files": {}}, {"files": {"../a": {"bytes": 1, "sha256": ""}}, "memory": {}}, {"memory": {}, "files": 3}],
)
def test_the_page_of_a_rank_that_is_none(tmp_path: Path, page: Any) -> None:
    write_json(tmp_path / "rank-1.json", page)
    assert "not what a process writes" in refused(lambda: read_page(tmp_path / "rank-1.json"))


def test_a_checkpoint_of_no_step(tmp_path: Path) -> None:
    write_description(tmp_path, {"step": "3"}, {})
    assert "of which step" in refused(lambda: open_checkpoint(tmp_path))


def test_a_plan_without_the_steps_of_a_recipe(tmp_path: Path) -> None:
    Plan({}, "", {"a": {}}, {"a": None}, {}, 1.0, {}).save(tmp_path / "plan.json")
    assert "not of the same names" in refused(lambda: Plan.load(tmp_path / "plan.json"))


def test_a_compressive_memory_that_counts_more_rows_than_it_has() -> None:
    sizes = {"segment_length": 7, "num_layers": 1, "model_width": 12, "num_heads": 3, "head_width": 4}
    lengths = {"memory_length": 5, "compressed_length": 4, "compression_rate": 7}
    memory = build(
        config_class("compressive")(vocab_size=9, feed_forward_width=20, **sizes, **lengths), seed=0
    ).init_memory(lanes=2)
    tensors, description = memory.state()
    Memory.from_state(tensors, description)
    for count in (-1, 1, 1 << 40):
        spoilt = {**tensors, "raw": torch.full((2,), count)}
        assert "rows of its lanes" in refused(lambda spoilt=spoilt: Memory.from_state(spoilt, description))


@pytest.mark.parametrize(
    "change", [{"seconds": "1"}, {"tokens": 2.5}, {"stretch_nats": ([1],)}, {"failed": 3}], ids=str
)
def test_a_trial_whose_numbers_are_none(tmp_path: Path, change: dict[str, Any]) -> None:
    found = dataclasses.replace(Trial(1, "a"), **change)
    study = SimpleNamespace(_found=lambda job: found)
    job: Any = SimpleNamespace(folder=tmp_path)
    assert "is damaged" in refused(lambda: Study._trial(study, job))  # type: ignore[arg-type]
