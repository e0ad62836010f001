"""Checkpoints: a folder that is a whole model folder and also holds the optimiser's state. Whole or absent; no pickle.

Nothing else needs saving: data order, dropout and learning rate are functions of (seed, step).
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from pellucid.checkpoints.native import RUN, SPEC, refuse_misfit, save_model, value_hash
from pellucid.checkpoints.tensors import load_tensors, save_tensors
from pellucid.errors import CheckpointError
from pellucid.files import explain_os_errors, read_json, sha256, write_folder, write_json
from pellucid.nn.models import AnyModel
from pellucid.train.config import Run
from pellucid.train.optim import load_state_tensors, state_tensors

FOLDER, OPTIMIZER, STATE = "checkpoints", "optimizer.safetensors", "checkpoint.json"
AID, MEAN = "aid.safetensors", "ema.safetensors"


def with_aid(model: nn.Module, aid: nn.Module | None) -> nn.Module:
    """What holds all that is trained: the model itself, or the model and its aid by these names."""
    return model if aid is None else nn.ModuleDict({"model": model, "aid": aid})


def path_of(folder: Path, step: int) -> Path:
    """Where the checkpoint after ``step`` updates lies."""
    return folder / FOLDER / f"step-{step:08d}"


def step_of(path: Path) -> int:
    """How many updates came before the checkpoint, by its folder's name."""
    return int(path.name.removeprefix("step-"))


def save(
    folder: Path,
    run: Run,
    step: int,
    model: AnyModel,
    optimizers: Sequence[torch.optim.Optimizer],
    aid: nn.Module | None = None,
    mean: Mapping[str, Tensor] | None = None,
) -> Path:
    """Write the checkpoint after ``step`` updates and remove all but the newest ``keep_checkpoints`` (or ``average``).

    Removed are also those of later steps: the run, which goes on from the newest valid one, has passed them over.
    aid: what is trained beside the model, mean: of its weights, each in a file of its own.
    """

    def write(aside: Path) -> None:
        save_model(model, aside)
        save_tensors(aside / OPTIMIZER, state_tensors(with_aid(model, aid), optimizers))
        if aid is not None:
            save_tensors(aside / AID, aid.state_dict())
        if mean is not None:
            save_tensors(aside / MEAN, mean)
        run.save(aside / RUN)
        files = {file.name: sha256(file) for file in sorted(aside.iterdir())}
        write_json(aside / STATE, {"step": step, "run": value_hash(run.identity()), "files": files})

    path = path_of(folder, step)
    write_folder(path, write)
    found = sorted(path.parent.glob("step-*"))
    kept = [one for one in found if one <= path][-max(run.keeping.keep_checkpoints, run.keeping.average) :]
    with explain_os_errors(path):
        for other in found:
            if other not in kept:
                shutil.rmtree(other)
    return path


def check(path: Path, run: Run) -> None:
    """Verify every byte of a checkpoint of this very run. Raises CheckpointError saying what is wrong."""
    state = read_json(path / STATE, CheckpointError)
    try:
        step, owner, files = int(state["step"]), str(state["run"]), dict(state["files"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path / STATE} is damaged: {error!r}") from error
    if path != path_of(path.parent.parent, step):
        raise CheckpointError(f"{path / STATE} is damaged: it says step {step}")
    if owner != value_hash(run.identity()):
        raise CheckpointError(f"{path} belongs to another run")
    for name, digest in files.items():
        file = path / Path(name).name
        if not file.is_file():
            raise CheckpointError(f"{file} is missing")
        try:
            intact = sha256(file) == digest
        except OSError as error:
            raise CheckpointError(f"{file} cannot be read: {error.strerror}") from error
        if not intact:
            raise CheckpointError(f"{file} is damaged: its contents do not match {STATE}")


def newest(folder: Path, run: Run, warn: Callable[[str], None]) -> Path | None:
    """The newest valid checkpoint of this run; None when none was ever written.

    ``warn`` hears of each damaged one that is passed over. Raises CheckpointError when none of several is valid.
    """
    problems: list[str] = []
    for path in sorted((folder / FOLDER).glob("step-*"), reverse=True):
        try:
            check(path, run)
            return path
        except CheckpointError as error:
            problems.append(error.problem)
            warn(f"checkpoint passed over: {error.problem}")
    if problems:
        raise CheckpointError(
            f"no checkpoint in {folder / FOLDER} is valid: {problems[0]}",
            f"restore one from a copy, or remove {folder / FOLDER} to start over",
        )
    return None


def load_state(
    path: Path, model: AnyModel, optimizers: Sequence[torch.optim.Optimizer], aid: nn.Module | None = None
) -> None:
    """Put the optimisers' state and the aid's weights back; the model is ``load_model``'s of the same checkpoint, which
    has been checked."""
    state, _ = load_tensors(path / OPTIMIZER)
    load_state_tensors(with_aid(model, aid), optimizers, state)
    if aid is not None:
        weights, _ = load_tensors(path / AID)
        refuse_misfit({k: v.shape for k, v in aid.state_dict().items()}, {k: v.shape for k, v in weights.items()}, path)
        aid.load_state_dict(weights)


__all__ = ["FOLDER", "RUN", "SPEC", "check", "load_state", "newest", "path_of", "save"]
