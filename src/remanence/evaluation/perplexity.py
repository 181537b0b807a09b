"""Read a text once, in order, with a memory, and add up what each token cost."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from remanence.data import Lanes, Split
from remanence.data.lanes import Once
from remanence.errors import InputError
from remanence.evaluation.measurements import Measurement, Seen
from remanence.evaluation.protocol import Protocol, as_tested
from remanence.evaluation.score import Score
from remanence.memory import Distances
from remanence.models import LanguageModel
from remanence.nn.packed import fixed
from remanence.training.precision import autocast
from remanence.training.ranks import ALONE, Ranks

ROWS = 1 << 10
"""Positions whose logits are held at a time."""


def evaluate(
    model: LanguageModel,
    split: Split,
    protocol: Protocol | None = None,
    *,
    trained: Distances | None = None,
    corpus: str = "",
    measurements: Sequence[Measurement] = (),
    accuracy: bool | None = None,
    progress: Callable[[int, int], None] | None = None,
    ranks: Ranks = ALONE,
) -> Score:
    """Score every token of a split once.

    model           left exactly as it was found: mode, configuration and memory of any training in progress
    split           a split of a prepared corpus, or any `Split`
    protocol        how; what is None in it is as in training
    trained         largest distances seen in training (`run.distances`); without them nothing can be held
    corpus          what to call the text in the protocol: wikitext-2
    measurements    what else to note on the way, see `measurements.py`
    accuracy        count how often the target was the most probable token; unless given, where only the ends of
                    documents are scored
    progress        called with (tokens scored, tokens in all) after every segment
    ranks           share the lanes of the protocol, which are the same for any number of them; all get the score

    Raises InputError for a text of another vocabulary, a text too short to score, lengths the model cannot take and
    a model whose loss is not a number.
    """
    began = time.perf_counter()
    if split.vocab_size > model.config.vocab_size:
        raise InputError(
            f"The text was prepared with a vocabulary of {split.vocab_size:,} and the model has "
            f"{model.config.vocab_size:,}; prepare the text with the tokenizer of the model."
        )
    facts: dict[str, Any] = {"split": split.name, "unit": split.unit, "scored_last": split.scored_last}
    facts["start_token"] = split.start_token is not None
    protocol = (protocol or Protocol()).completed(model, trained, corpus=corpus, **facts)
    accuracy = split.scored_last is not None if accuracy is None else accuracy
    assert protocol.lanes is not None and protocol.segment_length is not None
    part = ranks.part(protocol.lanes)
    batches = Lanes.once(split, protocol.lanes, protocol.segment_length, protocol.starts, model.shift, part)
    extras = any(measurement.extras for measurement in measurements)
    nats, tokens, correct = 0.0, 0, 0
    tested = as_tested(model, protocol.clamp_length, protocol.same_length, protocol.compressed_length)
    # Without any trace of gradients where single calls cost much beside what they compute.
    on_cpu = next(model.parameters()).device.type == "cpu"
    with torch.inference_mode() if on_cpu else torch.no_grad(), tested, ranks.together():
        reading = fixed(model, torch.bfloat16 if protocol.precision == "bfloat16" else None)
        for seen in _read(reading, batches, protocol, extras, accuracy):
            nats += float(seen.nats.sum())
            tokens += int(seen.scored.sum())
            correct += 0 if seen.correct is None else int(seen.correct.sum())
            for measurement in measurements:
                measurement.add(seen)
            if not math.isfinite(nats):
                raise InputError(
                    f"The model's loss is not a number after {tokens:,} tokens: its weights have diverged or are "
                    "damaged; evaluate an earlier checkpoint."
                )
            if progress is not None:
                # Of the others a rank knows no more than that they are about as far.
                known = tokens if ranks.size == 1 else min(tokens * ranks.size, batches.scored - 1)
                progress(known, batches.scored)
    nats, tokens, correct = _sums(ranks, nats, tokens, correct)
    for measurement in measurements:
        measurement.join(ranks.gather(measurement))
    if progress is not None and ranks.size > 1:
        with ranks.together():
            progress(tokens, tokens)
    return Score(
        nats=nats,
        tokens=tokens,
        seconds=time.perf_counter() - began,
        protocol=dataclasses.replace(protocol, text_tokens=len(split), scored_tokens=tokens),
        counts=dict(split.counts),
        measurements={measurement.name: measurement.result() for measurement in measurements},
        correct=correct if accuracy else None,
    )


def sweep(
    model: LanguageModel,
    split: Split,
    memory_lengths: Sequence[int | None],
    protocol: Protocol | None = None,
    *,
    measurements: Sequence[Callable[[], Measurement]] = (),
    finished: Callable[[Score], None] = lambda score: None,
    **settings: Any,
) -> list[Score]:
    """`evaluate` with several memory lengths, all else equal; one score for each, in the order given.

    measurements    makers of new measurements, such as their classes: `[LossByPosition]`
    finished        called with each score as soon as it is there
    settings        what else `evaluate` takes: trained, corpus, accuracy, progress, ranks
    """
    protocols = [dataclasses.replace(protocol or Protocol(), memory_length=length) for length in memory_lengths]
    for each in protocols:
        # What the model cannot take is refused before anything is scored.
        asked = each.completed(model, settings.get("trained"))
        assert asked.memory_length is not None
        with as_tested(model, asked.clamp_length, asked.same_length, asked.compressed_length):
            check_length(model, asked.memory_length)
    scores = []
    for each in protocols:
        scores.append(evaluate(model, split, each, measurements=[make() for make in measurements], **settings))
        finished(scores[-1])
    return scores


def check_length(model: LanguageModel, length: int) -> None:
    """Raise InputError for a memory length that the model cannot take; some refuse it only where it is read with."""
    token = torch.zeros(1, 1, dtype=torch.long, device=next(model.parameters()).device)
    with torch.no_grad():
        model(token, model.init_memory(lanes=1, length=length))


def _read(model: LanguageModel, batches: Once, protocol: Protocol, extras: bool, accuracy: bool) -> Iterator[Seen]:
    """What the model made of each segment of the text, in order."""
    assert protocol.lanes is not None and protocol.segment_length is not None
    lanes = len(range(protocol.lanes)[batches.part])
    if not lanes:
        return
    device = next(model.parameters()).device
    precision = "bfloat16" if protocol.precision == "bfloat16" else "float32"
    hold = None if protocol.held is None else Distances(*protocol.held)
    with autocast(precision, device):
        memory = model.init_memory(lanes=lanes, length=protocol.memory_length, hold=hold)
        memory = model.with_projections(memory)
    positions = torch.zeros(lanes, dtype=torch.int64)
    for batch in batches:
        before, moved = memory, batch.to(device)
        # A reset makes all slots anew, which costs more than reading one token.
        starts = moved.starts if bool(batch.starts.any()) else None
        with autocast(precision, device):
            hidden, memory, found = model(moved.tokens, memory, starts, lengths=moved.lengths, extras=extras)
            nats = model.head.loss(hidden, moved.targets)
            correct = _correct(model, hidden, moved.targets).cpu() if accuracy else None
        positions = positions.masked_fill(batch.starts, 0)
        yield Seen(
            nats=nats.cpu().double(),
            scored=batch.targets >= 0,
            positions=positions[:, None] + torch.arange(batch.tokens.shape[1]),
            starts=batch.starts,
            correct=correct,
            memory=before,
            extras=found,
        )
        positions = positions + (batch.tokens.shape[1] if batch.lengths is None else batch.lengths)


def _sums(ranks: Ranks, nats: float, *counts: int) -> tuple[Any, ...]:
    """Of all ranks."""
    if ranks.size == 1:
        return nats, *counts
    return tuple(sum(each) for each in zip(*ranks.gather((nats, *counts)), strict=True))


def _correct(model: LanguageModel, hidden: Float[Tensor, "B T D"], targets: Int[Tensor, "B T"]) -> Bool[Tensor, "B T"]:
    """Where the target is the most probable token; logits are made for scored positions alone, a few at a time."""
    correct = torch.zeros_like(targets, dtype=torch.bool)
    lanes, positions = (targets >= 0).nonzero(as_tuple=True)
    for lane, position in zip(lanes.split(ROWS), positions.split(ROWS), strict=True):
        best = model.head.logits(hidden[lane, position][None])[0].argmax(-1)
        correct[lane, position] = best == targets[lane, position]
    return correct
