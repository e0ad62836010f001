"""Where PEFT's modules stand in a model of ours: one of theirs may be several of ours, and lie on its side.

A family's table says how a published weight W becomes ours. An update s · B A is a weight too, and whatever the table
does to W by whole rows of outputs it does to B alone: so q, k and v that are one matrix there share A here and have
the rows of B that are theirs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Size, Tensor

from pellucid.errors import CheckpointError
from pellucid.families.registry import config_of
from pellucid.families.table import Link, Table, links_of
from pellucid.families.weights import shapes_of
from pellucid.nn.base import Model
from pellucid.spec import DecoderSpec, EncoderDecoderSpec, LMHeadSpec, MaskedLMHeadSpec, ModelSpec
from pellucid.surgery.ties import tied_head, untied_spec

MARK = 1_000_003  # a width that no model has


@dataclass(frozen=True)
class Spot:
    """A published matrix: ``theirs`` its module (or, for experts, its parameter), ``ours`` the modules that it becomes.

    lying: whether it is stored (in, out). experts: how many, for matrices that stand one above the other.
    """

    theirs: str
    ours: tuple[str, ...]
    link: Link
    shapes: tuple[Size, ...]  # of ours
    lying: bool
    experts: int = 0

    def split(self, b: Tensor) -> list[Tensor]:
        """The rows of B (or of a column) that belong to each of ours, from (…, d_out, rank)."""
        wanted = [Size((*shape[:-1], b.shape[-1])) for shape in self.shapes]
        return [part.contiguous() for part in self.link.transform.take(b.mT if self.lying else b, wanted)]

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """The way back: (…, d_out, rank)."""
        whole = self.link.transform.give(list(parts))
        return (whole.mT if self.lying else whole).contiguous()


def family_of(model: Model, family: str | None) -> tuple[str, list[Table]]:
    """(model_type, the tables under whose names its weights may go), the one that the library has in memory first."""
    try:
        config, table = config_of(model.spec, family)
    except CheckpointError:  # of a family whose head is always tied, as this one's was
        if isinstance(getattr(model.spec, "head", None), LMHeadSpec | MaskedLMHeadSpec):
            config, table = config_of(untied_spec(model.spec, tied=True), family)
        else:
            raise
    tables = [table, *table.versions]
    return config["model_type"], sorted(tables, key=lambda each: any("*" in row.theirs for row in each.rows))


def apart(model: Model) -> ModelSpec:
    """The spec as if head and table were two matrices, so that both have a name."""
    return model.spec if tied_head(model) is None else untied_spec(model.spec)


def spots_of(model: Model, table: Table) -> dict[str, Spot]:
    """The matrices of a model that an adapter can act on, by the names of their modules there.

    Raises CheckpointError where the table does not fit the model.
    """
    shapes = shapes_of(apart(model))
    links = links_of(table, shapes)
    found: dict[str, Spot] = {}
    for link in links:
        if link.part is not None or not all(name.endswith(".weight") and len(shapes[name]) > 1 for name in link.ours):
            continue
        own = tuple(shapes[name] for name in link.ours)
        probe = [torch.empty(*shape[:-1], MARK, device="meta") for shape in own]
        whole = link.transform.give(probe).shape
        if MARK not in whole:
            continue
        experts = own[0][0] if len(own[0]) == 3 else 0
        module = link.theirs.removesuffix(".weight")
        ours = tuple(name.removesuffix(".weight") for name in link.ours)
        found[module] = Spot(module, ours, link, own, whole[-1] != MARK, experts)
    return found


def task_of(spec: ModelSpec) -> str | None:
    """PEFT's word for what a kind of model is for."""
    if isinstance(spec, EncoderDecoderSpec):
        return "SEQ_2_SEQ_LM"
    return "CAUSAL_LM" if isinstance(spec, DecoderSpec) else None


def named(spots: Mapping[str, Spot], module: str, base: str) -> Spot | None:
    """The spot of a module, whose name may lack the prefix of the whole model, as a bare model's does."""
    return spots.get(module) or spots.get(base + module)


def refuse_missing(module: str) -> CheckpointError:
    """The error for a module that the model does not have."""
    return CheckpointError(f"the adapter changes {module}, which this model does not have", "it is of another model")
