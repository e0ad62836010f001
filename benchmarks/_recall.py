"""Associative recall: pairs of a key and a value are read, then keys alone, in another order; what was its value?

::

    ids      k₁ v₁ k₂ v₂ k₃ v₃ ... │ k₂ k₃ k₁ ...      after Arora et al. 2023, "multi-query associative recall"
    labels    ·  ·  ·  ·  ·  ·     │ v₂ v₃ v₁          · is not scored

One model is trained on rows of every number of pairs, and tested on each by itself.
"""

from __future__ import annotations

import math
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
from pellucid.train.parts import OptimizerName
from pellucid.train.schedule import factor
from pellucid.train.step import step

KEYS, VALUES = 64, 16
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
    """A model after training: accuracy by number of pairs, the optimiser that was better, and what its steps took."""

    accuracy: dict[int, float]
    optimizer: OptimizerName
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


def trained(task: Task, name: str, optimizer: OptimizerName, seed: int) -> Decoder:
    """``steps`` updates, each on rows of one number of pairs, drawn anew; the rate falls along a cosine.

    Initial weights and rates are those that ``pellucid train`` would choose (``train.resolve``).
    """
    spec = equal(name)(VOCAB, 3 * max(task.pairs), task.n_layers, task.d_model, task.head_dim)
    model = build(spec, init="fan_in" if optimizer == "muon" else "normal", seed=seed).train()
    rate = (0.03 if optimizer == "muon" else 0.004) * math.sqrt(128 / task.d_model)
    optimizers = build_optimizers(model, optimizer, learning_rate=rate, matrix_learning_rate=0.02, weight_decay=0.05)
    generator = torch.Generator().manual_seed(seed)
    for i in range(task.steps):
        pairs = task.pairs[int(torch.randint(len(task.pairs), (), generator=generator))]
        set_rate(optimizers, factor("cosine", i, task.steps, min(100, task.steps // 10)))
        step(model, optimizers, nll, [recall_batch(TOKENS // (3 * pairs), pairs, generator)])
    return model


def recall(task: Task, name: str, optimizers: Sequence[OptimizerName], seed: int) -> Recall:
    """The better of ``optimizers`` by one set of rows, tested on another."""
    found: list[tuple[float, Decoder, OptimizerName, float]] = []
    for optimizer in optimizers:
        start = time.perf_counter()
        model = trained(task, name, optimizer, seed)
        seconds = time.perf_counter() - start
        score = sum(accuracy(model, n, SEED_OF_CHOICE) for n in task.pairs)
        found.append((score, model, optimizer, seconds))
    _, model, optimizer, seconds = max(found, key=lambda one: one[0])
    tested = {n: accuracy(model, n, SEED_OF_TEST) for n in task.pairs}
    return Recall(tested, optimizer, model.n_parameters, seconds)
