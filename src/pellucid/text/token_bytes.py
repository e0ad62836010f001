"""What each token of a vocabulary stands for, in bytes: so that text can be shown token by token, and measured."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from pellucid.errors import CheckpointError

Reading = str | bytes  # a token on its way: letters until a step knows its bytes
Step = Callable[[Reading], Reading]
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def byte_of_letter() -> dict[str, int]:
    """The printable character by which byte-level vocabularies write each byte (Radford et al. 2019, GPT-2)."""
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = (byte for byte in range(256) if byte not in printable)
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


_LETTERS = byte_of_letter()


def reader_of(decoder: Mapping[str, Any] | None) -> Callable[[str], bytes]:
    """written token -> its bytes in the middle of a text, by the ``decoder`` of a tokenizer.json (None: words).

    What a decoder does to a whole text only (dropping its first space, tidying before punctuation) is left out: a text
    that goes on needs its spaces. Raises CheckpointError for a decoder that is not known here.
    """
    steps = [reading for step in steps_of(decoder) for reading in _readings(step)] if decoder else [_word]

    def read(written: str) -> bytes:
        reading: Reading = written
        for step in steps:
            reading = step(reading)
        return reading if isinstance(reading, bytes) else reading.encode()

    return read


def is_byte_level(decoder: Mapping[str, Any] | None) -> bool:
    """Whether tokens are written in the letters of ``byte_of_letter``."""
    return decoder is not None and decoder.get("type") == "ByteLevel"


def strange_letter(written: str) -> str | None:
    """The first character of ``written`` that no byte-level vocabulary has, or None."""
    return next((letter for letter in written if letter not in _LETTERS), None)


def steps_of(config: Any) -> Iterator[dict[str, Any]]:
    """The steps of a normalizer, pre-tokenizer or decoder in turn, sequences inside sequences laid out."""
    if not isinstance(config, dict):
        return
    inside = next((config[key] for key in ("normalizers", "pretokenizers", "decoders") if key in config), None)
    if config.get("type") != "Sequence" or not isinstance(inside, list):
        yield config
        return
    for step in inside:
        yield from steps_of(step)


def _readings(decoder: Any) -> list[Step]:
    """What a decoder's step does to one token."""
    match decoder:
        case {"type": "ByteLevel"}:
            return [_letters]
        case {"type": "ByteFallback"}:
            return [_fallback]
        case {"type": "Fuse"} | {"type": "Strip", "stop": 0}:  # of whole texts
            return []
        case {"type": "Strip"}:  # the library gives up on a text that is shorter
            raise CheckpointError(f"the tokenizer's decoder {str(decoder)[:200]} takes the end off", "known: stop 0")
        case {"type": "Replace", "pattern": {"String": str(old)}, "content": str(new)}:
            return [lambda reading: reading.replace(old, new) if isinstance(reading, str) else reading]
        case {"type": "Metaspace", "replacement": str(mark)}:
            return [lambda reading: reading.replace(mark, " ") if isinstance(reading, str) else reading]
        case {"type": "WordPiece", "prefix": str(prefix)}:
            return [lambda reading: reading[len(prefix) :] if _starts(reading, prefix) else _word(reading)]
        case {"type": "BPEDecoder", "suffix": str(suffix)}:
            return [lambda reading: reading.replace(suffix, " ") if isinstance(reading, str) else reading]
        case _:
            raise CheckpointError(
                f"the tokenizer's decoder {str(decoder)[:200]} is not known",
                "known: ByteLevel, ByteFallback, Metaspace, Replace of a string, WordPiece, BPEDecoder",
            )


def _starts(reading: Reading, prefix: str) -> bool:
    return isinstance(reading, str) and reading.startswith(prefix)


def _word(reading: Reading) -> Reading:
    return " " + reading if isinstance(reading, str) else reading


def _letters(reading: Reading) -> Reading:
    if isinstance(reading, bytes):
        return reading
    try:
        return bytes(_LETTERS[letter] for letter in reading)
    except KeyError:  # added tokens, and others of some vocabularies that no text becomes, are written as they are
        return reading.encode()


def _fallback(reading: Reading) -> Reading:
    found = _BYTE.fullmatch(reading) if isinstance(reading, str) else None
    return bytes.fromhex(found[1]) if found else reading
