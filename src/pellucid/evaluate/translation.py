"""How good translations are: BLEU and chrF of what a beam search writes, counted by sacrebleu (Post 2018)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pellucid.arguments import checked
from pellucid.checkpoints.by_name import opened
from pellucid.data.pair_files import Pair, read_pairs
from pellucid.errors import UsageError
from pellucid.generate.beam import Beams
from pellucid.generate.decode import generate
from pellucid.nn.models import AnyModel, EncoderDecoder

LONGER = 50  # tokens that a translation may have more than the longest source (Vaswani et al. 2017, section 6.1)


@dataclass(frozen=True)
class Score:
    """A number for a corpus, from 0 to 100. signature: sacrebleu's words for all that it depends on."""

    name: str
    value: float
    signature: str


@dataclass(frozen=True)
class Translated:
    """Pairs, and what a model wrote for each source."""

    pairs: Sequence[Pair]
    written: Sequence[str]

    def scores(self) -> list[Score]:
        """BLEU (Papineni et al. 2002) and chrF (Popović 2015) of all of it. Raises UsageError without sacrebleu."""
        return [_score(metric, self.written, [pair.target for pair in self.pairs]) for metric in metrics()]


def metrics() -> list[Any]:
    """sacrebleu's BLEU and chrF. Raises UsageError where it is not installed."""
    try:
        from sacrebleu.metrics.bleu import BLEU
        from sacrebleu.metrics.chrf import CHRF
    except ImportError as error:
        raise UsageError(f"sacrebleu cannot be used: {error}", "pip install 'pellucid[translation]'") from error
    return [BLEU(), CHRF()]


def _score(metric: Any, written: Sequence[str], wanted: Sequence[str]) -> Score:
    found = metric.corpus_score(list(written), [list(wanted)])
    return Score(str(found.name), float(found.score), str(metric.get_signature()))


@checked(model="give an encoder-decoder, or the name of one")
def translate(
    model: AnyModel | str | Path,
    pairs: str | Path | Sequence[str | Path],
    *,
    beams: int = 4,
    length_penalty: float = 0.6,
    at_once: int = 32,
    limit: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Translated:
    """What an encoder–decoder writes for the sources of files of pairs, as ``data.pair_files`` reads them.

    beams, length_penalty: of the search (``generate.beam.Beams``); 1 beam takes the likeliest token. at_once: sources
    in one batch, those of like length together. limit: translate the first so many pairs alone. Raises UsageError for
    another kind of model, one without a tokenizer, and numbers below 1.
    """
    for name, number in (("beams", beams), ("at_once", at_once), ("limit", 1 if limit is None else limit)):
        if number < 1:
            raise UsageError(f"{name} = {number} cannot be used", "it is at least 1")
    files = [pairs] if isinstance(pairs, str | Path) else pairs
    found = read_pairs([str(file) for file in files])[:limit]
    loaded = opened(model)
    if not isinstance(loaded, EncoderDecoder):
        raise UsageError(f"a {type(loaded).__name__} does not translate", "train an encoder-decoder with --pairs")
    if loaded.tokenizer is None:
        raise UsageError("the model has no tokenizer, so it reads no text", "use another")
    lengths = [len(loaded.tokenizer.encode_prompt(pair.source)) for pair in found]
    most = min(max(lengths) + LONGER, loaded.spec.context)  # of all, so that no text depends on those beside it
    order = sorted(range(len(found)), key=lengths.__getitem__)
    written = [""] * len(found)
    policy = Beams(beams, length_penalty=length_penalty)
    for first in range(0, len(order), at_once):
        group = order[first : first + at_once]
        sources = [found[number].source for number in group]
        for number, said in zip(group, generate(loaded, sources, policy=policy, max_new_tokens=most), strict=True):
            written[number] = said.text
        if progress is not None:
            progress(first + len(group), len(order))
    return Translated(found, written)
