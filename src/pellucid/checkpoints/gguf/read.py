"""A GGUF as a published checkpoint: its config, and its tensors under their published names and in that layout."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Size, Tensor

from pellucid.checkpoints.gguf.config import MOST_HEADS, Contents, architecture_of, config_of_contents
from pellucid.checkpoints.gguf.file import GGUFFile
from pellucid.checkpoints.gguf.names import Place, places
from pellucid.checkpoints.gguf.rotary import ROPE_FACTORS
from pellucid.errors import CheckpointError
from pellucid.families.registry import spec_of
from pellucid.families.source import Checkpoint
from pellucid.families.table import Table, few
from pellucid.families.weights import export_weights
from pellucid.nn.formats import FORMATS
from pellucid.nn.init import build_undrawn
from pellucid.nn.stored import Plain, Quantised, Stored
from pellucid.spec import AttentionSpec, DecoderSpec, ModelSpec


class GGUFSource:
    """The tensors of a GGUF; ``metadata`` is the file's."""

    def __init__(self, file: GGUFFile, shapes: Mapping[str, Size], kept: Mapping[str, Place]):
        self.where, self.shapes, self.metadata = file.path, shapes, file.metadata
        self._file, self._kept = file, kept
        found = {name: file.tensors[place.name].kind for name, place in kept.items() if _by_rows(place)}
        self.kinds: Mapping[str, str] = {name: kind for name, kind in found.items() if kind in FORMATS}

    def read(self, name: str, dtype: torch.dtype | None = None) -> Stored:
        """One tensor under its published name. Raises CheckpointError where the file has become shorter.

        Where llama.cpp's layout goes through the rows, as a transposed one does, a quantised tensor is opened.
        """
        place = self._kept[name]
        if place.layout is None:
            return self._file.read(place.name, dtype, place.part)
        stored = self._file.read(place.name, torch.float32, place.part)
        if isinstance(stored, Quantised) and place.layout.by_rows:
            return Quantised(place.layout.undo(stored.blocks).contiguous(), stored.kind)
        return Plain(place.layout.undo(stored.opened(torch.float32)).to(dtype or torch.float32).contiguous())

    def release_vocabulary(self) -> None:
        """Let go of what the metadata say about the tokenizer, once it has been made: it may take tens of megabytes."""
        for key in [key for key in self.metadata if key.startswith("tokenizer.")]:
            del self.metadata[key]


def _by_rows(place: Place) -> bool:
    return place.layout is None or place.layout.by_rows


def published(spec: ModelSpec, table: Table) -> dict[str, Tensor]:
    """What a published checkpoint of this model holds: names and shapes, no numbers."""
    with torch.device("meta"):
        return export_weights(build_undrawn(spec), table)


def head_dim_of(spec: ModelSpec) -> int:
    """The size of a head. Raises CheckpointError for a model that is no stack of attention, which llama.cpp lacks."""
    mixer = spec.stack.blocks[0].mixer if isinstance(spec, DecoderSpec) else None
    if not isinstance(mixer, AttentionSpec):
        raise CheckpointError("this model is no decoder of attention", "only such models have a GGUF")
    return mixer.head_dim


def _where_kept(place: Place, file: GGUFFile) -> Place:
    """The place itself, or where older files have it: a tensor for each expert."""
    if place.part is None or place.name in file.tensors:
        return place
    return replace(place, name=place.name.replace("_exps.", f".{place.part}."), part=None)


def _check(file: GGUFFile, theirs: Mapping[str, Tensor], kept: Mapping[str, Place]) -> None:
    """Raise CheckpointError naming each tensor that is missing, left over or of another shape."""
    used = {place.name for place in kept.values()}
    missing = sorted(used - file.tensors.keys())
    if missing:
        raise CheckpointError(f"{file.path} lacks {few(missing)}", "it is incomplete, or its metadata are wrong")
    left = sorted(file.tensors.keys() - used - {ROPE_FACTORS})
    if left:
        raise CheckpointError(
            f"{file.path}: this model has no place for {few(left)}", "the metadata describe another model"
        )
    experts = Counter(place.name for place in kept.values())
    for name, place in kept.items():
        shape = file.tensors[place.name].shape
        wanted = theirs[name].shape if place.layout is None else place.layout.shape(theirs[name].shape)
        if place.part is not None:
            wanted = Size((experts[place.name], *wanted))
        if shape != wanted:
            raise CheckpointError(
                f"{file.path}: {place.name} has the shape {tuple(shape)}, but the metadata make it {tuple(wanted)}",
                "they describe another model than the weights do",
            )


def open_gguf(path: str | Path) -> Checkpoint:
    """The model in a GGUF, its header read and checked, its weights not.

    Raises CheckpointError naming file and thing: a damaged header, an architecture, key or type that we do not have, a
    tensor that is missing, left over, or of another shape than the metadata say.
    """
    file = GGUFFile(path)
    shapes = {name: info.shape for name, info in file.tensors.items()}
    if ROPE_FACTORS in shapes and shapes[ROPE_FACTORS].numel() > MOST_HEADS:  # one for each pair of a head
        raise CheckpointError(
            f"{file.path}: {ROPE_FACTORS} has the shape {tuple(shapes[ROPE_FACTORS])}", "fetch it again"
        )
    factors = file.read(ROPE_FACTORS).opened(torch.float32) if ROPE_FACTORS in shapes else None
    contents = Contents(file.path, file.metadata, shapes, factors)
    config = config_of_contents(contents)
    try:
        spec, table = spec_of(config)
    except CheckpointError as error:
        raise CheckpointError(f"{file.path}: {error.problem}", error.remedy) from error
    theirs = published(spec, table)
    found = places(architecture_of(contents), theirs, spec.n_layers, head_dim_of(spec))
    if unknown := sorted(name for name, place in found.items() if place is None):
        raise CheckpointError(f"{file.path}: llama.cpp has no name for {few(unknown)}", "its metadata are wrong")
    kept = {name: _where_kept(place, file) for name, place in found.items() if place is not None}
    _check(file, theirs, kept)
    return Checkpoint(config, GGUFSource(file, {name: t.shape for name, t in theirs.items()}, kept), file.path)
