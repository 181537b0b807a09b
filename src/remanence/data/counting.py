"""Bytes, characters, words and lines of UTF-8 text, counted on raw blocks.

They turn nats per token into bits per byte, bits per character and perplexity per word, whatever the tokenizer.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

# What str.split() takes for white space: within ASCII, and as UTF-8 sequences.
_ASCII_SPACE = (9, 10, 11, 12, 13, 28, 29, 30, 31, 32)
_WIDE_SPACE = [chr(code).encode() for code in (0x85, 0xA0, 0x1680, *range(0x2000, 0x200B), 0x2028, 0x2029, 0x202F)]
_WIDE_SPACE += [chr(code).encode() for code in (0x205F, 0x3000)]

_KIND = np.zeros(256, np.uint8)
_KIND[list(_ASCII_SPACE)] = 1
_KIND[[sequence[0] for sequence in _WIDE_SPACE]] = 2

NOTHING: Mapping[str, int] = {"bytes": 0, "characters": 0, "words": 0, "lines": 0}


def count(data: bytes, documents: np.ndarray | None = None, before: bytes = b"") -> dict[str, int]:
    """Counts of a block that begins and ends between characters.

    `documents` holds the offsets in the block at which documents begin, over which no word reaches; `before` is what
    precedes the block in the same document, of which the last three bytes matter. A character is a byte that does not
    continue another, so invalid UTF-8 is counted too; a word is a run without white space, as in `str.split`; a line
    ends with a newline.
    """
    block = np.frombuffer(data, np.uint8)
    if not len(block):
        return dict(NOTHING)
    before = before[-3:]
    space = white_space(before + data if before else data)
    was_space = np.empty(len(block), bool)
    was_space[1:] = space[len(before) : -1]
    was_space[0] = space[len(before) - 1] if before else True
    if documents is not None:
        was_space[documents] = True
    return {
        "bytes": len(block),
        "characters": int(np.count_nonzero(block.view(np.int8) >= -64)),
        "words": int(np.count_nonzero(was_space > space[len(before) :])),
        "lines": data.count(b"\n"),
    }


def white_space(data: bytes) -> np.ndarray:
    """True at every byte of a white-space character."""
    block = np.frombuffer(data, np.uint8)
    kind = _KIND[block]
    space = kind == 1
    leads = np.flatnonzero(kind == 2)
    for sequence in _WIDE_SPACE if len(leads) else ():
        at = leads[leads <= len(block) - len(sequence)]
        for offset, byte in enumerate(sequence):
            at = at[block[at + offset] == byte]
        for offset in range(len(sequence)):
            space[at + offset] = True
    return space
