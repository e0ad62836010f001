"""Our own model folder: ``spec.json``, ``model.safetensors``, ``tokenizer.json``, each tied to the others by hash."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pellucid.errors import CheckpointError, SpecError, suggest
from pellucid.files import sha256, write_file
from pellucid.nn.models import AnyModel, Model, build_model
from pellucid.spec import load_spec
from pellucid.values import Value

WEIGHTS, SPEC, TOKENIZER = "model.safetensors", "spec.json", "tokenizer.json"


def digest(tensors: Mapping[str, Tensor]) -> str:
    """sha256 over names, types, shapes and bytes, in the order of names."""
    running = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        running.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        running.update(tensor.view(-1).view(torch.uint8).numpy().data if tensor.numel() else b"")
    return running.hexdigest()


def value_hash(value: Value) -> str:
    """sha256 of a spec's (or run's) canonical JSON."""
    return hashlib.sha256(json.dumps(value.to_json(), sort_keys=True).encode()).hexdigest()


def save_tensors(path: Path, tensors: Mapping[str, Tensor], **metadata: str) -> None:
    """Write a safetensors file, whole or not at all, with its own digest inside; equal contents give equal files.

    The metadata is one entry, since the format keeps several in no fixed order.
    """
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    inside = json.dumps({"sha256": digest(plain), **metadata}, sort_keys=True)

    def write(aside: Path) -> None:
        try:
            save_file(plain, aside, {"pellucid": inside})
        except SafetensorError as error:  # the disk's answer is only in its text
            number = re.search(r"\(os error (\d+)\)", str(error))
            if number is None:
                raise
            raise OSError(int(number[1]), os.strerror(int(number[1]))) from error

    write_file(path, write)


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a file that ``save_tensors`` wrote.

    Raises CheckpointError when it is missing, truncated, or not one byte is as it was saved.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist", "give a folder that training or `save_model` wrote")
    try:
        with safe_open(path, "pt") as file:
            metadata: dict[str, str] = json.loads((file.metadata() or {}).get("pellucid", "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a dict)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged: {error}", "use another copy, or an earlier checkpoint") from error
    if "sha256" not in metadata:
        raise CheckpointError(f"{path} carries no sha256, so it was not written by pellucid", "convert it first")
    if digest(tensors) != metadata["sha256"]:
        raise CheckpointError(
            f"{path} is damaged: its contents do not match the hash inside",
            "use another copy, or an earlier checkpoint",
        )
    return tensors, metadata


def fill(model: torch.nn.Module, tensors: Mapping[str, Tensor], source: Path) -> None:
    """Copy weights into the model, by name. Raises CheckpointError for a missing, unknown or differently shaped one."""
    own = model.state_dict()
    for name in tensors:
        if name not in own:
            raise CheckpointError(f"{source}: this model has no weight {name!r}", suggest(name, own))
    for name, weight in own.items():
        if name not in tensors:
            raise CheckpointError(f"{source}: the weight {name!r} is missing", "the file belongs to another spec")
        if tensors[name].shape != weight.shape:
            raise CheckpointError(
                f"{source}: {name} has shape {tuple(tensors[name].shape)}, the spec wants {tuple(weight.shape)}",
                "the file belongs to another spec",
            )
    with torch.no_grad():
        for name, weight in own.items():
            weight.copy_(tensors[name])


def save_model(model: Model, folder: Path) -> None:
    """Write spec, weights and (when the model has one) tokenizer; each file is whole or as it was before.

    The weights carry the hashes of the other two, so that a mixed-up folder is refused when it is loaded. The spec is
    written last: where it stands, everything does.
    """
    metadata = {"spec": value_hash(model.spec)}
    if model.tokenizer is not None:
        model.tokenizer.save(folder / TOKENIZER)
        metadata["tokenizer"] = sha256(folder / TOKENIZER)
    save_tensors(folder / WEIGHTS, model.state_dict(), **metadata)
    model.spec.save(folder / SPEC)


def load_model(folder: Path) -> AnyModel:
    """The model of a folder that ``save_model`` wrote, in eval mode, without its tokenizer (``pellucid.load`` adds it).

    Raises CheckpointError when the folder is not one, a file is damaged, or weights, spec and tokenizer do not belong
    together.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a model folder", "give the folder that `pellucid train --out` wrote")
    if not (folder / SPEC).is_file():
        unfinished = (folder / "run.json").is_file()
        remedy = (
            "its training has not finished: run the same `pellucid train` again" if unfinished else "it needs " + SPEC
        )
        raise CheckpointError(f"{folder} holds no finished model", remedy)
    try:
        spec = load_spec(folder / SPEC)
    except SpecError as error:
        raise CheckpointError(error.problem, error.remedy) from error
    tensors, metadata = load_tensors(folder / WEIGHTS)
    if metadata.get("spec") != value_hash(spec):
        raise CheckpointError(f"{folder}: {WEIGHTS} was saved with another {SPEC}", "restore the pair from one run")
    tokenizer = folder / TOKENIZER
    if "tokenizer" in metadata and not (tokenizer.is_file() and sha256(tokenizer) == metadata["tokenizer"]):
        raise CheckpointError(
            f"{folder}: {TOKENIZER} is missing or not the one this model was trained with", "restore it from the run"
        )
    model = build_model(spec)
    fill(model, tensors, folder / WEIGHTS)
    return model.eval()
