"""The ways on which a model of ours is left and entered again: training's loss, files, other programs."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

import pellucid.api as api
from pellucid.batch import IGNORE, Batch, Source, Tokens
from pellucid.data.packing import Packed
from pellucid.data.store import VERSION, Manifest, TokenStore
from pellucid.engine.modes import evaluating
from pellucid.errors import CheckpointError
from pellucid.nn.heads import PoolerHead
from pellucid.nn.models import AnyModel, Decoder, Encoder, EncoderDecoder
from pellucid.train.objectives import nll
from pellucid.verify.graph import Graph
from pellucid.verify.reading import Reading
from pellucid.verify.subject import NotApplicable, Pairs, Subject


def as_training_reads(ids: Int[Tensor, "batch time"], device: torch.device) -> Batch:
    """Rows of a store, as ``pellucid.data.packing`` cuts them: it is there that labels are shifted."""
    rows: list[Batch] = []
    for row in ids.numpy():
        none = np.zeros(1, np.int64)
        about = Manifest(VERSION, "uint32", len(row), 1, 0, -1, "", "", "", {})  # no id begins a document
        store = TokenStore(Path(), about, row.astype(np.uint32), none, none, np.zeros(int(row.max()) + 1, np.uint16))
        rows.append(Packed(store, len(row) - 1, seed=0).samples(0, 1))
    read = torch.cat([row.ids for row in rows]).to(device)
    labels = torch.cat([row.labels for row in rows]).to(device)
    return Batch(read, Tokens.plain(*read.shape, device=device), labels)


@torch.no_grad()
def loss(model: AnyModel, reading: Reading, labels: Int[Tensor, "batch time"]) -> float:
    """The objective's sum over its count. Raises NotApplicable for a model that predicts nothing."""
    if isinstance(model, Encoder) and (model.head is None or isinstance(model.head, PoolerHead)):
        raise NotApplicable("an encoder without a head that predicts computes no loss")
    device = _first(model).device
    if isinstance(model, Decoder):
        batch = as_training_reads(reading.ids, device)
        batch = replace(batch, labels=batch.labels.masked_fill(labels[:, 1:].to(device) == IGNORE, IGNORE))
    else:
        reading = reading.to(device)
        source = reading.source and Source(reading.source.ids, Tokens.plain(*reading.source.shape, device=device))
        places = Tokens.plain(*reading.shape, device=device)
        batch = Batch(reading.ids, places, labels.to(device), source=source)
    with evaluating(model):
        return float(nll(model, batch)) / nll.count(batch)


def saved(model: AnyModel, folder: Path) -> AnyModel:
    """Through our own format, in the type that it has."""
    api.save(model, folder / "native")
    return api.load(folder / "native", _first(model).dtype).to(_first(model).device)


def through_gguf(model: AnyModel, path: Path, quantisation: api.Quantisation) -> AnyModel:
    """Raises NotApplicable, saying why, for a model that llama.cpp cannot run."""
    try:
        api.convert(model, path, "gguf", quantisation=quantisation)
    except CheckpointError as error:
        raise NotApplicable(f"it has no GGUF: {error.problem}") from error
    loaded = api.load(path, _first(model).dtype, tokenizer=model.tokenizer is not None)
    return loaded.to(_first(model).device)


def through_transformers(model: AnyModel, folder: Path, name: str) -> Subject:
    """Opened by transformers. Raises NotApplicable for a model that no family of theirs can express."""
    if find_spec("transformers") is None:
        raise NotApplicable("transformers, which would open it, is not installed")
    try:
        api.convert(model, folder / "hf", "hf")
    except CheckpointError as error:
        raise NotApplicable(f"transformers has no such model: {error.problem}") from error
    from pellucid.verify.hugging_face import load_hugging_face

    opened = load_hugging_face(folder / "hf", name)
    if isinstance(model, Encoder) and isinstance(model.head, PoolerHead):
        if model.head.dense is None:
            raise NotApplicable("transformers gives a state for each token, and leaves it to others to pool them")
        opened.pooled, opened.per_token = True, False
    opened.model.to(_first(model).device)
    return opened


def tied(model: AnyModel) -> Pairs:
    """The head's table and the embedding's; the tables of two sides that share one."""
    pairs: Pairs = []
    for side, prefix in _sides(model):
        embedding, head = _table(side), getattr(side, "head", None)
        if getattr(side.spec.head, "tied", False) and head is not None:
            pairs.append((f"{prefix}embed.tokens.weight", embedding, f"{prefix}head.weight", head.table(embedding)))
    if isinstance(model, EncoderDecoder) and model.spec.shared_embedding:
        tables = _table(model.encoder), _table(model.decoder)
        pairs.append(("encoder.embed.tokens.weight", tables[0], "decoder.embed.tokens.weight", tables[1]))
    return pairs


def _table(side: Decoder | Encoder) -> Tensor:
    """The vectors of its tokens, as they are stored: of a quantised table, the blocks."""
    weight = side.embed.tokens.weight
    assert weight is not None
    return weight


def graph(subject: Subject, model: AnyModel) -> Graph:
    """The whole forward as one graph of torch.export."""
    device = _first(model).device

    def arguments(reading: Reading) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
        reading = reading.to(device)
        return (reading.ids,) if reading.source is None else (reading.source.ids, reading.ids), {}

    return Graph(subject, model, arguments, lambda out: (out if out.ndim == 3 else out[:, None]).cpu())


def _first(model: AnyModel) -> Tensor:
    """A weight, whose type and device are the model's."""
    return next(model.parameters())


def _sides(model: AnyModel) -> list[tuple[Decoder | Encoder, str]]:
    if isinstance(model, EncoderDecoder):
        return [(model.encoder, "encoder."), (model.decoder, "decoder.")]
    return [(model, "")]
