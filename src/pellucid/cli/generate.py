"""``pellucid generate``"""

from __future__ import annotations

import sys
import time
from collections.abc import Generator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from pellucid.cli.parse import parse, text_of
from pellucid.cli.policy import BeamOptions, SpeculationOptions, searched
from pellucid.cli.say import say
from pellucid.errors import UsageError

if TYPE_CHECKING:
    from pellucid.generate.decode import Completion
    from pellucid.nn.models import AnyModel

EXAMPLES = """
generate runs/book "Once upon a time"
generate runs/book "def main(" --temperature 0 --stop "\\n\\n"
generate SmolLM2-135M-Instruct.Q4_1.gguf "The capital of France is" --temperature 0
generate HuggingFaceTB/SmolLM2-135M "The capital of France is"
generate runs/book "To be" --seed 7 --top-p 0.9 --max-new-tokens 500 --n 3
generate runs/translator "Guten Tag" --beams 4 --length-penalty 0.6 --n-best 3
generate HuggingFaceTB/SmolLM2-1.7B "The capital of France is" --draft HuggingFaceTB/SmolLM2-135M
generate SmolLM2-135M "The film was" --steer praise.gguf --steer-strength 2
generate runs/book - --lookup --temperature 0 < draft.txt
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
    n: Annotated[int, tyro.conf.arg(aliases=["--n-best"])] = 1,
    search: BeamOptions = BeamOptions(),  # noqa: B008 - frozen
    speculation: SpeculationOptions = SpeculationOptions(),  # noqa: B008 - frozen
    steer: Path | None = None,
    steer_strength: float = 1.0,
    quantised: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    ignore_key: tuple[str, ...] = (),
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
        n: Write so many texts: samples, or with --beams the best ones with their scores.
        steer: A control vector (.gguf, ours or llama.cpp's), added to the stream after its layers.
        steer_strength: What it is multiplied by; below 0 it steers away.
        quantised: Leave the weights of a .gguf file quantised in memory: it takes the file's size, and more time.
        ignore_key: Attributes of a published config.json to leave out, which no code reads.
    """
    from pellucid.cli.opening import open_model
    from pellucid.generate.decode import generate, stream
    from pellucid.generate.sample import Sampling

    sampling = Sampling(temperature, top_k, top_p, min_p, repetition_penalty)
    policy = searched(sampling, Sampling(), search, speculation)
    text = text_of(prompt)
    stops = [s.replace("\\n", "\n") for s in stop]
    opened = open_model(model, quantised, ignore_key)
    started = time.perf_counter()
    options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "policy": policy, "stop": stops, "seed": seed}
    with _steered(opened, steer, steer_strength):
        if n == 1 and policy.streams:
            completions = [_show_as_written(text, stream(opened, text, **options))]
        else:
            completions = generate(opened, text, n=n, **options)
            _show_whole(text, completions, numbered=n > 1)
    if sys.stdout.isatty() and sys.stderr.isatty():
        _say_how_it_ended(completions, time.perf_counter() - started)
    _say_what_is_full(completions, opened.spec.context)


def _steered(model: AnyModel, path: Path | None, strength: float) -> AbstractContextManager[None]:
    """While it lasts, the model is steered by a control vector; by none without a path."""
    from pellucid.interpret.steering import Steering
    from pellucid.nn.models import Decoder

    if path is None:
        return nullcontext()
    if not isinstance(model, Decoder):
        raise UsageError("a control vector steers a decoder, and this model is none", "leave --steer out")
    return Steering.open(path).applied(model, strength)


def _show_as_written(text: str, pieces: Generator[str, None, Completion]) -> Completion:
    """The prompt, then what follows it, piece by piece."""
    sys.stdout.write(text)
    try:
        while True:
            say(next(pieces))
    except StopIteration as end:
        return end.value
    finally:  # also where it is interrupted
        say("\n")


def _show_whole(text: str, completions: Sequence[Completion], numbered: bool) -> None:
    """Each text behind its prompt; several with their number, and the score of those that a search has ranked."""
    for number, completion in enumerate(completions, 1):
        if numbered:
            score = "" if completion.score is None else f"  score {completion.score}"
            say(f"[{number}]{score}\n")
        say(f"{text}{completion.text}\n")


def _say_how_it_ended(completions: Sequence[Completion], seconds: float) -> None:
    from rich.console import Console

    n_tokens = sum(completion.n_generated for completion in completions)
    told = f"{n_tokens:,} tokens, {n_tokens / max(seconds, 1e-9):.1f} a second"
    if len(completions) == 1:
        (completion,) = completions
        told += f"; {ENDS[completion.finish_reason]}"
        told += "" if completion.score is None else f"; score {completion.score}"
    Console(stderr=True).print(told, style="dim", highlight=False)


def _say_what_is_full(completions: Sequence[Completion], context: int) -> None:
    """Also where nobody watches: a text that the context has cut looks like one that was meant to end."""
    from rich.console import Console

    full = sum(completion.finish_reason == "context" for completion in completions)
    if full:
        which = "the text ends" if len(completions) == 1 else f"{full} of {len(completions)} texts end"
        told = f"{which} where the model's context of {context:,} tokens is full; a shorter prompt leaves more room"
        Console(stderr=True, soft_wrap=True).print(told, style="yellow", highlight=False)


def main(arguments: Sequence[str]) -> None:
    """Parse a command line and run it."""
    parse(generate, arguments, EXAMPLES)
