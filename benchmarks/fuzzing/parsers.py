"""Every parser of the library with a valid file of its own: how it is made, read, and signed again after a change."""

from __future__ import annotations

import bz2
import contextlib
import dataclasses
import gzip
import json
import lzma
import struct
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from benchmarks.fuzzing import resumption
from benchmarks.fuzzing.resumption import WORDS
from safetensors.torch import load, load_file, save_file

from remanence.analysis.comparison import Comparison, ModelFindings, TextFacts
from remanence.analysis.cost import Price
from remanence.analysis.request import Plan, load_asked
from remanence.analysis.trials import Contender, Trial, Trials
from remanence.config import Recipe, TrainingSettings, dump_recipe, load_recipe
from remanence.data import Corpus
from remanence.data.manifest import corpus_fingerprint
from remanence.data.mnist import Images
from remanence.data.prepare import prepare
from remanence.data.published import PUBLISHED
from remanence.data.reading import read_all
from remanence.data.sources import Source
from remanence.data.tokenizers import load_tokenizer
from remanence.data.tokenizers.byte import ByteTokenizer
from remanence.data.tokenizers.char import CharTokenizer
from remanence.data.tokenizers.number import PixelTokenizer, SymbolTokenizer
from remanence.data.tokenizers.subword import train_bpe
from remanence.data.tokenizers.word import WordTokenizer
from remanence.errors import InputError
from remanence.evaluation import Protocol, Score
from remanence.files import parse_json, read_json, sha256_file, write_json
from remanence.generation import Session
from remanence.interop import from_published, published_layout, read_weights
from remanence.memory import _digest, load_memory
from remanence.models import build, config_class
from remanence.training import checkpoint as checkpoints
from remanence.training.log import read_log
from remanence.training.run import load_run
from remanence.training.weights import weights

OWN: dict[str, dict[str, Any]] = {
    "transformer-xl": {"memory_length": 5},
    "lamemo": {"memory_length": 5},
    "compressive": {"memory_length": 5, "compressed_length": 4, "compression_rate": 7},
    "infinite-former": {"memory_length": 5, "num_basis": 6},
    "memformer": {"num_slots": 5},
    "rmt": {"memory_tokens": 5},
}
"""What each architecture wants beside the common settings."""
RESUMED = (
    ("transformer-xl", "published", 1),
    ("compressive", "document", 1),
    ("lamemo", "document", 2),
)
"""Runs that are gone on with: architecture, protocol, ranks."""


@dataclass(frozen=True)
class Parser:
    """Something that reads files."""

    name: str
    files: dict[str, str]
    """Names in its folder, and their kinds, for the mutations that know them."""
    make: Callable[[Path], None]
    read: Callable[[Path], Any]
    sign: Callable[[Path], None] | None = None
    """Makes hashes in the files true again, so that what lies behind their check is reached."""
    share: float = 1.0
    """Of the inputs, beside the others: the slow ones and the many of a kind get fewer."""


@cache
def model_of(architecture: str) -> Any:
    return build(config_of(architecture), seed=0).eval()


def config_of(architecture: str) -> Any:
    sizes = {"segment_length": 7, "num_layers": 2, "model_width": 12, "num_heads": 3, "head_width": 4}
    common = {"vocab_size": 256, "feed_forward_width": 20, **sizes}
    return config_class(architecture)(**common, **OWN[architecture])


def recipe_of(architecture: str) -> Recipe:
    return Recipe("small", model=config_of(architecture), training=TrainingSettings(steps=3, lanes=2))


# Recipes, runs, logs


def _make_run(folder: Path) -> None:
    recipe = recipe_of("transformer-xl")
    (folder / "checkpoints").mkdir()
    (folder / "recipe.toml").write_text(dump_recipe(recipe))
    ByteTokenizer().save(folder / "tokenizer")
    draft = folder / "checkpoints" / "last"
    draft.mkdir()
    save_file(
        {name: tensor.detach().contiguous() for name, tensor in weights(model_of("transformer-xl")).items()},
        draft / "model.safetensors",
    )
    from remanence.config.recipe import table_of

    about = {
        "recipe": table_of(recipe),
        "step": 3,
        "corpus": {"name": "text", "unit": "byte", "fingerprint": "0" * 64, "vocab_size": 256},
        "best": None,
        "distances": {"back": 11, "ahead": None},
    }
    path = draft / "model.safetensors"
    files = {path.name: {"bytes": path.stat().st_size, "sha256": sha256_file(path)}}
    checkpoints.write_description(draft, about, files)


def _sign_run(folder: Path) -> None:
    place = folder / "checkpoints" / "last"
    about = json.loads((place / "checkpoint.json").read_text())
    for name, told in about["files"].items():
        told["bytes"] = (place / name).stat().st_size
        told["sha256"] = sha256_file(place / name)
    about.pop("checksum", None)
    write_json(place / "checkpoint.json", {**about, "checksum": checkpoints._checksum(about)})


def _read_run(folder: Path) -> None:
    run = load_run(folder)
    run.model.init_memory(lanes=1)


def _make_log(folder: Path) -> None:
    lines = [{"kind": "train", "step": step, "loss": 5.5 / step, "tokens": 7 * step} for step in range(1, 30)]
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


# Memories and sessions


def _make_memory(folder: Path, architecture: str) -> None:
    model = model_of(architecture)
    memory = model.init_memory(lanes=2)
    with torch.no_grad():
        _, memory, _ = model(torch.arange(14).reshape(2, 7), memory)
        _, memory, _ = model(torch.arange(6).reshape(2, 3), memory, close=False)
    memory.save(folder / "memory.safetensors", {"note": "a", "numbers": [1, 2]})


def _sign_memory(folder: Path) -> None:
    path = folder / "memory.safetensors"
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header["__metadata__"]["sha256"] = _digest(header["__metadata__"], load(data))
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])


def _make_session(folder: Path, architecture: str) -> None:
    session = Session(model_of(architecture), ByteTokenizer(), samples=2, stops=["zz"], seed=3)
    session.read("a few words of it")
    for _ in range(3):
        session.step()
    session.save(folder / "memory.safetensors")


def _read_session(folder: Path, architecture: str) -> None:
    session = Session.load(folder / "memory.safetensors", model_of(architecture), ByteTokenizer())
    for _ in range(2):
        session.step()
    session.finish()


# Data


def _make_corpus(folder: Path) -> None:
    (folder / "text.txt").write_text(WORDS * 20)
    prepare(folder / "text.txt", folder / "corpus", tokenizer="word", validation=0.1, test=0.1)


def _sign_corpus(folder: Path) -> None:
    path = folder / "corpus" / "manifest.json"
    manifest = json.loads(path.read_text())
    for name, entry in manifest["splits"].items():
        for kind in ("tokens", "documents"):
            if (file := path.with_name(f"{name}.{kind}")).exists():
                entry["sha256"][kind] = sha256_file(file)
    with contextlib.suppress(InputError):
        manifest["tokenizer"]["fingerprint"] = load_tokenizer(path.with_name("tokenizer")).fingerprint
    facts = {name: manifest.get(name) for name in ("scored_last", "start_token")}
    fingerprint = corpus_fingerprint(manifest["tokenizer"]["fingerprint"], manifest["splits"], **facts)
    path.write_text(json.dumps({**manifest, "fingerprint": fingerprint}))


def _read_corpus(folder: Path) -> None:
    corpus = Corpus.open(folder / "corpus", verify=True)
    for name in corpus.splits:
        split = corpus.split(name)
        np.asarray(split.tokens[:100])
        split.is_scored(np.arange(min(10, len(split))))


def _read_tokenizer(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    with contextlib.suppress(InputError):
        tokenizer.encode(WORDS)
    tokenizer.decode(range(min(50, tokenizer.vocab_size)))
    tokenizer.stream_decoder().push([0])
    assert isinstance(tokenizer.fingerprint, str)


def _tokenizer(name: str, kind: Any, files: tuple[str, ...] = ("settings.json",)) -> Parser:
    return Parser(
        f"tokenizer {name}", dict.fromkeys(files, "json"), lambda folder: kind().save(folder), _read_tokenizer
    )


def _pack(folder: Path, suffix: str) -> None:
    data = (WORDS * 300).encode()
    if suffix == ".zip":
        with zipfile.ZipFile(folder / "text.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("text", data)
        return
    import zstandard

    pack = {".gz": gzip.compress, ".xz": lzma.compress, ".bz2": bz2.compress, ".zst": zstandard.compress}[suffix]
    (folder / f"text{suffix}").write_bytes(pack(data))


def _unpack(folder: Path, suffix: str) -> None:
    source = Source("text", folder / f"text{suffix}", "text" if suffix == ".zip" else None)
    size = 0
    for _, blocks in read_all([source], 1):
        for block in blocks:
            size += len(block)
            if size > 1 << 28:
                return


def _make_images(folder: Path, packed: bool) -> None:
    data = struct.pack(">4I", 0x0803, 20, 9, 9) + bytes(range(81)) * 20
    (folder / "images").write_bytes(gzip.compress(data) if packed else data)


def _make_list(folder: Path) -> None:
    item = {"name": "train/11.txt", "size": "1234", "md5Hash": "1B2M2Y8AsgTpgAmY7PhCfg=="}
    write_json(folder / "list.json", {"items": [item, {**item, "name": "train/a_b-2.txt"}], "nextPageToken": ""})


def _read_list(folder: Path) -> None:
    # As `Books` lists a bucket, with the server taken out.
    from remanence.data import published

    def answer(url: str) -> Any:
        try:
            return parse_json((folder / "list.json").read_text(encoding="utf-8"))
        except ValueError as error:
            raise InputError(str(error)) from None

    asked, published.fetch_json = published.fetch_json, answer
    published.MOST_PAGES, pages = 3, published.MOST_PAGES
    try:
        books: Any = PUBLISHED["pg19"]
        for remote in books._listed("http://localhost", "train"):
            assert ".." not in remote.name and remote.name.startswith("pg19/train/")
    finally:
        published.fetch_json, published.MOST_PAGES = asked, pages


# Scores, comparisons


def _make_score(folder: Path) -> None:
    protocol = Protocol(segment_length=7, memory_length=5, lanes=2, reached=(11, None), trained=(11, 2), unit="byte")
    score = Score(12.5, 10, 0.5, protocol, {"tokens": 10, "bytes": 10}, {"loss": {"nats": [1.0]}}, correct=3)
    write_json(folder / "score.json", score.to_json())


def _read_score(folder: Path) -> None:
    score = Score.from_json(read_json(folder / "score.json", "the score"))
    score.to_json()


def _make_comparison(folder: Path) -> None:
    models = (ModelFindings("lamemo", 10, 3, 100, 1.5), ModelFindings("transformer-xl", 10, 3, 100, 1.5))
    facts = TextFacts("text", "here", {"train": 10}, "0" * 64)
    Comparison("title", "byte", facts, models, 7, 5, {"a": "b"}, {"c": "d"}, {"lamemo": "x = 1"}, {"cpu": "x"}).save(
        folder / "comparison.json"
    )


def _make_trials(folder: Path) -> None:
    values: dict[str, Any] = {}
    for each in dataclasses.fields(Contender):
        values[each.name] = {"str": "a", "int": 3, "float": 1.5}.get(str(each.type), ())
    trials = (Trial(1, "runs/a", steps=3, value=1.5, bits=1.5), Trial(2, "runs/b", failed="it diverged"))
    contender = Contender(**{**values, "trials": trials})
    entries: dict[str, Any] = {}
    plain = {"str": "a", "int": 3, "float": 1.5, "bool": True}
    for each in dataclasses.fields(Trials):
        if each.default is dataclasses.MISSING and each.default_factory is dataclasses.MISSING:
            kind = str(each.type)
            entries[each.name] = plain.get(kind, {} if kind.startswith("dict") else ())
    entries["contenders"] = (contender,)
    Trials(**entries).save(folder / "trials.json")


def _make_plan(folder: Path) -> None:
    from remanence.config.recipe import table_of

    recipes = {"a": table_of(recipe_of("lamemo")), "b": table_of(recipe_of("transformer-xl"))}
    asked = {"seeds": [1, 2], "budget": "tokens", "amount": None, "memory_lengths": [0, 5], "checkpoint": "last"}
    prices = {"a": Price(1e6, 1e3), "b": None}
    Plan(asked, "0" * 64, recipes, prices, {"a": 0.1}, 1e6, {"a": 30, "b": 30}).save(folder / "plan.json")


# Published weights


def _official() -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Weights of a model of ours under the names of the published code."""
    model = model_of("transformer-xl")
    parameters = dict(model.named_parameters())
    named = {
        name: place.of(parameters[place.parameter]).detach().clone()
        for name, place in published_layout(model, "transformer-xl").items()
    }
    sizes = {"vocab_size": 256, "n_layer": 2, "d_model": 12, "n_head": 3, "d_head": 4, "d_inner": 20, "mem_len": 5}
    return named, {**sizes, "clamp_len": -1, "cutoffs": [], "segment_lengths": [7], "dropout": 0.1, "attn_type": 0}


def _make_published(folder: Path) -> None:
    named, config = _official()
    save_file(named, folder / "weights.safetensors")
    write_json(folder / "config.json", config)


def _read_published(folder: Path) -> None:
    named = load_file(folder / "weights.safetensors")
    from_published("transformer-xl", named, read_json(folder / "config.json", "the configuration"))


def _make_pt(folder: Path) -> None:
    named = {"table": torch.arange(12.0).reshape(3, 4), "half": torch.ones(5).half(), "n": torch.tensor(3)}
    torch.save({"state_dict": {**named, "tied": named["table"]}, "epoch": 3, "lr": [0.5]}, folder / "weights.pt")


def _read_pt(folder: Path) -> None:
    for tensor in read_weights(folder / "weights.pt").values():
        tensor.double().sum()


def _of(architecture: str, what: Callable[[Path, str], None]) -> Callable[[Path], None]:
    return lambda folder: what(folder, architecture)


def parsers() -> tuple[Parser, ...]:
    """All of them."""
    word = SimpleNamespace(bpe=lambda: train_bpe(iter([WORDS] * 3), 300))
    vocabulary = ("settings.json", "vocabulary.json")
    memory = {"memory.safetensors": "safetensors"}
    run = {
        "recipe.toml": "toml",
        "checkpoints/last/checkpoint.json": "json",
        "checkpoints/last/model.safetensors": "safetensors",
        "tokenizer/settings.json": "json",
    }
    corpus = {"corpus/manifest.json": "json"}
    corpus |= {f"corpus/train.{kind}": "bytes" for kind in ("tokens", "documents")}
    return (
        *(
            Parser(
                f"recipe {name}",
                {"recipe.toml": "toml"},
                lambda folder, name=name: (folder / "recipe.toml").write_text(dump_recipe(recipe_of(name))) and None,
                lambda folder: load_recipe(folder / "recipe.toml"),
                share=0.5,
            )
            for name in OWN
        ),
        Parser("run folder", run, _make_run, _read_run, _sign_run, share=0.4),
        Parser("log", {"log.jsonl": "lines"}, _make_log, lambda folder: read_log(folder / "log.jsonl"), share=0.5),
        *(
            Parser(
                f"memory {name}",
                memory,
                _of(name, _make_memory),
                lambda folder: load_memory(folder / "memory.safetensors"),
                _sign_memory,
                share=0.5,
            )
            for name in OWN
        ),
        *(
            Parser(
                f"session {name}", memory, _of(name, _make_session), _of(name, _read_session), _sign_memory, share=0.25
            )
            for name in OWN
        ),
        Parser("corpus", corpus, _make_corpus, _read_corpus, _sign_corpus),
        _tokenizer("byte", lambda: ByteTokenizer(b"abc \n")),
        _tokenizer("char", lambda: CharTokenizer(sorted(set(WORDS))), vocabulary),
        _tokenizer("word", lambda: WordTokenizer(["<eos>", "<unk>", *WORDS.split()[:9]]), vocabulary),
        _tokenizer("subword", word.bpe, ("tokenizer.json", "settings.json")),
        _tokenizer("symbol", lambda: SymbolTokenizer(20)),
        _tokenizer("pixel", lambda: PixelTokenizer(16, 9, 9)),
        *(
            Parser(
                f"text{suffix}",
                {f"text{suffix}": "bytes"},
                lambda folder, suffix=suffix: _pack(folder, suffix),
                lambda folder, suffix=suffix: _unpack(folder, suffix),
                share=0.2,
            )
            for suffix in (".gz", ".xz", ".bz2", ".zst", ".zip")
        ),
        *(
            Parser(
                f"images{' packed' * packed}",
                {"images": "bytes"},
                lambda folder, packed=packed: _make_images(folder, packed),
                lambda folder: Images.open(folder / "images").digest(),
                share=0.5,
            )
            for packed in (False, True)
        ),
        Parser("list of books", {"list.json": "json"}, _make_list, _read_list, share=0.5),
        Parser("score", {"score.json": "json"}, _make_score, _read_score),
        Parser(
            "comparison",
            {"comparison.json": "json"},
            _make_comparison,
            lambda folder: Comparison.load(folder / "comparison.json"),
            share=0.5,
        ),
        Parser(
            "trials",
            {"trials.json": "json"},
            _make_trials,
            lambda folder: Trials.load(folder / "trials.json"),
            share=0.5,
        ),
        Parser("plan", {"plan.json": "json"}, _make_plan, load_asked, share=0.5),
        Parser("published weights", {"config.json": "json"}, _make_published, _read_published),
        Parser("weights .pt", {"weights.pt": "pt"}, _make_pt, _read_pt),
        Parser(
            "weights .safetensors",
            {"weights.safetensors": "safetensors"},
            _make_published,
            lambda folder: read_weights(folder / "weights.safetensors"),
            share=0.5,
        ),
        *(
            Parser(
                f"resumed {name}{f' of {ranks} ranks' * (ranks > 1)}",
                resumption.resumable_files(ranks),
                lambda folder, *, how=(name, protocol, ranks): resumption.make_resumable(folder, *how),
                lambda folder, *, how=(name, protocol): resumption.read_resumable(folder, *how),
                resumption.sign_resumable,
                share=0.15,
            )
            for name, protocol, ranks in RESUMED
        ),
        Parser(
            "corpus in shards",
            resumption.SHARDS,
            resumption.make_shards,
            resumption.read_shards,
            resumption.sign_shards,
            share=0.5,
        ),
        Parser(
            "corpus in parts",
            resumption.PARTS,
            resumption.make_parts,
            resumption.read_parts,
            resumption.sign_shards,
            share=0.5,
        ),
        Parser("page of a rank", {"rank-1.json": "json"}, resumption.make_page, resumption.read_pages, share=0.5),
        Parser("comparison folder", resumption.STUDY, resumption.make_study, resumption.read_study, share=0.25),
    )


def quietly(read: Callable[[Path], Any], folder: Path) -> None:
    """Read, and drop the warnings that odd but legal values give."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        read(folder)
