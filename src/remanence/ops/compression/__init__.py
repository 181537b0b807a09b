"""How rows that leave a memory are squeezed, what the squeezing loses, and how two first-in-first-out memories share
one tensor.
"""

from remanence.ops.compression.eviction import Eviction, evict, gather
from remanence.ops.compression.functions import (
    convolution,
    dilated_convolutions,
    max_pooling,
    mean_pooling,
    most_used,
    transposed_convolution,
)
from remanence.ops.compression.losses import attention_loss, autoencoding_loss

__all__ = [
    "Eviction",
    "attention_loss",
    "autoencoding_loss",
    "convolution",
    "dilated_convolutions",
    "evict",
    "gather",
    "max_pooling",
    "mean_pooling",
    "most_used",
    "transposed_convolution",
]
