"""Learned compressions: where they begin, and that they are the operations they are named after."""

from __future__ import annotations

import pytest
import torch

from remanence.nn.compression import Convolution, DilatedConvolutions, TransposedConvolution
from remanence.ops.compression import convolution, dilated_convolutions, mean_pooling, transposed_convolution

GENERATOR = torch.Generator()


@pytest.mark.parametrize("rate", [1, 2, 3])
def test_a_convolution_begins_as_the_mean(rate: int) -> None:
    module, old = Convolution(5, rate), torch.randn(2, 3 * rate, 5)
    module.initialize(GENERATOR)
    made = module(old, torch.ones(2, 3 * rate, dtype=torch.bool))
    torch.testing.assert_close(made, mean_pooling(old, rate))
    assert torch.equal(made, convolution(old, module.taps.weight, module.taps.bias))


@pytest.mark.parametrize("rate", [1, 2, 3])
def test_a_transposed_convolution_begins_by_repeating(rate: int) -> None:
    module, rows = TransposedConvolution(5, rate), torch.randn(2, 3, 5)
    module.initialize(GENERATOR)
    made = module(rows)
    assert torch.equal(made, rows.repeat_interleave(rate, dim=1))
    assert torch.equal(made, transposed_convolution(rows, module.weight, module.bias))


def test_dilated_convolutions_begin_with_the_scale_of_their_rows() -> None:
    module, old = DilatedConvolutions(64, 4), torch.randn(8, 40, 64)
    module.initialize(torch.Generator().manual_seed(0))
    real = torch.ones(8, 40, dtype=torch.bool)
    made = module(old, real)
    first, second = module.first, module.second
    assert torch.equal(
        made, dilated_convolutions(old, real, first.weight, first.bias, second.weight, second.bias, rate=4)
    )
    assert made.shape == (8, 10, 64) and 0.7 < made.std() < 1.4


def test_no_parameter_is_filled_without_memory_for_it() -> None:
    with torch.device("meta"):
        modules = [kind(4, 2) for kind in (Convolution, DilatedConvolutions, TransposedConvolution)]
    for module in modules:
        module.initialize(GENERATOR)
        assert all(parameter.is_meta for parameter in module.parameters())
