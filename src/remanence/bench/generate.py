"""What generation costs: tokens a second after so many tokens read, and whether the process grows.

The library's models write through a `Session`, as `remanence generate` does, each window of tokens as long as a segment
so that closing it is paid for. Beside them: a LaMemo that refreshes its memory at every token, and GPT-2 with a
key-value cache of the newest M tokens, drawn from by the same sampler.

Texts are read as prompts, segment by segment at once, up to the place where generation is timed; the places then take
turns.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from remanence.bench import own, peers
from remanence.bench.checks import check_same, finer, once
from remanence.bench.evaluate import check_cache
from remanence.bench.peak import MatrixPeak
from remanence.bench.result import Result, Table, filled_columns
from remanence.bench.rounds import interleave, ratio, summary
from remanence.bench.settings import Settings
from remanence.bench.usage import resident_bytes
from remanence.generation import Sampling, Session
from remanence.generation.sampling import draw
from remanence.training.allocation import keep_freed_memory
from remanence.training.precision import autocast

REFRESHING = "lamemo, refreshing at every token"
REFRESHED = 8
"""Tokens of a window of the one that refreshes: each costs the same, and they are slow."""
BLOCK = 1 << 14
"""Tokens of a prompt that are given at a time."""
TELL_AFTER = 10.0
"""Seconds between two lines about a long prompt."""
SAMPLING = Sampling(temperature=1.0, top_k=40)


class Numbers:
    """A tokenizer without text: what is written are numbers of tokens."""

    name, unit, fingerprint = "numbers", "token", "numbers"

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size

    def encode(self, text: str) -> np.ndarray:
        return np.zeros(0, dtype=np.int64)

    def stream_decoder(self) -> Numbers:
        return self

    def push(self, tokens: Any) -> str:
        return ""

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: Any) -> None:
        """There is nothing to restore."""


class Writing:
    """A candidate that has read a text and goes on with it."""

    def __init__(self, name: str, batch: int, place: int, window: int) -> None:
        self.name, self.batch, self.place, self.window = name, batch, place, window
        """`place`: tokens read before it writes; `window`: tokens of a turn."""
        self.remembers = True
        """Whether the length of the memory is the bench's to choose."""
        self.resident: list[int] = []
        """Bytes of the process after every turn."""

    @property
    def label(self) -> str:
        return f"{self.name}, {self.batch} texts, after {self.place:,} tokens"

    def turn(self) -> None:
        """Write a window."""
        raise NotImplementedError

    def watched(self) -> None:
        """A turn, after which the memory of the process is looked at."""
        self.turn()
        held = resident_bytes()
        if held is not None:
            self.resident.append(held)


class SessionWriting(Writing):
    """One of the library's models, in a session."""

    def __init__(
        self,
        name: str,
        model: Any,
        settings: Settings,
        batch: int,
        place: int,
        *,
        segment_length: int | None = None,
        graphs: bool = False,
    ) -> None:
        length = settings.segment_length if segment_length is None else segment_length
        super().__init__(name, batch, place, max(length, REFRESHED) if segment_length is None else REFRESHED)
        self.remembers = own.remembers(model.config.architecture)
        self.settings = settings
        self.session = Session(
            model,
            Numbers(model.vocab_size),
            samples=batch,
            sampling=SAMPLING,
            seed=settings.seed,
            memory_length=settings.memory_length[0] if self.remembers else None,
            segment_length=settings.segment_length,
            hold_distances=False,
            precision=settings.dtype,
            graphs=graphs,
        )
        generator = np.random.default_rng(settings.seed)
        # One that refreshes at every token could only read the text token by token: whole segments and one token stand
        # for it, after which no segment is open.
        began, told = time.monotonic(), 0.0
        left = place if segment_length is None else place // settings.segment_length * settings.segment_length + 1
        while left:
            taken = min(left, BLOCK)
            self.session.read_ids(generator.integers(0, model.vocab_size, taken))
            left -= taken
            spent = time.monotonic() - began
            if left and spent - told > TELL_AFTER:
                told = spent
                read = place - left
                print(
                    f"{self.label}: {read:,} tokens read, about {spent * left / read:,.0f} s to go",
                    file=sys.stderr,
                    flush=True,
                )
        self.session.segment_length = length

    def turn(self) -> None:
        for _ in self.session.steps(self.window):
            pass


class GPT2Writing(Writing):
    """GPT-2 with its sliding cache."""

    def __init__(self, peer: peers.GPT2Window, settings: Settings, batch: int, place: int) -> None:
        super().__init__(peer.name, batch, place, settings.segment_length)
        self.peer, self.settings = peer, settings
        self.generators = [torch.Generator().manual_seed(settings.seed + lane) for lane in range(batch)]
        generator = torch.Generator().manual_seed(settings.seed)
        self.state: Any = None
        self.last = torch.zeros(batch, 1, dtype=torch.long)
        # What slid out of the window costs nothing: the last windows stand for any number of tokens.
        length = settings.segment_length
        for _ in range(min(-(-place // length), -(-2 * peer.memory_length // length))):
            drawn = torch.randint(settings.shape.vocabulary, (batch, length), generator=generator)
            with torch.no_grad(), autocast(settings.dtype, torch.device(settings.device)):
                _, self.state = peer.read(drawn.to(settings.device), self.state)

    def turn(self) -> None:
        with torch.no_grad(), autocast(self.settings.dtype, torch.device(self.settings.device)):
            for _ in range(self.window):
                logits, self.state = self.peer.read(self.last.to(self.settings.device), self.state)
                self.last = draw(logits[:, -1].float(), SAMPLING, self.generators)[:, None]


def bench_generate(settings: Settings, peak: MatrixPeak, told: Callable[[int, int], None]) -> Result:
    """Measure generation. Raises Disagreement where writing token by token is not what reading at once gives."""
    result = Result("generate")
    # As the command does.
    keep_freed_memory()
    peak.measure()
    models = {name: own.make(name, settings, settings.memory_length[0]).eval() for name in settings.models}
    for model in models.values():
        check_decoding(model, settings, result)
    window = _gpt2(settings, result)
    device = torch.device(settings.device)
    for number, batch in enumerate(settings.batches):
        candidates: list[Writing] = []
        for place in settings.places:
            for name, model in models.items():
                candidates.append(SessionWriting(name, model, settings, batch, place))
                if device.type == "cuda":
                    candidates.append(SessionWriting(f"{name}, by graphs", model, settings, batch, place, graphs=True))
            if place == settings.places[0] and "lamemo" in models:
                one = SessionWriting(REFRESHING, models["lamemo"], settings, batch, place, segment_length=1)
                candidates.append(one)
            if window is not None:
                candidates.append(GPT2Writing(window, settings, batch, place))
        total = len(settings.batches) * (settings.rounds + settings.warmup)
        done = number * (settings.rounds + settings.warmup)
        times = interleave(
            {each.label: each.watched for each in candidates},
            settings.rounds,
            settings.warmup,
            device,
            peak,
            lambda step, _, done=done, total=total: told(done + step, total),
        )
        result.rows += [_row(each, candidates, times, settings) for each in candidates]
    result.peak = peak.to_json()
    result.tables = [_table(result, settings)]
    if window is not None:
        result.note(
            f"{window.name}: its learned positions end with the window, where each new token stands; longer texts than "
            "the window are not read again for it, since what slid out costs nothing."
        )
    result.note(
        "Texts before the place are read segment by segment at once, as a prompt; only the tokens after it are timed. "
        "A window of tokens is as long as a segment, so that closing segments is in every figure."
    )
    return result


def check_decoding(model: Any, settings: Settings, result: Result) -> None:
    """A segment read token by token, and the next one, give the hidden states of reading at once, in float32."""
    length = min(settings.segment_length, 12)
    generator = torch.Generator().manual_seed(settings.seed)
    drawn = torch.randint(model.vocab_size, (2, 3 * length), generator=generator).to(settings.device)
    with torch.no_grad():
        at_once = model.with_projections(model.init_memory(2))
        empty = model.init_memory(2)
        by_token = model.with_projections(model.init_memory(2))
        apart = 0.0
        for tokens in drawn.split(length, dim=1):
            whole, at_once, _ = model(tokens, at_once)
            singles: list[Tensor] = []
            for place in range(length):
                hidden, by_token, _ = model(tokens[:, place : place + 1], by_token, close=place == length - 1)
                singles.append(hidden)
            wanted, found = model.head.logits(whole), model.head.logits(torch.cat(singles, dim=1))
            limit = finer(wanted, model.head.logits(model(tokens, empty).hidden))
            apart = max(apart, check_same(f"{model.config.architecture} token by token", found, wanted, limit))
    once(
        result,
        f"{model.config.architecture} gives token by token the logits of reading at once, in float32, to {apart:.1e}.",
    )


def _gpt2(settings: Settings, result: Result) -> peers.GPT2Window | None:
    """GPT-2 with its cache, where it can be had."""
    if not settings.peers:
        return None
    made = peers.make_peers(settings, settings.memory_length[0], result.note, (peers.GPT2Window,))
    if not made:
        return None
    (window,) = made
    window.model.eval()
    check_cache(
        window,
        dataclasses.replace(settings, segment_length=min(settings.segment_length, 8)),
        (min(settings.segment_length, 8), settings.memory_length[0]),
        result,
    )
    assert isinstance(window, peers.GPT2Window)
    return window


def _row(one: Writing, candidates: list[Writing], times: dict[str, list[float]], settings: Settings) -> dict[str, Any]:
    each = {other.label: [taken / other.window for taken in times[other.label]] for other in candidates}
    found = summary(each[one.label])
    row: dict[str, Any] = {
        "model": one.name,
        "own": isinstance(one, SessionWriting),
        "batch": one.batch,
        "after_tokens": one.place,
        "segment_length": 1 if one.name == REFRESHING else settings.segment_length,
        "memory_length": settings.memory_length[0] if one.remembers else None,
        "tokens_timed": one.window * len(times[one.label]),
        "seconds": found,
        "tokens_per_second": one.batch / found["median"],
        "resident_bytes_first": one.resident[0] if one.resident else None,
        "resident_bytes_last": one.resident[-1] if one.resident else None,
    }
    for name, wanted in (
        ("times_first_place", lambda other: other.name == one.name and other.place == settings.places[0]),
        (
            "times_gpt2",
            lambda other: (
                isinstance(other, GPT2Writing) and not isinstance(one, GPT2Writing) and other.place == one.place
            ),
        ),
        (
            "times_refreshing",
            lambda other: other.name == REFRESHING and one.name.startswith("lamemo") and one.name != REFRESHING,
        ),
    ):
        others = [other.label for other in candidates if wanted(other)]
        row[name] = ratio(each[one.label], each[others[0]]) if others else None
    return row


def _table(result: Result, settings: Settings) -> Table:
    rows = []
    for row in result.rows:
        refreshing = row["times_refreshing"]
        held = row["resident_bytes_first"], row["resident_bytes_last"]
        rows.append(
            [
                row["model"],
                "" if row["memory_length"] is None else f"{row['memory_length']:,}",
                f"{row['batch']}",
                f"{row['after_tokens']:,}",
                f"{row['tokens_per_second']:,.1f}",
                f"{1e3 * row['seconds']['median']:,.2f}",
                f"{1e3 * row['seconds']['lower_quartile']:,.2f} to {1e3 * row['seconds']['upper_quartile']:,.2f}",
                f"{row['times_first_place']:.3f}",
                "" if row["times_gpt2"] is None else f"{row['times_gpt2']:.2f}",
                "" if refreshing is None else f"{1 / refreshing:.1f}",
                "" if held[0] is None else f"{held[0] / 1e6:,.0f} to {held[1] / 1e6:,.0f}",
            ]
        )
    caption = (
        f"memory: M, where its length is chosen. x first place: time a token as a multiple of the same after "
        f"{settings.places[0]:,} tokens. resident MB: of the whole process, after the first and the last turn of this "
        "candidate."
    )
    if any(row["times_gpt2"] is not None for row in result.rows):
        caption += (
            " x GPT-2: time a token as a multiple of what GPT-2 takes with a cache of the newest M tokens, after as "
            "many tokens."
        )
    if any(row["times_refreshing"] is not None for row in result.rows):
        caption += (
            " faster than refreshing: how many times as fast as a lamemo that refreshes its memory at every token, "
            f"which is measured after {settings.places[0]:,} tokens only."
        )
    table = Table(
        f"Generation with segments of {settings.segment_length}",
        [
            "model",
            "memory",
            "texts",
            "after tokens",
            "tokens/s",
            "ms a token of each",
            "quartiles",
            "x first place",
            "x GPT-2",
            "faster than refreshing",
            "resident MB",
        ],
        rows,
        caption,
    )
    return filled_columns(table)
