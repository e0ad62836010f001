"""From what was prepared to the feed of a run."""

from __future__ import annotations

from pellucid.data.feed import Feed, PackedText
from pellucid.spec import DecoderSpec, ModelSpec
from pellucid.train.config import ObjectiveName
from pellucid.train.prepare import Prepared


def open_feed(
    prepared: Prepared,
    objective: ObjectiveName,
    model: ModelSpec | None = None,
    *,
    context: int,
    batch_size: int,
    micro_batches: int,
    seed: int,
) -> Feed:
    """The feed that this objective learns from. model: where it sees later tokens, their labels are not scored.

    Raises DataError where there is not a single row.
    """
    return PackedText(
        prepared.training,
        prepared.validation,
        context=context,
        batch_size=batch_size,
        seed=seed,
        rows_at_once=max(1, batch_size // micro_batches),
        ahead=model.ahead if isinstance(model, DecoderSpec) else None,
    )
