"""Linear maps whose widths are rounded up inside their products.

    x W^T + b,  computed on [x 0], [W 0; 0 0], [b 0] and cut back: the same numbers, for what is added is zero

The fast kernels of GPUs read rows that begin at multiples of 16 bytes. With D = 410 in bfloat16 every second row does
not, and a slower kernel is taken. Compiled models need none of this: PyTorch's compiler pads products by itself.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

MULTIPLE = 8
"""Numbers of two bytes in 16 bytes."""


class PaddedLinear(nn.Linear):
    """`nn.Linear` with the same weights, computed at widths that are multiples of eight."""

    def forward(self, input: Float[Tensor, "*N D"]) -> Float[Tensor, "*N E"]:  # noqa: A002 (nn.Linear's own name)
        more_in, more_out = -self.in_features % MULTIPLE, -self.out_features % MULTIPLE
        if not (more_in or more_out):
            return super().forward(input)
        bias = None if self.bias is None else F.pad(self.bias, (0, more_out))
        product = F.linear(F.pad(input, (0, more_in)), F.pad(self.weight, (0, more_in, 0, more_out)), bias)
        return product[..., : self.out_features]


def pad_linear_maps(module: nn.Module) -> None:
    """Compute the linear maps of a module at rounded widths from now on. Weights and their names stay as they are."""
    for each in module.modules():
        if type(each) is nn.Linear:
            each.__class__ = PaddedLinear
