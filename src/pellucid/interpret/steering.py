"""Directions that stand for a concept, and steering by them: the difference of means (Rimsky et al. 2023, section 3).

::

    steering = contrast(model, ["I love this", ...], ["I hate this", ...], layers=[6])
    with steering.applied(model, 2.0):
        pellucid.generate(model, "The film was")
    steering.save("praise.gguf", model)             # llama.cpp: --control-vector praise.gguf
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from pellucid.arguments import checked
from pellucid.checkpoints.gguf.control import read_control, write_control
from pellucid.errors import UsageError
from pellucid.interpret.choice import layer_of
from pellucid.interpret.edits import Add
from pellucid.interpret.pairs import Prompt, rows_of
from pellucid.interpret.record import capture
from pellucid.nn.models import Decoder
from pellucid.nn.wide import wide


@dataclass(frozen=True)
class Steering:
    """A vector for each of some layers, to be added to the stream that leaves it (``blocks.N.resid_post``)."""

    vectors: Mapping[int, Float[Tensor, " d_model"]]

    @contextmanager
    def applied(self, model: Decoder, strength: float = 1.0) -> Iterator[None]:
        """Add strength · vector in every forward of the model meanwhile. Raises UsageError for other sizes."""
        for layer, vector in self.vectors.items():
            if layer >= model.spec.n_layers or len(vector) != model.spec.d_model:
                sizes = f"{model.spec.n_layers} layers of width {model.spec.d_model}"
                raise UsageError(f"a vector of {len(vector)} numbers for layer {layer}; this model has {sizes}")
        edits = {
            f"{model.path}blocks.{layer}.resid_post": Add(vector.to(model.device), strength)
            for layer, vector in self.vectors.items()
        }
        with model.taps(edit=edits):
            yield

    def scores(self, model: Decoder, text: Prompt) -> Mapping[int, Float[Tensor, "batch time"]]:
        """How far each token's state lies along the direction of each layer, in lengths of its vector."""
        acts = capture(model, rows_of(model, text), [f"blocks.{layer}.resid_post" for layer in self.vectors])
        along: dict[int, Tensor] = {}
        for name, x in acts.items():
            layer = layer_of(name)
            assert layer is not None
            vector = wide(self.vectors[layer]).to(x.device)
            along[layer] = wide(x) @ vector / vector.square().sum()
        return along

    def save(self, path: str | Path, model: Decoder) -> None:
        """Write a control vector that llama.cpp applies alike (``--control-vector``), whole or not at all.

        Raises UsageError for a vector of layer 0, which such files cannot hold.
        """
        write_control(Path(path), {layer: vector.float().cpu() for layer, vector in self.vectors.items()}, model.spec)

    @staticmethod
    def open(path: str | Path) -> Steering:
        """Read a control vector. Raises CheckpointError for a file that is none."""
        return Steering(read_control(Path(path)))


@checked(model="give a decoder, e.g. of pellucid.load")
def contrast(
    model: Decoder,
    towards: Sequence[Prompt],
    away: Sequence[Prompt],
    *,
    layers: Sequence[int] | None = None,
    read: int | None = -1,
) -> Steering:
    """The mean state of some texts minus that of others, after each layer (default: all but the first).

    read: the position whose state counts, by default the last; None: the mean over each text. Raises UsageError where a
    side has no texts, and for layers and positions that there are not.
    """
    if not towards or not away:
        raise UsageError(f"{len(towards)} texts on one side, {len(away)} on the other", "give one of each at least")
    layers = range(1, model.spec.n_layers) if layers is None else layers
    ends = [_mean(model, texts, list(layers), read) for texts in (towards, away)]
    return Steering({layer: ends[0][layer] - ends[1][layer] for layer in ends[0]})


def _mean(
    model: Decoder, texts: Sequence[Prompt], layers: list[int], read: int | None
) -> dict[int, Float[Tensor, " d_model"]]:
    sums: dict[int, Tensor] = {}
    for text in texts:
        places = None if read is None else [read]
        acts = capture(model, rows_of(model, text), "blocks.*.resid_post", layers=layers, positions=places)
        for name, x in acts.items():
            layer = layer_of(name)
            assert layer is not None
            sums[layer] = sums.get(layer, torch.zeros(())) + wide(x).mean((0, 1)).cpu() / len(texts)
    return sums
