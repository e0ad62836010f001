"""A tokenizer loses nothing, and nobody can type what only programs may write."""

from __future__ import annotations

from pellucid.verify.checks import Check
from pellucid.verify.measure import Measured, Tolerance
from pellucid.verify.subject import NotApplicable, Subject
from pellucid.verify.text import Speller, speller_of
from pellucid.verify.trial import TEXTS, Trial

SPACES = ("  two  spaces", "\n\n\tlines\n and a tab", " begins with one", "ends with one ", "a\r\nb", "3.14 = 3 + 0.14")
EVERY = Tolerance(0.0, "no text may be lost: the share of texts that do not come back")
TYPED = Tolerance(0.0, "text is text: the share of special tokens that can be typed")


def restored(speller: Speller, text: str, exactly: bool) -> bool:
    """Whether the text comes back, or, where a tokenizer is made to change text, the same ids.

    Some tokenizers put a space in front of every text. It may stay, or go together with spaces that stood there.
    """
    ids = speller.encode(text)
    back = speller.decode(ids)
    if exactly:
        return back == text or (not speller.keeps_start and back.lstrip(" ") == text.lstrip(" "))
    return speller.encode(back) == ids


def round_trip(subject: Subject, trial: Trial) -> Measured:
    """Sentences, code, other scripts, spaces in all places. A model that only reads may make capitals small."""
    speller = speller_of(subject)
    exactly = speller.keeps_text or (speller.folds and subject.kind != "encoder")
    texts = [text for text in (*TEXTS, *SPACES) if exactly or not _unknown(speller, text)]
    if not texts:
        raise NotApplicable(f"{subject.name} knows none of the letters that were tried")
    lost = [text for text in texts if not restored(speller, text, exactly)]
    detail = f"{lost[0]!r:.60} comes back as {speller.decode(speller.encode(lost[0]))!r:.60}" if lost else ""
    return Measured(len(lost) / len(texts), EVERY, detail)


def _unknown(speller: Speller, text: str) -> bool:
    return speller.unk_id is not None and speller.unk_id in speller.encode(text)


def special_text(subject: Subject, trial: Trial) -> Measured:
    """Each special token, written out in a text, between words and by itself."""
    speller = speller_of(subject)
    known = {word: n for word, n in speller.special.items() if len(word) > 1}
    unknown = speller.unk_id if speller.unk_id not in (speller.bos_id, speller.eos_id) else None
    never = set(known.values()) - {unknown}
    if not never:
        raise NotApplicable(f"{subject.name} has a tokenizer without special tokens")
    typed = [
        word
        for word in known
        if any(never & set(speller.encode(text)) for text in (word, f"a {word} b", f"a{word}b"))
        or (_spells(speller, word) and word not in speller.decode(speller.encode(f"a {word} b")))
    ]
    return Measured(len(typed) / len(known), TYPED, f"as typed: {', '.join(typed[:6])}" if typed else "")


def _spells(speller: Speller, word: str) -> bool:
    """Whether the tokenizer must give the word back: it knows each of its letters."""
    return speller.keeps_text and all(letter in speller.decode(speller.encode(letter)) for letter in word)


CHECKS = (
    Check("round-trip", "text that was encoded and decoded is the same", round_trip),
    Check("special-text", "a special token that somebody types stays text", special_text),
)
