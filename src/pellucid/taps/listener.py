"""What is asked of the points of one module, and what they passed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pellucid.errors import TapError, suggest

Edit = Callable[[Tensor], Tensor]  # an nn.Module is one too
Keep = Literal["last", "all"]


class Listener:
    """What one module is asked for: points to read and points to replace by ``edit[name](x)``, in some rows or all.

    An edit comes before a read, so what is read is what the rest of the model saw. Names are the module's own, and each
    read has its place in ``acts`` from the start, so that equal modules that are asked alike share one compilation.
    """

    def __init__(
        self,
        path: str,
        read: Sequence[str],
        edit: Mapping[str, Edit],
        *,
        rows: Tensor | None = None,
        keep: Keep = "last",
        gradients: bool = False,
        outer: Listener | None = None,
    ):
        self.path, self.outer = path, outer  # for messages; the listener that was set before, which is called first
        self.read, self.edit, self.rows = frozenset(read), dict(edit), rows
        self.acts: dict[str, Tensor | None] = dict.fromkeys(read)  # compiled code writes here, and never reads
        self.all: dict[str, list[Tensor]] | None = {name: [] for name in read} if keep == "all" else None
        # It is added to what needs no gradient (frozen weights), so that gradients begin at the point itself.
        self.anchor = torch.zeros((), requires_grad=True) if gradients else None

    @property
    def compiles(self) -> bool:
        """Whether torch.compile can take this listener, and others like it, without compiling once for each."""
        own = self.all is None and all(isinstance(edit, nn.Module) for edit in self.edit.values())
        return own and (self.outer is None or self.outer.compiles)

    def wants(self, name: str) -> bool:
        """Whether the point is read or edited."""
        return name in self.read or name in self.edit or (self.outer is not None and self.outer.wants(name))

    def edits(self, name: str) -> bool:
        """Whether the point is edited, by this listener or one around it."""
        return name in self.edit or (self.outer is not None and self.outer.edits(name))

    def heard(self, name: str) -> tuple[Tensor, ...]:
        """What each forward passed at a point that is read; only the last one where no more is kept."""
        if self.all is not None:
            return tuple(self.all[name])
        x = self.acts[name]
        return () if x is None else (x,)

    def __call__(self, name: str, x: Tensor) -> Tensor:
        if self.outer is not None:
            x = self.outer(name, x)
        edit, reads = self.edit.get(name), name in self.read
        if edit is None and not reads:
            return x
        rows = None if self.rows is None else self._rows(name, x)
        part = x if rows is None else x[rows]
        if edit is not None:
            part = self._checked(name, part, edit(part))
        if reads:
            part = self._kept(name, part)
        if rows is None:
            return part
        # With gradients the rows are put back unchanged too: nothing would flow back to a copy beside the stream.
        changed = edit is not None or self.anchor is not None
        return x.index_copy(0, rows, part.to(x.dtype)) if changed else x

    def _rows(self, name: str, x: Tensor) -> Tensor:
        assert self.rows is not None
        if not torch.compiler.is_compiling() and int(self.rows.max()) >= len(x):
            raise TapError(f"row {int(self.rows.max())} is asked for at {self.path}{name}, which has {len(x)} rows")
        return self.rows.to(x.device)

    def _kept(self, name: str, x: Tensor) -> Tensor:
        if self.anchor is not None and x.is_floating_point() and not x.requires_grad:
            x = x + self.anchor.to(x.device)
        if self.all is None:
            self.acts[name] = x
        else:
            self.all[name].append(x)
        return x

    def _checked(self, name: str, x: Tensor, edited: Any) -> Tensor:
        if not isinstance(edited, Tensor):
            raise TapError(f"the edit of {self.path}{name} returned {edited!r}, not a tensor of shape {tuple(x.shape)}")
        if edited.dtype != x.dtype:
            raise TapError(
                f"the edit of {self.path}{name} changed its type from {x.dtype} to {edited.dtype}",
                "let it return its result as x.dtype: result.to(x.dtype)",
            )
        if edited.shape != x.shape:
            raise TapError(
                f"the edit of {self.path}{name} changed its shape from {tuple(x.shape)} to {tuple(edited.shape)}"
            )
        return edited


class Activations(Mapping[str, Tensor]):
    """What the last forward passed at the points that are read, by full name; ``each`` has those before it as well.

    Raises TapError for a name that was not read.
    """

    def __init__(self, heard: Mapping[str, Callable[[], tuple[Tensor, ...]]]):
        self._heard = dict(heard)

    def each(self, name: str) -> tuple[Tensor, ...]:
        """What every forward passed at a point, in their order; without ``keep="all"`` the last one alone.

        A generation is a forward over the prompt and one more for each token that is read back. Joined along the time,
        ``torch.cat(acts.each(name), 1)``, a stream is therefore what one forward over the whole text passes. Where
        heads stand before the time the axis is 2. Patterns do not join, because later ones have more keys.
        """
        found = self._heard.get(name, tuple)()
        if not found:
            waiting = f"nothing has run yet; asked for: {', '.join(self._heard)}"
            raise TapError(f"{name} was not read; {waiting if name in self._heard else suggest(name, self)}")
        return found

    def __getitem__(self, name: str) -> Tensor:
        return self.each(name)[-1]

    def __iter__(self) -> Iterator[str]:
        return (name for name, heard in self._heard.items() if heard())

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __repr__(self) -> str:
        return f"Activations({', '.join(f'{name} {tuple(x.shape)}' for name, x in self.items())})"

    def gradients(self, loss: Tensor, *, retain_graph: bool = False) -> Activations:
        """The gradient of ``loss``, shape (), with respect to each activation, by the same names.

        Zeros where the loss does not depend on an activation; points without floating-point numbers are left out.
        retain_graph: as of ``torch.autograd.grad``, whether another backward pass is to follow. Weights get no
        ``.grad``. Raises TapError where nothing was recorded: after a forward in ``no_grad``, or with frozen weights
        and taps that were not opened with ``gradients=True``.
        """
        kept = {name: self.each(name) for name in self if self[name].is_floating_point()}
        for name, found in [*kept.items(), ("the loss", (loss,))]:
            if not all(x.requires_grad for x in found):
                raise TapError(
                    f"no gradient was recorded for {name}; run the model where gradients are recorded, "
                    "with taps that are opened with gradients=True"
                )
        flat = [x for found in kept.values() for x in found]
        got = iter(torch.autograd.grad(loss, flat, retain_graph=retain_graph, materialize_grads=True))
        parts = {name: tuple(next(got) for _ in found) for name, found in kept.items()}
        return Activations({name: lambda part=part: part for name, part in parts.items()})
