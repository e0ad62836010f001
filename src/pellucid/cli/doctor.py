"""``pellucid doctor``"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import tyro

from pellucid.cli.parse import parse

EXAMPLES = """
doctor book.txt
doctor chats.jsonl --model SmolLM2-135M-Instruct.Q4_1.gguf
doctor runs/book --only rate loss-at-start
doctor pairs.tsv --objective seq2seq --json
doctor --list
"""


def doctor(
    data: tyro.conf.Positional[tuple[str, ...]] = (),
    model: str | None = None,
    only: tuple[str, ...] = (),
    context: int | None = None,
    objective: str | None = None,
    learning_rate: float | None = None,
    validation: float = 0.1,
    seed: int = 0,
    json_: Annotated[bool, tyro.conf.arg(name="json"), tyro.conf.FlagCreatePairsOff] = False,
    list_: Annotated[bool, tyro.conf.arg(name="list"), tyro.conf.FlagCreatePairsOff] = False,
) -> None:
    """Would a training learn what is meant? Looks at texts, rows, labels, the chat template and the first steps.

    Shows three rows with what is scored in colour, says what it found with the number, and writes nothing. The exit
    code is 0 when nothing was found, or warnings alone, and 1 for a fault with which nobody should train. Training
    looks at its rows by itself before each start.

    Args:
        data: Texts, JSONL files of conversations, or the folder of a run.
        model: The model that is to go on learning; it is needed for conversations.
        only: Names of checks [default: all].
        context: Longest row, in tokens [default: as training derives it].
        objective: Of the training [default: as training derives it].
        learning_rate: Whose first twenty steps are tried [default: as training derives it].
        validation: Share held out.
        seed: Decides what is held out, and the order.
        json_: Write the findings as JSON.
        list_: List all checks.
    """
    from rich.console import Console

    from pellucid.cli.display import display
    from pellucid.doctor.checks import all_checks
    from pellucid.errors import UsageError
    from pellucid.train.dry import of_files

    if list_:
        for check in all_checks().values():
            print(f"{check.name:20} {check.question}")
        return
    if not data:
        raise UsageError("nothing was named to look at", "pellucid doctor DATA|RUN, or pellucid doctor --list")
    given = {"objective": objective, "learning_rate": learning_rate}
    asked: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    with display() as shown:
        report = of_files(
            data, model, only=only, context=context, validation=validation, seed=seed, reporter=shown, **asked
        )
    if json_:
        print(json.dumps(report.to_json(), indent=2, ensure_ascii=False))
    else:
        Console(highlight=False, soft_wrap=True).print(report)
    sys.exit(report.exit_code)


def main(arguments: Sequence[str]) -> None:
    """Parse a command line and run it."""
    parse(doctor, arguments, EXAMPLES)
