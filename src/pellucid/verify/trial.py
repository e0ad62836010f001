"""What a model is given to read while it is tried: random ids, and text where there is a tokenizer."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from pellucid.verify.reading import Reading
from pellucid.verify.subject import NotApplicable, Subject

TEXTS = (
    "The capital of France is Paris, and the capital of Italy is Rome. What is the capital of Spain?",
    "def add(a, b):\n    return a + b\n\nprint(add(2, 3))  # 5",
    "In the beginning there was a word; then a second one, which could only look back at the first.",
    "Größe, naïveté, 東京 and 🙂 are written in more bytes than letters.",
)
SHORTEST, SPARE = 4, 6
LONGEST = 48  # tokens in a row: enough for every promise, and small models answer at once


@dataclass(frozen=True)
class Trial:
    """One check's own dice and desk: no check depends on which others run. folder: empty, for files of its own."""

    seed: int
    check: str
    folder: Path

    def generator(self) -> torch.Generator:
        """Fresh, the same at every call."""
        return torch.Generator().manual_seed(zlib.crc32(f"{self.seed} {self.check}".encode()))

    def time(self, subject: Subject, wanted: int = 20) -> int:
        """A row length that the model takes, some places left for padding or new tokens. Raises NotApplicable."""
        room = LONGEST if subject.context is None else subject.context - SPARE
        if room < SHORTEST:
            raise NotApplicable(f"{subject.name} reads at most {subject.context} tokens, too few to try this")
        return min(wanted, LONGEST, room)

    def readings(self, subject: Subject, rows: int, time: int) -> Iterator[tuple[str, Reading]]:
        """Rows without padding, each kind with its name; an encoder–decoder's come with a source of another length."""
        generator = self.generator()
        source = None
        if subject.kind == "encoder-decoder":
            source = Reading(draw(subject.source_vocab, (rows, max(3, time - 3)), generator, subject.pad_id))
        yield "random ids", Reading(draw(subject.vocab, (rows, time), generator, subject.pad_id), source=source)
        if subject.tokenizer is not None:
            ids = _text_ids(subject, rows, time)
            if source is not None:
                source = Reading(_text_ids(subject, rows, source.shape[1]))
            yield "text", Reading(ids, source=source)


def draw(vocab: int, shape: tuple[int, int], generator: torch.Generator, but: int) -> Int[Tensor, "batch time"]:
    """Random ids, without ``but``."""
    ids = torch.randint(max(1, vocab - 1), shape, generator=generator)
    return ids + (ids >= but).long() if vocab > 1 else ids


def others(ids: Int[Tensor, "*shape"], vocab: int, generator: torch.Generator, but: int) -> Int[Tensor, "*shape"]:
    """Ids that differ from these everywhere, without ``but``."""
    other = (ids + torch.randint(1, vocab, ids.shape, generator=generator)) % vocab
    return torch.where(other == but, (ids + 1 + (ids + 1 == but).long()) % vocab, other)


def _text_ids(subject: Subject, rows: int, time: int) -> Int[Tensor, "batch time"]:
    """As many tokens of running text a row, each row beginning with another text."""
    encoded = [subject.tokenizer.encode(text) for text in TEXTS]
    out: list[list[int]] = []
    for row in range(rows):
        ids: list[int] = []
        turn = row
        while len(ids) < time:
            ids += encoded[turn % len(encoded)] or [0]
            turn += 1
        out.append(ids[:time])
    return torch.tensor(out)
