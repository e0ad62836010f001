"""An adapter of ours in PEFT's files: opened by ``PeftModel.from_pretrained`` it is the same function of every text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pellucid.arguments import checked
from pellucid.checkpoints.peft.config import CONFIG, WEIGHTS
from pellucid.checkpoints.peft.places import Spot, apart, family_of, spots_of, task_of
from pellucid.checkpoints.peft.read import BASE, PREFIX
from pellucid.checkpoints.tensors import write_tensors
from pellucid.errors import CheckpointError, UsageError
from pellucid.families.table import Table, links_of
from pellucid.families.weights import refuse_nonfinite, shapes_of
from pellucid.files import write_folder, write_json
from pellucid.nn.base import Model
from pellucid.nn.stored import Plain
from pellucid.surgery.adapted import Adapted, Change
from pellucid.surgery.holding import active, changes
from pellucid.surgery.ties import tied_head


@checked(folder="give the name of a new folder")
@torch.no_grad()
def save_adapter(model: Model, folder: str | Path, *, family: str | None = None, base: str | None = None) -> None:
    """Write the active adapter: ``adapter_config.json`` and ``adapter_model.safetensors``, whole or not at all.

    family: the ``model_type`` whose names are written (default: the first that can express the model). base: the name
    of the model that it is for, which PEFT reads. Raises UsageError where no adapter is active, CheckpointError for
    what PEFT's files cannot say.
    """
    if (name := active(model)) is None:
        raise UsageError("no adapter is active, so there is nothing to write", "switch to one first")
    _, (table, *_) = family_of(model, family)
    found = {path: change for path, _, change in changes(model, name)}
    written = _Written()
    for spot in spots_of(model, table).values():
        written.add_factors(model, spot, found)
    if not written.strengths:
        raise CheckpointError("the adapter has no factors, and PEFT's files need some", "merge it, and save the model")
    written.add_whole(model, table, found)
    config = written.config(task_of(model.spec), base)

    def fill(aside: Path) -> None:
        for key, tensor in written.tensors.items():
            refuse_nonfinite(Plain(tensor), key, tensor.dtype)
        write_tensors(aside / WEIGHTS, {key: each.cpu().contiguous() for key, each in written.tensors.items()}, {})
        write_json(aside / CONFIG, config)

    write_folder(Path(folder), fill)


class _Written:
    """What is to be written, gathered spot by spot. strengths: (rank, scaling) of each module, by its name there."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self.strengths: dict[str, tuple[int, float]] = {}
        self.parameters: list[str] = []
        self.whole: list[str] = []
        self.dora, self.dropout, self.bias, self.lying = False, 0.0, "none", False
        self._later: dict[str, list[tuple[Spot, Tensor, Tensor]]] = {}

    def add_factors(self, model: Model, spot: Spot, found: dict[str, Change]) -> None:
        """The factors of one matrix of theirs, if any of ours that it becomes is changed."""
        members = [found.get(path) for path in spot.ours]
        members = [None if each is None or not each.rank else each for each in members]
        tied = tied_head(model)
        if tied is not None and spot.ours == (tied[0],) and members == [None]:
            of_table = next((c for path, c in found.items() if model.get_submodule(path) is tied[2].tokens), None)
            members = [of_table if of_table is not None and of_table.shared and of_table.rank else None]
            if members[0] is not None and members[0].magnitude is not None:
                raise CheckpointError("DoRA of a table that head and tokens share is unknown to PEFT", "merge it")
        if not any(members):
            return
        changed = [each for each in members if each is not None]
        self.dora |= any(each.magnitude is not None for each in changed)
        self.dropout = max(self.dropout, *(each.dropout for each in changed))
        self.lying |= spot.lying
        a, b, scaling = joined_factors(spot, members)
        self.strengths[spot.theirs] = a.shape[-2], scaling
        key = PREFIX + spot.theirs
        module = model.get_submodule(spot.ours[0])
        if spot.experts:
            self.parameters.append(spot.theirs)
            owner = PREFIX + spot.theirs.rpartition(".")[0]
            self._nest(owner, spot, a.flatten(0, 1), b.permute(1, 2, 0).flatten(1))
        elif isinstance(module, Adapted) and module.axis == 0:
            self.tensors[f"{key}.lora_embedding_A"], self.tensors[f"{key}.lora_embedding_B"] = b.mT, a.mT
        else:
            self.tensors[f"{key}.lora_A.weight"], self.tensors[f"{key}.lora_B.weight"] = a, b
        if any(each.magnitude is not None for each in changed):
            self.tensors[f"{key}.lora_magnitude_vector"] = _magnitude(model, spot, members)

    def _nest(self, owner: str, spot: Spot, a: Tensor, b: Tensor) -> None:
        """Factors of several parameters of one module: the first of them stands behind the most ``base_layer``s."""
        self._later.setdefault(owner, []).append((spot, a, b))
        each = self._later[owner]
        for depth, (_, a, b) in enumerate(reversed(each)):
            self.tensors[f"{owner}{BASE * depth}.lora_A.weight"] = a
            self.tensors[f"{owner}{BASE * depth}.lora_B.weight"] = b

    def add_whole(self, model: Model, table: Table, found: dict[str, Change]) -> None:
        """The whole weights of the base that the adapter has trained, under their names there."""
        trained = {f"{path}.{leaf}" for path, change in found.items() for leaf in change.instead}
        shapes, own = shapes_of(apart(model)), dict(model.named_parameters())
        own_weights = [link for link in links_of(table, shapes) if not link.theirs.endswith("bias")]
        weights = {link.theirs.rpartition(".")[0] for link in own_weights if trained.intersection(link.ours)}
        self.whole = sorted(weights - self.strengths.keys())
        links = links_of(table, shapes)
        known = {link.theirs for link in links}
        copies = [pair for pair in table.copies if pair[0] not in known]
        copied = {original: copy for copy, original in copies if copy.rpartition(".")[0] in self.whole}
        for link in links:
            name = copied.get(link.theirs, link.theirs)
            module, _, leaf = name.rpartition(".")
            is_trained = bool(trained.intersection(link.ours))
            if not is_trained and module not in self.whole:
                continue
            value = link.transform.give([own[path].detach() for path in link.ours])
            inside = BASE if module in self.strengths else ""
            self.tensors[f"{PREFIX}{module}{inside}.{leaf}"] = value.clone()
            if module not in self.whole and leaf == "bias":
                self.bias = "all" if not inside or self.bias == "all" else "lora_only"

    def config(self, task: str | None, base: str | None) -> dict[str, Any]:
        """The options that are not at their default; some readers refuse what they do not know."""
        rank = Counter(rank for rank, _ in self.strengths.values()).most_common(1)[0][0]
        alphas = {module: rank * scaling for module, (rank, scaling) in self.strengths.items()}
        alpha = Counter(alphas.values()).most_common(1)[0][0]
        modules = [module for module in self.strengths if module not in self.parameters]
        said: dict[str, Any] = {
            "peft_type": "LORA",
            "task_type": task,
            "base_model_name_or_path": base,
            "inference_mode": True,
            "r": rank,
            "lora_alpha": _short(alpha),
            "target_modules": modules or None,
        }
        ranks = {_exactly(module): own for module, (own, _) in self.strengths.items() if own != rank}
        others = {_exactly(module): _short(own) for module, own in alphas.items() if own != alpha}
        asked: dict[str, Any] = {
            "rank_pattern": ranks,
            "alpha_pattern": others,
            "use_dora": self.dora,
            "lora_dropout": 0.0 if self.parameters else self.dropout,
            "bias": "" if self.bias == "none" else self.bias,
            "modules_to_save": self.whole,
            "target_parameters": self.parameters,
            "fan_in_fan_out": self.lying,
        }
        return {**said, **{key: value for key, value in asked.items() if value}}


def _exactly(module: str) -> str:
    """A pattern that matches this module and no other."""
    return "^" + module.replace(".", r"\.")


def _short(number: float) -> int | float:
    return int(number) if number == int(number) else number


def _parts(spot: Spot, members: list[Change | None]) -> Iterator[tuple[Change | None, torch.Size]]:
    yield from zip(members, spot.shapes, strict=True)


def joined_factors(spot: Spot, members: list[Change | None]) -> tuple[Tensor, Tensor, float]:
    """(A, B, scaling) of one matrix of theirs. Where ours do not share A, theirs stand one below the other, and B has
    each of ours in columns of its own."""
    present = [each for each in members if each is not None]
    first, scaling = present[0], present[0].scaling
    a, _ = first.factors
    alike = len(present) == len(members) and all(
        each.scaling == scaling and torch.equal(each.factors[0], a) for each in present
    )
    if alike:
        return a, spot.join([each.factors[1] for each in present]), scaling
    total, at, rows = sum(each.rank for each in present), 0, list[Tensor]()
    for member, shape in _parts(spot, members):
        part = a.new_zeros(*shape[:-1], total)
        if member is not None:
            part[..., at : at + member.rank] = member.factors[1] * (member.scaling / scaling)
            at += member.rank
        rows.append(part)
    return torch.cat([each.factors[0] for each in present], -2), spot.join(rows), scaling


def _magnitude(model: Model, spot: Spot, members: list[Change | None]) -> Tensor:
    """The magnitudes of one matrix of theirs; of ours that are not changed, the norms that they have."""
    parts: list[Tensor] = []
    for path, member in zip(spot.ours, members, strict=True):
        if member is not None and member.magnitude is not None:
            parts.append(member.magnitude.detach())
        elif member is None:
            parts.append(torch.linalg.vector_norm(model.get_parameter(f"{path}.weight").float(), dim=-1))
        else:
            raise CheckpointError(f"{path} is one matrix with others there, and only some have DoRA", "merge it")
    module = model.get_submodule(spot.ours[0])
    if isinstance(module, Adapted) and module.axis == 0:
        return parts[0]
    return spot.join([part[:, None] for part in parts])[:, 0]
