"""``pellucid generate``"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import tyro

from pellucid.cli.parse import parse, text_of
from pellucid.cli.say import say

if TYPE_CHECKING:
    from pellucid.generate.decode import Completion

EXAMPLES = """
generate runs/book "Once upon a time"
generate runs/book "def main(" --temperature 0 --stop "\\n\\n"
generate SmolLM2-135M-Instruct.Q4_1.gguf "The capital of France is" --temperature 0
generate HuggingFaceTB/SmolLM2-135M "The capital of France is"
generate runs/book "To be" --seed 7 --top-p 0.9 --max-new-tokens 500
"""
ENDS = {
    "eos": "the model ended the text",
    "stop": "a stop string came",
    "length": "as many as --max-new-tokens says",
    "context": "the model's context is full",
}


def generate(
    model: tyro.conf.Positional[str],
    prompt: tyro.conf.Positional[str] = "",
    max_new_tokens: int = 200,
    temperature: float = 0.8,
    top_k: int | None = None,
    top_p: float = 0.95,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    stop: tuple[str, ...] = (),
    seed: int = 0,
) -> None:
    """Continue a prompt, a token at a time, and show it as it is written.

    Args:
        model: The folder that `pellucid train` wrote; a published one, a .gguf file, or ORG/NAME on the hub.
        prompt: What to continue; "-" reads it from standard input.
        max_new_tokens: Tokens to write at most.
        temperature: 0 always takes the likeliest token; 1 is the model's own distribution.
        top_k: Keep only this many of the likeliest tokens.
        top_p: Keep the likeliest tokens that together have this probability; 1 keeps all.
        min_p: Drop tokens less likely than this share of the likeliest; 0 drops none.
        repetition_penalty: Above 1, tokens that were seen become less likely; 1 changes nothing.
        stop: End before any of these strings (\\n is a line end).
        seed: The same seed writes the same text.
    """
    from pellucid.cli.opening import open_model
    from pellucid.generate.decode import stream
    from pellucid.generate.sample import Sampling

    sampling = Sampling(temperature, top_k, top_p, min_p, repetition_penalty)
    text = text_of(prompt)
    stops = [s.replace("\\n", "\n") for s in stop]
    pieces = stream(open_model(model), text, max_new_tokens=max_new_tokens, sampling=sampling, stop=stops, seed=seed)
    started = time.perf_counter()
    sys.stdout.write(text)
    try:
        while True:
            say(next(pieces))
    except StopIteration as end:
        completion = end.value
    finally:  # also where it is interrupted
        say("\n")
    if sys.stdout.isatty() and sys.stderr.isatty():
        _say_how_it_ended(completion, time.perf_counter() - started)


def _say_how_it_ended(completion: Completion, seconds: float) -> None:
    from rich.console import Console

    why = ENDS[completion.finish_reason]
    speed = completion.n_generated / max(seconds, 1e-9)
    Console(stderr=True).print(
        f"{completion.n_generated:,} tokens, {speed:.1f} a second; {why}", style="dim", highlight=False
    )


def main(arguments: Sequence[str]) -> None:
    parse(generate, arguments, EXAMPLES)
