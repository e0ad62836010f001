"""Our own model folder: ``spec.json``, ``model.safetensors``, ``tokenizer.json``, each tied to the others by hash."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Size, Tensor

from pellucid.checkpoints.room import refuse_too_large
from pellucid.checkpoints.sentence import is_reading
from pellucid.checkpoints.tensors import TensorFile, save_tensors
from pellucid.errors import CheckpointError, DataError, SpecError, suggest
from pellucid.families.weights import refuse_nonfinite, shapes_of, tensors_of
from pellucid.files import sha256
from pellucid.nn.formats import FORMATS
from pellucid.nn.init import build_undrawn
from pellucid.nn.models import AnyModel, Model
from pellucid.nn.quantised import hold_quantised, quantisable, stored_of
from pellucid.nn.stored import Plain, Quantised
from pellucid.spec import ModelSpec, load_spec
from pellucid.surgery import record as surgery
from pellucid.values import Value

# the attributes in which a model keeps what its published folder says
PUBLISHED = ("generation", "class_names", "sentences")
WEIGHTS, SPEC, TOKENIZER = "model.safetensors", "spec.json", "tokenizer.json"
RUN = "run.json"  # it describes the run that writes models into this folder
# the second is written only where it is needed
_TOKENIZER_FILES = {"tokenizer": TOKENIZER, "tokenizer_config": "tokenizer_config.json"}


def value_hash(value: Value) -> str:
    """sha256 of a spec's (or run's) canonical JSON."""
    return hashlib.sha256(json.dumps(value.to_json(), sort_keys=True).encode()).hexdigest()


def refuse_misfit(own: Mapping[str, Size], found: Mapping[str, Size], source: Path) -> None:
    """Raise CheckpointError for a weight that is missing, unknown or of another shape than the model's ``own``."""
    for name in found:
        if name not in own:
            raise CheckpointError(f"{source}: this model has no weight {name!r}", suggest(name, own))
    for name, shape in own.items():
        if name not in found:
            raise CheckpointError(f"{source}: the weight {name!r} is missing", "the file belongs to another spec")
        if found[name] != shape:
            raise CheckpointError(
                f"{source}: {name} has shape {tuple(found[name])}, the spec wants {tuple(shape)}",
                "the file belongs to another spec",
            )


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, Size]:
    return {name: tensor.shape for name, tensor in tensors.items()}


def _tokenizer_hashes(folder: Path) -> dict[str, str]:
    """sha256 of each of the tokenizer's files that is there."""
    return {key: sha256(folder / file) for key, file in _TOKENIZER_FILES.items() if (folder / file).is_file()}


def save_model(model: Model, folder: Path, *, weights: str = "") -> None:
    """Write spec, weights and (when the model has one) tokenizer; each file is whole or as it was before.

    The weights carry the hashes of the other two, so that a mixed-up folder is refused when it is loaded. Quantised
    weights are written as they are, with the names of their formats, and come back so. The spec is written last: where
    it stands, everything does. weights: which ones of a run these are, where they are not its last (``which_weights``).
    """
    metadata: dict[str, Any] = {"spec": value_hash(model.spec)}
    if weights:
        metadata["weights"] = weights
    if published := {name: value for name in PUBLISHED if (value := getattr(model, name))}:
        metadata["published"] = published
    if model.tokenizer is not None:
        model.tokenizer.save(folder / TOKENIZER)
        metadata |= _tokenizer_hashes(folder)
    if added := surgery.described(model):
        metadata["adapters"] = added
    kinds = {name: stored.kind for name, stored in stored_of(model).items() if isinstance(stored, Quantised)}
    save_tensors(folder / WEIGHTS, tensors_of(model), **metadata, **({"quantised": kinds} if kinds else {}))
    model.spec.save(folder / SPEC)


def which_weights(folder: Path) -> str:
    """What ``save_model`` was told of the weights in a folder; "" where it was told nothing, or nothing is there."""
    path = folder / WEIGHTS
    return str(TensorFile(path).metadata.get("weights", "")) if path.is_file() else ""


def load_model(folder: Path, dtype: torch.dtype = torch.float32) -> AnyModel:
    """The model of a folder that ``save_model`` wrote, in eval mode, without its tokenizer (``pellucid.load`` adds it).

    Raises CheckpointError when the folder is not one, a file is damaged, or weights, spec and tokenizer do not belong
    together.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder} is not a model folder", "give the folder that `pellucid train --out` wrote")
    if not (folder / SPEC).is_file():
        if (folder / RUN).is_file():
            remedy = "its training has not finished: run the same `pellucid train` again"
            raise CheckpointError(f"{folder} holds no finished model", remedy)
        models = [path.parent for name in (SPEC, "config.json") for path in folder.glob(f"*/{name}")]
        found = sorted([*models, *folder.glob("*.gguf")])
        raise CheckpointError(
            f"{folder} holds neither {SPEC}, as a model of ours, nor config.json, as a published one",
            f"did you mean {str(found[0])!r}?" if found else "give the folder that holds one of them",
        )
    try:
        spec = load_spec(folder / SPEC)
    except SpecError as error:
        raise CheckpointError(error.problem, error.remedy) from error
    file = TensorFile(folder / WEIGHTS)
    metadata = file.metadata
    if metadata.get("spec") != value_hash(spec):
        raise CheckpointError(f"{folder}: {WEIGHTS} was saved with another {SPEC}", "restore the pair from one run")
    found = _tokenizer_hashes(folder) if "tokenizer" in metadata else {}
    for key, name in _TOKENIZER_FILES.items():
        if "tokenizer" in metadata and found.get(key) != metadata.get(key):
            raise CheckpointError(
                f"{folder}: {name} is missing or not the one this model was trained with", "restore it from the run"
            )
    refuse_misfit(_shapes_on_disk(spec, metadata, file.path), file.shapes, file.path)
    refuse_too_large(folder, shapes_of(spec), dtype, metadata.get("quantised", {}))
    model = build_undrawn(spec)
    hold_quantised(model, metadata.get("quantised", {}))
    surgery.restore(model, metadata.get("adapters", {}))
    _take(model, file, dtype)
    _keep_published(model, metadata.get("published", {}), folder)
    return model.to(dtype).eval()


def _shapes_on_disk(spec: ModelSpec, metadata: Mapping[str, Any], source: Path) -> Mapping[str, Size]:
    """What the file of such a model must hold. Raises CheckpointError for metadata that ``save_model`` never writes."""
    shapes, kinds, added = shapes_of(spec), metadata.get("quantised", {}), metadata.get("adapters", {})
    if not kinds and not added:
        return shapes
    with torch.device("meta"):
        model = build_undrawn(spec)
        able = quantisable(model)
        if not isinstance(kinds, dict) or not all(
            name in able and kind in FORMATS and shapes[name][-1] % FORMATS[kind].numbers == 0
            for name, kind in cast("dict[str, str]", kinds).items()
        ):
            raise CheckpointError(f"{source}: its metadata are damaged", "use another copy")
        hold_quantised(model, cast("dict[str, str]", kinds))
        try:
            surgery.restore(model, added)
        except DataError as error:
            raise CheckpointError(f"{source}: its metadata are damaged: {error.problem}", "use another copy") from error
    return _shapes(tensors_of(model))


def _take(model: AnyModel, file: TensorFile, dtype: torch.dtype) -> None:
    """Read every weight into its place, tensor by tensor: what is read becomes the weight, without a copy."""
    own, stored = tensors_of(model), stored_of(model)
    for tensor in own.values():
        tensor.data = tensor.new_empty(0)
    refused: CheckpointError | None = None  # a damaged file is to be called damaged, whatever numbers it holds
    for name, tensor in file:
        plain = isinstance(stored[name], Plain)
        if plain != tensor.is_floating_point():
            refused = refused or CheckpointError(f"{file.path}: {name} is {tensor.dtype}", "use another copy")
            continue
        own[name].data = tensor.to(dtype) if plain else tensor
        try:
            refuse_nonfinite(stored[name], f"{file.path}: {name}", dtype)
        except CheckpointError as error:
            refused = refused or error
    if refused is not None:
        raise refused


def _keep_published(model: AnyModel, published: Any, folder: Path) -> None:
    """Raises CheckpointError for what ``save_model`` does not write."""
    said = cast("dict[str, Any]", published) if isinstance(published, dict) else {"": None}
    generation, names, sentences = said.get("generation", {}), said.get("class_names", []), said.get("sentences", {})
    known = isinstance(generation, dict) and isinstance(names, list) and is_reading(sentences)
    if set(said) - set(PUBLISHED) or not known:
        raise CheckpointError(f"{folder / WEIGHTS}: its metadata are damaged", "use another copy")
    model.generation, model.sentences = cast("dict[str, Any]", generation), cast("dict[str, Any]", sentences)
    model.class_names = tuple(map(str, cast("list[Any]", names)))
