"""A head that shares its matrix with the table of tokens, and how it gets one of its own."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from pellucid.errors import UsageError
from pellucid.nn.base import Model
from pellucid.nn.embed import Embedding
from pellucid.nn.heads import LMHead
from pellucid.nn.quantised import Matrix
from pellucid.nn.stored import Plain, Quantised, Stored
from pellucid.spec import DecoderSpec, EncoderDecoderSpec, MaskedLMHeadSpec, ModelSpec
from pellucid.surgery.adapted import Adapted


def untied_spec(spec: ModelSpec, tied: bool = False) -> ModelSpec:
    """The model whose head has a matrix of its own instead of the table of tokens; with ``tied``, the way back."""
    if isinstance(spec, EncoderDecoderSpec):
        return replace(spec, decoder=replace(spec.decoder, head=replace(spec.decoder.head, tied=tied)))
    if isinstance(spec, DecoderSpec):
        return replace(spec, head=replace(spec.head, tied=tied))
    assert isinstance(spec.head, MaskedLMHeadSpec)  # no other head is ever tied
    return replace(spec, head=replace(spec.head, tied=tied))


def tied_head(model: Model) -> tuple[str, LMHead, Embedding] | None:
    """(path, the head, the embedding whose table it uses) of a model whose head is tied; None where it is not."""
    prefix = "decoder." if isinstance(model.spec, EncoderDecoderSpec) else ""
    part = model.get_submodule(prefix.removesuffix("."))
    head, embed = getattr(part, "head", None), getattr(part, "embed", None)
    if not isinstance(head, LMHead) or head.weight is not None:
        return None
    assert isinstance(embed, Embedding)
    return f"{prefix}head", head, embed


def table_of(embed: Embedding) -> Stored:
    """The table of tokens as it is stored, without what adapters add."""
    table = embed.tokens
    return table.stored if isinstance(table, Matrix) else Plain(table.weight)


def untie(model: Model) -> None:
    """Give the head a copy of the table as a matrix of its own; logits stay what they were, and the spec says it.

    Raises UsageError for a model whose head is not tied, or that has an adapter which acts in both.
    """
    found = tied_head(model)
    if found is None:
        raise UsageError("the model's head is not tied", "it has a matrix of its own, or none")
    _, head, embed = found
    if isinstance(embed.tokens, Adapted) and any(change.shared and change.rank for change in embed.tokens.changes()):
        raise UsageError("an adapter acts in head and table, which are one matrix", "merge or remove it first")
    stored = table_of(embed)
    if isinstance(stored, Quantised):
        head.register_buffer("weight", stored.blocks.clone())
        head.kind = stored.kind
    else:
        head.weight = nn.Parameter(stored.tensor.detach().clone(memory_format=torch.contiguous_format))
    model.spec = untied_spec(model.spec)
    _name_own(model)


def _name_own(model: Model) -> None:
    """The parts of a model keep specs of their own, which say the same."""
    if isinstance(model.spec, EncoderDecoderSpec):
        part = model.get_submodule("decoder")
        assert isinstance(part, Model)
        part.spec = model.spec.decoder
