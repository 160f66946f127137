"""Token ids to text while they come: never half a character, never a piece of a stop string."""

from __future__ import annotations

from collections.abc import Callable, Sequence

_BROKEN = "\ufffd"  # what a decoder writes for an incomplete character


class Detokenizer:
    """Gives the text that each new token adds.

    A token may hold only some bytes of a character, and the text of a token may depend on the one before (a
    leading space), so a short tail of ids is decoded with and without the new one:

        ids      a b c | d e | f        emitted | tail that is decoded again | new
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._ids: list[int] = []
        self._tail = 0
        self._emitted = 0

    def push(self, token_id: int) -> str:
        """The text that is sure with this token; empty while a character is incomplete."""
        self._ids.append(token_id)
        known, text = self._texts()
        if len(text) <= len(known) or text.endswith(_BROKEN):
            return ""
        self._tail, self._emitted = self._emitted, len(self._ids)
        return text[len(known) :]

    def flush(self) -> str:
        """What is left, broken or not."""
        known, text = self._texts()
        self._tail = self._emitted = len(self._ids)
        return text[len(known) :]

    def _texts(self) -> tuple[str, str]:
        return self._decode(self._ids[self._tail : self._emitted]), self._decode(self._ids[self._tail :])


class StopFilter:
    """Passes text on until a stop string appears; holds back what may turn out to be the start of one."""

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = tuple(stop)
        self._held = ""
        self.stopped = False

    def push(self, text: str) -> str:
        """The text that may be shown. After a stop string `stopped` is set, and nothing comes any more."""
        if self.stopped:
            return ""
        held = self._held + text
        ends = [place for place in (held.find(stop) for stop in self._stop) if place >= 0]
        if ends:
            self.stopped = True
            self._held = ""
            return held[: min(ends)]
        keep = max((_overlap(held, stop) for stop in self._stop), default=0)
        self._held = held[len(held) - keep :]
        return held[: len(held) - keep]

    def flush(self) -> str:
        """What was held back and turned out to be ordinary text."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a beginning of `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if stop.startswith(text[-size:])), 0)
