"""From texts to a tokenizer and token stores in the run's folder; made once, recognised when they are there already."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pellucid.checkpoints.native import TOKENIZER
from pellucid.data.corpus import Corpus, Text, fingerprint
from pellucid.data.duplicates import LINE, leak, without_copies
from pellucid.data.mixture import Mixture
from pellucid.data.sources import Skipped, documents
from pellucid.data.split import Selection, split
from pellucid.data.store import TokenStore, build_store, open_intact
from pellucid.errors import DataError, UsageError
from pellucid.text.pieces import pieces_of, sample
from pellucid.text.tokenizer import Tokenizer
from pellucid.train.config import Reason, TrainOptions
from pellucid.train.report import Reporter

TOKENIZER_CHARACTERS = 48_000_000  # about; of text that merges are learned from: more changes nothing that matters
MANY_SPECIAL = 8  # special tokens; more of them take no room from a small vocabulary
LEAKY = 0.05  # of the held-out lines: if more are trained on, whoever trains is told


@dataclass(frozen=True)
class Prepared:
    """What a run trains on; ``validation`` is None when nothing is held out."""

    tokenizer: Tokenizer
    training: TokenStore | Mixture
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
    _refuse_mixture(texts, options)
    path, division = folder / TOKENIZER, _division(options)
    names = [f"training-{i}" for i in range(len(texts))] if _is_mixture(options) else ["training"]
    kept = Tokenizer.load(path) if resumed and path.exists() else None
    known = _known(folder, kept, names)
    if known is not None and "-" not in texts:  # what comes from standard input can be read but once
        described = _read(texts, options.field, folder, reporter, keep=False)
        if known[0][0].manifest.origin == _origin(described, division, known[1] is not None):
            assert kept is not None
            return Prepared(kept, _together(known[0], texts, options), known[1], ())
    found = _read(texts, options.field, folder, reporter)
    training, validation = _divided(found, options, reporter)
    whole = [document for part in training for document in part] if len(training) > 1 else training[0]
    size, why = choose_vocab_size(options, sum(d.n_bytes for d in whole), 1 + len(special))
    if kept is None:
        kept = tokenizer or _learn(whole, size, reporter, special)
        kept.save(path)
    tokenizer = kept
    origin = _origin(found, division, bool(validation))

    def encoded(name: str, part: Sequence[Text]) -> TokenStore:
        with reporter.working(f"encoding the {name} text", sum(d.n_bytes for d in part)) as advance:
            return build_store(part, tokenizer, folder / "tokens" / name, advance, origin)

    stores = [encoded(name, part) for name, part in zip(names, training, strict=True)]
    held = encoded("validation", validation) if validation else None
    store = _together(stores, texts, options)
    if store.n_tokens < 64:
        raise DataError(f"the text has only {store.n_tokens} tokens", "give more text: a few kilobytes at least")
    if tokenizer.vocab_size < size:
        why += f"; the text has no more than {tokenizer.vocab_size:,}"
    n_bytes = sum(one.n_bytes for one in stores)
    reasons = (
        Reason("text", f"{n_bytes:,} bytes", f"{len(whole):,} documents, {store.n_tokens:,} tokens"),
        *_shares(store),
        Reason("held out", f"{sum(d.n_bytes for d in validation):,} bytes", f"{len(validation):,} documents"),
        *_leaks(whole, validation, reporter),
        Reason("vocab_size", f"{tokenizer.vocab_size:,}", why),
    )
    return Prepared(tokenizer, store, held, reasons)


def _is_mixture(options: TrainOptions) -> bool:
    """Whether texts are read by weight, not as one."""
    return bool(options.mix) or options.mix_temperature != 1 or options.mix_epochs is not None


def _refuse_mixture(texts: Sequence[str], options: TrainOptions) -> None:
    """Raise UsageError for weights that do not go with the texts."""
    if not _is_mixture(options):
        return
    if options.mix and len(options.mix) != len(texts):
        raise UsageError(
            f"--mix gives {len(options.mix)} weights for {len(texts)} texts", "give a weight for each, in their order"
        )
    for text, weight in zip(texts, options.mix, strict=False):
        if not 0 < weight < math.inf:
            raise UsageError(f"{text} has the weight {weight:g} in --mix", "give it more than 0, or leave the text out")
    if options.held_out:
        raise UsageError("held_out names documents, but a mixture holds out a share of each text", "use --validation")


def _division(options: TrainOptions) -> str:
    """All that decides which documents go where."""
    said = f"{options.validation} {options.seed} {sorted(options.held_out)}"
    how = [*(["each"] if _is_mixture(options) else []), options.deduplicate]
    return said if how == ["no"] else f"{said} {' '.join(how)}"


def _divided(found: Corpus, options: TrainOptions, reporter: Reporter) -> tuple[list[Sequence[Text]], Sequence[Text]]:
    """The documents to train on, of all texts or of each text of a mixture, and those held out of all; without copies,
    where that is asked for. No document of a mixture stands in two of its texts, so none is trained on and held out."""
    mixed, rule = _is_mixture(options), (options.validation, options.seed, options.held_out)
    if options.deduplicate == "no" and not mixed:
        training, validation = split(found, *rule)
        return [training], validation
    with reporter.working("looking for copies", sum(d.n_bytes for d in found)) as advance:
        kept = without_copies(found, near=options.deduplicate == "near", told=advance)
    if copies := kept.equal + kept.alike:
        near = f" and {kept.alike:,} nearly" if options.deduplicate == "near" else ""
        reporter.message(f"{copies:,} of {len(found):,} documents are copies, {kept.equal:,} exactly{near}: left out")
    ends = found.inputs if mixed else [len(found)]
    parts, places = list[tuple[Sequence[Text], Sequence[Text]]](), np.searchsorted(kept.numbers, [0, *ends])
    for number, (first, last) in enumerate(itertools.pairwise(places.tolist())):
        if first == last:
            raise DataError(f"text {number + 1} of the mixture holds only copies of the others", "leave it out")
        parts.append(split(Selection.whole(found, kept.numbers[first:last]), *rule))
    return [training for training, _ in parts], [held for _, validation in parts for held in validation]


def _together(stores: Sequence[TokenStore], texts: Sequence[str], options: TrainOptions) -> TokenStore | Mixture:
    """One store as it is, several as a mixture."""
    if not _is_mixture(options):
        return stores[0]
    weights = options.mix or tuple(float(store.n_tokens) for store in stores)
    return Mixture(tuple(texts), tuple(stores), tuple(weights), options.mix_temperature, options.mix_epochs)


def _shares(store: TokenStore | Mixture) -> list[Reason]:
    if not isinstance(store, Mixture):
        return []
    return [
        Reason(f"share of {Path(name).name}", f"{share:.1%}", f"of the rows; it has {one.n_tokens:,} tokens")
        for name, share, one in zip(store.names, store.shares, store.stores, strict=True)
    ]


def _leaks(training: Sequence[Text], validation: Sequence[Text], reporter: Reporter) -> list[Reason]:
    """What of the held-out text is trained on all the same."""
    found = leak(training, validation)
    if not found.lines:
        return []
    said = f"{found.seen:,} of the {found.lines:,} held-out lines of {LINE} characters and more are trained on, too"
    if found.share > LEAKY:
        reporter.message(f"{said}: what is held out is no wholly new text; --deduplicate near may help")
    return [Reason("held out, yet seen", f"{found.share:.1%}", said)]


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


def _known(
    folder: Path, tokenizer: Tokenizer | None, names: Sequence[str]
) -> tuple[list[TokenStore], TokenStore | None] | None:
    """The stores that an earlier call left, if they are intact, belong together and are of this tokenizer."""
    if tokenizer is None:
        return None
    *found, validation = (open_intact(folder / "tokens" / name, tokenizer) for name in (*names, "validation"))
    training = [store for store in found if store is not None]
    all_there = [*training, *([] if validation is None else [validation])]
    if len(training) < len(found) or len({store.manifest.origin for store in all_there}) > 1:
        return None
    return training, validation


def _learn(training: Sequence[Text], size: int, reporter: Reporter, special: Sequence[str]) -> Tokenizer:
    """A vocabulary from pieces spread evenly over the text."""
    total = sum(document.n_characters for document in training)
    parts = itertools.chain.from_iterable(pieces_of(document.blocks()) for document in training)
    n_bytes = sum(document.n_bytes for document in training)
    with reporter.working("learning the tokenizer", min(n_bytes, TOKENIZER_CHARACTERS)) as advance:
        return Tokenizer.train(sample(parts, total, TOKENIZER_CHARACTERS), size, advance, special=special)
