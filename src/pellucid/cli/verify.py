"""``pellucid verify``"""

from __future__ import annotations

import errno
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from pellucid.cli.parse import parse
from pellucid.errors import UsageError

EXAMPLES = """
verify runs/book
verify model.gguf --only cache padding --why
verify ORG/NAME --through pellucid --json report.json
verify mine.py:logits
verify --list
"""


def verify(
    subject: tyro.conf.Positional[str | None] = None,
    only: tuple[str, ...] = (),
    json_: Annotated[str | None, tyro.conf.arg(name="json", metavar="FILE|-")] = None,
    seed: int = 0,
    through: Literal["auto", "pellucid", "transformers"] = "auto",
    kind: Literal["decoder", "encoder", "encoder-decoder"] | None = None,
    quantised: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    ignore_key: tuple[str, ...] = (),
    why: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    list_: Annotated[bool, tyro.conf.arg(name="list"), tyro.conf.FlagCreatePairsOff] = False,
) -> None:
    """Try whether a model keeps its promises: no look at the future, padding, batches, caches, packing, and more.

    The exit code is 0 when every promise that could be tried was kept, 1 when one was broken. What cannot be tried on a
    model is "not applicable", which says nothing about it.

    Args:
        subject: A model folder, ORG/NAME on the hub, a .gguf file, or file.py:function from ids to logits (it is run).
        only: Names of checks; "padding" stands for all that begin so [default: all].
        json_: Write the findings to this file; "-" writes them to standard output, and no table.
        seed: Of what is drawn: the same seed asks the same questions.
        through: What opens a published model: pellucid or transformers [default: transformers where it is installed].
        kind: What a function or published model is, where that is not what it seems.
        quantised: Leave the weights of a .gguf file quantised in memory: it takes the file's size, and more time.
        ignore_key: Attributes of a published config.json to leave out, which no code reads.
        why: Say what the tolerance of each check follows from, too.
        list_: List all checks and their promises.
    """
    if list_:
        _list()
        return
    if subject is None:
        raise UsageError("no model was named", "pellucid verify SUBJECT, or pellucid verify --list")
    from rich.console import Console

    from pellucid.files import write_json
    from pellucid.verify.run import verify as try_all

    if json_ not in (None, "-"):
        _require_writable(Path(json_))
    console = Console(stderr=json_ == "-")
    how: dict[str, Any] = {"through": through, "quantised": quantised, "ignore": ignore_key}
    how |= {} if kind is None else {"kind": kind}
    with _bar(console) as progress:
        report = try_all(subject, only, seed=seed, progress=progress, **how)
    if json_ == "-":
        json.dump(report.to_json(), sys.stdout, indent=2, ensure_ascii=False)
        sys.stdout.write("\n")
    else:
        console.print(*report.reasons() if why else (), report, sep="\n")
    if json_ not in (None, "-"):
        write_json(Path(json_), report.to_json())
    sys.exit(report.exit_code)


def _require_writable(path: Path) -> None:
    """Raises UsageError where a report could not be written: to know it now is better than after all checks."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a folder")
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise UsageError(
            f"cannot write {path}: {error.strerror}", "give --json another file, or - to see it"
        ) from error


def _list() -> None:
    from rich.console import Console
    from rich.table import Table

    from pellucid.verify.checks import all_checks

    table = Table("check", "promise", "made by", box=None, padding=(0, 2, 0, 0))
    for check in all_checks().values():
        table.add_row(check.name, check.promise, "all" if len(check.kinds) == 3 else ", ".join(check.kinds))
    Console().print(table)


@contextmanager
def _bar(console: object) -> Iterator[Callable[[str, int, int], None]]:
    """Which check runs, and how many are left; nothing where output is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    assert isinstance(console, Console)
    columns = TextColumn("{task.description:20}"), BarColumn(), MofNCompleteColumn()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        task = bars.add_task("opening", total=None)
        yield lambda name, done, total: bars.update(task, description=name, completed=done, total=total)


def main(arguments: Sequence[str]) -> None:
    """Parse a command line and run it."""
    parse(verify, arguments, EXAMPLES)
