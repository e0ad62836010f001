"""From the bytes of tokens to text that is safe to show, cut exactly where a stop string begins.

A token is any run of bytes: it may end inside a character, and a stop string may begin in the middle of one token and
end in the middle of another. The text depends on the bytes alone, never on how they fall into tokens. A special token
has no bytes and is not shown; a stop string in which one is written out, such as "<|im_end|>", is found all the same.
"""

from __future__ import annotations

import codecs
import copy
from collections import deque
from collections.abc import Iterable, Sequence

from pellucid.errors import UsageError


class _Matcher:
    """Knuth, Morris and Pratt (1977): how many characters of ``stop`` the text so far ends with, O(1) a character.

    sees_special: whether special tokens, written out, are part of the text that it reads.
    """

    def __init__(self, stop: str, sees_special: bool):
        self.stop, self.matched, self.sees_special = stop, 0, sees_special
        self._shown = deque[bool](maxlen=len(stop))  # of the last characters, whether they are shown
        self.fallback = [0] * (len(stop) + 1)  # the longest proper prefix of stop[:n] that also ends it
        length = 0
        for n in range(1, len(stop)):
            while length and stop[n] != stop[length]:
                length = self.fallback[length]
            length += stop[n] == stop[length]
            self.fallback[n + 1] = length

    @property
    def whole(self) -> bool:
        """Whether the text so far ends with the stop string."""
        return self.matched == len(self.stop)

    @property
    def shown(self) -> int:
        """How many of the ``matched`` characters are shown."""
        return sum([*self._shown][-self.matched :]) if self.sees_special and self.matched else self.matched

    def step(self, character: str, shown: bool) -> bool:
        """Read one character; True where it completes the stop string."""
        if self.sees_special:
            self._shown.append(shown)
        elif not shown:
            return False
        stop, matched = self.stop, self.matched
        if matched == len(stop):
            matched = self.fallback[matched]
        while matched and stop[matched] != character:
            matched = self.fallback[matched]
        self.matched = matched + (stop[matched] == character)
        return self.whole


class StopDecoder:
    """Feed it the bytes of tokens; it emits the text before the earliest stop string, as soon as that text is certain.

    All that ``feed`` and ``finish`` return, joined, is ``whole.decode("utf-8", "replace")`` up to the smallest position
    at which any stop string occurs. So of two stop strings the one that begins first wins, even where the other is
    complete sooner: with "abcd" and "bc", after "abc" the decoder waits for one more character. Of two that begin
    together, the shorter is reported. Held back: an incomplete character, and what may be the start of a stop string.

    special: the written forms of special tokens. A stop string that holds one is looked for in the text with the tokens
        of ``feed_special`` written out; the others, in the text that is shown.
    stopped: the stop string that was found, or None. Once it is set, nothing more is emitted.
    Raises UsageError where a stop string is empty.
    """

    def __init__(self, stops: Sequence[str] = (), special: Iterable[str] = ()):
        if "" in stops:
            raise UsageError("a stop string is empty", "every text contains the empty string: remove it")
        self.stopped: str | None = None
        words = list(special) if stops else []
        self._matchers = [_Matcher(stop, any(word in stop for word in words)) for stop in stops]
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""  # decoded and not emitted
        self._start = 0  # where in the text that is shown _held begins
        self._read = 0  # how many of its characters the matchers have seen
        self._found: tuple[int, str] | None = None  # the earliest complete stop string so far: its position, and itself

    def fork(self) -> StopDecoder:
        """Another decoder that has read the same."""
        return copy.deepcopy(self)

    def feed(self, piece: bytes) -> str:
        """The text that became certain with these bytes, often empty."""
        return self._accept(self._decoder.decode(piece), last=False)

    def feed_special(self, written: str) -> str:
        """The text that became certain with a special token: what was held back because a stop string might go on."""
        return self._accept(written, last=False, shown=False)

    def finish(self) -> str:
        """No more bytes will come: the rest of the text."""
        return self._accept(self._decoder.decode(b"", final=True), last=True)

    def _accept(self, text: str, last: bool, shown: bool = True) -> str:
        if self.stopped is not None:
            return ""
        if not self._matchers:
            return text if shown else ""
        self._held += text if shown else ""
        for character in text:
            self._step(character, shown)
            if self._found and self._found[0] <= self._earliest():
                return self._stop(self._found)
        if last and self._found:
            return self._stop(self._found)
        return self._emit(self._start + len(self._held) if last else self._earliest())

    def _step(self, character: str, shown: bool) -> None:
        self._read += shown
        for matcher in self._matchers:
            if matcher.step(character, shown):
                candidate = (self._read - matcher.shown, matcher.stop)
                if self._found is None or candidate[0] < self._found[0]:
                    self._found = candidate

    def _earliest(self) -> int:
        """The first position at which a stop string that is not complete yet may turn out to begin."""
        return min(self._read if m.whole else self._read - m.shown for m in self._matchers)

    def _stop(self, found: tuple[int, str]) -> str:
        position, self.stopped = found
        text = self._emit(position)
        self._held = ""
        return text

    def _emit(self, until: int) -> str:
        size = until - self._start
        text, self._held, self._start = self._held[:size], self._held[size:], until
        return text
