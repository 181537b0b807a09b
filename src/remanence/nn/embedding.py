"""Token embeddings, plain or adaptive (Baevski & Auli 2019, as used by Transformer-XL)."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F


class TokenEmbedding(nn.Module):
    """`embed(w) = sqrt(D) P_b E_b[w]` for a word w in bin b.

    Bins are [0, c_1), [c_1, c_2), .., [c_n, V). With `div_value` 1 there is one table V x d_embed and at most one
    projection; otherwise bin b has a table of width `d_embed // div_value**b` and a projection of its own.
    """

    def __init__(
        self, vocab_size: int, model_width: int, embedding_width: int, cutoffs: tuple[int, ...], div_value: int
    ) -> None:
        super().__init__()
        self.model_width = model_width
        self.edges = (0, *cutoffs, vocab_size)
        sizes = [vocab_size] if div_value == 1 else [high - low for low, high in self.bins]
        widths = [embedding_width // div_value**number for number in range(len(sizes))]
        self.tables = nn.ParameterList(torch.empty(size, width) for size, width in zip(sizes, widths, strict=True))
        projected = div_value > 1 or embedding_width != model_width
        self.projections = nn.ParameterList(torch.empty(model_width, width) for width in widths if projected)

    @property
    def bins(self) -> list[tuple[int, int]]:
        return list(zip(self.edges[:-1], self.edges[1:], strict=True))

    def forward(self, tokens: Int[Tensor, "B T"]) -> Float[Tensor, "B T D"]:
        if len(self.tables) == 1:
            embedded = self._project(F.embedding(tokens, self.tables[0]), 0)
        else:
            # Every bin looks at every token, so that shapes do not depend on the data.
            embedded = torch.zeros((), dtype=self.tables[0].dtype, device=tokens.device)
            for number, (low, high) in enumerate(self.bins):
                inside = (tokens >= low) & (tokens < high)
                vectors = F.embedding((tokens - low).clamp(0, high - low - 1), self.tables[number])
                embedded = torch.where(inside[..., None], self._project(vectors, number), embedded)
        return embedded * math.sqrt(self.model_width)

    def _project(self, vectors: Tensor, number: int) -> Tensor:
        return F.linear(vectors, self.projections[number]) if len(self.projections) else vectors
