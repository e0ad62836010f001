"""Associative recall: pairs of a key and a value are read, then keys alone, in another order; what was its value?

::

    ids      k₁ v₁ k₂ v₂ k₃ v₃ ... │ k₂ k₃ k₁ ...      after Arora et al. 2023, "multi-query associative recall"
    labels    ·  ·  ·  ·  ·  ·     │ v₂ v₃ v₁          · is not scored

One model is trained on rows of every number of pairs, and tested on each by itself.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from _equal import equal

from pellucid.api import build
from pellucid.batch import IGNORE, Batch, Tokens
from pellucid.nn.models import Decoder
from pellucid.train.objectives import nll
from pellucid.train.optim import build_optimizers, set_rate
from pellucid.train.schedule import factor
from pellucid.train.step import step

KEYS, VALUES = 128, 64
VOCAB = KEYS + VALUES
TOKENS = 3072  # of one update, however long its rows are
TESTED = 4096  # queries that a model is tested on, at each number of pairs
SEED_OF_CHOICE, SEED_OF_TEST = 10_001, 10_002  # of batches that are never trained on


def recall_batch(rows: int, pairs: int, generator: torch.Generator) -> Batch:
    """Rows of ``pairs`` pairs and as many queries, 3 · pairs tokens; keys of a row are all different."""
    keys = torch.rand(rows, KEYS, generator=generator).argsort(-1)[:, :pairs]
    values = KEYS + torch.randint(VALUES, (rows, pairs), generator=generator)
    order = torch.rand(rows, pairs, generator=generator).argsort(-1)
    read = torch.stack((keys, values), -1).flatten(1)
    ids = torch.cat((read, keys.gather(1, order)), 1)
    labels = torch.cat((torch.full_like(read, IGNORE), values.gather(1, order)), 1)
    return Batch(ids, Tokens.plain(rows, 3 * pairs), labels)


def accuracy(model: Decoder, pairs: int, seed: int) -> float:
    """Share of queries that are answered with the right value."""
    batch = recall_batch(max(1, TESTED // pairs), pairs, torch.Generator().manual_seed(seed))
    asked = batch.labels != IGNORE
    model.eval()
    with torch.no_grad():
        said = model(batch.ids, batch.tokens).argmax(-1)
    model.train()
    return float((said == batch.labels)[asked].float().mean())


@dataclass(frozen=True)
class Recall:
    """A model after training: accuracy by number of pairs, the rate that was best, and what it took."""

    accuracy: dict[int, float]
    rate: float
    parameters: int
    seconds: float


@dataclass(frozen=True)
class Task:
    """What every model is given."""

    pairs: tuple[int, ...]
    steps: int
    n_layers: int = 2
    d_model: int = 64
    head_dim: int = 16


def trained(task: Task, name: str, rate: float, seed: int) -> Decoder:
    """``steps`` updates of AdamW, each on rows of one number of pairs, drawn anew; the rate falls along a cosine."""
    spec = equal(name)(VOCAB, 3 * max(task.pairs), task.n_layers, task.d_model, task.head_dim)
    model = build(spec, seed=seed).train()
    optimizers = build_optimizers(model, "adamw", learning_rate=rate, matrix_learning_rate=rate, weight_decay=0.01)
    generator = torch.Generator().manual_seed(seed)
    for i in range(task.steps):
        pairs = task.pairs[int(torch.randint(len(task.pairs), (), generator=generator))]
        set_rate(optimizers, factor("cosine", i, task.steps, min(100, task.steps // 10)))
        step(model, optimizers, nll, [recall_batch(TOKENS // (3 * pairs), pairs, generator)])
    return model


def recall(task: Task, name: str, rates: Sequence[float], seed: int) -> Recall:
    """The best of ``rates`` by one set of rows, tested on another."""
    start = time.perf_counter()
    models = {rate: trained(task, name, rate, seed) for rate in rates}
    seconds = (time.perf_counter() - start) / len(rates)
    score = {rate: sum(accuracy(model, n, SEED_OF_CHOICE + seed) for n in task.pairs) for rate, model in models.items()}
    best = max(score, key=lambda rate: score[rate])
    tested = {n: accuracy(models[best], n, SEED_OF_TEST + seed) for n in task.pairs}
    return Recall(tested, best, models[best].n_parameters, seconds)
