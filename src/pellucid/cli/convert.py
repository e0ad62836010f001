"""``pellucid convert``"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import tyro

from pellucid.cli.parse import parse

EXAMPLES = """
convert runs/book --to hf --out book-hf
convert runs/book --to gguf --out book.gguf --quantisation q8_0
convert HuggingFaceTB/SmolLM2-135M --to native --out smollm --dtype bfloat16
convert SmolLM2-135M-Instruct.Q4_1.gguf --to hf --out smollm-hf --force
convert runs/adapter --to peft --out adapter
convert runs/adapter --to gguf-adapter --out adapter.gguf
"""


def convert(
    model: tyro.conf.Positional[str],
    out: Path,
    to: Literal["hf", "gguf", "native", "peft", "gguf-adapter"] = "hf",
    dtype: Literal["float32", "bfloat16", "float16"] | None = None,
    quantisation: Literal["f16", "q8_0", "f32"] | None = None,
    family: str | None = None,
    force: bool = False,
    ignore_key: tuple[str, ...] = (),
) -> None:
    """Write a model for other tools: a folder that transformers opens, or a file that llama.cpp runs.

    Args:
        model: The folder that `pellucid train` wrote; a published one, a .gguf file, or ORG/NAME on the hub.
        out: The folder to write, or the .gguf file; it must not exist, or be empty.
        to: hf for transformers, gguf for llama.cpp, native for our own folder, peft for its adapter, gguf-adapter for
            its adapter as llama.cpp reads it.
        dtype: Of the weights in a folder [default: float32].
        quantisation: Of the matrices in a .gguf file [default: f16].
        family: The model_type to write for transformers [default: the first that can express the model].
        force: Replace the model that stands there.
        ignore_key: Attributes of a published config.json to leave out, which no code reads.
    """
    import torch
    from rich.console import Console
    from rich.markup import escape

    from pellucid.api import convert as convert_model
    from pellucid.api import locate

    console = Console()
    source = locate(model)  # before anything is shown: the hub's client has bars of its own
    with console.status(escape(f"reading {source.name}, writing {out}")):
        chosen = None if dtype is None else getattr(torch, dtype)
        written = convert_model(
            source,
            out,
            to,
            dtype=chosen,
            quantisation=quantisation,
            family=family,
            force=force,
            ignore=ignore_key,
        )
    files = sorted(path for path in out.iterdir() if path.is_file()) if out.is_dir() else [out]
    sizes = ", ".join(f"{path.name} {path.stat().st_size / 1e6:,.1f} MB" for path in files)
    console.print(f"{out}: {written}; {sizes}", highlight=False, markup=False, soft_wrap=True)


def main(arguments: Sequence[str]) -> None:
    """Parse a command line and run it."""
    parse(convert, arguments, EXAMPLES)
