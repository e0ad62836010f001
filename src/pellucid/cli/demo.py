"""``pellucid demo``: a whole life in a few minutes, on text that every machine has."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pellucid.cli.parse import parse
from pellucid.train.config import TrainOptions

if TYPE_CHECKING:
    from rich.table import Table

    from pellucid.nn.models import AnyModel

EXAMPLES = """
demo
demo --minutes 20 --out runs/longer
"""
FUNCTIONS, LONGEST, BATCH = 48, 160, 16  # how many functions the model completes, of how many tokens at most
SHOWN = 'def read_lines(path, encoding="utf-8"):\n    """Return the lines of a text file."""\n'
LOOKED_AT = """def area(width, height):
    return width * height


class Circle(Shape):
    def __init__(self, radius):
        self.radius = """


def demo(out: Path = Path("runs/demo"), minutes: float = 3.0, seed: int = 0) -> None:
    """Train on this Python's standard library, measure on modules held out, write some Python, and look inside.

    Args:
        out: Folder of the run; the same command again goes on with it, or shows its results.
        minutes: Time to train.
        seed: Another one, another model.
    """
    from pellucid.cli.display import display, write_sample
    from pellucid.files import write_text
    from pellucid.generate.decode import generate
    from pellucid.look.look import look
    from pellucid.look.page.html import to_html
    from pellucid.recipes.standard_library import compressed_bits_per_byte, standard_library
    from pellucid.train.run import train

    recipe = standard_library(TrainOptions(minutes=minutes, seed=seed))
    with display() as shown:
        result = train(recipe.texts, out, options=recipe.options, reporter=shown, sampler=write_sample)
    console = shown.console
    console.rule("how well are the held-out modules predicted?")
    console.print(comparison(result.metrics["bits_per_byte"], compressed_bits_per_byte(recipe.held_out)))
    console.rule("what does it write?")
    written = generate(result.model, SHOWN, max_new_tokens=LONGEST, seed=seed, stop="\n\n\n")[0]
    console.print(SHOWN + written.text, highlight=False, markup=False)
    completed, parsed = completions(result.model, recipe.held_out, seed)
    console.print(
        f"\nOf {FUNCTIONS} functions from the held-out modules, given the first line, it completed {completed} within "
        f"{LONGEST} tokens; ast.parse accepts {parsed} of them ({parsed / max(completed, 1):.0%})."
    )
    console.rule("what goes on inside?")
    page = out / "look.html"
    write_text(page, to_html(look(result.model, LOOKED_AT, name=out.name)))
    console.print(f"open this page in a browser: [bold]{page.resolve()}[/]", highlight=False, soft_wrap=True)


def comparison(ours: float, theirs: dict[str, float]) -> Table:
    """Bits per byte as bars, the best first."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    widest = max(ours, *theirs.values())
    for name, value in sorted({"this model": ours, **theirs}.items(), key=lambda item: item[1]):
        style = "bold cyan" if name == "this model" else "dim"
        table.add_row(Text(name, style), Text("━" * round(40 * value / widest), style), f"{value:.3f} bits per byte")
    return table


def openings(files: Sequence[Path], count: int) -> list[str]:
    """What stands before the body of functions at the top level of these files, spread evenly over them."""
    found: list[str] = []
    for path in files:
        source = path.read_text(encoding="utf-8")
        lines = source.splitlines()
        for node in ast.parse(source).body:
            if isinstance(node, ast.FunctionDef):
                found += ["\n".join(lines[node.lineno - 1 : node.body[0].lineno - 1]) + "\n"]
    every = max(1, len(found) // count)
    return found[::every][:count]


def function_of(text: str) -> str | None:
    """The function that ``text`` begins with, cut where the next unindented line shows that it has ended; else None."""
    lines = text.splitlines()
    for i, line in enumerate(lines):
        if i and line and not line[0].isspace() and not line.startswith((")", "#")):
            return "\n".join(lines[:i])
    return None


def accepted(source: str) -> bool:
    """Whether this is Python, by its own parser."""
    import warnings

    try:
        with warnings.catch_warnings(action="ignore"):  # a strange escape is still Python
            ast.parse(source)
    except (SyntaxError, ValueError):
        return False
    return True


def completions(model: AnyModel, files: Sequence[Path], seed: int) -> tuple[int, int]:
    """How many of FUNCTIONS openings the model completes, and how many of those parse."""
    from pellucid.generate.decode import generate
    from pellucid.generate.sample import Sampling

    starts = openings(files, FUNCTIONS)
    functions: list[str] = []
    for i in range(0, len(starts), BATCH):
        rows = generate(
            model,
            starts[i : i + BATCH],
            max_new_tokens=LONGEST,
            sampling=Sampling(temperature=0.6),
            seed=seed,
            stop="\n\n\n",
        )
        for start, row in zip(starts[i : i + BATCH], rows, strict=True):
            ended = row.finish_reason in ("stop", "eos")
            text = start + row.text + ("\nend" if ended else "")
            function = function_of(text)
            if function is not None:
                functions.append(function)
    return len(functions), sum(accepted(f) for f in functions)


def main(arguments: Sequence[str]) -> None:
    """Parse a command line and run it."""
    parse(demo, arguments, EXAMPLES)
