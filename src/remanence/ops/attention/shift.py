"""The relative shift without a copy."""

from __future__ import annotations

from jaxtyping import Shaped
from torch import Tensor


def shift(table: Shaped[Tensor, "*batch R P"], offset: int, columns: int) -> Shaped[Tensor, "*batch R columns"]:
    """`out[r, c] = table[r, offset + c - r]`, as a view of a contiguous table.

    One row further, everything lies one column to the left: in the flat buffer the step from row to row is P - 1
    instead of P. Entries whose column falls outside [0, P) are garbage from a neighbouring row, for the caller to mask.

    Requires `0 <= offset <= R` and `columns < P` (or a single row, which needs no shift).
    """
    rows, width = table.shape[-2:]
    if rows == 1:
        return table[..., offset : offset + columns]
    assert 0 <= offset <= rows and columns < width, (rows, width, offset, columns)
    flat = table.flatten(-2)[..., offset : offset + rows * (width - 1)]
    return flat.unflatten(-1, (rows, width - 1))[..., :columns]
