"""Text in, lanes of tokens out: preparation, prepared corpora, tokenizers and lanes.

Names are loaded on first use, so that preparing text never imports torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from remanence.data.corpus import Corpus as Corpus
    from remanence.data.corpus import Split as Split
    from remanence.data.lanes import Batch as Batch
    from remanence.data.lanes import Lanes as Lanes
    from remanence.data.tokenizers import Tokenizer as Tokenizer
    from remanence.data.tokenizers import load_tokenizer as load_tokenizer

_HOMES = {
    "Corpus": "corpus",
    "Split": "corpus",
    "Lanes": "lanes",
    "Batch": "lanes",
    "Tokenizer": "tokenizers",
    "load_tokenizer": "tokenizers",
}

__all__ = ["Batch", "Corpus", "Lanes", "Split", "Tokenizer", "load_tokenizer"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
