"""What is asked of a model of the transformers library: its losses, its own shift of labels, its first steps."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pellucid.batch import IGNORE
from pellucid.doctor.ours import moved
from pellucid.doctor.subject import Row
from pellucid.engine.modes import evaluating

CLOSE = 1e-3  # of a loss, below which two are one
SURE = 10  # times: how much nearer one has to be than the other
FILLS = {"labels": IGNORE, "input_ids": 0, "attention_mask": 0, "position_ids": 0, "token_type_ids": 0}


def shift_of(model: Any, batch: Mapping[str, Tensor]) -> int:
    """How far a model moves labels itself: 1, as those of transformers do, unless its own loss says 0."""
    with evaluating(model), torch.no_grad():
        out = model(**batch)
    logits, labels = out.logits.float(), batch["labels"]
    found: dict[int, float] = {}
    for step in (1, 0):
        scored = F.cross_entropy(
            logits[:, : logits.shape[1] - step].flatten(0, 1), labels[:, step:].flatten(), ignore_index=IGNORE
        )
        found[step] = abs(float(scored - out.loss))
    return 0 if found[0] <= CLOSE * abs(float(out.loss)) and SURE * found[0] < found[1] else 1


@dataclass(frozen=True, eq=False)
class Trial:
    """A transformers model. rows: those that its steps are tried on."""

    model: Any
    learning_rate: float | None
    micro_batches: int
    rows: Sequence[Row]

    @torch.no_grad()
    def loss(self, rows: Sequence[Row]) -> float:
        with evaluating(self.model):
            return float(self.model(**_together(rows)).loss)

    @torch.no_grad()
    def accumulated(self, rows: Sequence[Row]) -> float | None:
        """As the library's trainer does: sums over the count of the step, where the model takes that, or else means."""
        if self.micro_batches < 2:
            return None
        scored = sum(len(row.scored) for row in rows)
        with evaluating(self.model):
            if self._takes_count:
                return sum(float(self.model(**row.origin, num_items_in_batch=scored).loss) for row in rows)
            return sum(float(self.model(**row.origin).loss) for row in rows) / len(rows)

    @torch.no_grad()
    def crosstalk(self, row: Row) -> float:
        first, *_, last = row.pieces()
        other = {name: value.clone() for name, value in row.origin.items()}
        size = self.model.get_input_embeddings().weight.shape[0]
        ids = other["input_ids"]
        ids[0, first.start : first.stop] = (ids[0, first.start : first.stop] + 1) % size
        with evaluating(self.model):
            before, after = (self.model(**each).logits[0, last.start : last.stop] for each in (row.origin, other))
        return moved(before, after)

    def steps(self, n: int) -> list[float]:
        """AdamW, on a copy."""
        if self.learning_rate is None or not self.rows:
            return []
        model, losses = copy.deepcopy(self.model).train(), list[float]()
        learning = [each for each in model.parameters() if each.requires_grad]
        optimiser = torch.optim.AdamW(learning, self.learning_rate) if learning else None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            for _ in range(n if optimiser else 0):
                assert optimiser is not None
                optimiser.zero_grad()
                loss = model(**_together(self.rows)).loss
                losses.append(float(loss.detach()))
                if not losses[-1] < float("inf"):
                    break
                loss.backward()
                optimiser.step()
        return losses

    @property
    def _takes_count(self) -> bool:
        """Whether the library's trainer gives the model the number of scored places of a step."""
        if (said := getattr(self.model, "accepts_loss_kwargs", None)) is not None:
            return bool(said)
        named = inspect.signature(self.model.forward).parameters.values()
        return any(each.kind is each.VAR_KEYWORD or each.name == "num_items_in_batch" for each in named)

    @property
    def trainable(self) -> int:
        return sum(each.numel() for each in self.model.parameters() if each.requires_grad)


def _together(rows: Sequence[Row]) -> dict[str, Tensor]:
    """What the collator gave for these rows, as one batch; shorter ones are padded on the right."""
    batch: dict[str, Tensor] = {}
    for name in rows[0].origin:
        parts = [row.origin[name] for row in rows]
        longest = max(part.shape[-1] for part in parts)
        padded = [F.pad(part, (0, longest - part.shape[-1]), value=FILLS.get(name, 0)) for part in parts]
        batch[name] = torch.cat(padded) if parts[0].ndim > 1 else torch.cat(parts)
    return batch
