"""``pellucid.train``: texts and a folder in, a trained model out; the same call again goes on from there."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from pellucid.arguments import checked
from pellucid.checkpoints.native import SPEC, TOKENIZER, WEIGHTS, load_model
from pellucid.data.feed import Feed
from pellucid.errors import CheckpointError, RunError, SpecError, UsageError, suggest
from pellucid.files import locked, sweep
from pellucid.spec import ModelSpec
from pellucid.text.tokenizer import Tokenizer
from pellucid.train.adaptation import Adaptation
from pellucid.train.checkpoint import FOLDER, RUN
from pellucid.train.config import EarlierFormError, Run, TrainOptions, changed
from pellucid.train.feeds import open_feed, prepare_for
from pellucid.train.fits import choose_objective, refuse_idle
from pellucid.train.loop import Result, Sampler, fit
from pellucid.train.memory import keep_freed_memory
from pellucid.train.metrics import METRICS, finals, read_metrics
from pellucid.train.needs import refuse_too_large
from pellucid.train.options import declared
from pellucid.train.parts import Reading, Sizing, TextSpec
from pellucid.train.report import Reporter
from pellucid.train.resolve import resolve, resolve_feed
from pellucid.train.start import Base
from pellucid.train.world import ALONE, World


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
    **asked: Any,
) -> Result:
    """Train a model on ``data`` into the folder ``out``; every number that is not given is derived.

    data: files, folders, globs, .jsonl, "-" or hf://org/name; files of tab-separated pairs for objective="seq2seq"; or
    a feed of your own (``pellucid.data.feed.Feed``), with the spec of a ``model`` for it or ``init_from``.
    model: the spec of the model, in place of a design and its sizes; for texts, a tokenizer of its vocabulary's size is
    trained.
    run: a resolved run to repeat exactly (``Run.load("run.json")``); options then only say what is kept and shown.
    options, or its fields as keywords (minutes=5, depth=4, init_from="runs/book"). world: who trains together.
    The folder ends with model.safetensors, spec.json, tokenizer.json and run.json. When it holds an unfinished run of
    the same options, that run goes on, bit for bit as if it had never stopped.

    Raises DataError for unusable texts or feeds, UsageError for impossible options or an objective that does not fit
    the model, RunError when the folder is in use, not writable or holds another run, and Interrupted after Ctrl-C
    (saved).
    """
    own = data if isinstance(data, Feed) else None
    names = () if isinstance(data, Feed) else tuple(str(t) for t in ([data] if isinstance(data, str | Path) else data))
    options = _with(options or TrainOptions(), asked)
    _refuse_idle_options(options, own, model)
    if own is None and model is not None:  # the tokenizer follows the model, not the text
        options = replace(options, vocab_size=model.vocab_size)
    reporter, folder = reporter or Reporter(), Path(out)
    keep_freed_memory()
    began = time.perf_counter()
    with _held(folder, world):
        if not world.first:
            world.barrier()  # the first process prepares everything; then the folder holds this run
        saved = _saved(folder, names, options, model)
        if run is not None:
            run = (replace(run, feed=replace(run.feed, texts=names)) if own is None else run).closed()
            _refuse_other_run(run, options, saved, folder)
        if saved is not None and (folder / SPEC).exists():
            reporter.message(f"{folder} is finished: nothing to do")
            return _finished(folder, saved)
        wanted = saved or run
        if wanted is not None:
            refuse_too_large(wanted, world)
        base = _base(wanted, options, folder)
        if own is None:
            wanted, feed, tokenizer = _of_texts(names, model, wanted, options, base, folder, reporter, world)
        else:
            wanted, feed = _of_feed(own, model, wanted, options, base, world), own
            tokenizer = _keep_tokenizer(base, folder)
        if world.first:
            wanted.save(folder / RUN)
            world.barrier()
        torch.set_num_threads(wanted.runtime.threads)
        return fit(
            wanted,
            folder,
            feed,
            base=None if base is None else base.model,
            reporter=reporter,
            sampler=sampler,
            tokenizer=tokenizer,
            world=world,
            began=began,
        )


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
    _refuse_other_data(wanted, prepared.training.hash, prepared.tokenizer.hash, folder)
    return wanted.with_operations(options), open_feed(wanted, prepared), prepared.tokenizer


def _of_feed(
    feed: Feed, model: ModelSpec | None, wanted: Run | None, options: TrainOptions, base: Base | None, world: World
) -> Run:
    """The run that learns from a feed of the caller's own: ``wanted``, or a new one."""
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


@contextmanager
def _held(folder: Path, world: World) -> Iterator[None]:
    """The folder, for this run alone; what a killed process left in it half written is gone.

    A run that fails before it is written down leaves no folder where there was none, and nothing in an empty one.
    """
    if not world.first:
        yield
        return
    made = [path for path in (folder, *folder.parents) if not os.path.exists(path)]  # no error for a name too long
    empty = bool(made) or (folder.is_dir() and not any(folder.iterdir()))
    with locked(folder):
        for place in (folder, folder / FOLDER, folder / "tokens"):
            sweep(place)
        try:
            yield
        except BaseException:
            if empty and not (folder / RUN).exists():
                _empty(folder)
                with suppress(OSError):  # others may have put something into a parent meanwhile
                    for path in made:
                        path.rmdir()
            raise


def _empty(folder: Path) -> None:
    for each in folder.iterdir():
        if each.is_dir():
            shutil.rmtree(each, ignore_errors=True)
        else:
            each.unlink(missing_ok=True)


def _saved(folder: Path, texts: tuple[str, ...], options: TrainOptions, model: ModelSpec | None) -> Run | None:
    """The run that the folder holds. Raises RunError when it is another than is asked for, or cannot be told."""
    path = folder / RUN
    if not path.exists():
        if (folder / WEIGHTS).exists():
            raise RunError(f"{folder} holds a model, but no {RUN} to go on with", "choose another folder with --out")
        return None
    try:
        saved = Run.load(path)
    except EarlierFormError as error:
        raise RunError(error.problem, error.remedy) from error
    except SpecError as error:
        raise RunError(f"{error.problem}", f"restore {path} from a checkpoint in {folder / FOLDER}") from error
    differences = changed(saved.options, options)
    if texts != saved.texts:
        differences.insert(0, f"the texts {', '.join(texts[:3])}, not {', '.join(saved.texts[:3])}")
    if model is not None and model != saved.model:
        differences.append("another spec of the model")
    if differences:
        go_on = "give the same options again to go on"
        if (folder / SPEC).exists():
            named = " ".join(texts) or "TEXT"
            go_on = f"go on from its model: pellucid train {named} --from {folder} --out {folder}-more"
        raise RunError(
            f"{folder} holds another run; this one has {'; '.join(differences)}",
            f"choose another folder with --out, or {go_on}",
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


def _refuse_other_data(run: Run, data: str, tokenizer: str, folder: Path) -> None:
    """Raise RunError where these are the hashes of other data, or another tokenizer, than the run began with."""
    if run.feed.hash == data:  # which the tokenizer's hash is part of
        return
    if isinstance(run.feed, TextSpec) and run.feed.tokenizer != tokenizer and (folder / RUN).exists():
        raise RunError(
            f"the tokenizer in {folder} is not the one of this run",
            f"restore {TOKENIZER} from a checkpoint in {folder / FOLDER}, or choose another folder with --out",
        )
    raise RunError(
        f"the text {', '.join(run.texts[:3])} is not what it was when this run began",
        "restore the text, or start anew with another folder with --out",
    )


def _finished(folder: Path, run: Run) -> Result:
    try:
        model = load_model(folder)
    except CheckpointError as error:
        remedy = f"remove {folder / SPEC} and run the same command again: it is written anew from the newest checkpoint"
        raise CheckpointError(error.problem, remedy) from error
    if (folder / TOKENIZER).exists():
        model.tokenizer = Tokenizer.load(folder / TOKENIZER)
    return Result(model, finals(read_metrics(folder / METRICS)), run.steps, 0.0)
