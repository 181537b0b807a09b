"""Dropout whose mask is cut out of 64-bit random numbers, four decisions from each.

torch's CPU dropout draws a Bernoulli number for every element, which takes a third of a training step here. The rate is
met to within 1/65536.

    x_n = s + n g;  x ^= x >> 30;  x *= a;  x ^= x >> 27;  x *= b;  x ^= x >> 31

turns the number n of a word into random bits: SplitMix64 (Steele, Lea & Flood 2014), with a seed s from torch's
generator. All words are made at once, by all threads, and do not depend on how many there are; the generator itself
makes one after the other. So the words of some lanes of a batch can be made without those of the others
(`drawn_among`). Decisions are kept as 0 and 1 of 16 bits: by such a number the bits of a value of 16 bits
are multiplied, with no conversion.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int, Int16
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

LEVELS = 1 << 16
GAMMA, FIRST, SECOND = -0x61C8864680B583EB, -0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15
"""The constants g, a, b of SplitMix64 as signed numbers."""
FEW_WORDS = 1 << 13
"""Below this many the generator itself is faster."""
ROWS = 32
"""Times so many words are scrambled at once: 2 MiB, which stay in the cache."""


class Among(NamedTuple):
    """Which lanes of how many the masks are for."""

    first: int
    lanes: int
    total: int


_among: ContextVar[Among | None] = ContextVar("among", default=None)


@contextmanager
def drawn_among(first: int, lanes: int, total: int) -> Iterator[None]:
    """Inside, masks are those that `lanes` lanes have in a batch of `total` lanes, `first` ones being before them.

    Only where masks are ours: on a CPU, outside of compiled graphs.
    """
    token = _among.set(Among(first, lanes, total) if lanes < total else None)
    try:
        yield
    finally:
        _among.reset(token)


def dropout(
    values: Float[Tensor, "*shape"], rate: float, training: bool = True, lanes: bool = True
) -> Float[Tensor, "*shape"]:
    """Drop each value with probability `rate` and scale the rest by 1 / (1 - rate).

    Randomness comes from torch's global generator of the device. On a GPU, and inside a compiled graph, torch's own
    fused dropout is the faster one and is used. `lanes` says whether the values are those of lanes, one after the
    other; what all lanes share has one mask for all.
    """
    if not training or rate == 0:
        return values
    if values.device.type != "cpu" or torch.compiler.is_compiling():
        return F.dropout(values, rate)
    return _BitDropout.apply(values, rate, lanes)  # type: ignore[return-value]


def add_dropped(
    stream: Float[Tensor, "*shape"], update: Float[Tensor, "*shape"], rate: float, training: bool = True
) -> Float[Tensor, "*shape"]:
    """Add what dropout leaves of an update: stream + dropout(update), in the dtype that the sum has."""
    if not training or rate == 0:
        return stream + update
    if stream.device.type != "cpu" or torch.compiler.is_compiling():
        return stream + F.dropout(update, rate)
    return _AddDropped.apply(stream, update, rate)  # type: ignore[return-value]


def random_words(count: int) -> Int[Tensor, " n"]:
    """64-bit random numbers from the global CPU generator, or from a seed that it gives."""
    return _drawn(count) if count <= FEW_WORDS else _words(_seed(), count)


def _drawn(count: int) -> Int[Tensor, " n"]:
    return torch.empty(count, dtype=torch.int64).random_(-(1 << 63), None)


def _seed() -> int:
    return int(_drawn(1))


def _words(seed: int, count: int, begin: int = 0) -> Int[Tensor, " n"]:
    """Words from number `begin` on."""
    seed = (seed + begin * GAMMA + (1 << 63)) % (1 << 64) - (1 << 63)
    starts = torch.arange(0, count, FEW_WORDS).mul_(GAMMA).add_(seed)[:, None]
    steps = torch.arange(FEW_WORDS).mul_(GAMMA)
    words = steps.new_empty(len(starts), FEW_WORDS)
    moved = torch.empty_like(words[:ROWS])
    for first, part in zip(starts.split(ROWS), words.split(ROWS), strict=True):
        # In this order: the other way round the sum takes seventy times as long.
        _scramble(torch.add(steps, first, out=part), moved[: len(part)])
    return words.flatten()[:count]


def _scramble(words: Int[Tensor, "R n"], moved: Int[Tensor, "R n"]) -> None:
    """Turn numbers of words into random bits, in place, with room for as many more."""
    for distance, factor in ((30, FIRST), (27, SECOND), (31, None)):
        # Signed numbers are filled up with their sign, which has to go.
        torch.bitwise_right_shift(words, distance, out=moved).bitwise_and_((1 << (64 - distance)) - 1)
        words.bitwise_xor_(moved)
        if factor is not None:
            words.mul_(factor)


def random_mask(shape: torch.Size, rate: float, lanes: int | None = 0) -> Int16[Tensor, "*shape"]:
    """Ones, and zeros with probability `rate` (to within 1/65536), from the global CPU generator.

    `lanes` is the axis of the lanes, which may be flattened with those that follow; None where all lanes share the
    mask.
    """
    among = None if lanes is None else _among.get()
    if among is None:
        numbers = _numbers(random_words, shape.numel())
    else:
        numbers = _numbers_among(shape[:lanes].numel(), shape[lanes:].numel(), among)
    threshold = min(round(rate * LEVELS), LEVELS - 1) - LEVELS // 2
    return numbers.ge_(threshold).view(shape)


def lanes_drawn_for(lanes: int) -> int:
    """Of how many lanes the whole batch is that these are drawn among."""
    among = _among.get()
    return lanes if among is None else among.total


def _numbers(words: Callable[[int], Tensor], count: int, spare: int = 0) -> Int16[Tensor, " n"]:
    """So many numbers of 16 bits, after a few spare ones."""
    return words(-(-(spare + count) // 4)).view(torch.int16)[spare : spare + count]


def _numbers_among(outer: int, inner: int, among: Among) -> Int16[Tensor, " n"]:
    """What the lanes have of the numbers of all: `outer` blocks, each of `inner` numbers for these lanes."""
    size, rest = divmod(inner, among.lanes)
    assert not rest, "a mask of lanes must have the same size for each"
    count = outer * among.total * size
    if -(-count // 4) <= FEW_WORDS:
        whole = _numbers(random_words, count).view(outer, among.total, size)
        return whole[:, among.first : among.first + among.lanes].flatten()
    seed, parts = _seed(), []
    for block in range(outer):
        begin, spare = divmod((block * among.total + among.first) * size, 4)
        parts.append(_numbers(partial(_words, seed, begin=begin), inner, spare))
    return parts[0] if outer == 1 else torch.cat(parts)


def mask_(values: Float[Tensor, "*shape"], mask: Int16[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Set values to zero where the mask is, in place."""
    if values.element_size() == 2:
        values.view(torch.int16).mul_(mask)
        return values
    return values.mul_(mask.to(values.dtype))


def masked(values: Float[Tensor, "*shape"], mask: Int16[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """The values, zero where the mask is."""
    if values.element_size() == 2:
        return (values.view(torch.int16) * mask).view(values.dtype)
    return values * mask.to(values.dtype)


class _BitDropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, rate: float, lanes: bool) -> Tensor:
        mask = random_mask(values.shape, rate, 0 if lanes else None)
        ctx.save_for_backward(mask)
        ctx.scale = 1 / (1 - rate)
        return masked(values, mask).mul_(ctx.scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        (mask,) = ctx.saved_tensors
        return masked(grad, mask).mul_(ctx.scale), None, None


class _AddDropped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, stream: Tensor, update: Tensor, rate: float) -> Tensor:
        mask = random_mask(update.shape, rate)
        ctx.save_for_backward(mask)
        ctx.scale, ctx.kinds = 1 / (1 - rate), (stream.dtype, update.dtype)
        return torch.add(stream, masked(update, mask), alpha=ctx.scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        (mask,) = ctx.saved_tensors
        of_stream, of_update = ctx.kinds
        return grad.to(of_stream), masked(grad.to(of_update), mask).mul_(ctx.scale), None
