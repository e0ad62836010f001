"""A Python function from ids to logits as a subject: what it does not take, it cannot be asked."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any, NoReturn

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from pellucid.designs.own import function_of
from pellucid.engine.modes import evaluating
from pellucid.errors import UsageError
from pellucid.verify.reading import Reading, Side
from pellucid.verify.subject import Kind, NotApplicable, Subject


def logits_of(out: Any) -> Any:
    """Logits however they are handed over: as a tensor or array, by that name, or as the first of several things."""
    if isinstance(out, tuple | list) and out:
        return logits_of(out[0])
    named = out.get("logits") if isinstance(out, Mapping) else getattr(out, "logits", None)
    found = out if named is None else named
    return torch.from_numpy(found.copy()) if isinstance(found, np.ndarray) else found


class Function(Subject):
    """``function(ids) -> logits``; ids (batch, time), logits (batch, time, vocab): a tensor or array, or what has it.

    A torch module is called in eval mode. If it also takes ``attention_mask`` (1 where a token is) or ``position_ids``,
    by these names, it is told of padding. vocab: how many ids there are; by default those are drawn that it gives
    logits for, and it is not asked about others.
    """

    maker = "function"

    def __init__(
        self,
        function: Callable[..., Any],
        vocab: int | None = None,
        context: int | None = None,
        kind: Kind = "decoder",
        name: str = "",
    ):
        if kind == "encoder-decoder":
            raise UsageError("a function reads one row of ids", 'kind="decoder" or "encoder"')
        self.function, self.kind, self.context = function, kind, context
        self.name = name or getattr(function, "__name__", type(function).__name__)
        try:
            parameters = inspect.signature(getattr(function, "forward", function)).parameters
        except (TypeError, ValueError):  # a builtin
            parameters = {}
        self.takes = {"attention_mask", "position_ids"} & set(parameters)
        one = torch.zeros(1, 1, dtype=torch.long)
        try:
            first = self._logits(one, torch.ones_like(one))
        except UsageError:
            raise
        except Exception as error:  # whatever a stranger's function raises
            problem = f"{self.name} raised {type(error).__name__} for ids [[0]]: {error}"
            raise UsageError(problem, "it must give logits for any ids (batch, time)") from error
        self.vocab, self.vocab_is_known = (first.shape[-1] if vocab is None else vocab), vocab is not None
        self.dtype = first.dtype

    def _logits(self, ids: Tensor, mask: Tensor) -> Tensor:
        given = {"attention_mask": mask, "position_ids": (mask.cumsum(-1) - 1).clamp(min=0)}
        whole = evaluating(self.function) if isinstance(self.function, nn.Module) else nullcontext()
        with torch.no_grad(), whole:
            out = logits_of(self.function(ids, **{name: given[name] for name in self.takes}))
        if not isinstance(out, Tensor) or out.ndim != 3 or out.shape[:2] != ids.shape or not out.is_floating_point():
            shape = f" of shape {tuple(out.shape)}" if isinstance(out, Tensor) else ""
            raise UsageError(
                f"{self.name} gave a {type(out).__name__}{shape} for ids of shape {tuple(ids.shape)}",
                "it must give floating-point logits (batch, time, vocab)",
            )
        return out

    def _cannot(self, what: str) -> NoReturn:
        raise NotApplicable(f"{self.name}, asked as a function, {what}")

    def run(self, reading: Reading) -> Float[Tensor, "batch places features"]:
        return self._logits(reading.ids, reading.there.long())

    def refuse_padding(self, side: Side) -> None:
        if "attention_mask" not in self.takes:
            super().refuse_padding(side)
        if side == "middle" and "position_ids" not in self.takes:
            self._cannot("takes no position_ids, so it cannot be told that a gap is none")


def load_function(name: str, **how: Any) -> Function:
    """The function of ``path/file.py:function``. The file is run: it is the caller's own code.

    Raises UsageError where there is no such file or function.
    """
    return Function(function_of(name), name=name, **how)
