"""Run a model once and keep the activations that were asked for."""

from __future__ import annotations

from collections.abc import Iterable

from jaxtyping import Int
from torch import Tensor

from pellucid.engine.modes import evaluating
from pellucid.nn.models import AnyModel, EncoderDecoder


def capture(
    model: AnyModel,
    ids: Int[Tensor, "batch time"],
    names: Iterable[str],
    source: Int[Tensor, "batch source_time"] | None = None,
) -> dict[str, Tensor]:
    """The activations at the points ``names`` (globs allowed), by full name, from one forward pass without gradients.

    source: what an encoder–decoder reads; ``ids`` are then what it writes. Dropout is off during the pass; the model's
    mode is given back. Raises TapError for a name that matches no point.
    """
    with evaluating(model, inference=True), model.taps(read=list(names)) as activations:
        if isinstance(model, EncoderDecoder) and source is not None:
            model(source, ids)
        else:
            model(ids)
        return dict(activations)
