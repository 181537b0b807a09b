"""Attention of one query a lane, without gradients, against the naive truth."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.ops.test_attention import QUICK, SIZES, TOLERANCES, problem

from remanence.ops.attention import naive, relative_attention


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@QUICK
@given(
    sizes=st.tuples(SIZES, SIZES, st.just(1), st.sampled_from([0, 1, 3, 7]), SIZES),
    parts=st.fixed_dictionaries({name: st.booleans() for name in ("content", "position", "table", "distance")}),
    masked=st.booleans(),
    seed=st.integers(0, 99),
)
def test_a_single_query_reads_as_the_naive_one(
    dtype: torch.dtype, sizes: tuple[int, int, int, int, int], parts: dict[str, bool], masked: bool, seed: int
) -> None:
    given: dict[str, Any] = problem(torch.Generator().manual_seed(seed), sizes, dtype, parts)
    if not masked:
        given["visible"] = torch.ones_like(given["visible"])
    exact = torch.promote_types(dtype, torch.float32)
    tolerance = TOLERANCES[dtype][0]
    wide = {name: each.to(exact) if each is not None and name != "visible" else each for name, each in given.items()}
    with torch.no_grad():
        context, logsum, weights = naive.relative_attention(**wide)
        if not masked:
            given["visible"] = None
        read = relative_attention(**given, with_logsum=True, with_weights=True)
        assert relative_attention(**given).logsum is None
    assert read.context.dtype == dtype and read.logsum is not None and read.weights is not None
    seen = wide["visible"].any(-1)[:, None].expand(logsum.shape)
    assert (read.context[~seen] == 0).all() and torch.isfinite(read.logsum).all()
    torch.testing.assert_close(read.context.to(exact), context, atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(read.logsum[seen], logsum[seen], atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(read.weights[seen].to(exact), weights[seen], atol=tolerance, rtol=tolerance)


def test_autocast_leaves_it_in_float32() -> None:
    given = problem(
        torch.Generator().manual_seed(0),
        (2, 3, 1, 7, 5),
        torch.float32,
        dict.fromkeys(("content", "table", "position", "distance"), True),
    )
    with torch.no_grad():
        plain = relative_attention(**given).context
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(relative_attention(**given).context, plain)
