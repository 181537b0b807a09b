"""What the suite of all models shall run on: see docs/add-a-memory.md."""

from tests.models.variants import variant

VARIANTS = {
    "my-rmt": variant("my-rmt", memory_tokens=3, longest=3, queue=False, compiled=True),
    "my-rmt-pre-norm": variant("my-rmt", memory_tokens=1, longest=1, queue=False, norm="pre"),
}
