"""``pellucid tune``"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from pellucid.cli.parse import parse

if TYPE_CHECKING:
    from pellucid.train.tune import Tuned

EXAMPLES = """
tune SmolLM2-135M-Instruct.Q4_1.gguf chats.jsonl --minutes 10
tune SmolLM2-135M-Instruct.Q4_1.gguf chats.jsonl --quantised --rank 8 --out runs/mine
tune HuggingFaceTB/SmolLM2-135M-Instruct alpaca.jsonl --steps 200 --merged smollm-tuned
"""


def tune(
    model: tyro.conf.Positional[str],
    data: tyro.conf.Positional[tuple[str, ...]],
    out: Path | None = None,
    minutes: float | None = None,
    steps: int | None = None,
    rank: int = 16,
    context: int | None = None,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    validation: float = 0.1,
    quantised: bool = False,
    merged: Path | None = None,
    seed: int = 0,
    doctor: bool = True,
) -> None:
    """Teach a model the answers of your conversations, by an adapter beside it. The same command again goes on.

    Says what it recognised and derived, shows what is learned of three rows, trains, and measures held-out answers
    before and after. The adapter is written in PEFT's files, in the folder of the run.

    Args:
        model: A model with a chat template: a folder, a .gguf file, or ORG/NAME on the hub.
        data: JSONL files of OpenAI's messages, ShareGPT's conversations or Alpaca's columns.
        out: Folder of the run [default: runs/NAME of the first file].
        minutes: Time to train, all in all [default: 5].
        steps: Number of updates, instead of minutes.
        rank: Of the adapter.
        context: Longest row, in tokens [default: the longest conversation, up to 1,024].
        batch_size: Rows of one update [default: about 2,048 tokens].
        learning_rate: Peak rate of AdamW [default: follows from the width].
        validation: Share of the conversations held out.
        quantised: Leave the weights of a .gguf file as small as they are there.
        merged: Also write the merged model into this folder, for transformers.
        seed: Decides the adapter's first weights, the order, and what is held out.
        doctor: Look at the first rows before it starts, and refuse what cannot be meant (pellucid doctor --help).
    """
    from pellucid.cli.display import display
    from pellucid.cli.train import default_folder
    from pellucid.errors import UsageError
    from pellucid.train.tune import tune as tune_model

    if not data:
        raise UsageError("no conversations were named", "pellucid tune MODEL chats.jsonl")
    if merged is not None and merged.exists():
        raise UsageError(f"{merged} exists", "choose another folder for the merged model")
    folder = out or default_folder(data[0])
    asked: dict[str, Any] = {} if learning_rate is None else {"learning_rate": learning_rate}
    with display(show_batch=True) as shown:
        done = tune_model(
            model, data, folder, minutes=minutes, steps=steps, rank=rank, context=context, batch_size=batch_size,
            validation=validation, quantised=quantised, seed=seed, reporter=shown, doctor=doctor, **asked,
        )  # fmt: skip
    _tell(done, folder, merged)


def _tell(done: Tuned, folder: Path, merged: Path | None) -> None:
    """What came of it, and the merged model where one is asked for."""
    from rich.console import Console

    from pellucid.api import convert

    console = Console(highlight=False, soft_wrap=True)
    for name, value in done.after.items():
        console.print(f"{name} of held-out answers: {done.before[name]:.3f} before, {value:.3f} after")
    console.print(f"adapter: {done.adapter}; answer with it: pellucid chat {folder}", markup=False)
    if merged is not None:
        convert(done.result.model, merged)
        console.print(f"merged model: {merged}", markup=False)


def main(arguments: Sequence[str]) -> None:
    """Parse a command line and run it."""
    parse(tune, arguments, EXAMPLES)
