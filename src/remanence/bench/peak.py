"""The limit of the machine: the fastest matrix product it makes during the run.

Several sizes are tried, between all rounds of a bench, and the fastest product of the whole run counts, so that a share
of the peak is never flattered by a peak that was measured in a slow moment.
"""

from __future__ import annotations

from typing import Any

import torch

from remanence.bench.usage import seconds

CPU, CUDA, QUICK = (1024, 1536, 2048), (4096, 8192), (128, 256)
"""Edges of the square matrices."""


class MatrixPeak:
    """Measures the peak of a dtype, and keeps the best.

    peak = MatrixPeak(torch.device("cpu"), torch.bfloat16)
    peak.measure()
    print(peak.flops)
    """

    def __init__(self, device: torch.device, dtype: torch.dtype, *, quick: bool = False) -> None:
        self.device, self.dtype = device, dtype
        self.flops = 0.0
        """Of a second, the best so far."""
        self.size = 0
        """Edge of the matrices it was reached with."""
        self.history: list[float] = []
        """The best of each measurement."""
        sizes = QUICK if quick else CUDA if device.type == "cuda" else CPU
        generator = torch.Generator().manual_seed(0)
        self._matrices = []
        for size in sizes:
            drawn = [torch.randn(size, size, generator=generator).to(device, dtype) for _ in range(2)]
            # The result has its place already: pages that are new to the process cost more than the product.
            self._matrices.append((size, *drawn, torch.empty_like(drawn[0])))

    def measure(self, repeats: int = 3) -> None:
        """Make the products of all sizes, each so many times."""
        best = 0.0
        for size, left, right, out in self._matrices:
            for _ in range(repeats):
                speed = 2 * size**3 / seconds(lambda: torch.mm(left, right, out=out), self.device)  # noqa: B023
                best = max(best, speed)
                if speed > self.flops:
                    self.flops, self.size = speed, size
        self.history.append(best)

    def to_json(self) -> dict[str, Any]:
        return {
            "flops_per_second": self.flops,
            "dtype": str(self.dtype).removeprefix("torch."),
            "size": self.size,
            "measured": len(self.history),
            "slowest_moment": min(self.history, default=0.0),
        }
