"""From texts to a tokenizer and token stores in the run's folder; made once, recognised when they are there already."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pellucid.checkpoints.native import TOKENIZER
from pellucid.data.corpus import Corpus, Text, fingerprint
from pellucid.data.sources import Skipped, documents
from pellucid.data.split import split
from pellucid.data.store import TokenStore, build_store, open_intact
from pellucid.errors import DataError
from pellucid.text.pieces import pieces_of, sample
from pellucid.text.tokenizer import Tokenizer
from pellucid.train.config import Reason, TrainOptions
from pellucid.train.report import Reporter

TOKENIZER_CHARACTERS = 48_000_000  # about; of text that merges are learned from: more changes nothing that matters
MANY_SPECIAL = 8  # special tokens; more of them take no room from a small vocabulary
_STORES = ("training", "validation")


@dataclass(frozen=True)
class Prepared:
    """What a run trains on; ``validation`` is None when nothing is held out."""

    tokenizer: Tokenizer
    training: TokenStore
    validation: TokenStore | None
    reasons: tuple[Reason, ...]


def choose_vocab_size(options: TrainOptions, n_bytes: int, n_special: int = 1) -> tuple[int, str]:
    """A power of two below the square root of the text's bytes: rarer tokens are seen too seldom to be learned."""
    if options.vocab_size is not None:
        return options.vocab_size, "asked for"
    power = math.floor(math.log2(math.sqrt(max(n_bytes, 1))))
    if 2**power < (least := 512 + n_special) > MANY_SPECIAL + 512:
        return least, f"the fewest beside {n_special} special tokens"
    return min(max(2**power, 512), 32768), f"largest power of two below the square root of {n_bytes:,} bytes of text"


def prepare(
    texts: Sequence[str],
    options: TrainOptions,
    folder: Path,
    reporter: Reporter,
    *,
    resumed: bool = False,
    tokenizer: Tokenizer | None = None,
    special: Sequence[str] = (),
) -> Prepared:
    """Read, split, learn the tokenizer from the training part, and encode both parts; the text may exceed memory.

    resumed: the folder holds this very run, so its tokenizer is used again; any other may be of another text. Where the
    stores are intact, too, the text is then only read to see that it is what it was.
    tokenizer: used instead of learning one; special: more special tokens of one that is learned.
    Raises DataError for texts that cannot be used.
    """
    path, division = folder / TOKENIZER, f"{options.validation} {options.seed} {sorted(options.held_out)}"
    kept = Tokenizer.load(path) if resumed and path.exists() else None
    known = _known(folder, kept)
    if known is not None and "-" not in texts:  # what comes from standard input can be read but once
        described = _read(texts, options.field, folder, reporter, keep=False)
        if known[0].manifest.origin == _origin(described, division, known[1] is not None):
            assert kept is not None
            return Prepared(kept, *known, ())
    found = _read(texts, options.field, folder, reporter)
    training, validation = split(found, options.validation, options.seed, options.held_out)
    size, why = choose_vocab_size(options, sum(d.n_bytes for d in training), 1 + len(special))
    if kept is None:
        kept = tokenizer or _learn(training, size, reporter, special)
        kept.save(path)
    tokenizer = kept
    origin = _origin(found, division, bool(validation))
    stores: list[TokenStore | None] = []
    for name, part in zip(_STORES, (training, validation), strict=True):
        if not part:
            stores.append(None)
            continue
        with reporter.working(f"encoding the {name} text", sum(d.n_bytes for d in part)) as advance:
            stores.append(build_store(part, tokenizer, folder / "tokens" / name, advance, origin))
    store, held = stores
    assert store is not None  # a split that leaves nothing to train on is refused
    if store.n_tokens < 64:
        raise DataError(f"the text has only {store.n_tokens} tokens", "give more text: a few kilobytes at least")
    if tokenizer.vocab_size < size:
        why += f"; the text has no more than {tokenizer.vocab_size:,}"
    reasons = (
        Reason("text", f"{store.n_bytes:,} bytes", f"{len(training):,} documents, {store.n_tokens:,} tokens"),
        Reason("held out", f"{sum(d.n_bytes for d in validation):,} bytes", f"{len(validation):,} documents"),
        Reason("vocab_size", f"{tokenizer.vocab_size:,}", why),
    )
    return Prepared(tokenizer, store, held, reasons)


def _read(texts: Sequence[str], field: str, folder: Path, reporter: Reporter, keep: bool = True) -> Corpus:
    skipped: list[Skipped] = []
    found = documents(texts, field, skipped.append, folder=folder, keep=keep)
    for reason, alike in itertools.groupby(sorted(skipped, key=lambda one: one.reason), key=lambda one: one.reason):
        names = [one.name for one in alike]
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        reporter.message(f"skipped {names[0]}{more}: {reason}")
    return found


def _origin(found: Corpus, division: str, is_divided: bool) -> str:
    """What both stores say of the text they were made from: equal when text and division are."""
    return f"{fingerprint(found)} {division} {'divided' if is_divided else 'whole'}"


def _known(folder: Path, tokenizer: Tokenizer | None) -> tuple[TokenStore, TokenStore | None] | None:
    """The stores that an earlier call left, if they are intact, belong together and are of this tokenizer."""
    if tokenizer is None:
        return None
    training, validation = (open_intact(folder / "tokens" / name, tokenizer) for name in _STORES)
    if training is None or (validation is not None and validation.manifest.origin != training.manifest.origin):
        return None
    return training, validation


def _learn(training: Sequence[Text], size: int, reporter: Reporter, special: Sequence[str]) -> Tokenizer:
    """A vocabulary from pieces spread evenly over the text."""
    total = sum(document.n_characters for document in training)
    parts = itertools.chain.from_iterable(pieces_of(document.blocks()) for document in training)
    n_bytes = sum(document.n_bytes for document in training)
    with reporter.working("learning the tokenizer", min(n_bytes, TOKENIZER_CHARACTERS)) as advance:
        return Tokenizer.train(sample(parts, total, TOKENIZER_CHARACTERS), size, advance, special=special)
