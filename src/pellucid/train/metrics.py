"""The written record of a run: what is a pure function of it in ``metrics.jsonl``, what the clock says in ``timings.jsonl``.

Kept apart so that two runs can be compared bit for bit. Both are cut back to the checkpoint when a run is resumed.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from pellucid.errors import UsageError
from pellucid.files import write_text

METRICS, TIMINGS = "metrics.jsonl", "timings.jsonl"


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a record; a last line that a killed process left unfinished is not one."""
    if not path.exists():
        return []
    out: list[dict[str, Any]] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            out.append(json.loads(line))
        except ValueError:
            break
    return out


class Recorder:
    """Appends a line a call; ``sync`` puts everything on the disk, before a checkpoint that counts on it."""

    def __init__(self, folder: Path, step: int, tensorboard: bool = False):
        self._streams: dict[str, IO[str]] = {}
        for name in (METRICS, TIMINGS):
            kept = [line for line in read_metrics(folder / name) if line["step"] <= step]
            write_text(folder / name, "".join(json.dumps(line) + "\n" for line in kept))
            self._streams[name] = (folder / name).open("a", encoding="utf-8")
        self._board: Any = None
        if tensorboard:
            try:
                from torch.utils.tensorboard.writer import SummaryWriter
            except ImportError as error:
                raise UsageError("TensorBoard is not installed", "pip install 'pellucid[tensorboard]'") from error
            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def write(self, name: str, step: int, **values: float | int | bool) -> None:
        """One line ``{"step": step, ...}``; floats are written so that they read back as the same bits."""
        stream = self._streams[name]
        stream.write(json.dumps({"step": step, **values}) + "\n")
        stream.flush()
        if self._board is not None:
            for key, value in values.items():
                self._board.add_scalar(key, value, step)

    def sync(self) -> None:
        """Wait until all lines are on the disk."""
        for stream in self._streams.values():
            os.fsync(stream.fileno())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for stream in self._streams.values():
            stream.close()
        if self._board is not None:
            self._board.close()
