"""Text from tokens: whatever the bytes, the stop strings and the cuts between tokens, the text is that of the whole."""

from __future__ import annotations

import codecs

import pytest
from drawn import examples
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pellucid.errors import UsageError
from pellucid.generate.stop import StopDecoder

# few different characters of one to four bytes, so that stop strings occur, overlap and repeat themselves
characters = st.sampled_from("aab\ufffdé€😀")
many = settings(max_examples=examples(300))  # each takes microseconds
stop_strings = st.lists(st.text(characters, min_size=1, max_size=5), max_size=4)
broken = st.sampled_from([b"\xc3", b"\xa9", b"\xe2\x82", b"\xf0\x9f\x98", b"\xff", b"\xed\xa0\x80", b"\xc0\xaf"])
documents = st.lists(characters.map(str.encode) | broken, max_size=30).map(b"".join)


@st.composite
def tokenizations(draw: st.DrawFn) -> list[bytes]:
    data = draw(documents)
    cuts = sorted(draw(st.lists(st.integers(0, len(data)), max_size=20)))  # repeated cuts make empty tokens
    return [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]


def earliest(text: str, stops: list[str]) -> int | None:
    return min((text.find(stop) for stop in stops if stop in text), default=None)


def certain(text: str, stops: list[str]) -> tuple[str, bool]:
    """The text that no continuation can change, and whether a stop string is certain to have ended it."""
    pending = next((i for i in range(len(text)) if any(s[:-1].startswith(text[i:]) for s in stops)), len(text))
    cut = earliest(text, stops)
    return text[: pending if cut is None else min(cut, pending)], cut is not None and cut <= pending


def emitted(tokens: list[bytes], stops: list[str]) -> tuple[str, str | None]:
    decoder = StopDecoder(stops)
    text = "".join([decoder.feed(token) for token in tokens]) + decoder.finish()
    return text, decoder.stopped


@many
@given(tokenizations(), stop_strings)
@example([b"a\xe2", b"\x82", b"\xacb"], ["€b"])
@example([b"aa", b"ab"], ["aab"])  # the matcher must fall back, not start again
@example([b"abc"], ["abcd", "bc"])
@example([b"babd"], ["baba", "a", "ab"])  # "a" and "ab" begin together, while "baba" is still possible
def test_joined_is_the_whole_text_cut_at_the_earliest_stop(tokens: list[bytes], stops: list[str]) -> None:
    whole = b"".join(tokens).decode("utf-8", "replace")
    text, stopped = emitted(tokens, stops)
    cut = earliest(whole, stops)
    assert text == whole[:cut]
    if cut is None:
        assert stopped is None
    else:  # of those that begin there, the shortest is complete first
        assert stopped == min((stop for stop in stops if whole.startswith(stop, cut)), key=len)


@many
@given(tokenizations(), stop_strings)
def test_text_is_shown_as_soon_as_it_is_certain(tokens: list[bytes], stops: list[str]) -> None:
    decoder, reference = StopDecoder(stops), codecs.getincrementaldecoder("utf-8")("replace")
    shown = read = ""
    for token in tokens:
        shown += decoder.feed(token)
        read += reference.decode(token)
        assert (shown, decoder.stopped is not None) == certain(read, stops)


@many
@given(
    st.lists(st.sampled_from([b"a", b"ab", b"<", b"<e>", "<e>", "<ee>", "é".encode()]), max_size=12),
    st.lists(st.sampled_from(["<e>", "<ee>", "a<e>b", "<e><e>", "<e>a", "ab", "é<e>", "<"]), max_size=3),
)
def test_a_stop_string_that_holds_special_tokens_is_found(tokens: list[bytes | str], stops: list[str]) -> None:
    """The reference looks at whole texts: as it is shown, and with the special tokens (of type str) written out."""
    special = ["<e>", "<ee>"]
    decoder, text = StopDecoder(stops, special), ""
    for token in tokens:
        text += decoder.feed(token) if isinstance(token, bytes) else decoder.feed_special(token)
    text += decoder.finish()
    parts = [(token.decode(), 1) if isinstance(token, bytes) else (token, 0) for token in tokens]
    whole, shown = "".join(part for part, _ in parts), "".join(part for part, is_shown in parts if is_shown)
    marks = [is_shown for part, is_shown in parts for _ in part]
    seeing = [stop for stop in stops if any(word in stop for word in special)]
    places = [sum(marks[: whole.find(stop)]) for stop in seeing if stop in whole]
    places += [shown.find(stop) for stop in stops if stop not in seeing and stop in shown]
    assert text == shown[: min(places, default=None)]
    assert (decoder.stopped is None) == (not places)


def test_nothing_is_emitted_after_the_stop() -> None:
    decoder = StopDecoder(["END"])
    assert [decoder.feed(b) for b in (b"one E", b"N", b"D two", b" three")] == ["one ", "", "", ""]
    assert decoder.finish() == ""
    assert decoder.stopped == "END"


def test_of_two_stops_the_one_that_begins_first_wins() -> None:
    assert emitted([b"xabc", b"d"], ["bc", "abcd"]) == ("x", "abcd")  # "bc" was complete first
    assert emitted([b"xabc", b"e"], ["bc", "abcd"]) == ("xa", "bc")
    assert emitted([b"xabc"], ["bc", "abcd"]) == ("xa", "bc")  # resolved by the end
    assert emitted([b"xabcd"], ["abcd", "ab"]) == ("x", "ab")


def test_control_a_decoder_that_looks_at_one_token_at_a_time_is_caught() -> None:
    tokens, stops = [b"caf\xc3", b"\xa9 st", b"op more"], ["stop"]
    alone = "".join(token.decode("utf-8", "replace").split("stop")[0] for token in tokens)
    assert emitted(tokens, stops) == ("café ", "stop")
    assert alone != "café "


def test_control_a_search_in_bytes_is_caught() -> None:
    # a replacement character exists only in the text
    assert emitted([b"a\xff", b"b"], ["\ufffd"]) == ("a", "\ufffd")
    assert "\ufffd".encode() not in b"a\xffb"


def test_the_empty_stop_string_is_refused() -> None:
    with pytest.raises(UsageError, match="empty"):
        StopDecoder(["a", ""])
