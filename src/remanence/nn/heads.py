"""From hidden states to losses and logits: full softmax and adaptive softmax, tied to the embedding.

    head   logits over the c_1 words of bin 0 plus one slot a tail bin, from P'_0^T h
    log p(w in tail b) = log softmax_head[c_1 + b - 1] + log softmax(E_b P'_b^T h + b_b)[w]

Tail slots stand in natural order; the published PyTorch code counts them from the end (`interop` turns them round).
Source: Grave et al. 2017 (arXiv 1609.04309); Dai et al. 2019 and its published code.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from remanence.nn.embedding import TokenEmbedding
from remanence.ops.cross_entropy import linear_cross_entropy


class SoftmaxHead(nn.Module):
    """Scores of the next token. Without cutoffs this is one softmax over the whole vocabulary.

    `tie_projections[b]` makes P'_b the embedding's P_b (P_0 when `div_value` is 1), otherwise a weight of its own;
    `tie_embedding` makes E_b the embedding's table.
    """

    def __init__(
        self, embedding: TokenEmbedding, tie_projections: tuple[bool, ...], *, tie_embedding: bool = True
    ) -> None:
        super().__init__()
        # In a tuple, so that the tied tables are registered once, under the embedding's names.
        self._tied = (embedding,)
        self.edges = embedding.edges
        num_tails = len(self.edges) - 2
        self.bias = nn.Parameter(torch.empty(self.edges[-1]))
        self.tables = nn.ParameterList(() if tie_embedding else map(torch.empty_like, embedding.tables))
        self.projections = nn.ParameterDict()
        if len(embedding.projections):
            for number in range(num_tails + 1):
                if not tie_projections[number]:
                    shape = embedding.projections[min(number, len(embedding.projections) - 1)].shape
                    self.projections[str(number)] = nn.Parameter(torch.empty(shape))
        if num_tails:
            self.cluster_weight = nn.Parameter(torch.empty(num_tails, embedding.tables[0].shape[1]))
            self.cluster_bias = nn.Parameter(torch.empty(num_tails))

    def loss(self, hidden: Float[Tensor, "B T D"], targets: Int[Tensor, "B T"]) -> Float[Tensor, "B T"]:
        """Nats per token, float32 or better; 0 where the target is negative. No (B, T, V) tensor is held."""
        rows, wanted = hidden.flatten(0, 1), targets.flatten()
        cutoff = self.edges[1]
        first = wanted
        tails = list(zip(self.edges[1:-1], self.edges[2:], strict=True))
        for number, (low, high) in enumerate(tails):
            first = torch.where((wanted >= low) & (wanted < high), cutoff + number, first)
        losses = linear_cross_entropy(self._query(rows, 0), *self._classifier(0), first)
        if tails:
            losses = self._add_tails(losses, rows, wanted)  # pyright: ignore[reportCallIssue]
        return losses.unflatten(0, hidden.shape[:2])

    def logits(self, hidden: Float[Tensor, "B T D"]) -> Float[Tensor, "B T V"]:
        """Scores before the softmax, float32 or better; with cutoffs, log-probabilities (which are valid scores)."""
        exact = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        scores = [
            F.linear(self._query(hidden, number), *self._classifier(number)).to(exact)
            for number in range(len(self.edges) - 1)
        ]
        if len(scores) == 1:
            return scores[0]
        head = scores[0].log_softmax(-1)
        cutoff = self.edges[1]
        parts = [head[..., :cutoff]]
        for number, tail in enumerate(scores[1:]):
            parts.append(head[..., cutoff + number, None] + tail.log_softmax(-1))
        return torch.cat(parts, dim=-1)

    @property
    def model_width(self) -> int:
        return self._tied[0].model_width

    @property
    def is_projected(self) -> bool:
        """Whether hidden states are projected before they meet the tables."""
        return len(self._tied[0].projections) > 0

    def width(self, number: int) -> int:
        """E, of the table of one bin."""
        tables = self._tied[0].tables
        return tables[min(number, len(tables) - 1)].shape[1]

    @torch.compiler.disable  # pyright: ignore[reportArgumentType]
    def _add_tails(
        self, losses: Float[Tensor, " N"], rows: Float[Tensor, "N D"], wanted: Int[Tensor, " N"]
    ) -> Float[Tensor, " N"]:
        """Add the losses within the tails, each on the rows that need it: their number depends on the data."""
        for number, (low, high) in enumerate(zip(self.edges[1:-1], self.edges[2:], strict=True), start=1):
            inside = ((wanted >= low) & (wanted < high)).nonzero()[:, 0]
            tail = linear_cross_entropy(
                self._query(rows[inside], number), *self._classifier(number), wanted[inside] - low
            )
            losses = losses.index_add(0, inside, tail)
        return losses

    def _query(self, hidden: Tensor, number: int) -> Tensor:
        """P'_b^T h: (..., D) to (..., e_b)."""
        tied = self._tied[0].projections
        if not len(tied):
            return hidden
        own = str(number) in self.projections
        return hidden @ (self.projections[str(number)] if own else tied[min(number, len(tied) - 1)])

    def _classifier(self, number: int) -> tuple[Tensor, Tensor]:
        """Weight and bias of one bin; those of the head include the tail slots."""
        tables = self.tables if len(self.tables) else self._tied[0].tables
        low, high = self.edges[number], self.edges[number + 1]
        weight = tables[number] if len(tables) > 1 else tables[0][low:high]
        bias = self.bias[low:high]
        if number == 0 and len(self.edges) > 2:
            return torch.cat([weight, self.cluster_weight]), torch.cat([bias, self.cluster_bias])
        return weight, bias
