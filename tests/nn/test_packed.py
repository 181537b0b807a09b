"""Linear maps laid out once: the same numbers with the same parameters."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from remanence.nn.packed import PackedLinear, fixed


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 7), (3, 5, 7), (2, 1, 7), (0, 7)])
def test_numbers_are_those_of_the_linear_map(bias: bool, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    linear, rows = nn.Linear(7, 11, bias=bias), torch.randn(shape)
    with torch.no_grad():
        packed = fixed(linear)
        assert isinstance(packed, PackedLinear)
        torch.testing.assert_close(packed(rows), linear(rows))
        torch.testing.assert_close(packed.rectified(rows), linear(rows).relu())
        torch.testing.assert_close(packed.tail(rows, 4), rows @ linear.weight[4:].T)
        with torch.autocast("cpu", torch.bfloat16):
            wanted = linear(rows)
        found = fixed(linear, torch.bfloat16)(rows)
        assert found.dtype == wanted.dtype
        torch.testing.assert_close(found, wanted)


def test_everything_but_the_linear_maps_is_shared() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.ModuleList([nn.LayerNorm(3), nn.Linear(3, 2)])).eval()
    twin = fixed(model)
    assert isinstance(twin[0], PackedLinear) and isinstance(twin[1][1], PackedLinear)
    assert [id(each) for each in twin.parameters()] == [id(each) for each in model.parameters()]
    assert type(model[0]) is nn.Linear and type(model[1][1]) is nn.Linear
    assert twin.state_dict().keys() == model.state_dict().keys()


def test_weights_that_a_hook_makes_are_not_kept() -> None:
    linear = nn.Linear(3, 3)
    linear.register_forward_hook(lambda module, rows, out: out + 1)
    normed = nn.utils.parametrizations.weight_norm(nn.Linear(3, 3))
    assert fixed(linear) is linear and fixed(normed) is normed


def test_float64_is_left_as_it_is() -> None:
    linear = nn.Linear(3, 3).double()
    assert fixed(linear) is linear
