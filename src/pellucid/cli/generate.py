"""``pellucid generate``"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import tyro

from pellucid.cli.parse import parse, text_of
from pellucid.cli.say import say

EXAMPLES = """
generate runs/book "Once upon a time"
generate runs/book "def main(" --temperature 0 --stop "\\n\\n"
generate SmolLM2-135M-Instruct.Q4_1.gguf "The capital of France is" --temperature 0
generate HuggingFaceTB/SmolLM2-135M "The capital of France is"
generate runs/book "To be" --seed 7 --top-p 0.9 --max-new-tokens 500
"""


def generate(
    model: tyro.conf.Positional[str],
    prompt: tyro.conf.Positional[str] = "",
    max_new_tokens: int = 200,
    temperature: float = 0.8,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float | None = None,
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
        top_p: Keep the likeliest tokens that together have this probability.
        min_p: Drop tokens less likely than this share of the likeliest.
        repetition_penalty: Above 1, tokens that were seen become less likely.
        stop: End before any of these strings (\\n is a line end).
        seed: The same seed writes the same text.
    """
    from pellucid.cli.opening import open_model
    from pellucid.generate.decode import stream
    from pellucid.generate.sample import Sampling

    chosen = {"top_k": top_k, "top_p": top_p, "min_p": min_p, "repetition_penalty": repetition_penalty}
    sampling = Sampling(temperature=temperature, **{k: v for k, v in chosen.items() if v is not None})  # type: ignore[arg-type]
    text = text_of(prompt)
    stops = [s.replace("\\n", "\n") for s in stop]
    pieces = stream(open_model(model), text, max_new_tokens=max_new_tokens, sampling=sampling, stop=stops, seed=seed)
    sys.stdout.write(text)
    for piece in pieces:
        say(piece)
    sys.stdout.write("\n")


def main(arguments: Sequence[str]) -> None:
    parse(generate, arguments, EXAMPLES)
