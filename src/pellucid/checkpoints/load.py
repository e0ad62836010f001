"""From an opened checkpoint to a model: the config becomes a spec, and tensor by tensor is read into its place."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from pellucid.checkpoints.room import refuse_too_large
from pellucid.checkpoints.sentence import encoder_folder, reading, sentence_head
from pellucid.errors import CheckpointError, UsageError, suggest
from pellucid.families.config import SAMPLING, TOKENS
from pellucid.families.encoders import class_names
from pellucid.families.registry import family, spec_of
from pellucid.families.source import Checkpoint
from pellucid.families.table import Plan, Table, plan
from pellucid.families.weights import equal, shapes_of, stream_weights
from pellucid.nn.init import build_undrawn
from pellucid.nn.models import AnyModel
from pellucid.nn.quantised import hold_quantised, quantisable
from pellucid.spec import EncoderSpec, ModelSpec, PoolerHeadSpec
from pellucid.surgery.ties import untied_spec

OF_GENERATION = (*SAMPLING.split(), *TOKENS.split())
IGNORED_OF_GENERATION = ("_from_model_config", "transformers_version")  # these describe the file, not the model


def open_checkpoint(path: Path) -> Checkpoint:
    """A published model in a folder, or in one file: ``.gguf``, or ``.safetensors`` with its config beside it.

    Raises CheckpointError naming what is missing, damaged, or of another kind.
    """
    if path.is_dir():
        from pellucid.checkpoints.safetensors_files import open_folder

        return replace(open_folder(encoder_folder(path)), where=path)
    if path.suffix.lower() == ".gguf":
        from pellucid.checkpoints.gguf.read import open_gguf

        return open_gguf(path)
    from pellucid.checkpoints.safetensors_files import PICKLED, WEIGHTS, open_folder, pickle_refusal

    if path.name == WEIGHTS:
        return open_folder(path.parent)
    if any(path.match(pattern) for pattern in PICKLED):
        raise pickle_refusal(path.parent, [path.name])
    raise CheckpointError(f"{path} is not a model folder", "give one, a .gguf file, or ORG/NAME on the hub")


def load_checkpoint(
    checkpoint: Checkpoint,
    dtype: torch.dtype = torch.float32,
    architecture: str | None = None,
    *,
    quantised: bool = False,
) -> AnyModel:
    """The model of a checkpoint, in this type and in eval mode, without its tokenizer (``pellucid.load`` adds it).

    architecture: the class that the weights are of (default: the one that the config names; but an encoder has the head
    that a ``modules.json`` beside it describes). A bare encoder has no pooler where the file lacks it. quantised: what
    is quantised in the file stays so in memory, where whole rows of it become whole rows of a weight; the rest is
    opened. All names and shapes are checked before a weight is read or its memory taken. Raises CheckpointError naming
    what does not fit.
    """
    source = checkpoint.source
    spec, found = _planned(checkpoint, architecture)
    generation = _generation(checkpoint)
    if not quantised:
        refuse_too_large(checkpoint.where, shapes_of(spec), dtype)
    model = build_undrawn(spec)
    if quantised:
        kinds = found.stays(source.kinds, quantisable(model))
        refuse_too_large(checkpoint.where, shapes_of(spec), dtype, kinds)  # what is only reserved takes no memory yet
        hold_quantised(model, kinds)
    stream_weights(model, source, found, dtype)
    model.generation, model.class_names = generation, class_names(checkpoint.config, spec)
    if architecture is None and isinstance(spec, EncoderSpec):
        model.sentences = reading(checkpoint.where, spec.context)
    return model.to(dtype).eval()


def without(config: Mapping[str, Any], names: Collection[str], where: object) -> Mapping[str, Any]:
    """The config as if it, and the part of it that is of the text, did not have these attributes.

    where: what errors call the config. Raises UsageError for a name that is in neither.
    """
    nested = config.get("text_config")
    text: dict[str, Any] = nested if isinstance(nested, dict) else {}
    for name in names:
        if name not in config and name not in text:
            raise UsageError(f"{where}: the config has no {name!r}", suggest(name, [*config, *text]))
    kept = {name: value for name, value in config.items() if name not in names}
    if text and "text_config" in kept:
        kept["text_config"] = {name: value for name, value in text.items() if name not in names}
    return kept


def _planned(checkpoint: Checkpoint, architecture: str | None) -> tuple[ModelSpec, Plan]:
    source = checkpoint.source
    with _naming(checkpoint.where):
        spec, table = spec_of(checkpoint.config, architecture)
        if isinstance(spec, EncoderSpec):
            spec, table = _as_published(checkpoint, spec, table, with_modules=architecture is None)
        found = plan(source.shapes, shapes_of(spec), table)
        heads = [double for double in found.doubles if double.own]
        if all(equal(source, double.copy, double.original) for double in heads):
            return spec, replace(found, doubles=tuple(double for double in found.doubles if not double.own))
        spec = untied_spec(spec)  # the tensors decide, whatever the config says
        return spec, plan(source.shapes, shapes_of(spec), family(str(checkpoint.config["model_type"])).table(spec))


def formats(checkpoint: Checkpoint) -> dict[str, int]:
    """How many numbers of the model stay in each format when it is loaded quantised; "float32": those that are opened.

    Reads no weight of a GGUF. Raises CheckpointError as ``load_checkpoint`` does.
    """
    spec, found = _planned(checkpoint, None)
    with torch.device("meta"):
        model = build_undrawn(spec)
    kinds = found.stays(checkpoint.source.kinds, quantisable(model))
    numbers: Counter[str] = Counter()
    for name, shape in shapes_of(spec).items():
        numbers[kinds.get(name, "float32")] += shape.numel()
    return dict(numbers)


def _generation(checkpoint: Checkpoint) -> dict[str, Any]:
    """How the model is to write: from a file of its own, or in older folders from the config."""
    from pellucid.checkpoints.safetensors_files import GENERATION, read_object

    if (path := checkpoint.where / GENERATION).is_file():
        return {name: value for name, value in read_object(path).items() if name not in IGNORED_OF_GENERATION}
    return {name: checkpoint.config[name] for name in OF_GENERATION if checkpoint.config.get(name) is not None}


def _as_published(
    checkpoint: Checkpoint, spec: EncoderSpec, table: Table, with_modules: bool
) -> tuple[EncoderSpec, Table]:
    """The encoder with the head that the folder gives it, which no config can say."""
    bare = replace(spec, head=None)
    if with_modules and (head := sentence_head(checkpoint.where)) is not None:
        return replace(spec, head=head), family(str(checkpoint.config["model_type"])).table(bare)
    pools = isinstance(spec.head, PoolerHeadSpec) and spec.head.dense
    if pools and not any("pooler." in name for name in checkpoint.source.shapes):
        return bare, family(str(checkpoint.config["model_type"])).table(bare)
    return spec, table


@contextmanager
def _naming(where: Path) -> Iterator[None]:
    """Put the file or folder in front of an error that does not name it."""
    try:
        yield
    except CheckpointError as error:
        if str(where) in error.problem:
            raise
        raise CheckpointError(f"{where}: {error.problem}", error.remedy) from error
