"""Which adapters a model has, as JSON: what a file must say beside their tensors so that it can be read again."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import nn

from pellucid.errors import DataError
from pellucid.nn.base import Model
from pellucid.surgery.adapted import INSTEAD, Change, form_of
from pellucid.surgery.holding import adapters_of, attach, changes_of, held
from pellucid.surgery.lora import shape_of

LARGEST_RANK = 1 << 16


def described(model: Model) -> dict[str, Any]:
    """{module: {"active": name or None, adapter: {rank, scaling, …}}}; {} for a model without adapters."""
    return {
        path: {"active": adapters.active, "changes": {name: _said(change) for name, change in changes_of(module)}}
        for path, module, adapters in held(model)
    }


def _said(change: Change) -> dict[str, Any]:
    return {
        "rank": change.rank,
        "scaling": change.scaling,
        "dropout": change.dropout,
        "shared": change.shared,
        "dora": change.magnitude is not None,
        "instead": change.instead,
    }


def restore(model: Model, said: Any) -> None:
    """Give a model the adapters that ``described`` told of; their numbers are to be copied in.

    Raises DataError for what ``described`` never writes, or not of this model.
    """
    for path, each in _items(said):
        try:
            module = model.get_submodule(path)
        except AttributeError:
            raise DataError(f"adapters: the model has no module {path!r}", "it belongs to another model") from None
        entry = dict(_items(each))
        acting = entry.get("active")
        for name, change in _items(entry.get("changes")):
            attach(path, module, name, _change(model, path, module, dict(_items(change))))
        adapters = adapters_of(module)
        if adapters is None or not (acting is None or acting in adapters):
            raise DataError(f"adapters: {path!r} has an active adapter that is not there", "use another copy")
        adapters.active = acting


def _items(value: Any) -> list[tuple[str, Any]]:
    if not isinstance(value, Mapping):
        raise DataError(f"adapters: {value!r:.60} is no object", "use another copy")
    return list(cast("Mapping[str, Any]", value).items())


def _change(model: Model, path: str, module: nn.Module, said: dict[str, Any]) -> Change:
    rank, scaling, dropout = said.get("rank"), said.get("scaling"), said.get("dropout")
    shared, dora, instead = said.get("shared"), said.get("dora"), said.get("instead")
    own = dict(module.named_parameters(recurse=False))
    good = (
        isinstance(rank, int)
        and 0 <= rank <= LARGEST_RANK
        and isinstance(scaling, float)
        and math.isfinite(scaling)
        and isinstance(dropout, float)
        and 0 <= dropout < 1
        and isinstance(shared, bool)
        and isinstance(dora, bool)
        and isinstance(instead, list)
        and all(leaf in own for leaf in cast("list[Any]", instead))
        and (rank == 0 or form_of(path, module) is not None)
    )
    if not good:
        raise DataError(f"adapters: what is said of {path!r} cannot be", "use another copy")
    change = Change(cast(float, scaling), cast(float, dropout), cast(bool, shared))
    if rank:
        *experts, d_out, d_in = shape_of(model, path, module)
        change.a = nn.Parameter(torch.empty(*experts, rank, d_in))
        change.b = nn.Parameter(torch.empty(*experts, d_out, rank))
        form = form_of(path, module)
        axis = 1 if form is None else form.axis
        change.magnitude = nn.Parameter(torch.empty(d_in if axis == 0 else d_out)) if dora else None
    for leaf in cast("list[str]", instead):
        change.register_buffer(f"{INSTEAD}{leaf}", torch.empty_like(module.get_parameter(leaf)))
    return change
