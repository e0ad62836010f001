"""What a check may ask of a model, whoever made it. What a model cannot be asked is never taken for a kept promise.

The contract between checks and adapters (``ours``, ``hugging_face``, ``function``):

- A check asks a ``Subject`` and nothing else: it never knows whose model it is.
- ``run`` every adapter has. Each other method is a capability: here it raises ``NotApplicable`` with the reason, and an
  adapter that has it overrides it. A check just calls what it needs; the exception becomes its verdict.
- Methods that give another model (``compiled``, ``in_dtype``, ``roughened``, ``saved``, ``exported``, ``quantised``)
  give a Subject of the same kind, so that a check is: the same readings through both, and how far apart they come out.
- The model is in eval mode and as it was, once a method has returned. Nothing is written outside the ``folder`` given.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NoReturn

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pellucid.verify.reading import Reading, Side

Kind = Literal["decoder", "encoder", "encoder-decoder"]
Maker = Literal["pellucid", "transformers", "function"]
Pairs = list[tuple[str, Tensor, str, Tensor]]  # two weights, each after its name


@dataclass(frozen=True)
class Written:
    """New ids of a row, and ln p of each under the model itself, as the loop saw it."""

    ids: list[int]
    logprobs: list[float]


class NotApplicable(Exception):
    """A promise that cannot be tried on this subject; the message says why."""


class Subject(ABC):
    """A model to be tried. Without a cache, gradients, files, ... until an adapter says otherwise.

    name: as a person calls it. maker: whose code computes. kind: of these three. vocab, context: sizes of the side that
    writes (or of the only one); context None: unknown. vocab_is_known: said, not inferred, so that other ids are wrong.
    width, depth: d_model and layers, for estimates of rounding. dtype: of the weights. pad_id: what stands where no
    token does; never among ids that are drawn. start_id: what the decoder of an encoder–decoder reads first. prefix:
    the first so many places may see each other (a prefix language model). marked: so may all places of a prompt
    (``Reading.prefix``). per_token: outputs are (batch, time, features); otherwise (batch, 1, features), one a row.
    tokenizer: see ``text``; None: has none.
    """

    name: str
    maker: Maker
    kind: Kind
    vocab: int
    vocab_is_known: bool = True
    context: int | None = None
    width: int = 1024
    depth: int = 24
    dtype: torch.dtype = torch.float32
    pad_id: int = 0
    start_id: int | None = None
    prefix: int = 0
    marked: bool = False
    per_token: bool = True
    tokenizer: Any = None  # a pellucid.verify.text.Speller

    @property
    def source_vocab(self) -> int:
        """Entries of the vocabulary of what an encoder reads; the model's own where there is no other."""
        return self.vocab

    @property
    def choices(self) -> int:
        """How many ids generation chooses among: the first so many."""
        return self.vocab

    @property
    def refused(self) -> Sequence[int]:
        """Those of ``choices`` that generation never writes, however likely they are."""
        return ()

    @cached_property
    def sensitivity(self) -> float:
        """How far one rounding of the vectors that it reads moves outputs (``measure.distance``); 0: unknown."""
        return 0.0

    @cached_property
    def turbulence(self) -> float:
        """``sensitivity`` over many more numbers: how far any output was seen to move."""
        return 0.0

    @abstractmethod
    def run(self, reading: Reading) -> Float[Tensor, "batch places features"]:
        """Logits, or what the model gives instead; of padding's places too, whatever it is there. No gradient."""

    # --- what not every model can do ---------------------------------------------------------------------------------

    def _cannot(self, what: str) -> NoReturn:
        raise NotApplicable(f"{self.name} {what}")

    def refuse_padding(self, side: Side) -> None:
        """Raise NotApplicable where ``Reading.valid`` means nothing to this model, or not with padding on this side."""
        self._cannot("cannot be told which places hold a token")

    def gradient(self, reading: Reading, score: Callable[[Tensor], Tensor]) -> Float[Tensor, "batch time d_model"]:
        """Gradient of ``score(run(reading))`` with respect to the vector of each of ``reading.ids``."""
        self._cannot("gives no gradients")

    def in_pieces(self, reading: Reading, cuts: Sequence[int]) -> Float[Tensor, "batch places features"]:
        """``run``, read over a cache in pieces that end at ``cuts`` (the last is the whole length)."""
        self._cannot("has no cache")

    def packed(self, documents: Sequence[Tensor]) -> list[Tensor]:
        """Outputs (time, features) of each document, a row of ids, all read in one row and told apart."""
        self._cannot("cannot be told where a document ends in a row")

    def generate(self, reading: Reading, n: int, seed: int | None) -> list[Written]:
        """``n`` new ids after each row (padded on the left) or for each source.

        seed: for sampling; None: the likeliest each time.
        """
        self._cannot("does not generate")

    def loss(self, reading: Reading, labels: Int[Tensor, "batch time"]) -> float:
        """Mean -ln p in nats, as training would be given it: labels are ``reading.ids``, -100 where nothing is scored.

        For a decoder it is the model (or what calls it) that shifts, once. For an encoder and an encoder–decoder
        labels stand at the place that predicts them.
        """
        self._cannot("computes no loss")

    def compiled(self) -> AbstractContextManager[Subject]:
        """The same model, compiled while the block runs."""
        self._cannot("cannot be compiled")

    def in_dtype(self, dtype: torch.dtype) -> Subject:
        """A copy with weights and arithmetic of this type."""
        self._cannot("has no weights to convert")

    def roughened(self) -> Subject:
        """A copy whose weights are as far from these as rounding to bfloat16 takes numbers (``modules.roughen``)."""
        self._cannot("has no weights to round")

    def saved(self, folder: Path) -> Subject:
        """Saved in ``folder`` as its maker does, and loaded from there."""
        self._cannot("cannot be saved")

    def exports(self) -> dict[str, Callable[[Path], Subject]]:
        """The forms it can be exported to ("transformers", "gguf", "graph"), each with what does that in a folder and
        opens the result."""
        self._cannot("has no export")

    def quantised(self, folder: Path) -> Subject:
        """Through a Q8_0 GGUF file in ``folder`` and back."""
        self._cannot("has no quantised form")

    def tied(self) -> Pairs:
        """Pairs of weights that its description says are one."""
        self._cannot("does not say which weights are tied")
