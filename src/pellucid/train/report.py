"""What a run tells whoever watches it. The loop calls these; a display, a notebook or a test listens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from pellucid.batch import Batch
from pellucid.nn.models import AnyModel
from pellucid.train.config import Run


@dataclass(frozen=True)
class Progress:
    """State after one update. loss: nats a token; tokens_per_second: smoothed; utilisation: share of the peak."""

    step: int
    steps: int
    loss: float
    grad_norm: float
    learning_rate: float
    tokens_per_second: float
    utilisation: float
    seconds_left: float


class Reporter:
    """Silent; override what you want to hear."""

    def message(self, text: str) -> None:
        """Something worth a line."""

    @contextmanager
    def working(self, what: str, total: int) -> Iterator[Callable[[int], None]]:
        """A long piece of work of ``total`` bytes; the value is called with how many more are done."""
        yield lambda n: None

    def start(self, run: Run, done: int) -> None:
        """Training begins, or goes on after ``done`` steps."""

    def reading(self, batches: Callable[[], Sequence[Batch]], model: AnyModel) -> None:
        """Before the first step: ``batches`` gives what it reads, ``model`` (with its tokenizer) will read it."""

    def progress(self, state: Progress) -> None:
        """After each update."""

    def validated(self, step: int, metrics: Mapping[str, float]) -> None:
        """After each validation; ``metrics`` by name, the one that the run is judged by first."""

    def sample(self, step: int, text: str) -> None:
        """What the model writes now."""

    def end(self) -> None:
        """Training stops, for whatever reason."""
