"""A number for a text: bits per byte, perplexity, and ln p of a continuation. ``engine.likelihood`` does so for ids."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pellucid.arguments import checked
from pellucid.checkpoints.by_name import opened
from pellucid.data.corpus import Text
from pellucid.data.sources import documents
from pellucid.engine.likelihood import likelihoods, rolling
from pellucid.errors import UsageError
from pellucid.nn.models import AnyModel, Decoder, EncoderDecoder
from pellucid.text.tokenizer import Tokenizer

AT_ONCE = 1 << 18  # bytes of text whose tokens are in memory at a time, or one document
NO_MODEL = "give a model, e.g. of pellucid.load, or the name of one"


@dataclass(frozen=True)
class Measured:
    """What a model makes of texts. nats: the sum of -ln p over their tokens; n_bytes: of the texts in UTF-8.

    Perplexity depends on the vocabulary, so only models with the same one can be compared by it; bits per byte compare
    any two.
    """

    nats: float
    n_tokens: int
    n_bytes: int
    n_documents: int

    @property
    def bits_per_byte(self) -> float:
        """-log2 p of the texts / their bytes."""
        return self.nats / math.log(2) / self.n_bytes

    @property
    def perplexity(self) -> float:
        """exp of the mean of -ln p over tokens; infinite where no number holds it."""
        mean = self.nats / self.n_tokens
        return math.exp(mean) if mean < 709 else math.inf


@checked(model=NO_MODEL)
def evaluate(
    model: AnyModel | str | Path,
    texts: str | Path | Sequence[str | Path],
    *,
    field: str = "text",
    stride: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Measured:
    """How well a decoder predicts texts: files, folders, globs, .jsonl, "-" or hf://org/name, as for training.

    Every token of every document is predicted once, from the begin-of-text token (or end of text, where a vocabulary
    has no other) and what comes before in its document. field: where a row of JSON holds its text. stride: how far the
    window moves on in documents longer than the context (default: half of it, so that each token is predicted from at
    least half a context, where there is so much). progress: told the bytes that are done, and how many there are.
    Raises UsageError for a model that is no decoder or has no tokenizer, DataError for texts that cannot be read. ::

        measured = pellucid.evaluate("runs/book", "other.txt")
        print(measured.bits_per_byte, measured.perplexity)
    """
    model = opened(model)
    tokenizer, before = _first(model)
    step = max(1, model.spec.context // 2) if stride is None else stride
    found = documents(texts, field)
    total = sum(document.n_bytes for document in found)
    nats, n_tokens, done = 0.0, 0, 0
    for group in _groups(found):
        ids = tokenizer.encode_batch([document.text for document in group])
        for likelihood in rolling(model, ids, before=before, stride=step):
            nats -= likelihood.total
            n_tokens += len(likelihood.each)
        done += sum(document.n_bytes for document in group)
        if progress is not None:
            progress(done, total)
    return Measured(nats, n_tokens, total, len(found))


@checked(model=NO_MODEL)
def logprob(model: AnyModel | str | Path, context: str | Sequence[int], continuation: str | Sequence[int]) -> float:
    """ln p of a continuation after a context, in nats: texts, or token ids of both.

    Both texts are encoded as one, since a tokenizer may merge across the seam; a token that spans it belongs to the
    continuation, and so do spaces at the end of the context. An encoder–decoder reads the context and writes the
    continuation. Raises UsageError for a model that cannot write, texts without a tokenizer, and a text beside ids;
    DataError where a text has no tokens or both are longer than the model's context. ::

        pellucid.logprob(model, "The capital of France is", " Paris")
    """
    model = opened(model)
    if isinstance(context, str) and isinstance(continuation, str):
        pair = _ids(model, context, continuation)
    elif isinstance(context, str) or isinstance(continuation, str):
        raise UsageError("one of context and continuation is a text, the other is ids", "give two texts or two lists")
    else:
        pair = [int(token) for token in context], [int(token) for token in continuation]
    return likelihoods(model, [pair])[0].total


def _ids(model: AnyModel, context: str, continuation: str) -> tuple[list[int], list[int]]:
    tokenizer = _tokenizer(model)
    if isinstance(model, EncoderDecoder):
        return tokenizer.encode_prompt(context), tokenizer.encode(continuation)
    kept = context.rstrip(" ")
    own, whole = tokenizer.encode(kept), tokenizer.encode(context + continuation)
    alike = next((i for i, (a, b) in enumerate(zip(own, whole, strict=False)) if a != b), min(len(own), len(whole)))
    start = [_first(model)[1]] if tokenizer.adds_bos or not alike else []
    return [*start, *whole[:alike]], whole[alike:]


def _first(model: AnyModel) -> tuple[Tokenizer, int]:
    """The tokenizer of a decoder, and the token that the first one of a text is predicted from."""
    if not isinstance(model, Decoder):
        raise UsageError(
            "a text's own likelihood is that of a decoder",
            "pellucid.logprob(model, source, target) asks an encoder–decoder",
        )
    tokenizer = _tokenizer(model)
    first = tokenizer.bos_id if tokenizer.bos_id is not None else tokenizer.eos_id
    if first is None:
        raise UsageError("this vocabulary has no token that begins or ends a text", "give token ids: engine.likelihood")
    return tokenizer, first


def _tokenizer(model: AnyModel) -> Tokenizer:
    if model.tokenizer is None:
        raise UsageError("this model has no tokenizer, so it cannot read a text", "load it with its tokenizer")
    return model.tokenizer


def _groups(found: Iterable[Text]) -> Iterator[list[Text]]:
    """Documents, as many at a time as have ``AT_ONCE`` bytes."""
    group, size = list[Text](), 0
    for document in found:
        group.append(document)
        size += document.n_bytes
        if size >= AT_ONCE:
            yield group
            group, size = [], 0
    if group:
        yield group
