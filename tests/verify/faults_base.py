"""What a planted fault is, and the tools to plant one in any torch module."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from torch import Tensor, nn


@dataclass(frozen=True)
class Fault:
    """check: the one that must find it. model: makes a clean one. plant: breaks it, or returns a broken subject."""

    check: str
    name: str
    model: Callable[[], Any]
    plant: Callable[[Any, pytest.MonkeyPatch], Any]

    def __str__(self) -> str:
        return f"{self.check}: {self.name}"


def of(checks: str, *faults: tuple[str, Callable[[], Any], Callable[[Any, pytest.MonkeyPatch], Any]]) -> list[Fault]:
    """The same faults for several checks, named with a space between."""
    return [Fault(check, *fault) for check in checks.split() for fault in faults]


PLACES = (
    "decoder.final_norm", "final_norm", "transformer.ln_f", "model.norm", "decoder.final_layer_norm",
    "bert.encoder.layer.1.output.LayerNorm", "blocks.1",
)  # fmt: skip


def last_states(model: nn.Module) -> nn.Module:
    """What makes the states that the head reads."""
    there = dict(model.named_modules())
    found = [there[name] for name in PLACES if name in there and not isinstance(there[name], nn.Identity)]
    return found[0]


def through(change: Callable[[Tensor], Tensor]) -> Callable[[Any, pytest.MonkeyPatch], None]:
    """The last states (batch, time, d_model) become something else."""

    def plant(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        def changed(module: nn.Module, args: Any, out: Any) -> Any:
            return change(out)

        last_states(model).register_forward_hook(changed)

    return plant


def called_with(
    change: Callable[[dict[str, Any]], dict[str, Any]], part: str = ""
) -> Callable[[Any, pytest.MonkeyPatch], None]:
    """A module of transformers is called with other keyword arguments."""

    def plant(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        module = model.get_submodule(part)
        module.register_forward_pre_hook(lambda _, args, given: (args, change(given)), with_kwargs=True)

    return plant


def without(*names: str, part: str = "") -> Callable[[Any, pytest.MonkeyPatch], None]:
    """These arguments never arrive."""
    return called_with(lambda given: {name: value for name, value in given.items() if name not in names}, part)
