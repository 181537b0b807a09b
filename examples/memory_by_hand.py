"""Carry a memory from segment to segment by hand: forget, grow, save, and go on exactly where it was.

    python examples/memory_by_hand.py

A memory is a value. The model keeps nothing between two calls: it takes a memory and gives back the next one.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from remanence import LaMemoConfig, build, load_memory


@torch.no_grad()
def main(text: bytes = Path(__file__).read_bytes()) -> None:
    config = LaMemoConfig(
        vocab_size=256, segment_length=32, memory_length=64, num_layers=3, model_width=64, num_heads=4, head_width=16,
        feed_forward_width=128, dropout=0.0,
    )  # fmt: skip
    model = build(config, seed=1).eval()

    # Two lanes read the two halves of the text, one segment of 32 bytes of each at a time.
    half = len(text) // 2
    lanes = torch.tensor([list(text[:half]), list(text[half : 2 * half])])
    memory = model.init_memory(lanes=2)
    for segment in lanes[:, :320].split(32, dim=1):
        hidden, memory, _ = model(segment, memory)
    print(f"After 10 segments the memory holds {memory.length} positions of 2 lanes in {memory.nbytes:,} bytes.")

    # A document starts on the second lane: that lane forgets, the first one does not notice.
    starts = torch.tensor([False, True])
    segment = lanes[:, 320:352]
    hidden, memory_after, _ = model(segment, memory, starts)
    alone, _, _ = model(segment[1:], model.init_memory(lanes=1))
    print("A lane that starts anew reads like a new one:", torch.allclose(hidden[1:], alone, atol=1e-5))

    # Lanes can be taken out, and the memory can be longer or shorter than the one the model was made for.
    first = memory_after[:1].resize(256)
    print(f"The first lane alone, resized to {first.length}: {int(first.valid.sum())} positions are filled.")

    # On disk and back, the next numbers are the same to the last bit.
    with tempfile.TemporaryDirectory() as folder:
        memory_after.save(Path(folder) / "memory.safetensors", {"bytes read": 352})
        restored, about = load_memory(Path(folder) / "memory.safetensors")
    segment = lanes[:, 352:384]
    same = torch.equal(model(segment, memory_after).hidden, model(segment, restored).hidden)
    print(f"Restored after {about['bytes read']} bytes, it goes on exactly as before:", same)


if __name__ == "__main__":
    main()
