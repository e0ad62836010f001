"""``pellucid.train``: texts and a folder in, a trained model out; the same call again goes on from there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from pellucid.checkpoints.native import SPEC, TOKENIZER, WEIGHTS, load_model
from pellucid.errors import CheckpointError, RunError, SpecError, UsageError, suggest
from pellucid.files import locked, sweep
from pellucid.train.checkpoint import FOLDER, RUN
from pellucid.train.config import Run, TextSpec, TrainOptions, changed
from pellucid.train.feeds import open_feed
from pellucid.train.loop import Result, Sampler, fit
from pellucid.train.memory import keep_freed_memory
from pellucid.train.metrics import METRICS, finals, read_metrics
from pellucid.train.prepare import Prepared, prepare
from pellucid.train.report import Reporter
from pellucid.train.resolve import resolve
from pellucid.train.world import ALONE, World


def train(
    texts: str | Path | Sequence[str | Path],
    out: str | Path,
    run: Run | None = None,
    *,
    options: TrainOptions | None = None,
    reporter: Reporter | None = None,
    sampler: Sampler | None = None,
    world: World = ALONE,
    **asked: Any,
) -> Result:
    """Train a model on ``texts`` into the folder ``out``; every number that is not given is derived.

    texts: files, folders, globs, .jsonl, "-" or hf://org/name.
    run: a resolved run to repeat exactly (``Run.load("run.json")``); options then only say what is kept and shown.
    options, or its fields as keywords (minutes=5, depth=4). world: the processes that train together.
    The folder ends with model.safetensors, spec.json, tokenizer.json and run.json. When it holds an unfinished run of
    the same options, that run goes on, bit for bit as if it had never stopped.

    Raises DataError for unusable texts, UsageError for impossible options, RunError when the folder is in use, not
    writable or holds another run, and Interrupted after Ctrl-C (saved).
    """
    names = tuple(str(t) for t in ([texts] if isinstance(texts, str | Path) else texts))
    for name in asked:
        if name not in TrainOptions.options:
            raise UsageError(f"there is no option {name!r}", suggest(name, TrainOptions.options))
    options = replace(options or TrainOptions(), **asked)
    reporter = reporter or Reporter()
    folder = Path(out)
    keep_freed_memory()
    with _held(folder, world):
        saved = _saved(folder, names, options)
        if run is not None:
            run = replace(run, feed=replace(run.feed, texts=names))
            _refuse_other_run(run, options, saved, folder)
        if saved is not None and (folder / SPEC).exists():
            reporter.message(f"{folder} is finished: nothing to do")
            return _finished(folder, saved)
        wanted = saved or run
        prepared = prepare(names, wanted.options if wanted else options, folder, reporter, resumed=saved is not None)
        if wanted is not None:
            _refuse_other_data(wanted, prepared, folder)
            wanted = wanted.with_operations(options)
        else:
            wanted = resolve(names, options, prepared, world)
        wanted.save(folder / RUN)
        torch.set_num_threads(wanted.runtime.threads)
        assert isinstance(wanted.feed, TextSpec)
        feed = open_feed(
            prepared,
            wanted.objective.name,
            wanted.model,
            context=wanted.feed.context,
            batch_size=wanted.feed.batch_size,
            micro_batches=wanted.runtime.micro_batches,
            seed=wanted.seed,
        )
        return fit(
            wanted,
            folder,
            feed,
            reporter=reporter,
            sampler=sampler,
            tokenizer=prepared.tokenizer,
            world=world,
        )


@contextmanager
def _held(folder: Path, world: World) -> Iterator[None]:
    """The folder, for this run alone; what a killed process left in it half written is gone."""
    with locked(folder):
        for place in (folder, folder / FOLDER, folder / "tokens"):
            sweep(place)
        yield


def _saved(folder: Path, texts: tuple[str, ...], options: TrainOptions) -> Run | None:
    """The run that the folder holds. Raises RunError when it is another than is asked for, or cannot be told."""
    path = folder / RUN
    if not path.exists():
        if (folder / WEIGHTS).exists():
            raise RunError(f"{folder} holds a model, but no {RUN} to go on with", "choose another folder with --out")
        return None
    try:
        saved = Run.load(path)
    except SpecError as error:
        raise RunError(f"{error.problem}", f"restore {path} from a checkpoint in {folder / FOLDER}") from error
    differences = changed(saved.options, options)
    if texts != saved.texts:
        differences.insert(0, f"the texts {', '.join(texts[:3])}, not {', '.join(saved.texts[:3])}")
    if differences:
        raise RunError(
            f"{folder} holds another run; this one has {'; '.join(differences)}",
            "choose another folder with --out, or give the same options again to go on",
        )
    return saved


def _refuse_other_run(run: Run, options: TrainOptions, saved: Run | None, folder: Path) -> None:
    """Raise where ``run`` is to be repeated, but with other options, or in a folder that holds another one."""
    if differences := changed(run.options, options):
        raise UsageError(
            f"a run is to be repeated exactly, but with {'; '.join(differences)}", f"leave that out, or edit its {RUN}"
        )
    if saved is not None and saved.identity() != run.identity():
        raise RunError(f"{folder} holds another run than the one to be repeated", "choose another folder with --out")


def _refuse_other_data(run: Run, prepared: Prepared, folder: Path) -> None:
    if run.feed.hash == prepared.training.hash:  # which the tokenizer's hash is part of
        return
    if isinstance(run.feed, TextSpec) and run.feed.tokenizer != prepared.tokenizer.hash and (folder / RUN).exists():
        raise RunError(
            f"the tokenizer in {folder} is not the one of this run",
            f"restore {TOKENIZER} from a checkpoint in {folder / FOLDER}, or choose another folder with --out",
        )
    raise RunError(
        f"the text {', '.join(run.texts[:3])} is not what it was when this run began",
        "restore the text, or start anew with another folder with --out",
    )


def _finished(folder: Path, run: Run) -> Result:
    from pellucid.text.tokenizer import Tokenizer

    try:
        model = load_model(folder)
    except CheckpointError as error:
        remedy = f"remove {folder / SPEC} and run the same command again: it is written anew from the newest checkpoint"
        raise CheckpointError(error.problem, remedy) from error
    if (folder / TOKENIZER).exists():
        model.tokenizer = Tokenizer.load(folder / TOKENIZER)
    return Result(model, finals(read_metrics(folder / METRICS)), run.steps, 0.0)
