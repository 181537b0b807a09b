"""The limit for models with memory: a Transformer of the same size that has none, with PyTorch's own attention.

Layers, embedding and head are those of the library's models; its attention is `scaled_dot_product_attention`, causal,
without positions. What a model with memory takes longer is what memory and positions cost.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from remanence.bench.peers import Peer
from remanence.bench.settings import Settings
from remanence.nn.embedding import TokenEmbedding
from remanence.nn.heads import SoftmaxHead
from remanence.nn.initialization import initialize
from remanence.nn.layer import Layer
from remanence.ops.dropout import dropout

COMPILED = ", compiling switched off" if os.environ.get("TORCHDYNAMO_DISABLE") == "1" else ", compiled"
"""What is told of a model under torch.compile."""


class Plain(nn.Module):
    """Embedding, layers, head."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        shape = settings.shape
        self.dropout = settings.dropout
        sizes = (shape.model_width, shape.num_heads, shape.head_width, shape.feed_forward_width)
        self.embedding = TokenEmbedding(shape.vocabulary, shape.model_width, shape.model_width, shape.cutoffs, 1)
        self.layers: Any = nn.ModuleList(
            Layer(*sizes, norm="post", dropout=settings.dropout, epsilon=1e-5, relative=False)
            for _ in range(shape.num_layers)
        )
        self.head = SoftmaxHead(self.embedding, (True,) * (len(shape.cutoffs) + 1))
        initialize(self, torch.Generator().manual_seed(settings.seed))

    def forward(self, tokens: Tensor) -> Tensor:
        stream = dropout(self.embedding(tokens), self.dropout, self.training)
        for layer in self.layers:
            queries, keys, values = layer.project(stream)
            context = F.scaled_dot_product_attention(queries, keys, values, is_causal=True)
            stream = layer.finish(stream, context)
        return dropout(stream, self.dropout, self.training)


class Limit(Peer):
    """Its loss is computed as ours is, so that only attention and memory differ."""

    package = "torch"
    remembers = False
    forced = "no memory and no positions: the limit, not a choice"

    def __init__(self, settings: Settings, memory_length: int = 0, *, compiled: bool = False) -> None:
        self.name = "scaled_dot_product_attention" + (COMPILED if compiled else "")
        self.model = Plain(settings)
        if compiled:
            self.model.compile(dynamic=False)

    def read(self, tokens: Tensor, state: Any) -> tuple[Tensor, Any]:
        return self.model.head.logits(self.model(tokens)), None  # type: ignore[operator, union-attr]

    def loss(self, tokens: Tensor, targets: Tensor, state: Any) -> tuple[Tensor, Any]:
        return self.model.head.loss(self.model(tokens), targets).mean(), None  # type: ignore[operator, union-attr]
