"""A model as torch.export writes it down: one graph, without the Python that made it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import redirect_stderr
from io import StringIO
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pellucid.engine.modes import evaluating
from pellucid.verify.reading import Reading
from pellucid.verify.subject import NotApplicable, Subject

Arguments = tuple[tuple[Tensor, ...], dict[str, Any]]


class Graph(Subject):
    """Exported anew for each shape, always with other ids than it is then given: what depends on ids must be in it.

    arguments: what the module is called with for a reading. outputs: (batch, places, features) of what it gives.
    """

    def __init__(
        self,
        subject: Subject,
        module: nn.Module,
        arguments: Callable[[Reading], Arguments],
        outputs: Callable[[Any], Tensor],
    ):
        self.maker = subject.maker
        self.name, self.kind, self.vocab, self.dtype = subject.name, subject.kind, subject.vocab, subject.dtype
        self.module, self.arguments, self.outputs = module, arguments, outputs
        self._made: dict[tuple[torch.Size, ...], Callable[..., Any]] = {}

    @torch.no_grad()
    def run(self, reading: Reading) -> Float[Tensor, "batch places features"]:
        args, kwargs = self.arguments(reading)
        shape = (reading.ids.shape, *([] if reading.source is None else [reading.source.ids.shape]))
        if shape not in self._made:
            self._made[shape] = self._export(self._elsewhere(reading))
        return self.outputs(self._made[shape](*args, **kwargs))

    def _elsewhere(self, reading: Reading) -> Reading:
        """The same shape, other ids."""
        ids = (reading.ids + 1) % self.vocab
        return Reading(ids, None, reading.source and reading.source.with_ids(reading.source.ids.roll(1, -1)))

    def _export(self, reading: Reading) -> Callable[..., Any]:
        """Raises NotApplicable for a model that torch.export cannot follow, as where numbers choose the code."""
        args, kwargs = self.arguments(reading)
        was = logging.root.manager.disable
        logging.disable()  # what it cannot follow it writes out at length; the first line is the reason that is given
        try:
            with evaluating(self.module), redirect_stderr(StringIO()):
                return torch.export.export(self.module, args, kwargs, strict=False).module()
        except Exception as error:  # it has no class of its own for them
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise NotApplicable(f"torch.export cannot follow {self.name}: {reason}") from error
        finally:
            logging.disable(was)
