"""``pellucid look``"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import tyro

from pellucid.cli.parse import parse, text_of

EXAMPLES = """
look runs/book "To be, or not to be"
look runs/book "To be, or not to be" --html look.html
"""


def look(
    model: tyro.conf.Positional[Path],
    text: tyro.conf.Positional[str],
    html: Path | None = None,
    top: int = 10,
) -> None:
    """See what a model makes of a text: its guesses layer by layer, every head's attention, the loss of each token.

    Args:
        model: The folder that `pellucid train` wrote.
        text: What it should read; "-" reads it from standard input.
        html: Also write one self-contained page, to be opened in any browser.
        top: How many next-token guesses to list.
    """
    from rich.console import Console

    from pellucid.api import load
    from pellucid.files import write_text
    from pellucid.interpret.look import look as look_into
    from pellucid.interpret.terminal import show
    from pellucid.interpret.view import to_html

    seen = look_into(load(model), text_of(text), top=top, name=model.resolve().name)
    console = Console()
    show(seen, console)
    if html is not None:
        write_text(html, to_html(seen))
        console.print(f"page: [bold]{html.resolve()}[/]", highlight=False, soft_wrap=True)


def main(arguments: Sequence[str]) -> None:
    parse(look, arguments, EXAMPLES)
