"""What the model does with the rows: it begins where nothing is known, documents do not mix, steps go down."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pellucid.doctor.checks import Check
from pellucid.doctor.report import Complaint
from pellucid.doctor.subject import Kind, Row, Subject

ROWS = 4  # that are computed with
FAR = 0.2  # from ln(vocabulary), as a share of it, of a model that has not learned
WORSE = 1.1  # times ln(vocabulary), of a model that has
MIXED = 1e-3  # of the size of outputs
UNEVEN = 0.005  # of the loss
STEPS = 20
DIVERGED = 1.5  # times the first loss, or a third of a nat more, whatever is more, at the end
BURST = 5  # times the first loss, or as many nats more, whatever is more, anywhere: what follows is another start


def loss_at_start(subject: Subject) -> Complaint | None:
    """A loss that is far from that of a guess among all tokens, or worse than it."""
    assert subject.trial is not None
    choices = subject.classes if subject.kind == "classifier" else subject.table
    if choices is None or choices < 2 or not (rows := _few(subject)):
        return None
    loss, guess = subject.trial.loss(rows), math.log(choices)
    if not math.isfinite(loss):
        return Complaint(
            "refuse", f"the loss before training is {loss}", "look at the weights, the precision and labels"
        )
    said = f"the loss before training is {loss:.2f}; a guess among {choices:,} has {guess:.2f}"
    if subject.fresh and abs(loss - guess) > max(FAR * guess, 0.3):
        return Complaint("refuse", said, "look at the scale of first weights and logits, and at the labels")
    if not subject.fresh and subject.classes is None and loss > WORSE * guess:
        return Complaint("refuse", said, "the tokenizer, the labels or the weights do not belong to this model")
    return None


def mixed(subject: Subject) -> Complaint | None:
    """Documents of a row that see each other."""
    assert subject.trial is not None
    row = next((row for row in subject.rows if len(row.pieces()) > 1), None)
    if row is None:
        return None
    moved = subject.trial.crosstalk(row)
    if moved <= MIXED:
        return None
    said = f"another first document moves the outputs of the last one in its row by {moved:.1%}"
    return Complaint("warn", said, "keep documents apart: position_ids that begin anew, or a mask by document")


def accumulation(subject: Subject) -> Complaint | None:
    """A loss that depends on how rows are spread over micro-batches."""
    assert subject.trial is not None
    rows = _few(subject)
    if len(rows) < 2:
        return None
    whole, summed = subject.trial.loss(rows), subject.trial.accumulated(rows)
    if summed is None or abs(summed - whole) <= UNEVEN * abs(whole):
        return None
    said = f"the loss of {len(rows)} rows is {whole:.4f} at once, and {summed:.4f} in {len(rows)} micro-batches"
    return Complaint(
        "warn", said, "divide sums by the number of scored places of the whole step, not by that of each part"
    )


def diverges(subject: Subject) -> Complaint | None:
    """Twenty steps on the same rows, after which the loss is larger."""
    assert subject.trial is not None
    losses = subject.trial.steps(STEPS)
    if not losses:
        return None
    first, last, highest = losses[0], min(losses[-3:]), max(losses)
    calm = all(map(math.isfinite, losses)) and highest <= max(first * BURST, first + BURST)
    if calm and last <= max(first * DIVERGED, first + 1 / 3):
        return None
    course = f"{first:.2f} over {highest:.2f} to {losses[-1]:.2f}"
    said = f"in {STEPS} steps at the full learning rate the loss goes from {course}"
    return Complaint("refuse", said, "choose a smaller learning rate, or a longer warm-up")


def nothing_learns(subject: Subject) -> Complaint | None:
    """A model whose every parameter is frozen."""
    assert subject.trial is not None
    if subject.trial.trainable:
        return None
    return Complaint("refuse", "no parameter of the model learns", "set requires_grad, or give it an adapter")


def _few(subject: Subject) -> list[Row]:
    return [row for row in subject.rows if row.scored][:ROWS]


MODELS: tuple[Kind, ...] = ("decoder", "encoder", "encoder-decoder")
CHECKS: Sequence[Check] = (
    Check("frozen", "does anything learn?", nothing_learns, ("trial",)),
    Check("loss-at-start", "does it begin with the loss of a guess, or better?", loss_at_start, ("rows", "trial")),
    Check("crosstalk", "do documents of a row not see each other?", mixed, ("rows", "trial"), ("decoder", "encoder")),
    Check(
        "accumulation",
        "is the loss that of all rows, however they are spread?",
        accumulation,
        ("rows", "trial"),
        MODELS,
    ),
    Check("rate", "does the loss not grow in twenty steps?", diverges, ("rows", "trial")),
)
