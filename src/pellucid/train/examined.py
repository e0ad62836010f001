"""What a run would read and do, looked at before it starts (``pellucid.doctor``)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from pellucid.checkpoints.native import SPEC, load_model
from pellucid.data.feed import Feed
from pellucid.doctor.examine import examine
from pellucid.doctor.ours import Trial, subject_of
from pellucid.doctor.report import Report
from pellucid.doctor.subject import Subject
from pellucid.nn.models import AnyModel
from pellucid.text.tokenizer import Tokenizer
from pellucid.train import checkpoint
from pellucid.train.config import Run
from pellucid.train.optim import set_rate
from pellucid.train.report import Reporter
from pellucid.train.step import step
from pellucid.train.trainer import Trainer

QUICK = 32  # rows that are looked at before every start
PROBED = 16  # rows of the first step on which steps are tried


def look_first(subject: Subject, reporter: Reporter) -> None:
    """Say what was found in the rows of a run that is about to start. Raises DataError for what cannot be meant."""
    few = {name: getattr(subject, name)[:QUICK] for name in ("rows", "held_out", "chats")}
    report = examine(replace(subject, **few))
    for finding in report.findings:
        if finding.severity == "warn":
            reporter.message(f"doctor: {finding.check}: {finding.problem}; {finding.remedy}")
    report.require()


def of_run(
    run: Run,
    folder: Path,
    feed: Feed,
    *,
    base: AnyModel | None,
    tokenizer: Tokenizer | None,
    known: Callable[[Subject], Subject] = lambda subject: subject,
    only: Sequence[str] = (),
    **others: Any,
) -> Report:
    """In place of training: look at the rows, the model and its first steps. Nothing is written.

    known: adds to the subject what else is known of it. others: what training would take.
    """
    newest = None if (folder / SPEC).exists() else checkpoint.newest(folder, run, lambda _: None)
    model = load_model(folder) if (folder / SPEC).exists() else base if newest is None else load_model(newest)
    trainer = Trainer(run, feed, base=copy.deepcopy(model))
    # trying steps changes the trainer's model; the others look at a copy
    trial = Trial(copy.deepcopy(trainer.model), partial(losses, trainer=trainer))
    subject = known(subject_of(feed, run.model, tokenizer, name=str(folder)))
    return examine(replace(subject, trial=trial, fresh=model is None), only)


def losses(n: int, *, trainer: Trainer) -> list[float]:
    """The losses of ``n`` updates on the first rows, at the full learning rate; the trainer is used up."""
    found: list[float] = []
    batches = [trainer.batches(0)[0].first(PROBED)]
    set_rate(trainer.optimizers, 1.0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(trainer.run.seed)
        for _ in range(n):
            done = step(
                trainer.model, trainer.optimizers, trainer.objective, batches,
                clip=trainer.run.optimiser.clip, autocast=trainer.autocast, trained=trainer.trained,
            )  # fmt: skip
            found.append(done.loss)
            if not done.finite:
                break
    return found
