"""``pellucid evaluate``"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import tyro

from pellucid.cli.parse import parse
from pellucid.errors import UsageError

EXAMPLES = """
evaluate runs/book other.txt
evaluate HuggingFaceTB/SmolLM2-135M notes/ articles.jsonl --field body
evaluate gemma-3-270m-q4_k_m.gguf book.txt --quantised
evaluate translation runs/translator held-out.tsv
"""


def evaluate(
    model: tyro.conf.Positional[str],
    texts: tyro.conf.Positional[tuple[str, ...]],
    field: str = "text",
    stride: int | None = None,
    quantised: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
) -> None:
    """Say how well a model predicts a text: bits per byte, which compare any two models, and perplexity.

    Args:
        model: The folder that `pellucid train` wrote; a published one, a .gguf file, or ORG/NAME on the hub.
        texts: Files (.txt, .gz, .jsonl, ...), folders, globs, "-" for standard input, hf://org/dataset.
        field: Where a row of JSON, or of a dataset, holds its text.
        stride: How far the window moves on in texts longer than the context [default: half the context].
        quantised: Leave the weights of a .gguf file quantised in memory: it takes the file's size, and more time.
    """
    from rich.console import Console
    from rich.progress import Progress

    from pellucid.cli.opening import open_model
    from pellucid.evaluate.texts import evaluate as measure

    if not texts:
        raise UsageError("no text was named", "pellucid evaluate MODEL FILE")
    opened, errors = open_model(model, quantised), Console(stderr=True)
    with Progress(console=errors, transient=True, disable=not errors.is_terminal) as bars:
        task = bars.add_task("reading", total=None)

        def seen(done: int, total: int) -> None:
            bars.update(task, completed=done, total=total)

        found = measure(opened, texts, field=field, stride=stride, progress=seen)
    words = f"{found.n_tokens:,} tokens, {found.n_bytes:,} bytes, {found.n_documents:,} documents"
    console = Console(highlight=False)
    console.print(f"{found.bits_per_byte:.4f} bits per byte")
    console.print(f"{found.perplexity:,.3f} perplexity a token")
    console.print(words, style="dim")


def main(arguments: Sequence[str]) -> None:
    """Run the command with these arguments; ``evaluate translation`` is one of its own."""
    if arguments[:1] == ["translation"]:
        from pellucid.cli.translation import main as translation

        return translation(arguments[1:])
    parse(evaluate, arguments, EXAMPLES)
