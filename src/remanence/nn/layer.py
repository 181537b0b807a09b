"""One Transformer layer without its attention: projections, residuals, norms and feed-forward.

post-norm   h = LN_1(y + dropout(W_O a));  out = LN_2(h + FF(h))
pre-norm    q, k, v from LN_1(y);  h = y + dropout(W_O a);  out = h + FF(LN_2(h));  no final norm
FF(h) = dropout(W_2 dropout(relu(W_1 h + b_1)) + b_2)
"""

from __future__ import annotations

from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from remanence.nn.feed_forward import through
from remanence.nn.packed import PackedLinear
from remanence.ops.dropout import add_dropped


class Layer(nn.Module):
    """The weights of a layer. How its queries meet keys is the architecture's business.

    Shapes: D model width, H heads, K head width (H K need not be D), F feed-forward width.
    """

    def __init__(
        self,
        model_width: int,
        num_heads: int,
        head_width: int,
        feed_forward_width: int,
        *,
        norm: Literal["post", "pre"],
        dropout: float,
        attention_output_dropout: float | None = None,
        epsilon: float,
        relative: bool,
    ) -> None:
        super().__init__()
        inner = num_heads * head_width
        self.heads = (num_heads, head_width)
        self.norm = norm
        self.dropout = dropout
        self.attention_output_dropout = dropout if attention_output_dropout is None else attention_output_dropout
        self.queries_keys_values = nn.Linear(model_width, 3 * inner, bias=False)
        self.positions = nn.Linear(model_width, inner, bias=False) if relative else None
        self.output = nn.Linear(inner, model_width, bias=False)
        self.norm_attention = nn.LayerNorm(model_width, eps=epsilon)
        self.feed_forward_in = nn.Linear(model_width, feed_forward_width)
        self.feed_forward_out = nn.Linear(feed_forward_width, model_width)
        self.norm_feed_forward = nn.LayerNorm(model_width, eps=epsilon)

    def project(self, stream: Float[Tensor, "B N D"]) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of a stream, each (B, H, N, K)."""
        queries, keys, values = self._split(self.queries_keys_values(self._read(stream)), 3)
        return queries, keys, values

    def project_keys_values(self, stream: Float[Tensor, "B N D"]) -> tuple[Tensor, Tensor]:
        """Keys and values alone, for rows that ask nothing."""
        inner = self.heads[0] * self.heads[1]
        rows, weights = self._read(stream), self.queries_keys_values
        packed = isinstance(weights, PackedLinear)
        projected = weights.tail(rows, inner) if packed else F.linear(rows, weights.weight[inner:])
        keys, values = self._split(projected, 2)
        return keys, values

    def project_fixed(self, stream: Float[Tensor, "B N D"], begin: int, end: int) -> tuple[Tensor, ...]:
        """What the weights, stopped, make of rows: parts begin .. end of queries, keys, values, each (B, H, N, K)."""
        if self.norm == "pre":
            norm = self.norm_attention
            stream = F.layer_norm(stream, norm.normalized_shape, norm.weight.detach(), norm.bias.detach(), norm.eps)
        weight = self.queries_keys_values.weight.detach().unflatten(0, (3, -1))[begin:end].flatten(0, 1)
        return self._split(F.linear(stream, weight), end - begin)

    def project_positions(self, codes: Float[Tensor, "P D"]) -> Float[Tensor, "P H K"]:
        """W_R R_d for every row of a table of codes."""
        assert self.positions is not None
        return self.positions(codes).unflatten(-1, self.heads)

    def finish(
        self,
        stream: Float[Tensor, "B N D"],
        context: Float[Tensor, "B H N K"],
        addition: Float[Tensor, "B N D"] | None = None,
    ) -> Float[Tensor, "B N D"]:
        """The rest of the layer after attention: its output for rows whose heads read `context`.

        An `addition` joins the output of attention before its dropout.
        """
        update = self.output(context.transpose(1, 2).flatten(2))
        if addition is not None:
            update = update + addition
        hidden = add_dropped(stream, update, self.attention_output_dropout, self.training)
        if self.norm == "pre":
            return self._add_feed_forward(hidden, self.norm_feed_forward(hidden))
        hidden = self.norm_attention(hidden)
        return self.norm_feed_forward(self._add_feed_forward(hidden, hidden))

    def _read(self, stream: Tensor) -> Tensor:
        return self.norm_attention(stream) if self.norm == "pre" else stream

    def _split(self, projected: Tensor, parts: int) -> tuple[Tensor, ...]:
        return projected.unflatten(-1, (parts, *self.heads)).permute(2, 0, 3, 1, 4).unbind(0)

    def _add_feed_forward(self, stream: Tensor, hidden: Tensor) -> Tensor:
        rate = self.dropout if self.training else 0.0
        update = through(self.feed_forward_in, self.feed_forward_out, hidden, rate)
        return add_dropped(stream, update, self.dropout, self.training)
