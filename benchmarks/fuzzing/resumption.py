"""What a run, a corpus of many files and a comparison are gone on with from: the parsers of `--resume` and `--join`."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import shutil
import tempfile
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from safetensors.torch import load_file, save_file

from remanence.analysis.comparison import restore
from remanence.analysis.request import Asked
from remanence.analysis.study import Study
from remanence.analysis.trials import Trial
from remanence.config import DataSettings, EvaluationSettings, Recipe, TrainingSettings
from remanence.data import Corpus, Lanes
from remanence.data.manifest import corpus_fingerprint, divided
from remanence.data.parts import join
from remanence.data.prepare import prepare
from remanence.files import sha256_file, write_json
from remanence.models import config_class
from remanence.training import Trainer
from remanence.training import checkpoint as checkpoints
from remanence.training.journal import Journal
from remanence.training.parts import read_page
from remanence.training.shares import share_metadata, share_name
from remanence.training.units import unit_of

WORDS = "the of memory segment lane reads what was before so that a model knows more\n"
QUIET = Console(file=io.StringIO(), quiet=True)
_KEPT: list[tempfile.TemporaryDirectory[str]] = []


def text(folder: Path, files: int = 3) -> list[Path]:
    """Some files of text of different lengths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"text-{number}.txt" for number in range(files)]
    for number, path in enumerate(paths):
        path.write_text(WORDS * (9 + 5 * number))
    return paths


def recipe_of(architecture: str, protocol: Any, steps: int = 2) -> Recipe:
    own = {"memory_length": 5} | ({"compressed_length": 4, "compression_rate": 7} if architecture[0] == "c" else {})
    sizes = {"segment_length": 7, "num_layers": 2, "model_width": 12, "num_heads": 3, "head_width": 4}
    model = config_class(architecture)(vocab_size=256, feed_forward_width=20, **sizes, **own)
    training = TrainingSettings(
        steps=steps,
        lanes=2,
        warmup_steps=0,
        log_every=1,
        save_every=2,
        validate_every=0,
        precision="float32",
        device="cpu",
    )
    evaluation = EvaluationSettings(lanes=2)
    return Recipe(
        architecture, model=model, training=training, data=DataSettings(protocol=protocol), evaluation=evaluation
    )


def _kept() -> Path:
    """A folder that is there as long as this process."""
    _KEPT.append(tempfile.TemporaryDirectory(prefix="fuzzing-"))
    return Path(_KEPT[-1].name)


@cache
def _trained(architecture: str, protocol: str) -> Path:
    """The folder of a run that was trained for two steps, beside its corpus."""
    folder = _kept()
    corpus = prepare(text(folder / "text", 5), folder / "corpus", tokenizer="byte", validation=0.0, test=0.0, workers=1)
    Trainer(recipe_of(architecture, protocol), corpus, folder / "run", console=QUIET).run()
    return folder


def make_resumable(folder: Path, architecture: str, protocol: str, ranks: int = 1) -> None:
    """A run to go on with; of several ranks as they write it, each a share of the weights and the memory of a lane."""
    shutil.copytree(_trained(architecture, protocol), folder, dirs_exist_ok=True)
    if ranks == 1:
        return
    place = folder / "run" / "checkpoints" / "last"
    for part in ("model", "optimizer"):
        whole = load_file(place / f"{part}.safetensors")
        (place / f"{part}.safetensors").unlink()
        for rank in range(ranks):
            rows, begins = {}, {}
            for name, tensor in whole.items():
                each = -(-len(tensor) // ranks) if tensor.dim() else 1
                if tensor.dim() and len(tensor) > rank * each:
                    rows[name] = tensor[rank * each : (rank + 1) * each].clone()
                    begins[name] = [rank * each] + [0] * (tensor.dim() - 1)
                elif not tensor.dim() and rank == 0:
                    rows[name], begins[name] = tensor, []
            save_file(rows, place / f"{share_name(part, rank, ranks)}.safetensors", share_metadata(begins))
    memory = load_file(place / "lanes-0-2.safetensors")
    (place / "lanes-0-2.safetensors").unlink()
    about = json.loads((place / "checkpoint.json").read_text())
    meant = about["memory"].pop("lanes-0-2")
    for lane in range(2):
        one = {name: tensor[lane : lane + 1].clone() for name, tensor in memory.items()}
        save_file(one, place / f"lanes-{lane}-{lane + 1}.safetensors")
        about["memory"][f"lanes-{lane}-{lane + 1}"] = meant
    about["files"] = {path.name: {} for path in sorted(place.glob("*.safetensors"))}
    write_json(place / "checkpoint.json", about)
    sign_resumable(folder)


def sign_resumable(folder: Path) -> None:
    place = folder / "run" / "checkpoints" / "last"
    about = json.loads((place / "checkpoint.json").read_text())
    for name, told in about["files"].items():
        told["bytes"] = (place / name).stat().st_size
        told["sha256"] = sha256_file(place / name)
    about.pop("checksum", None)
    write_json(place / "checkpoint.json", {**about, "checksum": checkpoints._checksum(about)})


@cache
def _trainer(folder: Path, architecture: str, protocol: str) -> Trainer:
    return Trainer(
        recipe_of(architecture, protocol, 2), Corpus.open(folder / "corpus"), folder / "run", console=QUIET, resume=True
    )


def read_resumable(folder: Path, architecture: str, protocol: str) -> None:
    """As `train --resume` goes on, for one step."""
    trainer = _trainer(folder, architecture, protocol)
    state = trainer.state
    state.memory = state.model.init_memory(lanes=2)
    state.optimizer.state.clear()
    elsewhere = trainer.keeper.restore()
    unit = unit_of("byte", state.lanes.split.counts)
    with Journal(trainer.folder, trainer.settings, state, unit, QUIET, trainer.keeper) as journal:
        journal.began(trainer.recipe, "text", True, elsewhere)
        # Numbers that are not finite are told as such, after the step.
        trainer._step(journal)
        json.dumps(state.description())
        str(state.distances)
        trainer.keeper._about()


def resumable_files(ranks: int = 1) -> dict[str, str]:
    names = ["model", "optimizer"]
    shared = names if ranks == 1 else [share_name(name, rank, ranks) for name in names for rank in range(ranks)]
    lanes = ["lanes-0-2"] if ranks == 1 else ["lanes-0-1", "lanes-1-2"]
    place = "run/checkpoints/last"
    # The description has the most to say.
    return {
        f"{place}/checkpoint.json": "json",
        **{f"{place}/{name}.safetensors": "safetensors" for name in [*shared, *lanes, "state"]},
        "run/log.jsonl": "lines",
    }


# Corpora of many files


def make_shards(folder: Path) -> None:
    prepare(
        text(folder / "text"),
        folder / "corpus",
        tokenizer="word",
        validation=0.0,
        test=0.0,
        shard_tokens=200,
        workers=1,
    )


def sign_shards(folder: Path) -> None:
    for path in sorted(folder.glob("corpus/**/manifest.json")):
        manifest = json.loads(path.read_text())
        for entry in manifest["splits"].values():
            for shard in entry["shards"]:
                for kind in ("tokens", "documents"):
                    file = path.parent / f"{shard['file']}.{kind}"
                    if file.is_file():
                        shard["sha256"][kind] = sha256_file(file)
            with contextlib.suppress(KeyError, TypeError):
                entry["sha256"] = divided(entry["shards"])
                entry["counts"]["tokens"] = sum(shard["tokens"] for shard in entry["shards"])
                entry["documents"] = sum(shard["documents"] for shard in entry["shards"])
        facts = {name: manifest.get(name) for name in ("scored_last", "start_token")}
        fingerprint = corpus_fingerprint(manifest["tokenizer"]["fingerprint"], manifest["splits"], **facts)
        path.write_text(json.dumps({**manifest, "fingerprint": fingerprint}))


def read_shards(folder: Path) -> None:
    """Opened, compared, and read by lanes as training reads them."""
    corpus = Corpus.open(folder / "corpus")
    for name in corpus.splits:
        split = corpus.split(name)
        for protocol in ("published", "document"):
            lanes = Lanes(split, 2, 7, protocol=protocol)
            for _ in range(3):
                lanes.next()
            lanes.restore(lanes.state())
        split.is_scored(np.arange(min(10, len(split))))
    corpus.verify()


def make_parts(folder: Path) -> None:
    files = text(folder / "text")
    for number in (1, 2):
        prepare(
            files,
            folder / "corpus",
            tokenizer="byte",
            validation=0.0,
            test=0.0,
            shard_tokens=900,
            workers=1,
            part=f"{number}/2",
        )


def read_parts(folder: Path) -> None:
    (folder / "corpus" / "manifest.json").unlink(missing_ok=True)
    join(folder / "corpus", workers=1)
    # Once more: now there is a manifest to compare with.
    join(folder / "corpus", workers=1)


SHARDS = {
    "corpus/manifest.json": "json",
    **{f"corpus/train-{number:05}.{kind}": "bytes" for number in (0, 1) for kind in ("tokens", "documents")},
}
PARTS = {
    "corpus/part-000001-of-000002/manifest.json": "json",
    "corpus/part-000002-of-000002/manifest.json": "json",
    "corpus/part-000001-of-000002/train-00000.tokens": "bytes",
    "corpus/part-000002-of-000002/train-00000.documents": "bytes",
}


# Pages of ranks


def make_page(folder: Path) -> None:
    told = {"bytes": 100, "sha256": hashlib.sha256(b"").hexdigest()}
    memory = {"kind": "transformer-xl", "hidden": 2, "hold": None, "segment": None, "zeros": False}
    write_json(folder / "rank-1.json", {"files": {"lanes-1-2.safetensors": told}, "memory": {"lanes-1-2": memory}})


def read_pages(folder: Path) -> None:
    """As the first rank joins them: no name may lead out of the checkpoint."""
    files, memory = read_page(folder / "rank-1.json")
    assert all(Path(name).name == name for name in files)
    checkpoints.write_description(folder, {"step": 1, "memory": memory}, files)


# Comparisons


@cache
def _compared() -> Path:
    """The folder of a comparison that was trained and scored, beside its corpus."""
    folder = _kept()
    prepare(text(folder / "text", 4), folder / "corpus", tokenizer="byte", validation=0.2, test=0.2, workers=1)
    _study(folder).run()
    return folder


def _study(folder: Path) -> Study:
    asked = Asked((0,), amount=float(2 * 2 * 7), memory_lengths=(5,), validations=1, test_tokens=60)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Study(
            [recipe_of("transformer-xl", "published")], Corpus.open(folder / "corpus"), folder / "study", asked, QUIET
        )


@cache
def _study_of(folder: Path) -> Study:
    return _study(folder)


def make_study(folder: Path) -> None:
    shutil.copytree(_compared(), folder, dirs_exist_ok=True)
    failure = folder / "study" / "failures"
    failure.mkdir()
    write_json(failure / "transformer-xl-seed-0.json", {"reason": "no room", "when": "2026-11-21 10:00", "trace": ""})
    write_json(folder / "study" / ".begun.json", {"transformer-xl-seed-0": 1})


RUN = "study/runs/transformer-xl/seed-0"
STUDY = {
    "study/plan.json": "json",
    f"{RUN}/log.jsonl": "lines",
    f"{RUN}/scores/test-memory5.json": "json",
    "study/failures/transformer-xl-seed-0.json": "json",
    "study/.begun.json": "json",
}


def read_study(folder: Path) -> None:
    """As `compare --resume` goes on, up to training."""
    study = _study_of(folder)
    study._plan = study._planned()
    for job in study.jobs:
        study._is_done(job)
        study._cut_off(job)
    study._left(study.jobs)
    trials = study.trials("transformer-xl")
    # What is there is written down, and read again for the report.
    told = json.loads(json.dumps([dataclasses.asdict(each) for each in trials]))
    restore(tuple[Trial, ...], told)
    # Without its scores, a run is one that failed.
    scores, aside = folder / RUN / "scores", folder / RUN / "aside"
    scores.rename(aside)
    try:
        study.trials("transformer-xl")
    finally:
        aside.rename(scores)
