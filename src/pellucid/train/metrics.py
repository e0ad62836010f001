"""The written record of a run: what it computed in ``metrics.jsonl``, what the clock said in ``timings.jsonl``.

Kept apart so that two runs can be compared bit for bit. Both are cut back to the checkpoint when a run is resumed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from pellucid.data.feed import Feed, Mixing
from pellucid.errors import UsageError
from pellucid.files import explain_os_errors, write_json, write_text

METRICS, TIMINGS = "metrics.jsonl", "timings.jsonl"
MIXTURE = "mixture.json"  # what was read of each text
FINAL = "final_"  # before each name of the last line: it is measured again by a run resumed after its last step


def finals(lines: Iterable[dict[str, Any]]) -> dict[str, float]:
    """The measures of all that was held out, by name: those of the last line that has any; {} where none has."""
    found: dict[str, float] = {}
    for line in lines:
        found = {name.removeprefix(FINAL): line[name] for name in line if name.startswith(FINAL)} or found
    return found


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a record; a last line that a killed process left unfinished is not one."""
    if not path.exists():
        return []
    out: list[dict[str, Any]] = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            value = json.loads(line)
        except ValueError:
            break
        if not (isinstance(value, dict) and isinstance(value.get("step"), int)):
            break
        out.append(value)
    return out


def keep_read(folder: Path, feed: Feed, steps: int) -> None:
    """Write what so many steps have read of each text of a mixture; nothing where there is none."""
    if isinstance(feed, Mixing) and (found := feed.read(steps)):
        write_json(folder / MIXTURE, {"steps": steps, "texts": [one._asdict() for one in found]})


def read_in_words(feed: Feed, steps: int) -> list[str]:
    """The same, a line for each text."""
    found = feed.read(steps) if isinstance(feed, Mixing) else []
    total = max(1, sum(one.rows for one in found))
    return [
        f"read of {one.name}: {one.tokens:,} tokens, {one.epochs:.3g} times its text, {one.rows / total:.1%} of rows"
        for one in found
    ]


class Silence:
    """The record of a process that is not the first of its world: nobody reads it."""

    def write(self, name: str, step: int, **values: float | int | bool) -> None:
        """Do nothing."""

    def sync(self) -> None:
        """Do nothing."""

    def __enter__(self) -> Silence:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Do nothing."""


class Recorder(Silence):
    """Appends a line a call; ``sync`` puts everything on the disk, before a checkpoint that counts on it."""

    def __init__(self, folder: Path, step: int, tensorboard: bool = False):
        self._folder = folder
        self._streams: dict[str, IO[str]] = {}
        for name in (METRICS, TIMINGS):
            kept = [line for line in read_metrics(folder / name) if line["step"] <= step and not finals([line])]
            write_text(folder / name, "".join(json.dumps(line) + "\n" for line in kept))
            with explain_os_errors(folder / name):
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
        with explain_os_errors(self._folder / name):
            self._streams[name].write(json.dumps({"step": step, **values}) + "\n")
            self._streams[name].flush()
        if self._board is not None:
            for key, value in values.items():
                self._board.add_scalar(key, value, step)

    def sync(self) -> None:
        """Wait until all lines are on the disk."""
        for name, stream in self._streams.items():
            with explain_os_errors(self._folder / name):
                os.fsync(stream.fileno())

    def __enter__(self) -> Recorder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for stream in self._streams.values():
            with suppress(OSError):  # what a full disk did not take, ``write`` has already told
                stream.close()
        if self._board is not None:
            self._board.close()
