"""Control vectors of llama.cpp: a vector for each of some layers, added to the stream that leaves it.

``direction.N`` belongs to the block that is number N when the first one is 0. A file cannot hold one for block 0:
llama.cpp refuses ``direction.0``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from jaxtyping import Float
from torch import Tensor

from pellucid.checkpoints.gguf.beside import write_beside
from pellucid.checkpoints.gguf.file import GGUFFile
from pellucid.checkpoints.gguf.write import ARCHITECTURES
from pellucid.errors import CheckpointError, PellucidError, UsageError
from pellucid.families.registry import config_of
from pellucid.nn.stored import Plain
from pellucid.spec import DecoderSpec

if TYPE_CHECKING:
    from gguf import GGUFWriter

ARCHITECTURE, NAME = "controlvector", re.compile(r"direction\.(\d{1,6})", re.ASCII)


def write_control(path: Path, vectors: Mapping[int, Float[Tensor, " d_model"]], spec: DecoderSpec) -> None:
    """Write vectors by the number of their block. Raises UsageError for ones that model or format cannot have."""
    wrong = [layer for layer in vectors if not 1 <= layer < spec.n_layers]
    if wrong or not vectors:
        raise UsageError(f"vectors of the layers {sorted(vectors)}", f"a file holds those of 1 to {spec.n_layers - 1}")
    for layer, vector in vectors.items():
        if vector.shape != (spec.d_model,) or not vector.isfinite().all():
            raise UsageError(f"the vector of layer {layer}", f"give {spec.d_model} finite numbers")

    def describe(writer: GGUFWriter) -> None:
        writer.add_string(f"{ARCHITECTURE}.model_hint", _hint(spec))
        writer.add_uint32(f"{ARCHITECTURE}.layer_count", spec.n_layers)

    directions = {f"direction.{layer}": vector for layer, vector in sorted(vectors.items())}
    write_beside(path, ARCHITECTURE, describe, directions)


def _hint(spec: DecoderSpec) -> str:
    """llama.cpp's name of the architecture, for people; empty for a model that it does not run."""
    try:
        return ARCHITECTURES.get(config_of(spec)[0]["model_type"], "")
    except PellucidError:
        return ""


def read_control(path: Path) -> dict[int, Float[Tensor, " d_model"]]:
    """The vectors of a file by the number of their block. Raises CheckpointError for one that holds none, or others."""
    file = GGUFFile(path)
    if file.metadata.get("general.architecture") != ARCHITECTURE or not file.tensors:
        what = file.metadata.get("general.architecture")
        raise CheckpointError(f"{path} is no control vector, but {what!r:.80}", "give a file of llama.cpp's or ours")
    found: dict[int, Tensor] = {}
    for name, info in file.tensors.items():
        number = NAME.fullmatch(name)
        if number is None or info.kind != "F32" or len(info.shape) != 1 or int(number[1]) == 0:
            raise CheckpointError(
                f"{path}: {name!r:.80} is {info.kind} of the shape {tuple(info.shape)}",
                "a control vector holds vectors in F32, named direction.1, direction.2, …",
            )
        stored = file.read(name)
        assert isinstance(stored, Plain)
        found[int(number[1])] = stored.tensor
    if len({vector.shape for vector in found.values()}) > 1 or not all(x.isfinite().all() for x in found.values()):
        raise CheckpointError(f"{path}: its vectors are not finite, or not alike in length", "write it again")
    return dict(sorted(found.items()))
