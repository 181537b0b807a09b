"""A conversation between a text and a model: read, go on, save, go on later.

A session reads text in segments and closes each one at `segment_length` tokens, exactly as in training, so a prompt
of any length is read at constant memory. It then decodes token by token in a segment left open, which costs the
same for the first token and for the millionth.

What a session knows between two calls is in its memory and in a handful of plain values: tokens not yet read, text
held back, one generator a sample. All of it goes into one file, and a session loaded from it goes on with the same
bits as one that was never interrupted.

Shapes
    B   lanes: one while a prompt is read, then one for each sample that still runs
    R   tokens that the model has not read yet; at least one when a token is to be drawn, unless nothing was ever read
    by a model that begins by itself (shift 0); fewer than fit the open segment
    V   vocabulary
"""

from __future__ import annotations

import codecs
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from remanence.data.tokenizers import check_ids
from remanence.errors import InputError, SettingWarning
from remanence.evaluation.holding import distances_to_hold
from remanence.generation import storage
from remanence.generation.graphs import Cycle, recorder_of
from remanence.generation.prompt import opening, settled
from remanence.generation.sampling import Sampling, draw
from remanence.generation.stopping import StopFilter
from remanence.memory import Distances, Memory
from remanence.nn.packed import fixed
from remanence.rows import rehearsing
from remanence.training.precision import autocast, choose

BLOCK = 1 << 16
"""Characters of a prompt that are turned into tokens at a time."""

HEARD = 64
"""Last tokens of a prompt that the decoders are shown, so that text goes on inside a character or a line."""

SEGMENTS_THAT_PAY = 3
"""Recording a step costs two or three times what running it does, and replaying it saves most of that."""

LARGEST_SEED = 2**63 - 1
"""What torch's generators take."""


@dataclass(frozen=True)
class Step:
    """One token for every sample that was still running."""

    ids: list[int | None]
    """The token of each sample; None where the sample had ended before."""
    pieces: list[str]
    """Text of each sample that may be shown now; often empty while a character or a stop string may still be
    incomplete."""
    stopped: list[bool]
    """Whether each sample has met a stop string."""


class Session:
    """Reads text into a model's memory and goes on with it.

        session = Session(load_run("runs/small"), sampling=Sampling(temperature=0.8), seed=1)
        session.read("Once upon a time")
        for piece in session.stream(200):
            print(piece, end="", flush=True)
        session.save("later.safetensors")

    model             a run (from `load_run`), or a model together with its `tokenizer`
    samples           how many texts to draw from the same prompt, side by side
    seed              sample i draws from its own generator, seeded with seed + i, and so does not depend on `samples`
    stops             texts at which a sample ends; they are not shown, not even in part
    memory_length     slots of memory; by default those of the model's configuration
    segment_length    where segments are closed; by default that of the model's configuration
    hold_distances    hold distances at the largest trained ones where memory or segments are longer than in training
    trained           largest distances seen in training; a run brings its own
    precision         numbers of the matrix products: "float32" (those of the weights), "bfloat16", or "auto": bfloat16
                      where this machine is faster in it
    graphs            on a CUDA GPU, record the steps of a segment once and replay them (`generation/graphs.py`): by
                      default where enough tokens are drawn to pay; true always, false never
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any = None,
        *,
        samples: int = 1,
        sampling: Sampling | None = None,
        stops: Sequence[str] = (),
        seed: int = 0,
        memory_length: int | None = None,
        segment_length: int | None = None,
        hold_distances: bool = True,
        trained: Distances | None = None,
        precision: Literal["auto", "float32", "bfloat16"] = "float32",
        graphs: bool | None = None,
    ) -> None:
        if samples < 1:
            raise InputError(f"{samples} samples were asked for; give at least 1.")
        if segment_length is not None and segment_length < 1:
            raise InputError(f"The segment length is {segment_length}; it must be at least 1.")
        if memory_length is not None and memory_length < 0:
            raise InputError(f"The memory length is {memory_length}; it must be at least 0.")
        if not 0 <= seed <= LARGEST_SEED - samples:
            raise InputError(f"The seed is {seed}; it must be between 0 and {LARGEST_SEED - samples}.")
        if precision not in ("auto", "float32", "bfloat16"):
            raise InputError(f"The precision {precision!r} is not known; choose auto, float32 or bfloat16.")
        given, self.tokenizer, self.fingerprint, trained = _parts(model, tokenizer, trained)
        self.precision = choose(precision, next(given.parameters()).device)
        """float32 (those of the weights themselves) or bfloat16."""
        self.model = fixed(given, torch.bfloat16 if self.precision == "bfloat16" else None)
        config = self.model.config
        self.samples = samples
        self.sampling = sampling or Sampling()
        self.stops = tuple(stops)
        self.seed = seed
        self.segment_length: int = config.segment_length if segment_length is None else segment_length
        slots: int = config.memory_length if memory_length is None else memory_length
        hold = distances_to_hold(self.model, trained, self.segment_length, slots) if hold_distances else None
        with self._reading():
            memory = self.model.init_memory(lanes=1, length=slots, hold=hold)
            self._memory: Memory = self.model.with_projections(memory)
        self._graphs = graphs
        self._cycle: Cycle | None = None
        self._drawn = self._announced = 0
        self.tokens_read = 0
        """Tokens given to the model so far, drawn ones included."""
        self._forked = False
        self._pending = torch.zeros(1, 0, dtype=torch.int64)
        self._text = ""
        self._heard: list[int] = []
        self._running = [0]
        self._decoders = [self.tokenizer.stream_decoder()]
        self._filters = [StopFilter(self.stops)]
        self._generators: list[torch.Generator] = []

    @property
    def memory(self) -> Memory:
        """All that was read, and what was drawn up to the last token but one."""
        return self._memory if self._cycle is None else self._cycle.kept(self._memory)

    @memory.setter
    def memory(self, memory: Memory) -> None:
        self._memory = memory

    # Reading

    def read(self, text: str) -> None:
        """Put text at the end of what the model has read, however much; whole segments are read at once and
        forgotten.

        Text may come in pieces cut anywhere: `read("ab")` and then `read("cd")` is `read("abcd")`. After drawing, all
        samples read the same text, a stop string that was met is forgiven, and what was held back because one might
        have begun is dropped (`finish` gives it).
        Raises InputError for characters the vocabulary lacks, and for several samples of which some have ended.
        """
        if text:
            self._listen()
        for begin in range(0, len(text), BLOCK):
            self._text += text[begin : begin + BLOCK]
            ready = settled(self._text, self.tokenizer)
            if ready:
                self._take(self.tokenizer.encode(self._text[:ready]))
                self._text = self._text[ready:]

    def read_bytes(self, blocks: Iterable[bytes]) -> None:
        """`read` for UTF-8 text in blocks cut anywhere, such as those of a file or of standard input.

        A byte model reads the bytes as they are. Raises InputError where another one meets bytes that are not UTF-8.
        """
        if hasattr(self.tokenizer, "encode_bytes"):
            for block in blocks:
                if block:
                    self._listen()
                    self._take(self.tokenizer.encode_bytes(block))
            return
        decoder, count = codecs.getincrementaldecoder("utf-8")(), 0
        try:
            for block in blocks:
                count += len(block)
                self.read(decoder.decode(block))
            decoder.decode(b"", final=True)
        except UnicodeDecodeError as error:
            raise InputError(
                f"The prompt is not UTF-8 ({error.reason} within its first {count:,} bytes), and this model reads "
                f"{self.tokenizer.unit}s, not bytes; convert the prompt to UTF-8."
            ) from None

    def read_ids(self, ids: Sequence[int] | np.ndarray | Tensor) -> None:
        """`read` for tokens. Raises InputError for ids outside the vocabulary."""
        if len(ids):
            self._listen()
            self._settle()
            self._take(np.asarray(ids, dtype=np.int64))

    def read_each(self, ids: np.ndarray) -> None:
        """`read_ids` with tokens of its own for every sample: (samples, n), all of one length.

        Raises InputError for another number of samples, and ids outside the vocabulary.
        """
        ids = np.asarray(ids, dtype=np.int64)
        if ids.ndim != 2 or len(ids) != self.samples:
            raise InputError(
                f"Tokens of shape {ids.shape} were given to {self.samples} samples; give one row of the same length "
                "for each."
            )
        self._listen()
        self._settle()
        self._fork()
        for decoder, row in zip(self._decoders, ids, strict=True):
            decoder.push(row[-HEARD:].tolist())
        self._take(ids)

    # Going on

    @property
    def ended(self) -> bool:
        """Whether every sample has met a stop string, so that nothing is drawn until more text is read."""
        return not self._running

    def step(self) -> Step | None:
        """Draw one token for every sample that still runs; None when all have ended.

        An interrupt between two steps leaves a session that can be saved.
        """
        if not self._running:
            return None
        self._begin()
        with self._reading():
            logits, memory = self._predict()
        drawn = draw(logits, self.sampling, [self._generators[sample] for sample in self._running])
        self.memory, self._pending = memory, drawn[:, None]
        self._drawn += 1
        ids: list[int | None] = [None] * self.samples
        pieces = [""] * self.samples
        for sample, token in zip(self._running, drawn.tolist(), strict=True):
            ids[sample] = token
            pieces[sample] = self._filters[sample].push(self._decoders[sample].push([token]))
        self._drop_ended()
        return Step(ids=ids, pieces=pieces, stopped=[text.stopped for text in self._filters])

    def steps(self, max_tokens: int | None = None) -> Iterator[Step]:
        """Steps until all samples have ended, at most `max_tokens` (None: without end)."""
        if max_tokens is not None and max_tokens < 0:
            raise InputError(f"{max_tokens} tokens were asked for; give 0 or more.")
        count, endless = 0, SEGMENTS_THAT_PAY * self.segment_length
        while max_tokens is None or count < max_tokens:
            self._announced = endless if max_tokens is None else max_tokens - count
            try:
                step = self.step()
            finally:
                self._announced = 0
            if step is None:
                return
            count += 1
            yield step

    def stream(self, max_tokens: int | None = None, *, finish: bool = True) -> Iterator[str]:
        """The text of a session of one sample, piece by piece, never half a character and never a part of a stop
        string.

        finish=False leaves text in which a stop string may have begun to the next call, and to a saved session.
        Raises InputError for several samples; use `generate` or `steps`.
        """
        if self.samples != 1:
            raise InputError(f"The session has {self.samples} samples and a stream shows one; use generate or steps.")
        for step in self.steps(max_tokens):
            if step.pieces[0]:
                yield step.pieces[0]
        if finish and (text := self.finish()[0]):
            yield text

    def generate(self, max_tokens: int) -> list[str]:
        """The whole texts of all samples."""
        texts = [""] * self.samples
        for step in self.steps(max_tokens):
            texts = [text + piece for text, piece in zip(texts, step.pieces, strict=True)]
        return [text + rest for text, rest in zip(texts, self.finish(), strict=True)]

    def finish(self) -> list[str]:
        """Text of each sample that was held back because a stop string might have begun in it.

        A character whose last bytes have not been drawn stays where it is.
        """
        rests = [text.finish() for text in self._filters]
        return rests + [""] * (self.samples - len(rests))

    # Keeping

    def save(self, path: str | Path) -> None:
        """Write everything that is needed to go on, as one safetensors file, whole or not at all."""
        storage.save(path, self.memory, self._state())

    @classmethod
    def load(
        cls,
        path: str | Path,
        model: Any,
        tokenizer: Any = None,
        *,
        samples: int | None = None,
        sampling: Sampling | None = None,
        stops: Sequence[str] | None = None,
        seed: int | None = None,
        precision: Literal["auto", "float32", "bfloat16"] | None = None,
        graphs: bool | None = None,
    ) -> Session:
        """A session that goes on where the saved one was; settings that are given replace the saved ones.

        Another number of samples is possible only while none has begun to draw.
        Raises InputError when the file is damaged, or of another model.
        """
        memory, state = storage.load(path)
        with storage.refusing(path):
            session = cls(
                model,
                tokenizer,
                samples=storage.number(state["samples"], 1, storage.MOST_SAMPLES) if samples is None else samples,
                sampling=storage.sampling(state["sampling"]) if sampling is None else sampling,
                stops=storage.texts(state["stops"]) if stops is None else stops,
                seed=storage.number(state["seed"]) if seed is None else seed,
                precision=state.get("precision", "float32") if precision is None else precision,
                graphs=graphs,
            )
            session._restore(path, memory, state, reseed=seed is not None)
        return session

    def _state(self) -> dict[str, Any]:
        return {
            "fingerprint": self.fingerprint,
            "architecture": self.model.config.architecture,
            "weights": str(next(self.model.parameters()).dtype),
            "precision": self.precision,
            "samples": self.samples,
            "sampling": self.sampling.to_json(),
            "stops": list(self.stops),
            "seed": self.seed,
            "segment_length": self.segment_length,
            "tokens_read": self.tokens_read,
            "forked": self._forked,
            "pending": self._pending.tolist(),
            "text": self._text,
            "heard": self._heard,
            "running": self._running,
            "decoders": [decoder.state() for decoder in self._decoders],
            "texts": [{"held": text.held, "stopped": text.stopped} for text in self._filters],
            "generators": [storage.generator_to_text(generator) for generator in self._generators],
        }

    def _restore(self, path: str | Path, memory: Memory, state: dict[str, Any], *, reseed: bool) -> None:
        storage.check_model(path, state, self._state())
        if state["forked"] and self.samples != state["samples"]:
            raise InputError(
                f"{path} holds {state['samples']} samples that have begun to draw, and {self.samples} were asked for; "
                "leave the number out, or save right after the prompt to draw any number from it."
            )
        self.segment_length = storage.number(state["segment_length"], 1)
        self.tokens_read = storage.number(state["tokens_read"])
        self._forked = bool(state["forked"])
        self._pending = torch.tensor(state["pending"], dtype=torch.int64).reshape(len(state["pending"]), -1)
        self._text = str(state["text"])
        self._heard = check_ids(state["heard"], self.model.config.vocab_size).tolist()
        self._running = [storage.number(sample) for sample in state["running"]]
        self._decoders = [self._decoder(saved) for saved in state["decoders"]]
        self._filters = [StopFilter(self.stops, str(text["held"]), bool(text["stopped"])) for text in state["texts"]]
        self._generators = [storage.generator_from_text(text) for text in state["generators"]]
        check_ids(self._pending.flatten().numpy(), self.model.config.vocab_size)
        texts = self.samples if self._forked else 1
        storage.check_counts(
            {
                "decoders": (len(self._decoders), texts),
                "held texts": (len(self._filters), texts),
                "generators": (len(self._generators), self.samples if self._forked else 0),
                "rows of tokens": (len(self._pending), len(self._running) or memory.lanes),
                "lanes of memory": (memory.lanes, len(self._pending)),
                "running samples": (len({each for each in self._running if each < texts}), len(self._running)),
            }
        )
        self.memory = memory.to(device=self._device)
        if memory.opened >= self.segment_length:
            raise ValueError(f"{memory.opened} tokens in an open segment of {self.segment_length}")
        # That its tensors fit the model shows where one token is read, of which no trace is left.
        with self._reading(), rehearsing():
            token = torch.zeros(memory.lanes, 1, dtype=torch.int64, device=self._device)
            self.model(token, self.memory, None, close=False)
        if reseed and self._forked:
            self._generators = _seeded(self.seed, self.samples)

    # Inside

    def _listen(self) -> None:
        """Make ready for more text after some was drawn."""
        if self._forked and self.samples > 1 and len(self._running) < self.samples:
            raise InputError(
                f"{self.samples - len(self._running)} of {self.samples} samples have met a stop string and the others "
                "have not, so they cannot read on together; read on with a session of one sample."
            )
        self._filters = [StopFilter(self.stops) for _ in self._filters]
        self._running = list(range(len(self._filters)))

    def _settle(self) -> None:
        """Turn text that was held back into tokens: what follows it is known not to be text."""
        if self._text:
            text, self._text = self._text, ""
            self._take(self.tokenizer.encode(text))

    def _take(self, ids: np.ndarray) -> None:
        """Append tokens, and read segments as they become full."""
        low, high, vocab_size = int(ids.min(initial=0)), int(ids.max(initial=0)), self.model.config.vocab_size
        if low < 0 or high >= vocab_size:
            raise InputError(
                f"Token ids from {low} to {high} were given, but the vocabulary has {vocab_size:,} entries, from 0 to "
                f"{vocab_size - 1}; use the tokenizer that belongs to the model."
            )
        if ids.ndim == 1:
            self._heard = [*self._heard, *ids[-HEARD:].tolist()][-HEARD:]
        tokens = torch.as_tensor(ids, dtype=torch.int64)
        self._pending = torch.cat([self._pending, tokens.expand(len(self._pending), -1)], dim=1)
        with self._reading():
            # One token always stays: the next one is drawn from what the model makes of it. A model that looks at what
            # comes next without reading on needs none, and reads the same segments.
            while self.memory.opened + self._pending.shape[1] > self.segment_length:
                room = self.segment_length - self.memory.opened
                tokens, self._pending = self._pending[:, :room], self._pending[:, room:]
                if self.memory.opened:
                    _, self.memory = self._feed(tokens)
                else:
                    # Nobody asks what a whole segment of a prompt predicts.
                    self.memory = self.model.advance(tokens.to(self._device), self.memory)
                    self.tokens_read += room

    def _begin(self) -> None:
        """Turn the prompt that was read into samples, before the first token is drawn."""
        self._settle()
        if not self._pending.shape[1] and self.model.shift:
            self._take(opening(self.tokenizer))
        self._fork()

    def _fork(self) -> None:
        """Show the decoders the prompt, and make as many lanes as there are samples."""
        if self._heard:
            for decoder in self._decoders:
                decoder.push(self._heard)
            self._heard = []
        if self._forked:
            return
        lanes = torch.zeros(self.samples, dtype=torch.int64)
        self.memory, self._pending = self.memory[lanes.to(self._device)], self._pending[lanes]
        self._decoders = [self._decoder(self._decoders[0].state()) for _ in range(self.samples)]
        self._filters = [StopFilter(self.stops) for _ in range(self.samples)]
        self._generators = _seeded(self.seed, self.samples)
        self._running = list(range(self.samples))
        self._forked = True

    def _decoder(self, state: dict[str, Any]) -> Any:
        decoder = self.tokenizer.stream_decoder()
        decoder.restore(state)
        return decoder

    def _predict(self) -> tuple[Tensor, Memory]:
        """Scores of the next token, (B, V), and the memory after all that was read."""
        if (cycle := self._recording()) is not None:
            try:
                logits, memory = cycle(self._pending, self._memory)
            except RuntimeError as error:
                self._memory, self._cycle, self._graphs = cycle.kept(self._memory), None, False
                reason = str(error).partition("\n")[0]
                warnings.warn(f"Steps are not recorded, for {reason}; drawing goes on.", SettingWarning, stacklevel=4)
            else:
                self.tokens_read += 1
                return logits, memory
        if not self._pending.shape[1]:
            return self._scores(self.model.peek(self.memory)), self.memory
        hidden, memory = self._feed(self._pending)
        return self._scores(hidden if self.model.shift else self.model.peek(memory)), memory

    def _recording(self) -> Cycle | None:
        """The cycle that this step belongs to; None where it is no step of one token, or does not pay."""
        pays = self._drawn + self._announced >= SEGMENTS_THAT_PAY * self.segment_length
        wanted = pays if self._graphs is None else self._graphs
        if not wanted or self._pending.shape[1] != 1:
            return None
        if self._cycle is None and (recorder := recorder_of(self._device)) is not None:
            step = partial(_step, self.model, self.segment_length, self._scores)
            waits = partial(_waits, self.model, self.segment_length)
            self._cycle = Cycle(step, self.segment_length, recorder, waits)
        return self._cycle

    def _scores(self, hidden: Tensor) -> Tensor:
        """Logits (B, V) after the last place of hidden states (B, R, D)."""
        # A model may have more rows than its tokenizer has tokens.
        logits = self.model.head.logits(hidden[:, -1:])[:, 0, : self.tokenizer.vocab_size]
        if (start := getattr(self.tokenizer, "start_token", None)) is not None:
            # Documents begin with it, and it is nowhere else.
            logits[:, start] = -torch.inf
        return logits

    def _feed(self, tokens: Tensor) -> tuple[Tensor, Memory]:
        """Read tokens (B, R) into the open segment, and close it when it is full."""
        memory = self.memory
        assert 0 < tokens.shape[1] <= self.segment_length - memory.opened
        close = memory.opened + tokens.shape[1] == self.segment_length
        hidden, memory, _ = self.model(tokens.to(self._device), memory, None, close=close)
        self.tokens_read += tokens.shape[1]
        return hidden, memory

    def _drop_ended(self) -> None:
        """Stop computing samples that have met a stop string. A single one keeps its memory, to read on from
        there.
        """
        kept = [lane for lane, sample in enumerate(self._running) if not self._filters[sample].stopped]
        if len(kept) == len(self._running):
            return
        if kept:
            lanes = torch.tensor(kept)
            self.memory, self._pending = self.memory[lanes.to(self._device)], self._pending[lanes]
        self._running = [self._running[lane] for lane in kept]
        # Another batch is recorded anew, which must pay again.
        self._drawn = 0

    def _reading(self) -> Any:
        """Without gradients; where single calls cost much beside what they compute, without any trace of them."""
        stack = ExitStack()
        stack.enter_context(torch.inference_mode() if self._device.type == "cpu" else torch.no_grad())
        if self.precision == "bfloat16":
            stack.enter_context(autocast(self.precision, self._device))
        return stack

    @property
    def _device(self) -> torch.device:
        return next(self.model.parameters()).device


def _step(model: Any, segment_length: int, scores: Any, tokens: Tensor, memory: Any) -> tuple[Tensor, Any]:
    """Logits and memory after one more token of each lane."""
    hidden, memory, _ = model(tokens, memory, None, close=memory.opened + 1 == segment_length)
    return scores(hidden if model.shift else model.peek(memory)), memory


def _waits(model: Any, segment_length: int, memory: Any) -> bool:
    return model.waits(memory, close=memory.opened + 1 == segment_length)


def _seeded(seed: int, samples: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed + sample) for sample in range(samples)]


def _parts(model: Any, tokenizer: Any, trained: Distances | None) -> tuple[Any, Any, str, Distances | None]:
    """Model, tokenizer, fingerprint and trained distances of a run, or of a model and its tokenizer."""
    if not isinstance(model, nn.Module):
        fingerprint = f"{model.fingerprint}-{model.tokenizer.fingerprint}"
        return model.model, model.tokenizer, fingerprint, trained or model.distances
    if tokenizer is None:
        raise InputError("A model was given without its tokenizer; give both, or a run.")
    return model.eval(), tokenizer, f"{storage.fingerprint_of(model)}-{tokenizer.fingerprint}", trained
