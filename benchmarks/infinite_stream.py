"""A million tokens through an ∞-former: seconds and bytes a segment, and how much of early text is still felt.

    python benchmarks/infinite_stream.py [--tokens 1000000] [--segment 512]

Prints a table: at ten points of the stream, the median seconds a segment and the bytes of the memory; then, for several
ages, how much the function at the end changes when the segment of that age is read as another one.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import torch

from remanence.models import InfiniteFormerConfig, build


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--tokens", type=int, default=1_000_000)
    parser.add_argument("--segment", type=int, default=512)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--basis", type=int, default=256)
    parser.add_argument("--contraction", type=float, default=0.75)
    given = parser.parse_args()
    config = InfiniteFormerConfig(
        vocab_size=256,
        segment_length=given.segment,
        memory_length=0,
        num_layers=2,
        model_width=given.width,
        num_heads=2,
        head_width=given.width // 2,
        feed_forward_width=2 * given.width,
        num_basis=given.basis,
        contraction=given.contraction,
        dropout=0.0,
    )
    model = build(config, seed=0).eval()
    generator = torch.Generator().manual_seed(0)
    memory, seconds, recent = model.init_memory(1), [], []
    segments = -(-given.tokens // given.segment)
    print("| tokens read | seconds a segment | bytes of the memory | largest coefficient |")
    print("|---|---|---|---|")
    with torch.no_grad():
        for number in range(segments):
            tokens = torch.randint(256, (1, given.segment), generator=generator)
            recent = [*recent[-16:], (memory, tokens)]
            begin = time.perf_counter()
            memory = model.advance(tokens, memory)
            seconds.append(time.perf_counter() - begin)
            if (number + 1) % max(segments // 10, 1) == 0:
                largest = max(each.abs().max().item() for each in memory.coefficients)
                middle = statistics.median(seconds[-(segments // 10 or 1) :])
                print(f"| {(number + 1) * given.segment:,} | {middle:.4f} | {memory.nbytes:,} | {largest:.2f} |")
        print("\n| segments ago | change of the function now |\n|---|---|")
        for age in (1, 2, 4, 8, 12, 16):
            if age < len(recent):
                print(f"| {age} | {_change(model, recent[-age - 1 :], memory):.2e} |")


def _change(model: Any, life: list[Any], memory: Any) -> float:
    """Relative change of the first layer's function, had the first segment of `life` been another one."""
    past, tokens = life[0]
    past = model.advance((tokens + 128) % 256, past)
    for _, after in life[1:]:
        past = model.advance(after, past)
    given = memory.coefficients[0]
    return ((past.coefficients[0] - given).norm() / given.norm()).item()


if __name__ == "__main__":
    main()
