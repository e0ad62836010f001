"""What can be read out of each layer: linear probes, beside control tasks that tell reading from memorising.

A probe is a linear classifier on one layer's activations. That it is right may mean that the layer says it, or that
the probe has learned it by heart. A *control task* gives every type of token a random label; what the probe does better
at the real task than at this one is its *selectivity* (Hewitt & Liang 2019, section 2). ::

    found = probe(model, texts, labels)         # a label for each token, or one for each text's last token
    found.accuracy, found.control, found.selectivity        # a number for each layer
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from pellucid.arguments import checked
from pellucid.batch import IGNORE
from pellucid.errors import UsageError
from pellucid.interpret.choice import layer_of
from pellucid.interpret.pairs import Prompt, rows_of
from pellucid.interpret.patching import axes_of
from pellucid.interpret.record import capture
from pellucid.nn.models import Decoder, Encoder
from pellucid.nn.wide import wide

STEPS, ROWS = 100, 32  # of L-BFGS at most; texts of one length that are read together


@dataclass(frozen=True)
class Probe:
    """A linear classifier: logits = (x - mean) / spread · weightᵀ + bias."""

    weight: Float[Tensor, "classes d"]
    bias: Float[Tensor, " classes"]
    mean: Float[Tensor, " d"]
    spread: Float[Tensor, " d"]

    @staticmethod
    def fit(x: Float[Tensor, "n d"], labels: Int[Tensor, " n"], n_classes: int, decay: float) -> Probe:
        """The classifier of least mean cross-entropy + decay · |weight|² / 2, from zeros, by L-BFGS."""
        x, mean = wide(x), wide(x).mean(0)
        spread = x.std(0, unbiased=False).clamp(min=1e-6)
        scaled, parameters = (x - mean) / spread, x.new_zeros(n_classes, x.shape[1] + 1)
        with torch.inference_mode(False), torch.enable_grad():
            scaled, labels, parameters = scaled.clone(), labels.clone(), parameters.clone().requires_grad_()
            search = torch.optim.LBFGS([parameters], max_iter=STEPS, line_search_fn="strong_wolfe")

            def loss() -> Tensor:
                said = F.linear(scaled, parameters[:, :-1], parameters[:, -1])
                found = F.cross_entropy(said, labels) + decay / 2 * parameters[:, :-1].square().sum()
                (parameters.grad,) = torch.autograd.grad(found, parameters)
                return found.detach()

            search.step(loss)
        return Probe(parameters.detach()[:, :-1], parameters.detach()[:, -1], mean, spread)

    def __call__(self, x: Float[Tensor, "*axes d"]) -> Float[Tensor, "*axes classes"]:
        """The logits of each class."""
        return F.linear((wide(x) - self.mean) / self.spread, self.weight, self.bias)

    def direction(self, of: int, rather_than: int) -> Float[Tensor, " d"]:
        """The direction of the activation, of length 1, that makes one class likelier and another one less likely."""
        return F.normalize((self.weight[of] - self.weight[rather_than]) / self.spread, dim=0)


@dataclass(frozen=True)
class Probes:
    """Probes of several layers, tested on texts that they were not fitted to.

    accuracy, control: of the real task and of the control task. chance: of always saying the commonest class. seen: the
    share of tested tokens whose type was among the fitted ones, without which a control task cannot be learned.
    """

    layers: tuple[int, ...]
    accuracy: Float[Tensor, " layer"]
    control: Float[Tensor, " layer"]
    chance: float
    seen: float
    probes: Mapping[int, Probe]

    @property
    def selectivity(self) -> Float[Tensor, " layer"]:
        """``accuracy`` - ``control``."""
        return self.accuracy - self.control


@checked(model="give a decoder, e.g. of pellucid.load")
def probe(
    model: Decoder | Encoder,
    texts: Sequence[Prompt],
    labels: Sequence[int | Sequence[int]],
    *,
    types: Sequence[int | Sequence[int]] | None = None,
    point: str = "resid_post",
    layers: Sequence[int] | None = None,
    held_out: float = 0.25,
    decay: float = 1e-2,
    seed: int = 0,
) -> Probes:
    """Fit a probe and its control to each layer on some texts, and test both on the others.

    labels: classes from 0, for each text one (of its last token), or one for each of its tokens, IGNORE (-100) where
    none is asked. types: of the same form, what the control task gives random labels to, where that is not the token
    itself (as of texts that all end alike). point: of the stream (batch, time, d). held_out: the share of texts that
    are tested. decay: of the probes' weights. Raises UsageError for labels that do not fit, fewer than two classes or
    texts, and points of another shape; TapError for a point that there is not.
    """
    axes = axes_of(model, point)
    if axes.split()[:2] != ["batch", "time"] or len(axes.split()) != 3:
        raise UsageError(f"{point} is {axes}", "probe a point of one vector a token, such as resid_post")
    if len(texts) != len(labels) or len(texts) < 2 or not 0 < held_out < 1:
        given = f"{len(texts)} texts, {len(labels)} labels, held_out = {held_out}"
        raise UsageError(given, "give as many, two at least, and a share between 0 and 1")
    rows = [rows_of(model, text, "a text") for text in texts]
    asked = [_spread(given, row, number) for number, (given, row) in enumerate(zip(labels, rows, strict=True))]
    if types is None:
        kinds = [row[0].cpu() for row in rows]
    else:
        kinds = [_spread(given, row, number) for number, (given, row) in enumerate(zip(types, rows, strict=True))]
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).tolist()
    tested = set(order[: max(1, round(held_out * len(rows)))])
    chosen = [label != IGNORE for label in asked]
    of = torch.cat([label[keep] for label, keep in zip(asked, chosen, strict=True)])
    kind = torch.cat([each[keep] for each, keep in zip(kinds, chosen, strict=True)])
    test = torch.cat([torch.full((int(keep.sum()),), n in tested) for n, keep in enumerate(chosen)])
    random = _control(of[~test], kind, seed)
    found = _features(model, rows, chosen, point, layers)
    n_classes = _classes(of, test)
    fitted = {layer: Probe.fit(x[~test], of[~test], n_classes, decay) for layer, x in found.items()}
    controls = {layer: Probe.fit(x[~test], random[~test], n_classes, decay) for layer, x in found.items()}

    def right(probes: Mapping[int, Probe], labels: Tensor) -> Float[Tensor, " layer"]:
        hits = [(each(found[layer][test]).argmax(-1) == labels[test]).double().mean() for layer, each in probes.items()]
        return torch.stack(hits)

    return Probes(
        layers=tuple(found),
        accuracy=right(fitted, of),
        control=right(controls, random),
        chance=float((of[test] == of[~test].mode().values).double().mean()),
        seen=float(torch.isin(kind[test], kind[~test]).double().mean()),
        probes=fitted,
    )


def _spread(given: int | Sequence[int], row: Int[Tensor, "1 time"], number: int) -> Int[Tensor, " time"]:
    """Labels of one text as one a token."""
    time = row.shape[1]
    if isinstance(given, int):
        given = [*[IGNORE] * (time - 1), given]
    if len(given) != time:
        raise UsageError(
            f"text {number} has {time} tokens and {len(given)} labels", "give one for each, or one for all"
        )
    return torch.tensor([int(each) for each in given])


def _classes(labels: Int[Tensor, " n"], test: Tensor) -> int:
    if labels.numel() and int(labels.min()) < 0:
        raise UsageError(f"a label is {int(labels.min())}", f"classes are counted from 0; {IGNORE} asks for none")
    if not test.any() or len(labels[~test].unique()) < 2:
        raise UsageError("the texts that a probe is fitted to hold fewer than two classes", "give more texts")
    return int(labels.max()) + 1


def _control(labels: Int[Tensor, " n"], kinds: Int[Tensor, " m"], seed: int) -> Int[Tensor, " m"]:
    """A random label for each kind, drawn like the real labels."""
    if not len(labels):
        raise UsageError("no label is asked for", "label some tokens of more than one text")
    distinct, which = kinds.unique(return_inverse=True)
    drawn = torch.randint(len(labels), (len(distinct),), generator=torch.Generator().manual_seed(seed))
    return labels[drawn][which]


def _features(
    model: Decoder | Encoder,
    rows: Sequence[Int[Tensor, "1 time"]],
    chosen: Sequence[Tensor],
    point: str,
    layers: Sequence[int] | None,
) -> dict[int, Float[Tensor, "n d"]]:
    """What each layer says of the chosen tokens, in the order of the texts."""
    found: dict[int, dict[int, Tensor]] = {}
    by_length: dict[int, list[int]] = {}
    for number, row in enumerate(rows):
        by_length.setdefault(row.shape[1], []).append(number)
    for alike in by_length.values():
        for at in range(0, len(alike), ROWS):
            part = alike[at : at + ROWS]
            acts = capture(model, torch.cat([rows[n] for n in part]), f"blocks.*.{point}", layers=layers, device="cpu")
            for name, x in acts.items():
                layer = layer_of(name)
                assert layer is not None
                found.setdefault(layer, {}).update({n: x[i, chosen[n]] for i, n in enumerate(part)})
    return {layer: torch.cat([of[n] for n in range(len(rows))]) for layer, of in found.items()}
