"""Model designs: a choice of parts. Those of ``sized()`` can be trained by name; ``PUBLISHED`` have their sizes.

``DESIGNS`` are language models, all comparable, and ``READERS`` read a whole text, or its prefix, at once.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import get_args

from pellucid.designs import language_models, published, readers
from pellucid.designs.language_models import HEAD_DIM as HEAD_DIM
from pellucid.designs.language_models import classic as classic
from pellucid.designs.language_models import modern as modern
from pellucid.designs.language_models import width as width
from pellucid.designs.own import function_of
from pellucid.designs.published import attention_is_all_you_need as attention_is_all_you_need
from pellucid.errors import SpecError, UsageError, suggest
from pellucid.spec import DecoderSpec, ModelSpec

SIZES = "vocab_size, context, n_layers, d_model and head_dim"
_MODELS = (
    *(language_models.modern, language_models.classic, language_models.parallel, language_models.moe),
    *(language_models.nope, language_models.alibi, language_models.t5_bias),
    *(language_models.window, language_models.sparse),
    *(language_models.linear, language_models.retention, language_models.gated, language_models.delta),
    *(language_models.hybrid, language_models.lstm, language_models.gru, language_models.lstm_attention),
)
DESIGNS: dict[str, Callable[[int, int, int, int, int], DecoderSpec]] = {each.__name__: each for each in _MODELS}
READERS: dict[str, Callable[[int, int, int, int, int], ModelSpec]] = {
    "encoder": readers.encoder,
    "encoder_decoder": readers.encoder_decoder,
    "prefix": readers.prefix,
    "transformer_2017": readers.transformer_2017,
    "discriminator": readers.discriminator,
}
_PUBLISHED = (
    *(published.seq2seq, published.seq2seq_luong),
    *(published.attention_is_all_you_need, published.attention_is_all_you_need_big),
    *(published.bert_base, published.gpt2, published.t5_base, published.llama3_8b),
)
PUBLISHED: dict[str, Callable[[], ModelSpec]] = {each.__name__: each for each in _PUBLISHED}


def sized() -> dict[str, Callable[[int, int, int, int, int], ModelSpec]]:
    """All that take sizes, by name: language models and readers."""
    return {**DESIGNS, **READERS}


def design(name: str) -> Callable[[int, int, int, int, int], ModelSpec]:
    """(vocab_size, context, n_layers, d_model, head_dim) -> spec, by name, or of one's own as ``module:function``.

    Raises SpecError with a suggestion for a name, UsageError for a function that is none or gives no spec.
    """
    if is_own(name):
        return _own(name)
    if name not in sized():
        raise SpecError(f"there is no design {name!r}", suggest(name, sized()))
    return sized()[name]


def is_own(name: str) -> bool:
    """Whether a name is ``module:function`` or ``file.py:function``, and so is run when the design is asked for."""
    return re.fullmatch(r".+:[A-Za-z_]\w*", name) is not None


def _own(name: str) -> Callable[[int, int, int, int, int], ModelSpec]:
    function = function_of(name)

    def sized(vocab_size: int, context: int, n_layers: int, d_model: int, head_dim: int) -> ModelSpec:
        sizes = vocab_size, context, n_layers, d_model, head_dim
        try:
            spec = function(*sizes)
        except TypeError as error:
            raise UsageError(f"{name} cannot be called: {error}", f"it is given {SIZES}") from error
        if not isinstance(spec, get_args(ModelSpec)):
            raise UsageError(f"{name} gave a {type(spec).__name__}, no spec", "e.g. return pellucid.designs.modern(…)")
        return spec

    return sized


def summary(name: str) -> str:
    """What a design or a published model is, in one sentence: the first of its docstring."""
    return ((sized() | PUBLISHED)[name].__doc__ or "").strip().splitlines()[0]
