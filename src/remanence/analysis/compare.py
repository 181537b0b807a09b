"""Train several models alike, score them alike, and gather what was found.

Nothing here favours a model: all are measured, trained and scored with the same lengths, lanes, seed and text.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from remanence.analysis import measurements
from remanence.analysis.comparison import Difference, ModelFindings, Sample
from remanence.analysis.plan import Cost, typical_step
from remanence.config import Recipe
from remanence.data import Corpus
from remanence.data.corpus import Split
from remanence.errors import InputError
from remanence.evaluation import (
    InterpolationByAge,
    LossByPosition,
    LossBySegmentPosition,
    LossByStretch,
    Protocol,
    Score,
    evaluate,
    sweep,
)
from remanence.evaluation.perplexity import check_length
from remanence.generation import Sampling, Session
from remanence.models import LanguageModel
from remanence.training import Result, Run, Trainer, load_run
from remanence.training.log import read_log

MEASURED_STEPS = 9
"""Training steps that tell what one costs."""
MEASURED_SEGMENTS = 4
"""Segments of every lane that tell what evaluation costs."""


class Stopped(Exception):
    """Ctrl-C or SIGTERM ended a training run; `signal` says which."""

    def __init__(self, signal: int) -> None:
        super().__init__(f"stopped by signal {signal}")
        self.signal = signal


def lengths_for(model: LanguageModel, memory_lengths: Sequence[int]) -> tuple[int, ...]:
    """The memory lengths that a model is scored with, ascending: those of `memory_lengths` that it can take, and its
    own. What a length counts is the architecture's affair.
    """
    possible = {int(model.config.memory_length)}
    training = model.training
    model.eval()
    for length in memory_lengths:
        with contextlib.suppress(InputError):
            check_length(model, length)
            possible.add(length)
    model.train(training)
    return tuple(sorted(possible))


def reading(text: Split, recipe: Recipe, lanes: int) -> Protocol:
    """How a model of this recipe is scored on a text: as it was trained, on at most so many lanes as are kept busy."""
    busy = len(text.documents) if recipe.data.protocol == "document" else len(text) // (4 * recipe.model.segment_length)
    return Protocol(starts=recipe.data.protocol, lanes=max(1, min(lanes, busy)), precision=recipe.training.precision)


def measure_cost(recipe: Recipe, corpus: Corpus, memory_lengths: Sequence[int], lanes: int, folder: Path) -> Cost:
    """What training, and evaluating on `lanes` lanes, cost for the model of a recipe now.

    Taken from a short run that is thrown away; `folder` is where it may lie meanwhile. Raises Stopped.
    """
    few = dataclasses.replace(
        recipe.training, steps=MEASURED_STEPS, log_every=1, validate_every=0, validation_tokens=0, save_every=0
    )
    segment_length = recipe.model.segment_length
    with tempfile.TemporaryDirectory(prefix=".measuring-", dir=folder) as scratch:
        trainer = Trainer(
            dataclasses.replace(recipe, training=few), corpus, Path(scratch) / "run", console=Console(quiet=True)
        )
        result = trainer.run()
        stop_if_interrupted(result)
        ends = [record["seconds"] for record in read_log(result.folder / "log.jsonl") if record["kind"] == "train"]
    text = beginning(corpus.split("train"), lanes * (MEASURED_SEGMENTS * segment_length + 1))
    costs = {}
    for length in memory_lengths:
        # One stream keeps all lanes busy, whatever the documents are.
        asked = Protocol(lanes=lanes, memory_length=length, precision=recipe.training.precision)
        found = evaluate(trainer.model, text, asked)
        costs[length] = found.seconds / found.tokens
    steps = [after - before for before, after in itertools.pairwise([0.0, *ends])]
    return Cost(step=typical_step(steps), reading=costs)


def train(recipe: Recipe, corpus: Corpus, folder: Path, console: Console) -> Run:
    """Train one model to its last step and load what was saved then. Raises Stopped."""
    settings, text = recipe.training, corpus.split("validation")
    lanes = max(1, settings.lanes // 2)
    text = excerpt(text, settings.validation_tokens or len(text), lanes, seed=0, anywhere=True)
    protocol = reading(text, recipe, lanes)

    def validate(model: LanguageModel) -> dict[str, Any]:
        score = evaluate(model, text, protocol, corpus=corpus.name)
        return {"nats_per_token": score.nats_per_token, "headline": score.headline}

    stop_if_interrupted(Trainer(recipe, corpus, folder, validate=validate, console=console).run())
    return load_run(folder, which="last")


def score(
    run: Run, text: Split, memory_lengths: Sequence[int], protocol: Protocol, corpus: Corpus, short: Split
) -> tuple[ModelFindings, Score]:
    """What is found about a run, and its score with the memory length of training, which was looked at closely.

    text    scored with every memory length, that of training among them
    short   less text, read once more by a model with memory to see how much of the old it keeps
    """
    trained = run.model.config.memory_length
    looking = [LossByPosition, LossBySegmentPosition, LossByStretch]
    about: dict[str, Any] = {"trained": run.distances, "corpus": corpus.name}
    found = sweep(run.model, text, memory_lengths, protocol, measurements=looking, **about)
    scores = dict(zip(memory_lengths, found, strict=True))
    merging = InterpolationByAge()
    if trained:
        asked = dataclasses.replace(protocol, memory_length=trained)
        evaluate(run.model, short, asked, measurements=[merging], **about)
    log = read_log(run.folder / "log.jsonl")
    curve = measurements.training_curve(log)
    findings = ModelFindings(
        architecture=run.recipe.architecture,
        parameters=sum(parameter.numel() for parameter in run.model.parameters()),
        steps=run.step,
        tokens=curve[-1].tokens,
        seconds=curve[-1].seconds,
        training=curve,
        validation=measurements.validation_curve(log),
        by_memory=measurements.by_memory(found),
        by_document_position=measurements.by_document_position(scores[trained]),
        by_segment_position=measurements.by_segment_position(scores[trained]),
        interpolation=tuple(tuple(layer) for layer in merging.result()),
        memory_length=trained,
    )
    return findings, scores[trained]


def differences(scores: Mapping[str, Score]) -> tuple[Difference, ...]:
    """Every pair of models on the same tokens; the later one comes first: LaMemo minus Transformer-XL.

    Pairs that did not score the same tokens are left out.
    """
    return tuple(
        measurements.difference((second, scores[second]), (first, scores[first]))
        for first, second in itertools.combinations(scores, 2)
        if _stretches(scores[first]) == _stretches(scores[second])
    )


def write_sample(run: Run, prompt: str, tokens: int, sampling: Sampling, seed: int) -> Sample:
    """Let a model go on from a prompt."""
    session = Session(run, sampling=sampling, seed=seed)
    session.read(prompt)
    text = "".join(session.stream(tokens))
    settings = f"temperature {sampling.temperature:g}, top-p {sampling.top_p:g}, seed {seed}"
    return Sample(run.recipe.architecture, prompt, text, settings)


def beginning(split: Split, tokens: int) -> Split:
    """The first tokens of a split."""
    if tokens >= len(split):
        return split
    return _part(split, split.tokens[:tokens], split.documents[split.documents < tokens])


def excerpt(split: Split, tokens: int, lanes: int, seed: int, anywhere: bool = False) -> Split:
    """About so many tokens of a split, fit to be read document by document on so many lanes.

    The beginnings of documents drawn at random, of each at most what one lane has to read: then lanes wait little for
    each other, and no long document outweighs the rest. With `anywhere`, it is a part drawn at random that is taken of
    a longer document, because beginnings are unlike the rest. A split that is one document gives its beginning.
    """
    if len(split.documents) == 1:
        return beginning(split, tokens)
    edges = np.append(split.documents, len(split))
    draw = np.random.default_rng(seed)
    parts, begins, total = [], [], 0
    for document in draw.permutation(len(split.documents)):
        begin, end = int(edges[document]), int(edges[document + 1])
        size = min(end - begin, max(2, tokens // lanes), tokens - total)
        # A document of one token has nothing to score.
        if size >= 2:
            if anywhere:
                begin += int(draw.integers(end - begin - size + 1))
            parts.append(split.tokens[begin : begin + size])
            begins.append(total)
            total += size
    if not parts:
        raise InputError(f"The {split.name} split has no document of two tokens or more; give a longer text.")
    return _part(split, np.concatenate(parts), np.array(begins, np.int64))


def prompt_from(split: Split, tokenizer: Any, tokens: int) -> str:
    """Some whole lines from the middle of the longest document of a split, about so many tokens."""
    edges = np.append(split.documents, len(split))
    longest = int(np.argmax(np.diff(edges)))
    middle = int(edges[longest] + edges[longest + 1]) // 2
    text = tokenizer.decode(np.asarray(split.tokens[middle : middle + 2 * tokens], np.int64))
    lines = text.splitlines(keepends=True)[1:-1]
    chosen = ""
    while lines and len(chosen) < tokens:
        chosen += lines.pop(0)
    return chosen or text[:tokens]


def _part(split: Split, tokens: np.ndarray, documents: np.ndarray) -> Split:
    counts = {"tokens": len(tokens)} | ({f"{split.unit}s": len(tokens)} if split.unit != "token" else {})
    return dataclasses.replace(split, tokens=tokens, documents=documents, counts=counts)


def _stretches(score: Score) -> list[int]:
    return score.measurements["loss_by_stretch"]["tokens"]


def stop_if_interrupted(result: Result) -> None:
    """Raise Stopped where a signal ended the training."""
    if result.signal is not None:
        raise Stopped(result.signal)
