"""Floating-point operations of a model by formula: what its matrix products need, whatever an implementation wastes.

A product of (n, k) and (k, m) is 2 n k m operations. Backward, each factor that receives a gradient costs that again:

    training = forward (1 + gradients),   gradients 2 inside a model, 1 where a factor is a constant, 0 where both are

Attention counts all T x S pairs, those that a mask hides included; looking ahead counts its band of n keys for each of
M slots. Nothing is counted twice: not the logits that a loss computes again, nor a segment that an engine replays.
Norms, softmax, dropout, sums, look-ups and the optimizer are left out, as is usual. The formulas of each model are in
`docs/performance.md`; a test compares them with the profiler's count of what really runs.

Shapes: B lanes, T tokens, M slots, S keys, H heads, K head width, D model width, F feed-forward width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class Flops:
    """Operations of one closed segment of all lanes, by part; filled by a model, read by whoever wants to know."""

    def __init__(self) -> None:
        self.forward: dict[str, int] = {}
        """In evaluation."""
        self.training: dict[str, int] = {}
        """Forward and backward, with a horizon of this segment alone."""

    def __repr__(self) -> str:
        return f"Flops(forward={self.total_forward:,}, training={self.total_training:,})"

    @property
    def total_forward(self) -> int:
        return sum(self.forward.values())

    @property
    def total_training(self) -> int:
        return sum(self.training.values())

    def add(
        self, part: str, rows: int, inner: int, columns: int, *, gradients: int = 2, evaluated: bool = True
    ) -> None:
        """A product of (rows, inner) and (inner, columns), of whose factors so many receive a gradient in training.

        Without `evaluated` it is made in training alone.
        """
        operations = 2 * rows * inner * columns
        if evaluated:
            self.forward[part] = self.forward.get(part, 0) + operations
        self.training[part] = self.training.get(part, 0) + operations * (1 + gradients)

    def add_attention(self, lanes: int, queries: int, keys: int, width: int, *, positions: bool = False) -> None:
        """Scores and reading of all pairs, `width` = H K wide; with `positions`, a second half of the scores."""
        self.add("attention", lanes * queries, width, 2 * keys)
        if positions:
            self.add("position scores", lanes * queries, width, keys)

    def add_rows(self, rows: int, config: Any) -> None:
        """What a layer makes of rows beside attention: queries, keys, values, output, feed-forward."""
        width, inner = config.model_width, config.num_heads * config.head_width
        self.add("projections", rows, width, 4 * inner)
        self.add_feed_forward(rows, config)

    def add_feed_forward(self, rows: int, config: Any) -> None:
        self.add("feed-forward", rows, config.model_width, 2 * config.feed_forward_width)

    def add_embedding(self, embedding: Any, rows: int) -> None:
        """Every bin of an adaptive embedding projects every token, for shapes must not depend on the text."""
        for weight in embedding.projections:
            self.add("embedding", rows, weight.shape[1], weight.shape[0])

    def add_head(self, head: Any, rows: int, tails: Sequence[float] | None = None) -> None:
        """Scores of the whole vocabulary; of an adaptive softmax, those of a tail for the targets that lie in it.

        `tails` says how many; they share the vocabulary's targets by size unless given.
        """
        sizes = [high - low for low, high in zip(head.edges[:-1], head.edges[1:], strict=True)]
        if tails is None:
            tails = [rows * size / sum(sizes) for size in sizes[1:]]
        for number, (size, scored) in enumerate(zip(sizes, (rows, *tails), strict=True)):
            width = head.width(number)
            if head.is_projected:
                self.add("head", round(scored), head.model_width, width)
            self.add("head", round(scored), width, size + (len(tails) if number == 0 else 0))
