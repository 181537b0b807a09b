"""One layer without its attention, against its two equations."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from remanence.nn.layer import Layer


def make(norm: Any, dropout: float = 0.0) -> Layer:
    layer = Layer(6, 3, 5, 11, norm=norm, dropout=dropout, epsilon=1e-3, relative=True).double().eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in layer.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return layer


def normed(layer: Layer, which: str, values: torch.Tensor) -> torch.Tensor:
    module = getattr(layer, which)
    return F.layer_norm(values, (6,), module.weight, module.bias, 1e-3)


@pytest.mark.parametrize("norm", ["post", "pre"])
def test_finishing_a_layer_is_its_equation(norm: str) -> None:
    layer = make(norm)
    stream, context = torch.randn(2, 4, 6, dtype=torch.float64), torch.randn(2, 3, 4, 5, dtype=torch.float64)
    update = torch.stack([context[:, :, row].flatten(1) for row in range(4)], 1) @ layer.output.weight.T

    def fed(values: torch.Tensor) -> torch.Tensor:
        return layer.feed_forward_out(F.relu(layer.feed_forward_in(values)))

    if norm == "post":
        hidden = normed(layer, "norm_attention", stream + update)
        wanted = normed(layer, "norm_feed_forward", hidden + fed(hidden))
    else:
        hidden = stream + update
        wanted = hidden + fed(normed(layer, "norm_feed_forward", hidden))
    torch.testing.assert_close(layer.finish(stream, context), wanted)


@pytest.mark.parametrize("norm", ["post", "pre"])
def test_projections_are_contiguous_blocks_of_rows(norm: str) -> None:
    layer = make(norm)
    stream = torch.randn(2, 4, 6, dtype=torch.float64)
    read = normed(layer, "norm_attention", stream) if norm == "pre" else stream
    parts = layer.project(stream)
    for part, weight in zip(parts, layer.queries_keys_values.weight.chunk(3), strict=True):
        for head in range(3):
            torch.testing.assert_close(part[:, head], read @ weight[5 * head : 5 * head + 5].T)
    for one, other in zip(layer.project_keys_values(stream), parts[1:], strict=True):
        torch.testing.assert_close(one, other)
    codes = torch.randn(7, 6, dtype=torch.float64)
    assert layer.positions is not None
    torch.testing.assert_close(layer.project_positions(codes).flatten(1), codes @ layer.positions.weight.T)


def test_a_layer_without_relative_positions_has_no_projection_for_them() -> None:
    layer = Layer(6, 3, 5, 11, norm="post", dropout=0.0, epsilon=1e-5, relative=False)
    assert layer.positions is None


def test_dropout_acts_on_attention_hidden_units_and_feed_forward() -> None:
    """With one of the three paths cut, the others still change from call to call."""
    for cut in ("output", "feed_forward_out", None):
        layer = make("pre", 0.5).train()
        if cut is not None:
            getattr(layer, cut).weight.data.zero_()
        stream, context = torch.randn(2, 4, 6, dtype=torch.float64), torch.randn(2, 3, 4, 5, dtype=torch.float64)
        assert not torch.equal(layer.finish(stream, context), layer.finish(stream, context))
