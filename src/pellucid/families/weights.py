"""Weights through a family's table: into a model, tensor by tensor or all at once, and out again under their names."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import torch
from torch import Size, Tensor, nn

from pellucid.errors import CheckpointError
from pellucid.families.source import Source
from pellucid.families.table import Double, Plan, Table, links_of, plan
from pellucid.nn.init import build_undrawn
from pellucid.nn.quantised import stored_of
from pellucid.nn.stored import Plain, Quantised, Stored
from pellucid.spec import ModelSpec

# --- what a model has ------------------------------------------------------------------------------------------------


@lru_cache(maxsize=4)  # a load asks several times for the same
def shapes_of(spec: ModelSpec) -> Mapping[str, Size]:
    """The shapes of all that a model of this spec stores, by name; none of its memory is taken.

    Raises CheckpointError for a size whose product no number of torch holds.
    """
    try:
        with torch.device("meta"):
            return {name: stored.shape for name, stored in stored_of(build_undrawn(spec)).items()}
    except RuntimeError as error:
        raise CheckpointError(f"a model of these sizes is too large for any memory: {error}", "restore it") from error


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """The tensors that hold all that a model stores, by name; for a quantised weight, its blocks."""
    return {
        name: stored.tensor if isinstance(stored, Plain) else stored.blocks for name, stored in stored_of(model).items()
    }


# --- through a table -------------------------------------------------------------------------------------------------


def to_ours(theirs: Mapping[str, Tensor], shapes: Mapping[str, Size], table: Table) -> dict[str, Tensor]:
    """Their tensors under our names, as views where that is possible. ``shapes``: those of our weights, by name.

    Raises CheckpointError naming each weight that is unmapped, missing, of another shape, or not of floating point.
    """
    found = plan({name: tensor.shape for name, tensor in theirs.items()}, shapes, table)
    for double in found.doubles:
        _refuse_different(theirs[double.copy], theirs[double.original], double)
    taken: dict[str, list[Tensor]] = {}
    for link in found.links:
        tensor = theirs[link.theirs]
        if not tensor.is_floating_point():
            raise CheckpointError(
                f"{link.theirs} is {tensor.dtype}, not floating point", "load an unquantised checkpoint"
            )
        for name, ours in zip(link.ours, link.transform.take(tensor, link.wanted(shapes)), strict=True):
            taken.setdefault(name, []).append(ours)
    sliced = {name for link in found.links if link.part is not None for name in link.ours}
    return {name: torch.stack(parts) if name in sliced else parts[0] for name, parts in taken.items()}


def to_theirs(ours: Mapping[str, Tensor], table: Table) -> dict[str, Tensor]:
    """The way back, for weights or what else has one tensor a weight, such as gradients. Copies are not repeated."""
    links = links_of(table, {name: tensor.shape for name, tensor in ours.items()})
    return {
        link.theirs: link.transform.give(
            [ours[name] if link.part is None else ours[name][link.part] for name in link.ours]
        ).contiguous()
        for link in links
    }


def load_weights(model: nn.Module, theirs: Mapping[str, Tensor], table: Table) -> None:
    """Copy a checkpoint's weights into the model, all of them or, on an error, none; the model's dtype stays.

    Raises CheckpointError naming each weight that is unmapped, missing, of another shape, or not of floating point.
    """
    ours = stored_of(model)
    refuse_quantised(ours, "nothing can be copied into it")
    taken = to_ours(theirs, {name: stored.shape for name, stored in ours.items()}, table)
    with torch.no_grad():
        for name, tensor in tensors_of(model).items():
            tensor.copy_(taken[name])


def stream_weights(model: nn.Module, source: Source, found: Plan, dtype: torch.dtype) -> None:
    """Read a planned checkpoint into the model, tensor by tensor; what is read becomes the weight, without a copy.

    So no more is held at once than the model and what one tensor's transform needs. A weight that the model holds
    quantised takes its blocks as they are. Raises CheckpointError naming a tensor that is not of floating point or not
    finite; the model is then not to be used.
    """
    stored, ours = stored_of(model), tensors_of(model)
    shapes = {name: each.shape for name, each in stored.items()}
    whole = {name: tensor.shape for name, tensor in ours.items()}
    types = {name: dtype if isinstance(each, Plain) else torch.uint8 for name, each in stored.items()}
    for name, tensor in ours.items():
        tensor.data = torch.empty(0, dtype=types[name])
    doubles: dict[str, list[Double]] = {}
    for double in found.doubles:
        doubles.setdefault(double.original, []).append(double)
    for link in found.links:
        read = refuse_nonfinite(source.read(link.theirs, dtype), f"{source.where}: {link.theirs}", dtype)
        for double in doubles.get(link.theirs, []):
            _refuse_different(source.read(double.copy, dtype).opened(dtype), read.opened(dtype), double)
        stays = all(isinstance(stored[name], Quantised) for name in link.ours)
        tensor = read.blocks if stays and isinstance(read, Quantised) else read.opened(dtype)
        parts = link.transform.take(tensor, link.wanted(shapes))
        for name, taken in zip(link.ours, parts, strict=True):
            if link.part is None:
                ours[name].data = _alone(taken)
            else:
                if ours[name].numel() == 0:
                    ours[name].data = torch.empty(whole[name], dtype=types[name])
                ours[name].data[link.part] = taken
            del taken
        del read, tensor, parts  # so that the next tensor is not read beside them


def export_weights(model: nn.Module, table: Table) -> dict[str, Tensor]:
    """The weights under the family's names, as ``load_weights`` takes them; they may share memory with the model.

    Those that are quantised are opened, in the type of the others.
    """
    stored = stored_of(model)
    dtype = next((each.tensor.dtype for each in stored.values() if isinstance(each, Plain)), torch.float32)
    opened = {
        name: each.tensor.detach() if isinstance(each, Plain) else each.opened(dtype) for name, each in stored.items()
    }
    return to_theirs(opened, table)


def equal(source: Source, a: str, b: str) -> bool:
    """Whether two tensors of a checkpoint are one, as far as their numbers tell."""
    if source.shapes[a] != source.shapes[b]:
        return False
    stored = (source.read(a), source.read(b))
    first, second = (each.tensor if isinstance(each, Plain) else each.opened(torch.float32) for each in stored)
    kind = torch.promote_types(first.dtype, second.dtype)
    return torch.equal(first.to(kind), second.to(kind))


# --- refusals --------------------------------------------------------------------------------------------------------


def refuse_nonfinite(stored: Stored, what: str, dtype: torch.dtype) -> Stored:
    """What is stored, itself. Raises CheckpointError where it holds NaN, infinity, or what ``dtype`` cannot hold."""
    if not stored.is_finite(dtype):
        raise CheckpointError(
            f"{what} holds NaN or infinite numbers in {str(dtype).removeprefix('torch.')}",
            "use another copy, or a type of larger range",
        )
    return stored


def refuse_quantised(stored: Mapping[str, Stored], why: str) -> None:
    """Raise CheckpointError, naming the first, where a weight is quantised."""
    for name, each in stored.items():
        if isinstance(each, Quantised):
            raise CheckpointError(f"{name} is quantised ({each.kind}): {why}", "load the model without quantised=True")


def _refuse_different(copy: Tensor, original: Tensor, double: Double) -> None:
    if not torch.equal(copy, original):
        raise CheckpointError(
            f"{double.copy} differs from {double.original}, but a model of this config has one tensor for both",
            "set tie_word_embeddings to false in config.json if the checkpoint really has both"
            if double.own
            else "restore the file; with architecture= and its bare class, an encoder opens without the head",
        )


def _alone(tensor: Tensor) -> Tensor:
    """The tensor in memory that it shares with no other, and with its rows in order."""
    alone = tensor.is_contiguous() and tensor.untyped_storage().nbytes() == tensor.nbytes
    return tensor if alone else tensor.clone(memory_format=torch.contiguous_format)
