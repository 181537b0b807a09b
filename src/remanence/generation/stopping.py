"""Ending a text at a stop string without ever showing a part of one."""

from __future__ import annotations

from collections.abc import Sequence

from remanence.errors import InputError


class StopFilter:
    """Lets text through as soon as no stop string can begin in it.

    The end of the text that might still grow into a stop string is held back. As soon as one is whole, what came
    before it is let through, it and all that follows is dropped, and `stopped` is true. Where two become whole at
    the same character, the longer one counts.
    """

    def __init__(self, stops: Sequence[str] = (), held: str = "", stopped: bool = False) -> None:
        if "" in stops:
            raise InputError("A stop string is empty; give at least one character.")
        self.stops = tuple(sorted(stops, key=len, reverse=True))
        self.held = held
        self.stopped = stopped

    def push(self, piece: str) -> str:
        """The text that may be shown now; it does not depend on how the text is cut into pieces."""
        if not self.stops:
            return piece
        return "".join(self._push(character) for character in piece)

    def finish(self) -> str:
        """What was still held back, when no more text comes: no stop string grew from it."""
        text, self.held = self.held, ""
        return text

    def _push(self, character: str) -> str:
        if self.stopped:
            return ""
        text = self.held + character
        # A stop string that ends here began where text was held back, so it lies in `text` as a whole.
        whole = next((stop for stop in self.stops if text.endswith(stop)), None)
        if whole is not None:
            self.stopped, self.held = True, ""
            return text.removesuffix(whole)
        growing = max((_overlap(text, stop) for stop in self.stops), default=0)
        self.held = text[len(text) - growing :]
        return text[: len(text) - growing]


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of `text` are the beginning of `stop`."""
    return next((size for size in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:size])), 0)
