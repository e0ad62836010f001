"""From the bytes of tokens to text that is safe to show, cut exactly where a stop string begins.

A token is any run of bytes: it may end inside a character, and a stop string may begin in the middle of one token and
end in the middle of another. The text depends on the bytes alone, never on how they fall into tokens.
"""

from __future__ import annotations

import codecs
import copy
from collections.abc import Sequence

from pellucid.errors import UsageError


class _Matcher:
    """Knuth, Morris and Pratt (1977): how many characters of ``stop`` the text so far ends with, O(1) a character."""

    def __init__(self, stop: str):
        self.stop, self.matched = stop, 0
        self.fallback = [0] * (len(stop) + 1)  # the longest proper prefix of stop[:n] that also ends it
        length = 0
        for n in range(1, len(stop)):
            while length and stop[n] != stop[length]:
                length = self.fallback[length]
            length += stop[n] == stop[length]
            self.fallback[n + 1] = length

    def step(self, character: str) -> bool:
        """Read one character; True where it completes the stop string."""
        stop, matched = self.stop, self.matched
        if matched == len(stop):
            matched = self.fallback[matched]
        while matched and stop[matched] != character:
            matched = self.fallback[matched]
        self.matched = matched + (stop[matched] == character)
        return self.matched == len(stop)


class StopDecoder:
    """Feed it the bytes of tokens; it emits the text before the earliest stop string, as soon as that text is certain.

    All that ``feed`` and ``finish`` return, joined, is ``whole.decode("utf-8", "replace")`` up to the smallest position
    at which any stop string occurs. So of two stop strings the one that begins first wins, even where the other is
    complete sooner: with "abcd" and "bc", after "abc" the decoder waits for one more character. Of two that begin
    together, the shorter is reported. Held back: an incomplete character, and what may be the start of a stop string.

    stopped: the stop string that was found, or None. Once it is set, nothing more is emitted.
    Raises UsageError where a stop string is empty.
    """

    def __init__(self, stops: Sequence[str] = ()):
        if "" in stops:
            raise UsageError("a stop string is empty", "every text contains the empty string: remove it")
        self.stopped: str | None = None
        self._matchers = [_Matcher(stop) for stop in stops]
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""  # decoded and not emitted
        self._start = 0  # where in the text _held begins
        self._read = 0  # how many characters the matchers have seen
        self._found: tuple[int, str] | None = None  # the earliest complete stop string so far: its position, and itself

    def fork(self) -> StopDecoder:
        """Another decoder that has read the same."""
        return copy.deepcopy(self)

    def feed(self, piece: bytes) -> str:
        """The text that became certain with these bytes, often empty."""
        return self._accept(self._decoder.decode(piece), last=False)

    def finish(self) -> str:
        """No more bytes will come: the rest of the text."""
        return self._accept(self._decoder.decode(b"", final=True), last=True)

    def _accept(self, text: str, last: bool) -> str:
        if self.stopped is not None:
            return ""
        if not self._matchers:
            return text
        self._held += text
        for character in text:
            self._step(character)
            if self._found and self._found[0] <= self._earliest():
                return self._stop(self._found)
        if last and self._found:
            return self._stop(self._found)
        return self._emit(self._start + len(self._held) if last else self._earliest())

    def _step(self, character: str) -> None:
        self._read += 1
        for matcher in self._matchers:
            if matcher.step(character):
                candidate = (self._read - len(matcher.stop), matcher.stop)
                if self._found is None or candidate[0] < self._found[0]:
                    self._found = candidate

    def _earliest(self) -> int:
        """The first position at which a stop string that is not complete yet may turn out to begin."""
        return min(self._read - m.matched if m.matched < len(m.stop) else self._read for m in self._matchers)

    def _stop(self, found: tuple[int, str]) -> str:
        position, self.stopped = found
        text = self._emit(position)
        self._held = ""
        return text

    def _emit(self, until: int) -> str:
        size = until - self._start
        text, self._held, self._start = self._held[:size], self._held[size:], until
        return text
