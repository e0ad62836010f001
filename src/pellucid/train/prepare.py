"""From texts to a tokenizer and token stores in the run's folder; made once, recognised when they are there already."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pellucid.checkpoints.native import TOKENIZER
from pellucid.data.sources import Skipped, documents
from pellucid.data.split import split
from pellucid.data.store import TokenStore, build_store
from pellucid.errors import DataError
from pellucid.text.tokenizer import Tokenizer, sample
from pellucid.train.config import Reason, TrainOptions
from pellucid.train.report import Reporter

TOKENIZER_BYTES = 48_000_000  # about; of text that merges are learned from: more changes nothing that matters


@dataclass(frozen=True)
class Prepared:
    """What a run trains on; ``validation`` is None when nothing is held out."""

    tokenizer: Tokenizer
    training: TokenStore
    validation: TokenStore | None
    reasons: tuple[Reason, ...]


def choose_vocab_size(options: TrainOptions, n_bytes: int) -> tuple[int, str]:
    """A power of two below the square root of the text's bytes: rarer tokens are seen too seldom to be learned."""
    if options.vocab_size is not None:
        return options.vocab_size, "asked for"
    power = math.floor(math.log2(math.sqrt(max(n_bytes, 1))))
    return min(max(2**power, 512), 32768), f"largest power of two below the square root of {n_bytes:,} bytes of text"


def prepare(
    texts: Sequence[str], options: TrainOptions, folder: Path, reporter: Reporter, *, resumed: bool = False
) -> Prepared:
    """Read, split, learn the tokenizer from the training part, and encode both parts.

    resumed: the folder holds this very run, so its tokenizer is used again; any other may be of another text.
    Raises DataError for texts that cannot be used.
    """
    skipped: list[Skipped] = []
    found = list(documents(texts, on_skip=skipped.append))
    for reason, alike in itertools.groupby(sorted(skipped, key=lambda one: one.reason), key=lambda one: one.reason):
        names = [one.name for one in alike]
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        reporter.message(f"skipped {names[0]}{more}: {reason}")
    training, validation = split(found, options.validation, options.seed, options.held_out)
    n_bytes = sum(d.n_bytes for d in training)
    size, why = choose_vocab_size(options, n_bytes)
    path = folder / TOKENIZER
    if resumed and path.exists():
        tokenizer = Tokenizer.load(path)
    else:
        learned_from = list(sample([d.text for d in training], TOKENIZER_BYTES))
        with reporter.working("learning the tokenizer", sum(len(t.encode()) for t in learned_from)) as advance:
            tokenizer = Tokenizer.train(learned_from, size, advance)
        tokenizer.save(path)
    stores: list[TokenStore] = []
    for name, part in (("training", training), ("validation", validation)):
        if part:
            with reporter.working(f"encoding the {name} text", sum(d.n_bytes for d in part)) as advance:
                stores.append(build_store(part, tokenizer, folder / "tokens" / name, advance))
    if stores[0].n_tokens < 64:
        raise DataError(f"the text has only {stores[0].n_tokens} tokens", "give more text: a few kilobytes at least")
    if tokenizer.vocab_size < size:
        why += f"; the text has no more than {tokenizer.vocab_size:,}"
    store = stores[0]
    reasons = (
        Reason("text", f"{store.n_bytes:,} bytes", f"{len(training):,} documents, {store.n_tokens:,} tokens"),
        Reason("held out", f"{sum(d.n_bytes for d in validation):,} bytes", f"{len(validation):,} documents"),
        Reason("vocab_size", f"{tokenizer.vocab_size:,}", why),
    )
    return Prepared(tokenizer, store, stores[1] if len(stores) > 1 else None, reasons)
