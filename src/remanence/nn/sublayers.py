"""The sub-layers of pre-norm Transformers whose queries, keys and values may come from different places.

attention       y + dropout(W_O concat_h softmax(q k / sqrt(K)) v),   q = W_Q LN(y),   k, v = W_K z, W_V z of any rows z
feed-forward    y + dropout(W_2 relu(W_1 LN(y) + b_1) + b_2)

Shapes: B lanes, N rows that ask, S rows that are asked, D model width, H heads, K head width (H K need not be D).
"""

from __future__ import annotations

from jaxtyping import Bool, Float
from torch import Tensor, nn

from remanence.nn.feed_forward import through
from remanence.ops.attention import relative_attention
from remanence.ops.dropout import dropout


class AttentionSublayer(nn.Module):
    """Attention without positions of its own. The caller normalises the stream: `layer(y, layer.norm(y), ...)`."""

    def __init__(
        self,
        model_width: int,
        num_heads: int,
        head_width: int,
        *,
        dropout: float,
        attention_dropout: float,
        epsilon: float,
    ) -> None:
        super().__init__()
        inner = num_heads * head_width
        self.heads = (num_heads, head_width)
        self.dropout = dropout
        self.attention_dropout = attention_dropout
        self.norm = nn.LayerNorm(model_width, eps=epsilon)
        self.queries = nn.Linear(model_width, inner, bias=False)
        self.keys_values = nn.Linear(model_width, 2 * inner, bias=False)
        self.output = nn.Linear(inner, model_width, bias=False)

    def offer(self, rows: Float[Tensor, "B S D"]) -> tuple[Float[Tensor, "B H S K"], Float[Tensor, "B H S K"]]:
        """Keys and values of rows that may be asked."""
        keys, values = self.keys_values(rows).unflatten(-1, (2, *self.heads)).permute(2, 0, 3, 1, 4).unbind(0)
        return keys, values

    def forward(
        self,
        stream: Float[Tensor, "B N D"],
        normed: Float[Tensor, "B N D"],
        keys: Float[Tensor, "B H S K"],
        values: Float[Tensor, "B H S K"],
        visible: Bool[Tensor, "#B N S"] | None,
    ) -> Float[Tensor, "B N D"]:
        """The stream after reading from the keys that each row may see; None lets it see all."""
        queries = self.queries(normed).unflatten(-1, self.heads).transpose(1, 2)
        rate = self.attention_dropout if self.training else 0.0
        read = relative_attention(queries, keys, values, visible, dropout=rate)
        update = self.output(read.context.transpose(1, 2).flatten(2))
        return stream + dropout(update, self.dropout, self.training)


class FeedForwardSublayer(nn.Module):
    """Two linear maps with a rectifier between them."""

    def __init__(self, model_width: int, feed_forward_width: int, *, dropout: float, epsilon: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.norm = nn.LayerNorm(model_width, eps=epsilon)
        self.widen = nn.Linear(model_width, feed_forward_width)
        self.narrow = nn.Linear(feed_forward_width, model_width)

    def forward(self, stream: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        update = through(self.widen, self.narrow, self.norm(stream))
        return stream + dropout(update, self.dropout, self.training)
