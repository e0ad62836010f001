"""From texts to the feed of a run: which is made for which objective."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pellucid.checkpoints.native import TOKENIZER
from pellucid.data.denoise import Denoising, sentence_ends
from pellucid.data.feed import Feed, PackedText
from pellucid.data.fim import FilledInText, Markers
from pellucid.data.masked import MaskedText, WordEdges
from pellucid.data.pair_files import read_pairs, split_pairs
from pellucid.data.pairs import EncodedPairs, PairedText, encode_pairs
from pellucid.data.replaced import ReplacedText
from pellucid.data.rewriting import Corruption, RewrittenText
from pellucid.data.spans import Spans
from pellucid.data.ul2 import MixtureOfDenoisers
from pellucid.errors import DataError, UsageError
from pellucid.files import write_text
from pellucid.spec import DecoderSpec, EncoderDecoderSpec
from pellucid.text import markers
from pellucid.text.tokenizer import MASK, Tokenizer
from pellucid.train.config import Reason, Run, TrainOptions
from pellucid.train.parts import ObjectiveName, TextSpec
from pellucid.train.prepare import Prepared, choose_vocab_size, prepare
from pellucid.train.report import Reporter

SHORT_ENOUGH = 0.99  # of the pairs fit into the context that is chosen for them
HELD_OUT = "held-out.jsonl"  # the pairs that a run never trains on, in its folder


@dataclass(frozen=True)
class PreparedPairs:
    """What a run trains on where it reads pairs; ``validation`` is None when nothing is held out."""

    tokenizer: Tokenizer
    training: EncodedPairs
    validation: EncodedPairs | None
    reasons: tuple[Reason, ...]

    def context(self, most: int) -> tuple[int, str]:
        """The least power of two, up to ``most``, that nearly all pairs are no longer than; and why."""
        longer = self.training.lengths.max(1)
        wanted = 2 ** math.ceil(math.log2(max(32.0, float(np.quantile(longer, SHORT_ENOUGH)))))
        found = min(wanted, most)
        return found, f"{np.mean(longer <= found):.1%} of the pairs are no longer; the others are left out"


def prepare_for(
    objective: ObjectiveName,
    texts: tuple[str, ...],
    options: TrainOptions,
    folder: Path,
    reporter: Reporter,
    *,
    resumed: bool = False,
    tokenizer: Tokenizer | None = None,
) -> Prepared | PreparedPairs:
    """Read what is named and encode it, by ``tokenizer`` or one that is learned from it and kept in the folder.

    resumed: the folder holds this very run, so its tokenizer is used. Raises DataError for what cannot be used,
    UsageError for an objective that is not learned from texts, or options that do not go with it.
    """
    if objective == "labels":
        raise UsageError("texts have no labels for a model that tells classes apart", "pass a feed that has them")
    if objective == "seq2seq":
        return _prepare_pairs(texts, options, folder, reporter, resumed, tokenizer)
    special = special_tokens(objective)
    return prepare(texts, options, folder, reporter, resumed=resumed, tokenizer=tokenizer, special=special)


def special_tokens(objective: ObjectiveName) -> list[str]:
    """What a tokenizer that is learned for an objective has beside text, and the token that ends it."""
    if objective in ("mlm", "rtd", "denoise"):
        return [MASK]
    if objective == "fim":
        return list(markers.MIDDLES[0])
    if objective in ("spans", "ul2"):
        return [*(markers.MODES if objective == "ul2" else ()), *markers.sentinel_names()]
    return []


def _prepare_pairs(
    files: tuple[str, ...],
    options: TrainOptions,
    folder: Path,
    reporter: Reporter,
    resumed: bool,
    tokenizer: Tokenizer | None,
) -> PreparedPairs:
    if options.held_out:
        raise UsageError("held_out names documents, and pairs have no names", "use --validation")
    training, validation = split_pairs(read_pairs(files, reporter.message), options.validation, options.seed)
    texts = [text for pair in training for text in pair]
    size, why = choose_vocab_size(options, sum(len(text.encode()) for text in texts))
    path = folder / TOKENIZER
    if resumed and path.exists():
        tokenizer = Tokenizer.load(path)
    else:
        if tokenizer is None:
            with reporter.working("learning the tokenizer", sum(len(text.encode()) for text in texts)) as advance:
                tokenizer = Tokenizer.train(texts, size, advance)
        tokenizer.save(path)
    if validation and not (resumed and (folder / HELD_OUT).exists()):
        write_text(
            folder / HELD_OUT, "".join(json.dumps(pair._asdict(), ensure_ascii=False) + "\n" for pair in validation)
        )
    encoded = encode_pairs(training, tokenizer)
    held = encode_pairs(validation, tokenizer) if validation else None
    reasons = (
        Reason("pairs", f"{len(training):,}", f"{encoded.n_tokens:,} tokens to write"),
        Reason("held out", f"{len(validation):,}", f"pairs, by their source; they are in {HELD_OUT}"),
        Reason("vocab_size", f"{tokenizer.vocab_size:,}", why),
    )
    return PreparedPairs(tokenizer, encoded, held, reasons)


def open_feed(run: Run, prepared: Prepared | PreparedPairs) -> Feed:
    """The feed that a run says it learns from.

    Raises DataError where there is not a single row, or the vocabulary has no token that the objective needs.
    """
    spec, model = run.feed, run.model
    assert isinstance(spec, TextSpec)
    rows: Any = {
        "context": spec.context,
        "batch_size": spec.batch_size,
        "seed": run.seed,
        "rows_at_once": max(1, spec.batch_size // run.runtime.micro_batches),
    }
    if isinstance(prepared, PreparedPairs):
        assert isinstance(model, EncoderDecoderSpec)
        fixed = run.runtime.compile  # a shape more would be compiled again
        shape: Any = {"start_id": model.start_id, "fixed": fixed, "batch_tokens": spec.batch_tokens}
        return PairedText(prepared.training, prepared.validation, **shape, **rows)
    tokenizer, stores = prepared.tokenizer, (prepared.training, prepared.validation)
    if isinstance(model, EncoderDecoderSpec):
        corruption, fixed = _corruption(run.objective.name, spec, tokenizer), run.runtime.compile
        around, start_id = tokenizer.around, model.start_id
        return RewrittenText(*stores, corruption=corruption, around=around, start_id=start_id, fixed=fixed, **rows)
    if run.objective.name == "fim":
        rates = {"fim_rate": spec.fim_rate, "spm_rate": spec.spm_rate}
        marked = Markers(*markers.middles_of(tokenizer))
        return FilledInText(*stores, tokenizer=tokenizer, markers=marked, **rates, **rows)
    if run.objective.name in ("mlm", "rtd"):
        words = WordEdges.of(tokenizer) if spec.whole_words else None
        kind = MaskedText if run.objective.name == "mlm" else ReplacedText
        return kind(*stores, mask_id=_mask_of(tokenizer), words=words, **_asked(spec, "masked"), **rows)
    ahead = model.ahead if isinstance(model, DecoderSpec) else None  # labels that it sees too early are not scored
    return PackedText(*stores, ahead=ahead, **rows)


def _asked(spec: TextSpec, *names: str) -> dict[str, float]:
    """Those of these fields that are asked for; the others are the feed's or the corruption's to say."""
    return {name: getattr(spec, name) for name in names if getattr(spec, name) is not None}


def _mask_of(tokenizer: Tokenizer) -> int:
    if tokenizer.mask_id is None:
        raise DataError("the tokenizer has no [MASK] to hide a token behind", "begin with a model that has one")
    return tokenizer.mask_id


def _corruption(objective: ObjectiveName, spec: TextSpec, tokenizer: Tokenizer) -> Corruption:
    """How an objective rewrites rows. Raises DataError where the vocabulary has no token that it needs."""
    if (end := tokenizer.eos_id) is None:
        raise DataError("the tokenizer has no token that ends a text", "use the tokenizer of a model that writes")
    if objective == "spans":
        return Spans(markers.sentinels_of(tokenizer), end, **_asked(spec, "masked", "span"))
    if objective == "ul2":
        return MixtureOfDenoisers(markers.sentinels_of(tokenizer), end, markers.modes_of(tokenizer))
    stops = sentence_ends(tokenizer) if spec.permute else None
    separator = end if tokenizer.bos_id is None else tokenizer.bos_id
    return Denoising(_mask_of(tokenizer), end, separator, stops=stops, **_asked(spec, "masked", "span"))
