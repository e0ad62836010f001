"""``pellucid.train``: texts and a folder in, a trained model out; the same call again goes on from there."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from pellucid.arguments import checked
from pellucid.checkpoints.native import SPEC, TOKENIZER
from pellucid.data.feed import Feed
from pellucid.doctor.ours import subject_of
from pellucid.errors import RunError, UsageError, suggest
from pellucid.spec import ModelSpec
from pellucid.text.tokenizer import Tokenizer
from pellucid.train.adaptation import Adaptation
from pellucid.train.checkpoint import FOLDER, RUN
from pellucid.train.config import Run, TrainOptions
from pellucid.train.examined import look_first
from pellucid.train.feeds import open_feed, prepare_for
from pellucid.train.fits import choose_objective, refuse_idle, refuse_unfit_feed
from pellucid.train.folder import finished, held, refuse_other_data, refuse_other_run, saved_run
from pellucid.train.loop import Result, Sampler, fit
from pellucid.train.memory import keep_freed_memory
from pellucid.train.needs import refuse_too_large
from pellucid.train.options import declared
from pellucid.train.parts import Reading, Sizing, TextSpec
from pellucid.train.report import Reporter
from pellucid.train.resolve import resolve, resolve_feed
from pellucid.train.start import Base
from pellucid.train.world import ALONE, World

T = TypeVar("T")


@checked(data="name files, folders or globs, or give a feed of your own")
def train(
    data: str | Path | Sequence[str | Path] | Feed,
    out: str | Path,
    run: Run | None = None,
    *,
    options: TrainOptions | None = None,
    model: ModelSpec | None = None,
    reporter: Reporter | None = None,
    sampler: Sampler | None = None,
    world: World = ALONE,
    doctor: bool = True,
    **asked: Any,
) -> Result:
    """Train a model on ``data`` into the folder ``out``; every number that is not given is derived.

    data: files, folders, globs, .jsonl, "-" or hf://org/name; files of tab-separated pairs for objective="seq2seq"; or
    a feed of your own (``pellucid.data.feed.Feed``), with the spec of a ``model`` for it or ``init_from``.
    model: the spec of the model, in place of a design and its sizes; for texts, a tokenizer of its vocabulary's size is
    trained.
    run: a resolved run to repeat exactly (``Run.load("run.json")``); options then only say what is kept and shown.
    options, or its fields as keywords (minutes=5, depth=4, init_from="runs/book"). world: who trains together.
    doctor: rows of the first step are looked at, and what cannot be meant is refused (docs/doctor.md).
    The folder ends with model.safetensors, spec.json, tokenizer.json and run.json. When it holds an unfinished run of
    the same options, that run goes on, bit for bit as if it had never stopped.

    Raises DataError for unusable texts or feeds, UsageError for impossible options or an objective that does not fit
    the model, RunError when the folder is in use, not writable or holds another run, and Interrupted after Ctrl-C
    (saved).
    """
    return begin(
        fit,
        data,
        out,
        run,
        options=_with(options or TrainOptions(), asked),
        model=model,
        reporter=reporter,
        sampler=sampler,
        world=world,
        doctor=doctor,
    )


def begin(
    then: Callable[..., T],
    data: str | Path | Sequence[str | Path] | Feed,
    out: str | Path,
    run: Run | None,
    *,
    options: TrainOptions,
    model: ModelSpec | None = None,
    reporter: Reporter | None = None,
    world: World = ALONE,
    doctor: bool = False,
    **how: Any,
) -> T | Result:
    """What ``train`` does before the first step, and then ``then`` (``loop.fit``, or something in its place).

    doctor: rows are looked at before. how: what else ``then`` takes. Of a run that is finished, its result is returned
    where ``then`` is ``fit``.
    """
    own = data if isinstance(data, Feed) else None
    names = () if isinstance(data, Feed) else tuple(str(t) for t in ([data] if isinstance(data, str | Path) else data))
    _refuse_idle_options(options, own, model)
    if own is None and model is not None:  # the tokenizer follows the model, not the text
        options = replace(options, vocab_size=model.vocab_size)
    reporter, folder = reporter or Reporter(), Path(out)
    keep_freed_memory()
    began = time.perf_counter()
    with held(folder, world):
        if not world.first:
            world.barrier()  # the first process prepares everything; then the folder holds this run
        saved = saved_run(folder, names, options, model)
        if run is not None:
            run = (replace(run, feed=replace(run.feed, texts=names)) if own is None else run).closed()
            refuse_other_run(run, options, saved, folder)
        if then is fit and saved is not None and (folder / SPEC).exists():
            reporter.message(f"{folder} is finished: nothing to do")
            return finished(folder, saved)
        wanted = saved or run
        if wanted is not None:
            refuse_too_large(wanted, world)
        base = _base(wanted, options, folder)
        if own is None:
            wanted, feed, tokenizer = _of_texts(names, model, wanted, options, base, folder, reporter, world)
        else:
            look = reporter if doctor and world.first and wanted is None else None
            wanted, feed = _of_feed(own, model, wanted, options, base, world, look), own
            tokenizer = _keep_tokenizer(base, folder)
        if world.first:
            if doctor and own is None and saved is None:
                look_first(subject_of(feed, wanted.model, tokenizer), reporter)
            if then is fit:
                wanted.save(folder / RUN)
            world.barrier()
        torch.set_num_threads(wanted.runtime.threads)
        start = None if base is None else base.model
        common: dict[str, Any] = {"reporter": reporter, "tokenizer": tokenizer, "world": world, "began": began}
        return then(wanted, folder, feed, base=start, **common, **how)


def _with(options: TrainOptions, asked: Mapping[str, Any]) -> TrainOptions:
    """The options with those that are asked for by name. Raises UsageError for a name that is no option."""
    for name in asked:
        if name not in TrainOptions.options:
            raise UsageError(f"there is no option {name!r}", suggest(name, TrainOptions.options))
    return replace(options, **asked)


def _of_texts(
    names: tuple[str, ...],
    model: ModelSpec | None,
    wanted: Run | None,
    options: TrainOptions,
    base: Base | None,
    folder: Path,
    reporter: Reporter,
    world: World,
) -> tuple[Run, Feed, Tokenizer]:
    """The run that learns from texts, its feed and its tokenizer: ``wanted`` as far as it goes on, or a new one."""
    given = None if base is None else base.tokenizer
    if base is not None and given is None:
        raise UsageError("the model to begin with has no tokenizer, so no text can be encoded for it", "use another")
    if wanted is None:
        spec = model if base is None else base.model.spec
        objective, _ = choose_objective(options, spec)
        refuse_idle(options, objective)
        prepared = prepare_for(objective, names, options, folder, reporter, tokenizer=given)
        return *resolve(names, options, prepared, base, world, spec=spec), prepared.tokenizer
    objective, resumed = wanted.objective.name, (folder / RUN).exists()
    prepared = prepare_for(objective, names, wanted.options, folder, reporter, resumed=resumed, tokenizer=given)
    refuse_other_data(wanted, prepared.training.hash, prepared.tokenizer.hash, folder)
    return wanted.with_operations(options), open_feed(wanted, prepared), prepared.tokenizer


def _of_feed(
    feed: Feed,
    model: ModelSpec | None,
    wanted: Run | None,
    options: TrainOptions,
    base: Base | None,
    world: World,
    look: Reporter | None,
) -> Run:
    """The run that learns from a feed of the caller's own: ``wanted``, or a new one. look: who is told what was found
    in the rows; None: they are not looked at."""
    if wanted is not None:
        if wanted.feed.hash != feed.hash:
            raise RunError(
                "the feed is not what it was when this run began", "restore its data, or choose another --out"
            )
        return wanted.with_operations(options)
    spec = model if base is None else base.model.spec
    if spec is None:
        raise UsageError("a feed was given, but no model for it", "give model=a spec, or init_from=a model")
    choose_objective(options, spec)
    refuse_unfit_feed(feed, spec)
    if look is not None and spec.vocab_size:
        look_first(subject_of(feed, spec, None if base is None else base.tokenizer), look)
    return resolve_feed(feed, spec, options, base, world)


def _keep_tokenizer(base: Base | None, folder: Path) -> Tokenizer | None:
    """The tokenizer of the model that a run began with, kept in the folder for the time when it is gone on with."""
    path = folder / TOKENIZER
    if base is not None and base.tokenizer is not None:
        base.tokenizer.save(path)
        return base.tokenizer
    return Tokenizer.load(path) if path.exists() else None


def _refuse_idle_options(options: TrainOptions, feed: Feed | None, model: ModelSpec | None) -> None:
    """Raise UsageError for options that would decide nothing, since a feed, a model or a base has settled them."""
    default, settled = TrainOptions(), set[str]()
    if feed is not None:
        settled |= {each.flag for part in (Reading, TextSpec) for each in declared(part)}
    if options.init_from is not None or model is not None:
        settled |= {each.flag for each in declared(Sizing)} - {"minutes"}
    if options.init_from is not None and model is not None:
        raise UsageError("both a model's spec and init_from are given", "give the one to begin with")
    if not options.lora:
        settled |= {each.flag for each in declared(Adaptation)}
    elif options.init_from is None:
        raise UsageError("an adapter is asked for, but no model that it is for", "name it with --from")
    for name in sorted(settled):
        if getattr(options, name) != getattr(default, name):
            raise UsageError(f"{name} = {getattr(options, name)} decides nothing here: it is settled", "leave it out")


def _base(wanted: Run | None, options: TrainOptions, folder: Path) -> Base | None:
    """The model that the run goes on from; None where there is none, or the run has gone on already."""
    name = options.init_from if wanted is None else wanted.start.init_from
    if name is None or any((folder / FOLDER).glob("step-*")):
        return None
    asked = options.lora_quantised if wanted is None else wanted.adapter.quantised
    base = Base.load(name, quantised=asked)
    if wanted is not None and base.weights != wanted.start.weights:
        raise RunError(f"{name} is not the model that this run began with", "restore it, or choose another --out")
    return base
