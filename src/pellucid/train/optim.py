"""Optimisers and their parameter groups; their state as named tensors, so that it can be saved without pickle.

Matrices of the blocks go to Muon (Jordan et al. 2024), everything else (embeddings, head, norms, biases) to AdamW
(Loshchilov & Hutter 2017); or all to AdamW. So do stacked matrices of experts, which Muon does not take, at a rate that
suits matrices. Weight decay touches matrices only: shrinking a norm's gain or a bias towards zero has no meaning.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from pellucid.errors import CheckpointError, UsageError
from pellucid.train.parts import OptimizerName

MATRICES_TO_TABLES = 2 / 15  # AdamW's rate for matrices, over its rate for tables beside Muon: resolve's 0.004 and 0.03


def default_eps(name: OptimizerName) -> float:
    """AdamW's term in the denominator: smaller beside Muon, where only tables and vectors are left to it."""
    return 1e-10 if name == "muon" else 1e-8


def parameter_groups(model: nn.Module) -> dict[str, dict[str, nn.Parameter]]:
    """Trainable parameters by role: ``matrices`` and ``experts`` (of blocks), ``tables`` (embedding, positions, head),
    ``vectors``. Frozen ones have no role, and so no optimiser and no state."""
    groups: dict[str, dict[str, nn.Parameter]] = {"matrices": {}, "experts": {}, "tables": {}, "vectors": {}}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        in_block = ".blocks." in f".{name}"
        matrices = "matrices" if parameter.ndim == 2 else "experts"
        vector = parameter.ndim < 2 or name.endswith(".bias")  # experts' biases stand one above the other
        role = "vectors" if vector else matrices if in_block else "tables"
        groups[role][name] = parameter
    return groups


def build_optimizers(
    model: nn.Module,
    name: OptimizerName,
    *,
    learning_rate: float,
    matrix_learning_rate: float,
    weight_decay: float,
    betas: tuple[float, float] = (0.9, 0.95),
    eps: float | None = None,
) -> list[torch.optim.Optimizer]:
    """AdamW for all, or Muon for the blocks' matrices and AdamW for the rest. Groups remember their ``peak`` rate.

    betas, eps: of AdamW; eps None: ``default_eps``. Frozen parameters are left out, and an optimiser without any
    parameter too. Raises UsageError where every parameter is frozen.
    """
    groups = parameter_groups(model)
    tables, vectors = list(groups["tables"].values()), list(groups["vectors"].values())
    matrices = list(groups["matrices"].values())
    experts = list(groups["experts"].values())
    plain: list[dict[str, object]] = [{"params": vectors, "weight_decay": 0.0}]
    if name == "adamw":
        plain.insert(0, {"params": matrices + experts + tables, "weight_decay": weight_decay})
    else:
        plain.insert(0, {"params": tables, "weight_decay": 0.0})
        plain.append({"params": experts, "weight_decay": weight_decay, "lr": learning_rate * MATRICES_TO_TABLES})
    plain = [group for group in plain if group["params"]]
    optimizers: list[torch.optim.Optimizer] = []
    if name == "muon" and matrices:
        optimizers.append(torch.optim.Muon(matrices, lr=matrix_learning_rate, weight_decay=weight_decay))
    if plain:
        eps = default_eps(name) if eps is None else eps
        optimizers.append(torch.optim.AdamW(plain, lr=learning_rate, betas=betas, eps=eps, fused=True))
    if not optimizers:
        raise UsageError("every parameter is frozen: there is nothing to train", "freeze fewer of them")
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
    return optimizers


def set_rate(optimizers: Sequence[torch.optim.Optimizer], factor: float) -> None:
    """Every group's learning rate becomes its peak times ``factor``."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * factor


def _names(model: nn.Module) -> dict[int, str]:
    return {id(parameter): name for name, parameter in model.named_parameters()}


def state_tensors(model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> dict[str, Tensor]:
    """The optimisers' state by ``parameter name/state name``."""
    names = _names(model)
    return {
        f"{names[id(parameter)]}/{key}": torch.as_tensor(value)
        for optimizer in optimizers
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
    }


def load_state_tensors(
    model: nn.Module, optimizers: Sequence[torch.optim.Optimizer], tensors: Mapping[str, Tensor]
) -> None:
    """Put back what ``state_tensors`` gave: nothing, before the first update, or something for every parameter.

    Raises CheckpointError where a parameter's state is missing, incomplete or of another shape, or none has its name.
    """
    names, left = _names(model), dict(tensors)
    for optimizer in optimizers:
        complete: set[str] = set()
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                prefix = names[id(parameter)] + "/"
                found = {key.removeprefix(prefix): left.pop(key) for key in list(left) if key.startswith(prefix)}
                complete = complete or set(found)
                fits = all(value.ndim == 0 or value.shape == parameter.shape for value in found.values())
                if tensors and not (found and set(found) == complete and fits):
                    problem = f"the optimiser state of {prefix[:-1]} is missing, incomplete or of another shape"
                    raise CheckpointError(problem, "use an earlier checkpoint")
                optimizer.state[parameter] = found
    if left:
        raise CheckpointError(
            f"optimiser state for unknown parameter {next(iter(left))!r}", "another model's checkpoint"
        )
