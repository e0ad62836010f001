"""Our own model folder: ``spec.json``, ``model.safetensors``, ``tokenizer.json``, each tied to the others by hash."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Size, Tensor

from pellucid.checkpoints.tensors import load_tensors, save_tensors
from pellucid.errors import CheckpointError, SpecError, suggest
from pellucid.families.table import refuse_nonfinite, shapes_of, weights_of
from pellucid.files import sha256
from pellucid.nn.init import build_undrawn
from pellucid.nn.models import AnyModel, Model
from pellucid.spec import load_spec
from pellucid.values import Value

PUBLISHED = ("generation", "class_names")  # what a model keeps of the folder that it was published in
WEIGHTS, SPEC, TOKENIZER = "model.safetensors", "spec.json", "tokenizer.json"
_TOKENIZER_FILES = {"tokenizer": TOKENIZER, "tokenizer_config": "tokenizer_config.json"}  # the second where needed


def value_hash(value: Value) -> str:
    """sha256 of a spec's (or run's) canonical JSON."""
    return hashlib.sha256(json.dumps(value.to_json(), sort_keys=True).encode()).hexdigest()


def refuse_misfit(own: Mapping[str, Size], tensors: Mapping[str, Tensor], source: Path) -> None:
    """Raise CheckpointError for a weight that is missing, unknown or of another shape than the model's ``own``."""
    for name in tensors:
        if name not in own:
            raise CheckpointError(f"{source}: this model has no weight {name!r}", suggest(name, own))
    for name, shape in own.items():
        if name not in tensors:
            raise CheckpointError(f"{source}: the weight {name!r} is missing", "the file belongs to another spec")
        if tensors[name].shape != shape:
            raise CheckpointError(
                f"{source}: {name} has shape {tuple(tensors[name].shape)}, the spec wants {tuple(shape)}",
                "the file belongs to another spec",
            )


def fill(model: torch.nn.Module, tensors: Mapping[str, Tensor], source: Path) -> None:
    """Copy weights into the model, by name. Raises CheckpointError for a missing, unknown or differently shaped one."""
    refuse_misfit({name: weight.shape for name, weight in weights_of(model).items()}, tensors, source)
    with torch.no_grad():
        for name, weight in weights_of(model).items():
            weight.copy_(tensors[name])


def _tokenizer_hashes(folder: Path) -> dict[str, str]:
    """sha256 of each of the tokenizer's files that is there."""
    return {key: sha256(folder / file) for key, file in _TOKENIZER_FILES.items() if (folder / file).is_file()}


def save_model(model: Model, folder: Path) -> None:
    """Write spec, weights and (when the model has one) tokenizer; each file is whole or as it was before.

    The weights carry the hashes of the other two, so that a mixed-up folder is refused when it is loaded. The spec is
    written last: where it stands, everything does.
    """
    metadata: dict[str, Any] = {"spec": value_hash(model.spec)}
    if published := {name: value for name in PUBLISHED if (value := getattr(model, name))}:
        metadata["published"] = published
    if model.tokenizer is not None:
        model.tokenizer.save(folder / TOKENIZER)
        metadata |= _tokenizer_hashes(folder)
    save_tensors(folder / WEIGHTS, weights_of(model), **metadata)
    model.spec.save(folder / SPEC)


def load_model(folder: Path, dtype: torch.dtype = torch.float32) -> AnyModel:
    """The model of a folder that ``save_model`` wrote, in eval mode, without its tokenizer (``pellucid.load`` adds it).

    Raises CheckpointError when the folder is not one, a file is damaged, or weights, spec and tokenizer do not belong
    together.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a model folder", "give the folder that `pellucid train --out` wrote")
    if not (folder / SPEC).is_file():
        unfinished = (folder / "run.json").is_file()
        remedy = "its training has not finished: run the same `pellucid train` again"
        remedy = remedy if unfinished else f"it needs {SPEC}, or a published model's config.json and {WEIGHTS}"
        raise CheckpointError(f"{folder} holds no finished model", remedy)
    try:
        spec = load_spec(folder / SPEC)
    except SpecError as error:
        raise CheckpointError(error.problem, error.remedy) from error
    tensors, metadata = load_tensors(folder / WEIGHTS)
    if metadata.get("spec") != value_hash(spec):
        raise CheckpointError(f"{folder}: {WEIGHTS} was saved with another {SPEC}", "restore the pair from one run")
    found = _tokenizer_hashes(folder) if "tokenizer" in metadata else {}
    for key, file in _TOKENIZER_FILES.items():
        if "tokenizer" in metadata and found.get(key) != metadata.get(key):
            raise CheckpointError(
                f"{folder}: {file} is missing or not the one this model was trained with", "restore it from the run"
            )
    refuse_misfit(shapes_of(spec), tensors, folder / WEIGHTS)
    model = build_undrawn(spec)
    for name, weight in weights_of(model).items():
        tensor = tensors.pop(name).to(dtype)
        weight.data = refuse_nonfinite(tensor, f"{folder / WEIGHTS}: {name}")  # not copied: it becomes the weight
    _keep_published(model, metadata.get("published", {}), folder)
    return model.to(dtype).eval()


def _keep_published(model: AnyModel, published: Any, folder: Path) -> None:
    """Raises CheckpointError for what ``save_model`` does not write."""
    said = cast("dict[str, Any]", published) if isinstance(published, dict) else {"": None}
    generation, names = said.get("generation", {}), said.get("class_names", [])
    if set(said) - set(PUBLISHED) or not isinstance(generation, dict) or not isinstance(names, list):
        raise CheckpointError(f"{folder / WEIGHTS}: its metadata are damaged", "use another copy")
    model.generation = cast("dict[str, Any]", generation)
    model.class_names = tuple(map(str, cast("list[Any]", names)))
