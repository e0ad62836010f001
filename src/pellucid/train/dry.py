"""``pellucid.doctor`` of files and folders: all that comes before a training, and a look in place of it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pellucid.checkpoints.native import RUN
from pellucid.data.conversations import KINDS
from pellucid.data.sources import documents
from pellucid.data.text_files import lines
from pellucid.doctor.examine import chosen, examine
from pellucid.doctor.ours import Trial
from pellucid.doctor.report import Report
from pellucid.doctor.subject import Subject
from pellucid.errors import UsageError
from pellucid.train.config import Run, TrainOptions
from pellucid.train.examined import of_run
from pellucid.train.loop import Result
from pellucid.train.parts import TextSpec
from pellucid.train.report import Reporter
from pellucid.train.run import begin
from pellucid.train.tune import gather

TEXTS = 20_000  # that are looked at, at most
LETTERS = 1_000_000  # of each


def of_files(
    names: Sequence[str],
    model: str | None = None,
    *,
    only: Sequence[str] = (),
    context: int | None = None,
    validation: float = 0.1,
    seed: int = 0,
    reporter: Reporter | None = None,
    **asked: Any,
) -> Report:
    """Files of texts or conversations, or the folder of a run. Nothing is written.

    model: that would go on learning; texts without one are looked at as ``pellucid train`` would begin with them.
    asked: options of training. Raises UsageError for conversations without a model, and as ``train`` and ``tune`` do.
    """
    reporter, checks = reporter or Reporter(), chosen(only)
    if len(names) == 1 and (Path(names[0]) / RUN).is_file():
        return _of_run(Path(names[0]), only, reporter)
    if is_chats(names[0]):
        if model is None:
            raise UsageError("conversations are read by a model's template", "name the model with --model")
        lesson = gather(model, names, context, None, validation, False, seed, reporter)
        return examine(replace(lesson.subject, trial=Trial(lesson.base), fresh=False), only)
    more: dict[str, Any] = {} if context is None else {"context": context}
    options = TrainOptions(init_from=model, validation=validation, seed=seed, **more, **asked)
    with TemporaryDirectory(prefix="pellucid-doctor-") as folder:
        texts: list[str] = []
        if options.objective != "seq2seq":
            found = documents(names, on_skip=lambda _: None, folder=Path(folder))
            texts = ["".join(_beginning(text.blocks())) for text in islice(found, TEXTS)]

        if all(set(check.needs) <= {"texts"} for check in checks):
            return examine(Subject(", ".join(names), "decoder", texts=texts), only)

        def known(subject: Subject) -> Subject:
            return replace(subject, name=", ".join(names), texts=texts)

        report = begin(
            of_run, list(names), Path(folder) / "run", None, options=options, reporter=reporter, known=known, only=only
        )
    assert not isinstance(report, Result)
    return report


def _of_run(folder: Path, only: Sequence[str], reporter: Reporter) -> Report:
    run = Run.load(folder / RUN)
    if not isinstance(run.feed, TextSpec):
        raise UsageError(f"{folder} learned from a feed, which it does not hold", "name the data, and its --model")
    report = begin(of_run, list(run.texts), folder, None, options=run.options, reporter=reporter, only=only)
    assert not isinstance(report, Result)
    return report


def _beginning(blocks: Iterator[str]) -> Iterator[str]:
    """A text up to about ``LETTERS``: of a book of gigabytes, that is enough."""
    letters = 0
    for block in blocks:
        yield block
        if (letters := letters + len(block)) >= LETTERS:
            return


def is_chats(name: str) -> bool:
    """Whether a file of JSON lines begins with a conversation."""
    path = Path(name)
    if not path.is_file() or (".jsonl" not in path.suffixes and path.suffix != ".json"):
        return False
    first = next((line for _, line in lines(name)), "")
    try:
        row: Any = json.loads(first)
    except ValueError:
        return False
    return isinstance(row, Mapping) and any(kind in row for kind in KINDS)
