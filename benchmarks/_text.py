"""What a language model learns from text in equal time: ``pellucid.train``, as anybody would call it."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from _equal import Size, register

from pellucid.train.config import Run, TrainOptions
from pellucid.train.parts import OptimizerName
from pellucid.train.report import Progress, Reporter
from pellucid.train.run import train


class Watch(Reporter):
    """Bits per byte over seconds of training: validation is left out."""

    def __init__(self) -> None:
        self.points: list[tuple[float, float]] = []
        self.run: Run | None = None
        self.trained = self._since = 0.0

    def start(self, run: Run, done: int) -> None:
        self.run, self._since = run, time.perf_counter()

    def progress(self, state: Progress) -> None:
        now = time.perf_counter()
        self.trained, self._since = self.trained + now - self._since, now

    def validated(self, step: int, metrics: Mapping[str, float]) -> None:
        self.points.append((self.trained, metrics["bits_per_byte"]))
        self._since = time.perf_counter()


@dataclass(frozen=True)
class Text:
    """One run: bits per byte of all held-out text in the end, and of its beginning on the way, by seconds."""

    optimizer: OptimizerName
    parameters: int
    bits_per_byte: float
    steps: int
    tokens: int
    seconds: float
    curve: tuple[tuple[float, float], ...]


def learn_text(name: str, size: Size, optimizer: OptimizerName, asked: TrainOptions, texts: Sequence[str]) -> Text:
    """A run into a folder that is thrown away."""
    watch = Watch()
    with tempfile.TemporaryDirectory() as folder:
        result = train(
            texts, folder, options=asked, reporter=watch, design=register(name), optimizer=optimizer,
            depth=size.n_layers, d_model=size.d_model, head_dim=size.head_dim, vocab_size=size.vocab_size,
            context=size.context,
        )  # fmt: skip
    assert watch.run is not None
    tokens = result.steps * watch.run.tokens_per_step
    parameters = result.model.n_parameters
    return Text(
        optimizer, parameters, result.metrics["bits_per_byte"], result.steps, tokens, watch.trained, tuple(watch.points)
    )


def best_of(runs: Sequence[Text]) -> Text:
    return min(runs, key=lambda one: one.bits_per_byte)
