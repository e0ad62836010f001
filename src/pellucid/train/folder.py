"""The folder of a run: held by one process at a time, and never given to another run than the one that it holds."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pellucid.checkpoints.native import SPEC, TOKENIZER, WEIGHTS, load_model
from pellucid.errors import CheckpointError, RunError, SpecError, UsageError
from pellucid.files import locked, sweep
from pellucid.spec import ModelSpec
from pellucid.text.tokenizer import Tokenizer
from pellucid.train.checkpoint import FOLDER, RUN
from pellucid.train.config import EarlierFormError, Run, TrainOptions, changed
from pellucid.train.loop import Result
from pellucid.train.metrics import METRICS, finals, read_metrics
from pellucid.train.parts import TextSpec
from pellucid.train.world import World


@contextmanager
def held(folder: Path, world: World) -> Iterator[None]:
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


def saved_run(folder: Path, texts: tuple[str, ...], options: TrainOptions, model: ModelSpec | None) -> Run | None:
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


def refuse_other_run(run: Run, options: TrainOptions, saved: Run | None, folder: Path) -> None:
    """Raise where ``run`` is to be repeated, but with other options, or in a folder that holds another one."""
    if differences := changed(run.options, options):
        raise UsageError(
            f"a run is to be repeated exactly, but with {'; '.join(differences)}", f"leave that out, or edit its {RUN}"
        )
    if saved is not None and saved.identity() != run.identity():
        raise RunError(f"{folder} holds another run than the one to be repeated", "choose another folder with --out")


def refuse_other_data(run: Run, data: str, tokenizer: str, folder: Path) -> None:
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


def finished(folder: Path, run: Run) -> Result:
    """What a run that has ended came to. Raises CheckpointError where its model cannot be read."""
    try:
        model = load_model(folder)
    except CheckpointError as error:
        remedy = f"remove {folder / SPEC} and run the same command again: it is written anew from the newest checkpoint"
        raise CheckpointError(error.problem, remedy) from error
    if (folder / TOKENIZER).exists():
        model.tokenizer = Tokenizer.load(folder / TOKENIZER)
    return Result(model, finals(read_metrics(folder / METRICS)), run.steps, 0.0)
