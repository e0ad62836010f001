"""An adapter that PEFT wrote, put into a model of ours: the same function of every text."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import torch
from torch import Size, Tensor, nn

from pellucid.arguments import checked
from pellucid.checkpoints.peft.config import CONFIG, WEIGHTS, PeftConfig, read_config
from pellucid.checkpoints.peft.places import Spot, apart, family_of, named, refuse_missing, spots_of
from pellucid.checkpoints.safetensors_files import SafetensorsFiles, pickle_refusal, read_object
from pellucid.errors import CheckpointError
from pellucid.families.table import Table, links_of
from pellucid.families.weights import refuse_nonfinite, shapes_of
from pellucid.nn.base import Model
from pellucid.nn.stored import Plain
from pellucid.surgery.adapted import Change, form_of
from pellucid.surgery.holding import attach, keep_whole, switch
from pellucid.surgery.lora import refuse_name
from pellucid.surgery.ties import table_of, tied_head, untie

M = TypeVar("M", bound=Model)

PREFIX, BASE = "base_model.model.", ".base_layer"
_FACTOR = re.compile(r"(.*)\.(?:lora_([AB])\.weight|lora_embedding_([AB])|lora_(magnitude)_vector(?:\.weight)?)")


@checked(folder="give the folder that holds adapter_config.json")
def open_adapter(
    model: M, folder: str | Path, *, name: str = "adapter", family: str | None = None, base_weights: bool = False
) -> M:
    """The model itself, with the adapter of a folder that PEFT, or ``save_adapter``, wrote; it is active.

    family: the ``model_type`` whose names the file has (default: the first that can express the model). base_weights:
    take weights of the base that the file carries, too; they belong to the adapter, and go when it is switched off.
    A model whose head is tied is untied where the adapter has another matrix for head or table. All is checked before
    the model is changed. Raises CheckpointError naming what is missing, damaged, unknown, or of another model.
    """
    folder = Path(folder)
    refuse_name(model, name)
    config, source = read_config(folder), _open(folder)
    tensors = {key: _tensor(source, key) for key in source.shapes}
    _, tables = family_of(model, family)
    found = _sorted(model, config, tensors, tables, folder)
    _refuse_incomplete(folder, found)
    changes = [each for spot, group in found.groups for each in _changes(config, spot, group, folder)]
    whole = dict(_whole(model, config, found, folder, base_weights))
    for path, _ in changes:
        if form_of(path, model.get_submodule(path)) is None:
            raise CheckpointError(f"{folder}: it adapts {path}, whose rows are read at once", "merge it with peft")
    if _needs_untying(model, config, {path for path, _ in changes}, whole):
        untie(model)
    for path, change in changes:
        attach(path, model.get_submodule(path), name, change)
    for path, value in whole.items():
        keep_whole(model, path, name, value)
    switch(model, name)
    return model


def _needs_untying(model: Model, config: PeftConfig, changed: Collection[str], whole: Collection[str]) -> bool:
    """Whether head and table become two matrices: one of them is another, or has a norm of its own."""
    if (tied := tied_head(model)) is None:
        return False
    halves = (f"{tied[0]}.weight", "embed.tokens.weight")
    return any(path.endswith(halves) for path in whole) or (config.dora and tied[0] in changed)


def _open(folder: Path) -> SafetensorsFiles:
    if not (folder / WEIGHTS).is_file() and (folder / "adapter_model.bin").is_file():
        raise pickle_refusal(folder, ["adapter_model.bin"])
    return SafetensorsFiles(folder, [folder / WEIGHTS])


def _tensor(source: SafetensorsFiles, key: str) -> Tensor:
    stored = source.read(key, torch.float32)
    refuse_nonfinite(stored, f"{source.where / WEIGHTS}: {key}", torch.float32)
    return stored.tensor


@dataclass(eq=False)
class _Found:
    """What a file holds: the factors of each spot, and whole weights of the base by their names there."""

    table: Table
    spots: Mapping[str, Spot]
    groups: list[tuple[Spot, dict[str, Tensor]]] = field(default_factory=list)
    whole: dict[str, Tensor] = field(default_factory=dict)
    adapted: set[str] = field(default_factory=set)  # modules with factors, by their names there


def _sorted(
    model: Model, config: PeftConfig, tensors: Mapping[str, Tensor], tables: list[Table], folder: Path
) -> _Found:
    """The tensors by what they belong to, by the first table that knows every module.

    Raises CheckpointError where none does.
    """
    by_module: dict[str, dict[str, Tensor]] = {}
    whole: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        bare = key.removeprefix(PREFIX)
        if (factor := _FACTOR.fullmatch(bare)) is None:
            whole[bare] = tensor
            continue
        kind = factor[2] or (f"table {factor[3]}" if factor[3] else "magnitude")
        by_module.setdefault(factor[1], {})[kind] = tensor
    failed: CheckpointError | None = None
    for table in tables:
        found = _Found(table, spots_of(model, table), whole=whole)
        try:
            for module, group in by_module.items():
                found.groups.append((_spot(found, config, module), group))
                found.adapted.add(module)
            return found
        except CheckpointError as error:
            failed = failed or error
    assert failed is not None
    raise CheckpointError(f"{folder}: {failed.problem}", failed.remedy)


def _spot(found: _Found, config: PeftConfig, module: str) -> Spot:
    """The matrix that factors belong to. Of several parameters of one module, the first is wrapped first, and so stands
    behind the most ``base_layer``s."""
    if (spot := named(found.spots, module, found.table.base)) is not None:
        return spot
    owner = module.replace(BASE, "")
    depth = module.count(BASE)
    owners = {owner, found.table.base + owner}
    targeted = [
        spot
        for name, spot in found.spots.items()
        if name.rpartition(".")[0] in owners
        and spot.experts
        and any(name == each or name.endswith(f".{each}") for each in config.parameters)
    ]
    if depth >= len(targeted):
        raise refuse_missing(module)
    return targeted[len(targeted) - 1 - depth]


def _refuse_incomplete(folder: Path, found: _Found) -> None:
    """Raise CheckpointError where the config names a module and the file has nothing of it."""
    said = read_object(folder / CONFIG)
    targets, saved = said.get("target_modules"), said.get("modules_to_save") or []
    if not isinstance(targets, list) or any(said.get(key) for key in ("exclude_modules", "layers_to_transform")):
        return
    have = {spot.theirs for spot, _ in found.groups}
    for module in found.spots:
        wanted = any(isinstance(each, str) and f".{module}".endswith(f".{each}") for each in targets)
        if wanted and module not in have and not any(str(each) in module.split(".") for each in saved):
            raise CheckpointError(f"{folder / WEIGHTS} lacks the factors of {module}", "fetch the adapter again")


def _changes(config: PeftConfig, spot: Spot, group: Mapping[str, Tensor], folder: Path) -> Iterator[tuple[str, Change]]:
    """The change of each of our modules that stands for a matrix of theirs."""
    table = "table A" in group
    a, b = group.get("A"), group.get("B")
    if table:  # theirs multiplies by the transposed table: A is (rank, tokens), B (width, rank)
        a, b = (None if each is None else each.mT for each in (group.get("table B"), group.get("table A")))
    if a is None or b is None or a.ndim != 2 or b.ndim != 2:
        raise CheckpointError(f"{folder / WEIGHTS}: a factor of {spot.theirs} is missing", "fetch the adapter again")
    magnitude = group.get("magnitude")
    if (magnitude is not None) != config.dora:
        raise CheckpointError(f"{folder}: use_dora is {config.dora}, but the file of {spot.theirs} says otherwise", "")
    rank = config.rank_of(spot.theirs)
    if spot.experts:  # A is (experts · rank, d_in), B (d_out, rank · experts): another order in each
        a = a.unflatten(0, (spot.experts, -1)) if len(a) % spot.experts == 0 else a[None]
        b = b.unflatten(1, (-1, spot.experts)).permute(2, 0, 1) if b.shape[1] % spot.experts == 0 else b[None]
    outputs = spot.join([torch.empty(*shape[:-1], rank, device="meta") for shape in spot.shapes]).shape
    inputs = Size((*spot.shapes[0][:-2], rank, spot.shapes[0][-1]))
    if a.shape != inputs or b.shape != outputs:
        raise CheckpointError(
            f"{folder / WEIGHTS}: A and B of {spot.theirs} are {tuple(a.shape)} and {tuple(b.shape)}; its config "
            f"and this model make them {tuple(inputs)} and {tuple(outputs)}",
            "it is an adapter for another model, or its config's patterns have another order",
        )
    width = spot.shapes[0][-1] if table else outputs[-2]
    if magnitude is not None and magnitude.numel() != width:
        raise CheckpointError(f"{folder / WEIGHTS}: the magnitudes of {spot.theirs} are no {width}", "fetch it again")
    rows = spot.split(b)
    gains: list[Tensor | None] = [None] * len(rows)
    if magnitude is not None:
        gains = [magnitude.flatten()] if table else [part[..., 0] for part in spot.split(magnitude.reshape(-1, 1))]
    for path, part, gain in zip(spot.ours, rows, gains, strict=True):
        change = Change(config.scaling_of(spot.theirs), config.dropout, shared=False)
        change.a, change.b = nn.Parameter(a.contiguous().clone()), nn.Parameter(part.clone())
        change.magnitude = None if gain is None else nn.Parameter(gain.contiguous().clone())
        yield path, change


# --- whole weights ---------------------------------------------------------------------------------------------------


def _whole(
    model: Model, config: PeftConfig, found: _Found, folder: Path, base_weights: bool
) -> Iterator[tuple[str, Tensor]]:
    """(our name, value) of each weight of the base that belongs to the adapter."""
    shapes = shapes_of(apart(model))
    links = {link.theirs: link for link in links_of(found.table, shapes)}
    copies = {copy: original for copy, original in found.table.copies if copy not in links}
    for key, value in found.whole.items():
        name = key.replace(BASE, "")
        named_here = copies.get(name, name)
        if any(copies.get(other.replace(BASE, "")) == name for other in found.whole):
            continue  # the copy is what the module that was trained reads
        link = links.get(named_here) or links.get(found.table.base + named_here)
        if link is None or link.part is not None:
            raise CheckpointError(f"{folder / WEIGHTS}: {key} is of no module of this model", "it is of another model")
        wanted = link.wanted(shapes)
        whole = link.transform.give([torch.empty(size, device="meta") for size in wanted]).shape
        if whole != value.shape:
            problem = f"{key} has the shape {tuple(value.shape)}, but the model's is {tuple(whole)}"
            raise CheckpointError(f"{folder / WEIGHTS}: {problem}", "it is of a model with another vocabulary, or size")
        ours = dict(zip(link.ours, link.transform.take(value, wanted), strict=True))
        if not _belongs(config, found, key, name) and not base_weights:
            if BASE in key and all(_is_base(model, path, part) for path, part in ours.items()):
                continue  # PEFT writes tables of tokens again where they are adapted
            raise CheckpointError(
                f"{folder / WEIGHTS} carries {key}, a weight of the base, and would replace it",
                "if that is meant, open it with base_weights=True",
            )
        yield from ((path, part.contiguous().clone()) for path, part in ours.items())


def _belongs(config: PeftConfig, found: _Found, key: str, name: str) -> bool:
    """Whether the config says that this weight of the base was trained."""
    module, _, leaf = name.rpartition(".")
    if any(re.fullmatch(rf"(.*\.)?{re.escape(each)}", module) for each in config.whole):
        return BASE not in key
    if leaf != "bias" or config.bias == "none":
        return False
    return config.bias == "all" or module in found.adapted


def _is_base(model: Model, path: str, value: Tensor) -> bool:
    """Whether a weight is what the base has already, in the type that it has there."""
    tied = tied_head(model)
    if tied is not None and path == f"{tied[0]}.weight":
        stored = table_of(tied[2])
        own = stored.opened(torch.float32)
    else:
        own = dict(model.named_parameters()).get(path)
    return own is not None and torch.equal(own.detach(), Plain(value).opened(own.dtype))
