"""``pellucid evaluate translation``"""

from __future__ import annotations

from collections.abc import Sequence

import tyro

from pellucid.cli.parse import parse
from pellucid.errors import UsageError

EXAMPLES = """
evaluate translation runs/translator held-out.tsv
evaluate translation runs/translator held-out.en held-out.de --beams 1 --limit 200 --show 10
"""


def translation(
    model: tyro.conf.Positional[str],
    pairs: tyro.conf.Positional[tuple[str, ...]],
    beams: int = 4,
    length_penalty: float = 0.6,
    at_once: int = 32,
    limit: int | None = None,
    show: int = 3,
) -> None:
    """Say how good an encoder-decoder's translations are: BLEU and chrF, with sacrebleu's signatures.

    Args:
        model: The folder that `pellucid train --pairs` wrote; a published one, or ORG/NAME on the hub.
        pairs: Files of pairs: tab-separated (source, target), .jsonl, or two files, line by line.
        beams: Candidates of the search; 1 takes the likeliest token.
        length_penalty: Above 0, longer translations score better.
        at_once: Sources in one batch.
        limit: Translate the first so many pairs alone.
        show: Translations to print.
    """
    from rich.console import Console
    from rich.progress import Progress

    from pellucid.cli.opening import open_model
    from pellucid.evaluate.translation import metrics, translate

    if not pairs:
        raise UsageError("no pairs were named", "pellucid evaluate translation MODEL FILE")
    metrics()  # before anything takes time
    opened, errors = open_model(model), Console(stderr=True)
    with Progress(console=errors, transient=True, disable=not errors.is_terminal) as bars:
        task = bars.add_task("translating", total=None)

        def seen(done: int, total: int) -> None:
            bars.update(task, completed=done, total=total)

        how = {"beams": beams, "length_penalty": length_penalty, "at_once": at_once, "limit": limit}
        found = translate(opened, pairs, progress=seen, **how)  # pyright: ignore[reportArgumentType]
    console = Console(highlight=False, markup=False)
    for pair, written in list(zip(found.pairs, found.written, strict=True))[: max(show, 0)]:
        console.print(f"source    {pair.source}\nwritten   {written}\nexpected  {pair.target}\n")
    for score in found.scores():
        console.print(f"{score.value:.2f} {score.name}")
        console.print(score.signature, style="dim", soft_wrap=True)
    console.print(f"{len(found.pairs):,} pairs", style="dim")


def main(arguments: Sequence[str]) -> None:
    """Run the command with these arguments."""
    parse(translation, arguments, EXAMPLES)
