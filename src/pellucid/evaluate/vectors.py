"""One vector for each text, from an encoder whose head pools (Reimers & Gurevych 2019)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from pellucid.arguments import checked
from pellucid.batch import Tokens
from pellucid.checkpoints.by_name import opened
from pellucid.engine.modes import evaluating
from pellucid.errors import UsageError, suggest
from pellucid.nn.heads import PoolerHead
from pellucid.nn.models import AnyModel, Encoder

BATCH_TOKENS = 8192  # in one forward, padding included


@checked(model="give an encoder that pools, e.g. of pellucid.load, or the name of one")
def embed(
    model: AnyModel | str | Path,
    texts: str | Sequence[str],
    *,
    prompt: str | None = None,
    prompt_name: str | None = None,
    batch_tokens: int = BATCH_TOKENS,
) -> Float[Tensor, "texts d_model"]:
    """The vector of each text, read as the model expects: in ``[CLS]`` … ``[SEP]``, cut to its greatest length, behind
    its prompt.

    prompt: a text to put before each, in place of the model's default. prompt_name: one of the model's own prompts
    (``model.sentences["prompts"]``), such as "query". Many texts are read in one forward, of up to ``batch_tokens``
    tokens; each gets the vector that it would get alone, but for rounding. The model's mode is left as it was, and
    nothing is recorded for gradients. Raises UsageError for a model that gives no vector of a text or has no tokenizer,
    and for a prompt that it does not have. ::

        model = pellucid.load("sentence-transformers/all-MiniLM-L6-v2")
        a, b = pellucid.embed(model, ["A cat sat down.", "A feline took a seat."])
        print(torch.cosine_similarity(a, b, dim=0))
    """
    model = opened(model)
    if not isinstance(model, Encoder) or not isinstance(model.head, PoolerHead):
        raise UsageError(
            f"this {type(model).__name__} gives no vector of a text",
            "load a folder of sentence-transformers, or build an encoder whose spec has head=PoolerHeadSpec(...)",
        )
    if model.tokenizer is None:
        raise UsageError("the model has no tokenizer", "set model.tokenizer, or load a folder that holds one")
    before = _prompt(model, prompt, prompt_name)
    listed = [texts] if isinstance(texts, str) else list(texts)
    rows: list[list[int]] = [model.tokenizer.encode_prompt(text, before) for text in listed]
    skipped = 0 if model.sentences.get("pool_prompt", True) else _length(model, before)
    vectors = torch.empty(len(rows), model.spec.d_model, dtype=model.dtype, device=model.device)
    with evaluating(model, inference=True):
        for places in _batches([len(row) for row in rows], batch_tokens):
            vectors[places] = _pooled(model, [rows[place] for place in places], skipped)
    return vectors


def _prompt(model: Encoder, prompt: str | None, name: str | None) -> str:
    """What is put before each text."""
    if name is None:
        return model.tokenizer.prompt if prompt is None else prompt
    known = model.sentences.get("prompts", {})
    if prompt is not None:
        raise UsageError(f"prompt and prompt_name = {name!r} are two prompts", "give one of them")
    if name not in known:
        raise UsageError(
            f"the model has no prompt {name!r}", suggest(name, known) if known else "give the text itself as prompt="
        )
    return known[name]


def _length(model: Encoder, prompt: str) -> int:
    """How many tokens at the beginning of a text are the prompt's, the one that begins every text included."""
    if not prompt:
        return 0
    ids = model.tokenizer.encode_prompt(prompt, "")
    return len(ids) - (ids[-1] in model.tokenizer.special.values())


def _batches(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """The numbers of all rows, those of like length together, as many as fit."""
    batches: list[list[int]] = []
    for place in sorted(range(len(lengths)), key=lambda place: -lengths[place]):
        if not batches or (len(batches[-1]) + 1) * lengths[batches[-1][0]] > batch_tokens:
            batches.append([])
        batches[-1].append(place)
    return batches


def _pooled(model: Encoder, rows: Sequence[Sequence[int]], skipped: int) -> Float[Tensor, "rows d_model"]:
    longest = max(1, *map(len, rows))
    ids = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows], device=model.device)
    lengths = torch.tensor([len(row) for row in rows], device=model.device)
    there = torch.arange(longest, device=model.device) < lengths[:, None]
    tokens = Tokens.padded(there)
    states = model.states(ids, tokens)
    assert isinstance(model.head, PoolerHead)
    pooled = replace(tokens, pos=tokens.pos.masked_fill(tokens.pos < skipped, -1)) if skipped else tokens
    return model.head(states, pooled)
