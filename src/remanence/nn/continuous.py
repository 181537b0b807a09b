"""The long-term memory of one layer: what it writes of a block, and how queries read the function that was written.

write    x~ = sigmoid(C_-1 x_{i-1} + C_0 x_i + C_1 x_{i+1} + c) x_i;   B <- R [Psi(u) B ; x~]
read     K = B W_K, V = B W_V;  s = K_h q / sqrt(K);  mu = sigmoid(m^T s);  sigma^2 = max(softplus(g^T s), floor)
         W_O concat_h(V_h^T r),  r_k = N(mu; c_k, s_k^2 + sigma^2)

The scores are linear, so m^T s = (W_K (B^T m))_h q / sqrt(K): two vectors a head replace N scores for each query.

Source: Martins, Marinho & Martins, "∞-former: Infinite Memory Transformer", ACL 2022 (arXiv 2109.00301), section 3, and
its published code. Shapes: B lanes, T queries, H heads, K head width, D model width, N basis functions, C tokens of a
block, M samples.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from remanence.ops.continuous import Fit, expected_basis, rewrite


class Recall(NamedTuple):
    """What queries need of the coefficients; the same for a whole segment. Float32 or better."""

    values: Float[Tensor, "B H N K"]
    aims: Float[Tensor, "B H 2 K"]
    """Of which the products with a query are its location and its spread."""


class Reading(NamedTuple):
    """What queries got, and where they looked."""

    update: Float[Tensor, "B T D"]
    mean: Float[Tensor, "B H T"]
    variance: Float[Tensor, "B H T"]


class ContinuousMemory(nn.Module):
    """The weights of a layer's long-term memory. The memory itself, N coefficient vectors, is a value outside.

    H K need not be D. Coefficients are float32, or float64 in a float64 model. So is all that is computed with them,
    even under autocast, except the last projection: in bfloat16 what is read would be wrong by 10 to 16 per cent.
    The rows of `aims` are m and g.
    """

    def __init__(
        self, model_width: int, num_heads: int, head_width: int, fit: Fit, *, gate: bool, variance_floor: float
    ) -> None:
        super().__init__()
        inner = num_heads * head_width
        self.fit = fit
        self.heads = (num_heads, head_width)
        self.variance_floor = variance_floor
        self.key = nn.Linear(model_width, inner, bias=False)
        self.value = nn.Linear(model_width, inner, bias=False)
        self.output = nn.Linear(inner, model_width, bias=False)
        self.aims = nn.Parameter(torch.empty(2, fit.basis.number))
        self.gate = nn.Conv1d(model_width, model_width, 3, padding=1) if gate else None

    def initialize_gate(self, generator: torch.Generator) -> None:
        """Weights and biases uniform within 1 / sqrt(3 D), torch's own values for a convolution."""
        if self.gate is None or self.gate.weight.is_meta:
            return
        reach = (3 * self.gate.weight.shape[1]) ** -0.5
        for parameter in self.gate.parameters():
            drawn = torch.rand(parameter.shape, generator=generator, dtype=torch.float32, device="cpu")
            parameter.data.copy_(drawn * 2 * reach - reach)

    def write(
        self,
        past: Float[Tensor, "B N D"],
        places: Float[Tensor, "B M"] | None,
        block: Float[Tensor, "B C D"],
        counts: Int[Tensor, " B"],
        known: Bool[Tensor, " B"],
    ) -> Float[Tensor, "B N D"]:
        """The coefficients after a block; `rewrite` says what is given. Rows of a block beyond its count are zeros."""
        with torch.autocast(block.device.type, enabled=False):
            gated = self.gated(block).to(past.dtype)
            return rewrite(past, places, gated, counts, known, self.fit)

    def gated(self, block: Float[Tensor, "B C D"]) -> Float[Tensor, "B C D"]:
        """What of each vector is written. Neighbours beyond the block count as zeros."""
        if self.gate is None:
            return block
        weight, bias = self.gate.weight, self.gate.bias
        assert bias is not None
        exact = torch.promote_types(torch.promote_types(block.dtype, weight.dtype), torch.float32)
        rows = block.to(exact)
        mask = F.conv1d(rows.transpose(1, 2), weight.to(exact), bias.to(exact), padding=1).transpose(1, 2)
        return torch.sigmoid(mask) * rows

    def recall(self, coefficients: Float[Tensor, "B N D"]) -> Recall:
        """What queries need of the coefficients, once for a segment."""
        exact = coefficients.dtype
        with torch.autocast(coefficients.device.type, enabled=False):
            values = F.linear(coefficients, self.value.weight.to(exact))
            sums = self.aims.to(exact) @ coefficients
            aims = F.linear(sums, self.key.weight.to(exact)) / math.sqrt(self.heads[1])
        split = [tensor.unflatten(-1, self.heads).transpose(1, 2) for tensor in (values, aims)]
        return Recall(split[0], split[1])

    def look(
        self, queries: Float[Tensor, "B H T K"], recall: Recall
    ) -> tuple[Float[Tensor, "B H T"], Float[Tensor, "B H T"]]:
        """Where each query looks: mean and variance of its Gaussian."""
        with torch.autocast(queries.device.type, enabled=False):
            scores = queries.to(recall.aims.dtype) @ recall.aims.transpose(-2, -1)
            location, spread = scores.unbind(-1)
            return torch.sigmoid(location), F.softplus(spread).clamp(min=self.variance_floor)

    def read(self, queries: Float[Tensor, "B H T K"], recall: Recall) -> Reading:
        """The expected value of the function under each query's Gaussian, projected. Zero on lanes without memory."""
        mean, variance = self.look(queries, recall)
        with torch.autocast(queries.device.type, enabled=False):
            parameters = self.fit.basis.parameters(mean.dtype, mean.device)
            heads = (expected_basis(mean, variance, *parameters) @ recall.values).transpose(1, 2).flatten(2)
        return Reading(self.output(heads.to(self.output.weight.dtype)), mean, variance)
