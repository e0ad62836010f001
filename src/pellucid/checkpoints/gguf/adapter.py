"""An adapter of ours as a GGUF that llama.cpp puts beside a model (``llama-cli -m base.gguf --lora adapter.gguf``).

Beside the matrix NAME of the base stand ``NAME.lora_a`` (rank, d_in) and ``NAME.lora_b`` (d_out, rank), those of
experts one above the other. Of a table of tokens, ``lora_a`` has a row for each token, and ``lora_b`` is (width, rank).
llama.cpp adds alpha / rank · B A, with one alpha for the whole file; where strengths differ, B is multiplied by what is
missing.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pellucid.arguments import checked
from pellucid.checkpoints.gguf.beside import write_beside
from pellucid.checkpoints.gguf.names import Place, places
from pellucid.checkpoints.gguf.read import head_dim_of
from pellucid.checkpoints.gguf.write import program_of
from pellucid.checkpoints.peft.places import apart, spots_of
from pellucid.checkpoints.peft.write import joined_factors
from pellucid.errors import CheckpointError, UsageError
from pellucid.families.table import Table, links_of
from pellucid.families.weights import refuse_nonfinite, shapes_of
from pellucid.nn.base import Model
from pellucid.nn.stored import Plain
from pellucid.surgery.adapted import Adapted, Change
from pellucid.surgery.holding import active, changes
from pellucid.surgery.ties import tied_head

if TYPE_CHECKING:
    from gguf import GGUFWriter

Factors = tuple[Tensor, Tensor, float]  # lora_a, lora_b, and the strength s of s · B A


@checked(path="give a file that ends in .gguf")
@torch.no_grad()
def save_gguf_adapter(model: Model, path: str | Path) -> None:
    """Write the active adapter for llama.cpp, in float32, whole or not at all; its base is the file of ``to_gguf``.

    Raises UsageError where no adapter is active; CheckpointError naming what llama.cpp cannot do beside a model:
    magnitudes (DoRA), weights that are trained whole, a table that head and tokens share.
    """
    if (name := active(model)) is None:
        raise UsageError("no adapter is active, so there is nothing to write", "switch to one first")
    head_dim = head_dim_of(model.spec)
    architecture, table = program_of(model.spec)
    changed = {path: change for path, _, change in changes(model, name)}
    for where, change in changed.items():
        _refuse(model, where, change)
    factors = _of_matrices(model, table, changed) | _of_experts(model, table, changed)
    kept = places(architecture, factors, model.spec.n_layers, head_dim)
    strengths = Counter(s * b.shape[-1] for _, b, s in factors.values())
    alpha = strengths.most_common(1)[0][0]
    alpha = alpha if alpha > 0 else 1.0  # llama.cpp takes 0 for full strength
    tensors: dict[str, Tensor] = {}
    for theirs, (a, b, s) in factors.items():
        place = kept[theirs]
        if place is None:
            raise CheckpointError(f"llama.cpp has no name for {theirs}", "merge the adapter, and write the whole model")
        tensors[f"{place.name}.lora_a"] = a
        tensors[f"{place.name}.lora_b"] = _laid(b, place) * (s * b.shape[-1] / alpha)
    for key, tensor in tensors.items():
        refuse_nonfinite(Plain(tensor.float()), key, torch.float32)
    _write(Path(path), architecture, alpha, tensors)


def _laid(b: Tensor, place: Place) -> Tensor:
    """B with its rows where llama.cpp has the outputs of this matrix."""
    return b if place.layout is None or place.layout.turns else place.layout.do(b)


def _refuse(model: Model, path: str, change: Change) -> None:
    tied = tied_head(model)
    halves = () if tied is None else (tied[1], tied[2].tokens)
    problem = ""
    if change.instead:
        problem = f"{path}.{change.instead[0]} is trained whole, which llama.cpp leaves out of an adapter"
    elif change.magnitude is not None:
        problem = f"{path} has magnitudes (DoRA), which llama.cpp's adapters lack"
    elif any(model.get_submodule(path) is half for half in halves):
        problem = f"{path} is one table for head and tokens, which llama.cpp adapts in neither"
    if problem:
        raise CheckpointError(problem, "merge the adapter, and write the whole model (pellucid convert --to gguf)")


def _of_matrices(model: Model, table: Table, changed: dict[str, Change]) -> dict[str, Factors]:
    """The factors by the published name of their matrix; several of ours may be one there."""
    found: dict[str, Factors] = {}
    for spot in spots_of(model, table).values():
        members = [changed.get(path) for path in spot.ours]
        if not any(members):
            continue
        a, b, scaling = joined_factors(spot, members)
        module = model.get_submodule(spot.ours[0])
        is_table = isinstance(module, Adapted) and module.axis == 0
        found[f"{spot.theirs}.weight"] = (b, a.mT, scaling) if is_table else (a, b, scaling)
    return found


def _of_experts(model: Model, table: Table, changed: dict[str, Change]) -> dict[str, Factors]:
    """Those of all experts in one, under the published name of the first: their matrices have a name each."""
    found: dict[str, Factors] = {}
    for link in links_of(table, shapes_of(apart(model))):
        change = changed.get(link.ours[0].removesuffix(".weight")) if link.part == 0 else None
        if change is not None:
            found[link.theirs] = (*change.factors, change.scaling)
    return found


def _write(path: Path, architecture: str, alpha: float, tensors: dict[str, Tensor]) -> None:
    def describe(writer: GGUFWriter) -> None:
        writer.add_type("adapter")
        writer.add_string("adapter.type", "lora")
        writer.add_float32("adapter.lora.alpha", alpha)

    write_beside(path, architecture, describe, tensors)
