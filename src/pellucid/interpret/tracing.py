"""Causal tracing: where a model looks up a fact (Meng et al. 2022, section 2).

The subject of a prompt is drowned in noise, so that the model no longer knows the answer; then single states of the
clean run are restored. Where the answer comes back, the state carries it. ::

    found = trace(model, "The Eiffel Tower is in the city of", "The Eiffel Tower")
    found.restored("resid_post")       # (layer, position): p(answer) with that state alone restored
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pellucid.arguments import checked
from pellucid.errors import UsageError
from pellucid.interpret.answers import Answer, Measure, place_of
from pellucid.interpret.pairs import Prompt, rows_of
from pellucid.interpret.patching import Cells, Grid, axes_of, embedded
from pellucid.interpret.record import capture
from pellucid.interpret.sweep import Run
from pellucid.nn.models import Decoder

POINTS = ("resid_post", "ffn_out", "attn_out")


@dataclass(frozen=True)
class Trace:
    """Causal traces of one prompt. subject: its first position, and the one behind its last. answer: a token id.

    clean, corrupt: the answer's measure without noise, and with it, mean over the noise that was drawn. grids: by
    point, the measure with one state (or a window of layers) restored, (layer, position, sample).
    """

    ids: Int[Tensor, " time"]
    subject: tuple[int, int]
    answer: int
    clean: float
    corrupt: float
    grids: Mapping[str, Grid]

    def restored(self, point: str = "resid_post") -> Float[Tensor, "layer position"]:
        """The answer's measure with the states of one point restored, mean over the noise that was drawn."""
        return self.grids[point].scores.mean(-1)

    def indirect_effect(self, point: str = "resid_post") -> Float[Tensor, "layer position"]:
        """What restoring gives back: ``restored`` - ``corrupt``."""
        return self.restored(point) - self.corrupt

    @property
    def total_effect(self) -> float:
        """What the noise takes: ``clean`` - ``corrupt``."""
        return self.clean - self.corrupt


@checked(model="give a decoder, e.g. of pellucid.load")
def trace(
    model: Decoder,
    prompt: Prompt,
    subject: str | tuple[int, int],
    right: int | None = None,
    *,
    noise: float = 3.0,
    samples: int = 10,
    seed: int = 0,
    points: Sequence[str] = POINTS,
    window: int | None = None,
    measure: Measure = "prob",
    read: int = -1,
) -> Trace:
    """Restore each state of a prompt whose subject is drowned in noise, and measure the answer.

    subject: words of the prompt, or (first position, the one behind the last). right: the answer (default: what the
    model itself finds likeliest). noise: its standard deviation, in those of the numbers that enter the first block.
    samples: how often it is drawn. points: "resid_post" is restored alone; of the others a window of layers around the
    cell's, by default a fifth of the model. Raises UsageError for a subject that the prompt does not hold, and for more
    than one prompt.
    """
    ids = rows_of(model, prompt)
    if len(ids) != 1 or samples < 1 or noise <= 0:
        raise UsageError(
            f"{len(ids)} prompts, samples = {samples}, noise = {noise}", "trace one prompt, with noise, at least once"
        )
    place, (first, end) = place_of(ids, read), span_of(model, ids[0], subject)
    clean_stream = embedded(model, ids)
    clean = Run.of(model, clean_stream, place)
    if right is None:
        right = int(_likeliest(clean))
    answer = Answer.of(model, right, None, samples, measure)
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(samples, end - first, clean_stream.shape[-1], generator=generator).to(clean_stream)
    drowned = clean_stream.repeat(samples, 1, 1)
    drowned[:, first:end] += noise * clean_stream.std() * drawn
    run = Run.of(model, drowned, place)
    width = max(1, model.spec.n_layers // 5) if window is None else window
    target = clean.score(Answer.of(model, right, None, 1, measure))
    grids: dict[str, Grid] = {}
    for point in points:
        states = capture(model, ids[:, : run.time], [f"blocks.*.{point}"])
        donors = {name: x.expand(samples, *x.shape[1:]) for name, x in states.items()}
        alone = 1 if point.startswith("resid") else width
        cells = Cells(run, point, axes_of(model, point), ("layer", "position"), window=alone, since=first)
        grids[point] = cells.measured(donors, answer, target.expand(samples))
    return Trace(ids[0], (first, end), right, float(target), float(run.score(answer).mean()), grids)


def span_of(model: Decoder, ids: Int[Tensor, " time"], subject: str | tuple[int, int]) -> tuple[int, int]:
    """(first position, the one behind the last) of words in a prompt: of all tokens that hold some of them.

    Raises UsageError where the prompt does not hold them, or the positions are none of its own.
    """
    if not isinstance(subject, str):
        first, end = (int(place) for place in subject)
        if not 0 <= first < end <= len(ids):
            raise UsageError(f"subject = {subject}, but the prompt has {len(ids)} tokens", "give (first, behind last)")
        return first, end
    if model.tokenizer is None:
        raise UsageError("this model has no tokenizer, so a subject cannot be words", "give (first, behind last)")
    pieces = [model.tokenizer.tokens_as_text([token])[0] for token in ids.tolist()]
    text = "".join(pieces)
    at = text.rfind(subject) if subject else -1
    if at < 0:
        raise UsageError(f"the prompt does not hold the subject {subject!r}", "give words of it, spelt as there")
    ends = torch.tensor([len(piece) for piece in pieces]).cumsum(0)
    first, last = ((ends <= place).sum() for place in (at, at + len(subject) - 1))
    return int(first), int(last) + 1


@torch.no_grad()
def _likeliest(run: Run) -> Tensor:
    """The token that the unpatched run finds likeliest."""
    return run.model.unembed(run.streams[-1][:1, run.place, None])[0, 0].argmax()
