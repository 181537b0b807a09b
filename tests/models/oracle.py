"""Transformer-XL and LaMemo once more, written from their definitions in loops over single numbers' owners: one lane,
one query, one key, one head at a time, in NumPy. Memories are lists that grow; nothing is masked, padded or shifted.

`Limits` say where distances are held: clamp (both directions), back and ahead (one direction each).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from remanence.models import LanguageModel

Vector = NDArray[np.float64]


@dataclass
class State:
    """What one lane remembers: rows of each layer, oldest first."""

    hidden: list[list[Vector]] = field(default_factory=list)
    """Transformer-XL: inputs of each layer."""
    embedding: list[Vector] = field(default_factory=list)
    """LaMemo: E."""
    context: list[list[Vector]] = field(default_factory=list)
    """LaMemo: C of each layer, (H, K) a row."""
    logsum: list[list[Vector]] = field(default_factory=list)
    """LaMemo: S of each layer, (H,) a row."""
    last_length: int = 0


class Oracle:
    """Reads one lane with the weights of a model."""

    def __init__(self, model: LanguageModel, slots: int, back: int | None = None, ahead: int | None = None) -> None:
        self.config: Any = model.config
        self.weights = {name: p.detach().double().numpy() for name, p in model.named_parameters()}
        self.slots, self.back, self.ahead = slots, back, ahead
        assert not self.config.cutoffs and self.config.embedding_width is None

    def fresh(self) -> State:
        """The memory of a lane that has read nothing."""
        layers = range(self.config.num_layers)
        zeros = getattr(self.config, "memory_init", "empty") == "zeros"
        rows = [np.zeros(self.config.model_width)] * (self.slots if zeros else 0)
        return State([list(rows) for _ in layers], [], [[] for _ in layers], [[] for _ in layers])

    # The parts of a layer

    def linear(self, name: str, x: Vector) -> Vector:
        return self.weights[f"{name}.weight"] @ x

    def norm(self, name: str, x: Vector) -> Vector:
        scaled = (x - x.mean()) / math.sqrt(x.var() + self.config.layer_norm_epsilon)
        return scaled * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]

    def queries_keys_values(self, layer: int, x: Vector) -> list[Vector]:
        """q, k and v of one row, each (H, K)."""
        if self.config.norm == "pre":
            x = self.norm(f"layers.{layer}.norm_attention", x)
        projected = self.linear(f"layers.{layer}.queries_keys_values", x)
        return [part.reshape(self.config.num_heads, self.config.head_width) for part in np.split(projected, 3)]

    def finish(self, layer: int, x: Vector, context: Vector) -> Vector:
        name = f"layers.{layer}"
        hidden = x + self.linear(f"{name}.output", context.reshape(-1))
        if self.config.norm == "post":
            hidden = self.norm(f"{name}.norm_attention", hidden)
        fed = self.norm(f"{name}.norm_feed_forward", hidden) if self.config.norm == "pre" else hidden
        fed = self.linear(f"{name}.feed_forward_in", fed) + self.weights[f"{name}.feed_forward_in.bias"]
        fed = (
            self.linear(f"{name}.feed_forward_out", np.maximum(fed, 0)) + self.weights[f"{name}.feed_forward_out.bias"]
        )
        out = hidden + fed
        return self.norm(f"{name}.norm_feed_forward", out) if self.config.norm == "post" else out

    # Scores

    def bias(self, layer: int, head: int, *names: str) -> Vector:
        """The first of several biases that the model has."""
        name = next(name for name in names if name in self.weights)
        values = self.weights[name]
        return values[layer, head] if values.ndim == 3 else values[head]

    def code(self, layer: int, head: int, distance: int) -> Vector:
        """r_d of one head."""
        half = self.config.model_width // 2
        angles = [distance * 10000 ** (-2 * k / self.config.model_width) for k in range(half)]
        sinusoid = np.array([math.sin(angle) for angle in angles] + [math.cos(angle) for angle in angles])
        return self.linear(f"layers.{layer}.positions", sinusoid).reshape(self.config.num_heads, -1)[head]

    def score_back(self, layer: int, head: int, query: Vector, key: Vector, distance: int) -> float:
        content = self.bias(layer, head, "biases.content")
        clamp = self.config.clamp_length
        if self.config.position == "learned":
            table, each = self.weights["learned.table"][layer], self.weights["learned.distance_bias"][layer]
            held = min([distance, len(table) - 1, *([clamp - 1] if clamp else []), *_given(self.back)])
            row = len(table) - 1 - held
            score = (query + content) @ key + query @ table[row, head] + each[row, head]
        else:
            held = min([distance, *_given(clamp), *_given(self.back)])
            position = self.bias(layer, head, "biases.position")
            score = (query + content) @ key + (query + position) @ self.code(layer, head, held)
        return score / math.sqrt(self.config.head_width)

    def score_ahead(self, layer: int, head: int, query: Vector, key: Vector, distance: int) -> float:
        """The score of slot i for key j = i + distance."""
        content = self.bias(layer, head, "ahead_biases.content", "biases.content")
        position = self.bias(layer, head, "ahead_biases.position", "biases.position")
        held = min([abs(distance), *_given(self.ahead)])
        if self.config.position == "transformer-xl":
            code = self.code(layer, head, -held)
        else:
            code = self.code(layer, head, min([held, *_given(self.config.clamp_length)]))
        return ((query + content) @ key + (query + position) @ code) / math.sqrt(self.config.head_width)

    def read_back(self, layer: int, index: int, joint: list[list[Vector]]) -> tuple[Vector, Vector]:
        """Context (H, K) and log-sum (H,) of the row at a joint index, reading all rows up to itself."""
        query = joint[index][0]
        context, logsum = np.zeros_like(query), np.zeros(len(query))
        for head in range(len(query)):
            seen = [j for j in range(index + 1) if not self.config.same_length or index - j < self.slots]
            scores = [self.score_back(layer, head, query[head], joint[j][1][head], index - j) for j in seen]
            context[head], logsum[head] = _softmax(scores, [joint[j][2][head] for j in seen])
        return context, logsum

    # Segments

    def segment(self, tokens: list[int], state: State) -> tuple[Vector, State]:
        """Logits (T, V) and the next state. The given state stays as it is."""
        table = self.weights["embedding.tables.0"]
        embedded = [table[token] * math.sqrt(self.config.model_width) for token in tokens]
        read = self.lamemo if self.config.architecture == "lamemo" else self.transformer_xl
        hidden, state = read(embedded, state)
        return np.stack([table @ row + self.weights["head.bias"] for row in hidden]), state

    def newest(self, rows: list[Any]) -> list[Any]:
        return rows[max(len(rows) - self.slots, 0) :]

    def transformer_xl(self, stream: list[Vector], state: State) -> tuple[list[Vector], State]:
        after = State(last_length=len(stream))
        for layer in range(self.config.num_layers):
            memory = state.hidden[layer]
            after.hidden.append(self.newest([*memory, *stream]))
            joint = [self.queries_keys_values(layer, row) for row in [*memory, *stream]]
            contexts = [self.read_back(layer, len(memory) + i, joint)[0] for i in range(len(stream))]
            stream = [self.finish(layer, *pair) for pair in zip(stream, contexts, strict=True)]
        return stream, after

    def lamemo(self, embedded: list[Vector], state: State) -> tuple[list[Vector], State]:
        slots, stream = list(state.embedding), list(embedded)
        count = len(slots)
        after = State(embedding=self.newest([*slots, *stream]), last_length=len(stream))
        begin = max(count - state.last_length + 1, 1)
        for layer in range(self.config.num_layers):
            joint = [self.queries_keys_values(layer, row) for row in [*slots, *stream]]
            reads = [self.read_back(layer, count + i, joint) for i in range(len(stream))]
            held, masses = [], []
            for i in range(count):
                keys = [j for j in range(begin, count + 1) if self.config.window == "full" or j > i]
                context, logsum = np.zeros_like(joint[i][0]), np.zeros(self.config.num_heads)
                for head in range(self.config.num_heads):
                    scores = [self.score_ahead(layer, head, joint[i][0][head], joint[j][1][head], j - i) for j in keys]
                    seen, mass = _softmax(scores, [joint[j][2][head] for j in keys])
                    kept = state.logsum[layer][i][head]
                    top = max(kept, mass)
                    share = math.exp(kept - top) / (
                        math.exp(kept - top) + math.exp(mass - top) + self.config.interpolation_epsilon
                    )
                    context[head] = share * state.context[layer][i][head] + (1 - share) * seen
                    logsum[head] = top + math.log(math.exp(kept - top) + math.exp(mass - top))
                held.append(context)
                masses.append(logsum)
            after.context.append(self.newest([*held, *(context for context, _ in reads)]))
            after.logsum.append(self.newest([*masses, *(logsum for _, logsum in reads)]))
            slots = [self.finish(layer, *pair) for pair in zip(slots, held, strict=True)]
            stream = [self.finish(layer, row, context) for row, (context, _) in zip(stream, reads, strict=True)]
        return stream, after


def _softmax(scores: list[float], values: list[Vector]) -> tuple[Vector, float]:
    """The mean of values weighed by exp(score), and the log of the weights' sum."""
    top = max(scores)
    weights = [math.exp(score - top) for score in scores]
    total = sum(weights)
    mean = sum((weight * value for weight, value in zip(weights, values, strict=True)), np.zeros_like(values[0]))
    return mean / total, top + math.log(total)


def _given(limit: int | None) -> list[int]:
    return [] if limit is None else [limit]
