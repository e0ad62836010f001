"""``pellucid look``"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from pellucid.cli.parse import parse, text_of
from pellucid.errors import UsageError
from pellucid.look.ink import Section

EXAMPLES = """
look runs/book "To be, or not to be"
look runs/book "To be, or not to be" --html look.html
look runs/book "To be, or not to be" --only attention lens
look SmolLM2-135M-Instruct.Q4_1.gguf "The capital of France is"
look SmolLM2-135M "The capital of France is" --trace France --heads --only inside
look SmolLM2-135M --patch "The capital of France is" "The capital of Italy is" --only inside --html patch.html
look SmolLM2-135M "The capital of France is" --explain --facts --only inside
look bert-base-uncased "Paris is the [MASK] of France."
look opus-mt-en-de "The cat sat on the mat." --target "Die Katze saß auf der Matte."
"""


def look(
    model: tyro.conf.Positional[str],
    text: tyro.conf.Positional[str | None] = None,
    target: str | None = None,
    html: Path | None = None,
    top: int = 10,
    only: tuple[Section, ...] = (),
    quantised: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    ignore_key: tuple[str, ...] = (),
    patch: tuple[str, str] | None = None,
    trace: str | None = None,
    heads: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    explain: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    facts: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
) -> None:
    """See what a model makes of a text: its guesses layer by layer, every head's attention, the loss of each token.

    Of an encoder: how alike its tokens' states become, what it fills masks with, its vector or classes. Of an
    encoder–decoder both sides, and how what it writes looks at what it read.

    Args:
        model: The folder that `pellucid train` wrote; a published one, a .gguf file, or ORG/NAME on the hub.
        text: What it should read; "-" reads it from standard input.
        target: What an encoder–decoder writes; without it, what it would write itself.
        html: Also write one self-contained page, to be opened in any browser.
        top: How many guesses to list.
        only: The sections to show in the terminal, all by default; the page has all.
        quantised: Leave the weights of a .gguf file quantised in memory: it takes the file's size, and more time.
        patch: CLEAN CORRUPT, two prompts of as many tokens: which states and heads of the first bring its answer back
            in the second. Without a text the first is what is read.
        trace: Words of the text: drowned in noise, which restored states bring the model's answer back?
        heads: Score induction, previous-token, duplicate-token and copying heads.
        explain: Which tokens are the reason of the next one, by attention, gradients and leaving them out; whether the
            answer goes and comes with these tokens; and whether it depends on where attention looks.
        facts: Which neurons of feed-forward layers say the next token, where each is active, and what it raises.
        ignore_key: Attributes of a published config.json to leave out, which no code reads.
    """
    from rich.console import Console

    from pellucid.cli.opening import open_model
    from pellucid.files import write_text
    from pellucid.look.look import look as look_into
    from pellucid.look.page.html import to_html
    from pellucid.look.terminal import show

    if text is None and patch is None:
        raise UsageError("there is no text to read", 'pellucid look MODEL "To be, or not to be"')
    loaded = open_model(model, quantised, ignore_key)
    read = text_of(text) if text is not None else patch[0] if patch is not None else ""
    with Console(stderr=True).status("reading"):
        named = Path(os.path.abspath(model)).name
        seen = look_into(
            loaded, read, top=top, name=named, target=target,
            patch=patch, trace=trace, heads=heads, explain=explain, facts=facts,
        )  # fmt: skip
    if html is not None:
        write_text(html, to_html(seen))  # first: who reads what is shown may stop reading (`| head`)
    console = Console()
    show(seen, console, only)
    if html is not None:
        console.print(f"page: [bold]{html.resolve()}[/]", highlight=False, soft_wrap=True)


def main(arguments: Sequence[str]) -> None:
    """Parse a command line and run it."""
    parse(look, arguments, EXAMPLES)
