"""Recurrence: a state that is handed from token to token, alone or with attention to an encoder before each step.

::

    h_1 → h_2 → h_3 → ...      LSTM, GRU: over time in torch's kernels, one token after the other
     ↑     ↑     ↑
    x_1   x_2   x_3

Packed rows and padding: each document is read as a row of its own (``stairs``).
"""

from __future__ import annotations

from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from pellucid.errors import UsageError
from pellucid.nn.alignment import Scores, memory_of
from pellucid.nn.documents import Documents
from pellucid.nn.kernels.reference import forbidden, masked_softmax
from pellucid.nn.mixer import RunningState
from pellucid.nn.registry import computes
from pellucid.nn.stairs import State, climb, find_stairs, run_cell
from pellucid.nn.stores import MemoryCache, StateCache
from pellucid.nn.view import View
from pellucid.spec import AttentiveRecurrentSpec, RecurrentSpec


def open_forget_gates(cell: nn.LSTM | nn.LSTMCell) -> None:
    """Start with forget gates open: their bias is 1, the others 0 (Gers et al. 2000; Jozefowicz et al. 2015)."""
    with torch.no_grad():
        for name, bias in cell.named_parameters():
            if name.startswith("bias"):
                bias.zero_()
            if name.startswith("bias_ih"):
                bias[cell.hidden_size : 2 * cell.hidden_size] = 1.0


def zero_state(cell: nn.Module, batch: int, like: Tensor) -> State:
    """The state of ``batch`` rows that have read nothing."""
    zeros = torch.zeros(batch, cell.hidden_size, dtype=like.dtype, device=like.device)  # type: ignore[call-overload]
    return (zeros, zeros) if isinstance(cell, nn.LSTM | nn.LSTMCell) else (zeros,)


def _where(rows: Tensor, new: State, old: State) -> State:
    """``new`` for the rows that are True, ``old`` for others."""
    return tuple(torch.where(rows[:, None], a, b) for a, b in zip(new, old, strict=True))


@computes(RecurrentSpec)
class Recurrent(RunningState):
    """o(h), h_t = cell(x_t, h_{t-1}), an LSTM (Hochreiter & Schmidhuber 1997) or a GRU (Cho et al. 2014).

    Parameters are torch's: ``cell``, and ``back`` for the reverse direction, whose h stands behind. Under autocast the
    cell stays in its weights' precision: small changes to a long-lived state would be rounded away.
    Points: ``h`` (batch, time, d_out); an edit changes what is read out, not what is carried on.
    """

    kind: ClassVar[str] = "rnn"
    compiles: ClassVar[bool] = False  # torch.compile does not trace torch's recurrent kernels

    def __init__(self, spec: RecurrentSpec, d_model: int):
        super().__init__()
        kernel = nn.LSTM if spec.cell == "lstm" else nn.GRU
        self.cell = kernel(d_model, spec.d_hidden)
        self.back = kernel(d_model, spec.d_hidden) if spec.both_directions else None
        self.o = nn.Linear(spec.d_out, d_model, bias=False) if spec.project else nn.Identity()
        for cell in (self.cell, self.back):
            if isinstance(cell, nn.LSTM):
                open_forget_gates(cell)

    def points(self) -> dict[str, str]:
        return {"h": "batch time d_out"}

    def empty_state(self, batch: int, like: Tensor) -> tuple[Tensor, ...]:
        """h (and c of an LSTM) of rows that have read nothing: zeros, (batch, d_hidden)."""
        return zero_state(self.cell, batch, like)

    def forward(
        self, x: Float[Tensor, "batch time d_model"], view: Documents, past: StateCache | None = None
    ) -> Float[Tensor, "batch time d_model"]:
        """``view``: which tokens share a state. ``past``: the state that each row goes on from; it becomes the newest.

        Raises UsageError for ``past`` where both directions are read: such a state is never complete.
        """
        if self.back is not None and past is not None:
            raise UsageError("a mixer that reads both ways has no state to go on from", "both_directions=False")
        with torch.autocast(x.device.type, enabled=False):
            x = x.to(next(self.cell.parameters()).dtype)
            state = self.empty_state(len(x), x) if past is None else past.tensors
            plain = view.valid is None and view.doc is None
            h, state = (self._straight if plain or x.shape[1] == 1 else self._by_document)(x, view, state)
        if past is not None:
            past.tensors = state
        return self.o(self.tap("h", h))

    def _straight(self, x: Tensor, view: Documents, state: State) -> tuple[Tensor, State]:
        """Rows as they are: each one document without padding, or all of them one token long."""
        before = state
        if view.doc is not None:
            state = _where(view.doc[:, 0] == 0, state, self.empty_state(len(x), x))
        h, state = run_cell(self.cell, x.transpose(0, 1), state)
        if self.back is not None:
            back = run_cell(self.back, x.transpose(0, 1).flip(0), self.empty_state(len(x), x))[0]
            h = torch.cat((h, back.flip(0)), -1)
        h = h.transpose(0, 1)
        if view.valid is not None:
            h, state = h.masked_fill(~view.valid[..., None], 0.0), _where(view.valid[:, 0], state, before)
        return h, state

    def _by_document(self, x: Tensor, view: Documents, state: State) -> tuple[Tensor, State]:
        """Each document by itself, and back to where its tokens stand."""
        stairs, flat = find_stairs(view, x), x.flatten(0, 1)
        h = flat.new_zeros(len(flat), self.cell.hidden_size)
        if not stairs.sizes:
            both = 1 if self.back is None else 2
            return h.repeat(1, both).unflatten(0, x.shape[:2]), state
        empty = self.empty_state(len(stairs.row), x)
        start = _where(stairs.doc == 0, tuple(s[stairs.row] for s in state), empty)
        read, ended = climb(self.cell, flat[stairs.order], stairs.sizes, start)
        parts = [h.index_copy(0, stairs.order, read)]
        if self.back is not None:
            read = climb(self.back, flat[stairs.back], stairs.sizes, empty)[0]
            parts.append(h.index_copy(0, stairs.back, read))
        if view.doc is None:
            row = stairs.row
        else:
            newest = stairs.doc == view.doc[stairs.row, -1]
            row, ended = stairs.row[newest], tuple(s[newest] for s in ended)
        state = tuple(s.index_copy(0, row, new) for s, new in zip(state, ended, strict=True))
        return torch.cat(parts, -1).unflatten(0, x.shape[:2]), state


@computes(AttentiveRecurrentSpec)
class AttentiveRecurrent(RunningState):
    """o(h), h_t = cell([x_t; c_t], h_{t-1}), where h_{t-1} chooses from the memory what c_t averages.

    Bahdanau et al. 2015, section 3.1, whose s_i is h here (the first is zero) and whose h_j is the memory.
    Points: ``pattern`` (batch, 1, time, key) and ``z``, the context c (batch, time, d_model): an edit reaches the cell,
    and is made anew at each step, with zeros for what is still to come. ``h`` (batch, time, d_hidden): an edit changes
    what is read out, not what is carried on.
    """

    kind: ClassVar[str] = "rnn"
    reads_memory: ClassVar[bool] = True
    compiles: ClassVar[bool] = False  # a graph would hold every step of the loop

    def __init__(self, spec: AttentiveRecurrentSpec, d_model: int):
        super().__init__()
        kernel = nn.LSTMCell if spec.cell == "lstm" else nn.GRUCell
        self.cell = kernel(2 * d_model, spec.d_hidden)
        self.score = Scores(spec.alignment, spec.d_hidden, d_model)
        self.o = nn.Linear(spec.d_hidden, d_model, bias=False)
        if isinstance(self.cell, nn.LSTMCell):
            open_forget_gates(self.cell)

    def points(self) -> dict[str, str]:
        return {"pattern": "batch heads query key", "z": "batch time d_model", "h": "batch time d_hidden"}

    def empty_state(self, batch: int, like: Tensor) -> tuple[Tensor, ...]:
        """h (and c of an LSTM) of rows that have read nothing: zeros, (batch, d_hidden)."""
        return zero_state(self.cell, batch, like)

    def forward(
        self,
        x: Float[Tensor, "batch time d_model"],
        view: Documents,
        past: StateCache | None,
        cross: View,
        cross_past: MemoryCache | None = None,
    ) -> Float[Tensor, "batch time d_model"]:
        """``view`` and ``past``: which tokens share a state, and the one to go on from, which becomes the newest.
        ``cross`` and ``cross_past``: the memory, who sees what of it, and its projection, kept since the first call.

        Raises DataError for a view without memory.
        """
        with torch.autocast(x.device.type, enabled=False):  # as in Recurrent
            dtype = self.cell.weight_ih.dtype
            x, memory = x.to(dtype), memory_of(cross).to(dtype)
            state = self.empty_state(len(x), x) if past is None else past.tensors
            h, state = self._read(x, view, state, memory, cross, self.score.keys(memory, cross_past))
        if past is not None:
            past.tensors = state
        return self.o(self.tap("h", h))

    def _read(
        self, x: Tensor, view: Documents, state: State, memory: Tensor, cross: View, keys: Tensor
    ) -> tuple[Tensor, State]:
        """h of each token, and the newest state."""
        batch, time = x.shape[:2]
        hide = forbidden(cross.visible, x.new_empty(time, keys.shape[1]))
        empty, out = self.empty_state(batch, x), [x.new_zeros(batch, 0, self.cell.hidden_size)]
        goes_on = None if view.doc is None else view.doc.diff(prepend=torch.zeros_like(view.doc[:, :1])) == 0
        patterns: list[Tensor] = []
        contexts: list[Tensor] = []
        for t in range(time):
            if goes_on is not None:
                state = _where(goes_on[:, t], state, empty)
            scores = self.score(state[0][:, None], keys)
            patterns.append(masked_softmax(scores, None if hide is None else hide[..., t : t + 1, :]))
            pattern = self._tap_step("pattern", patterns, time)
            contexts.append(pattern[:, 0].to(memory.dtype) @ memory)
            new = self._step(torch.cat((x[:, t], self._tap_step("z", contexts, time)[:, 0]), -1), state)
            h = new[0]
            if view.valid is not None:
                valid = view.valid[:, t]
                h, new = h.masked_fill(~valid[:, None], 0.0), _where(valid, new, state)
            out.append(h[:, None])
            state = new
        return torch.cat(out, 1), state

    def _step(self, x: Float[Tensor, "batch d_in"], state: State) -> State:
        if isinstance(self.cell, nn.LSTMCell):
            return self.cell(x, (state[0], state[1]))
        return (self.cell(x, state[0]),)

    def _tap_step(self, name: str, steps: list[Tensor], time: int) -> Tensor:
        """The newest step of a point, after who listens has had it in its place among all ``time`` steps."""
        if not self.wants(name):
            return steps.pop()
        n = len(steps)
        whole = F.pad(torch.cat(steps, -2), (0, 0, 0, time - n))
        return self.tap(name, whole)[..., n - 1 : n, :]
