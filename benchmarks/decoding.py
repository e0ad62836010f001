"""How fast does a model write by each policy, beside plain sampling and beside ``transformers``?

One process, one model, greedy, one row. In each round every way to write takes its turn on the same prompts; what is
compared is the ratio within a round: tokens a second of speculation to those of plain decoding, and of our beam search
to that of transformers. Two kinds of prompt: one that asks for what it has said already, where a look-up finds much,
and open questions. The draft is the model's own first layers, so that no second model is needed; how many of its
guesses are right says how good it is. What each way writes is compared, too: fast and wrong would be no use.

    python benchmarks/decoding.py SmolLM2-135M-Instruct.Q4_1.gguf --rounds 5
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from _harness import Spread, cores, processor, save_json

import pellucid
from pellucid.generate.policy import Policy
from pellucid.nn.models import Decoder

GREEDY = pellucid.Sampling(temperature=0.0)
FACTS = "The cat sat on the mat. The dog lay by the fire. The bird sang in the tree. The fish swam in the pond."
PROMPTS = {
    "repeats itself": [
        f"{FACTS}\n{FACTS}\n{FACTS}\nThe cat sat",
        f"def add(a, b):\n    return a + b\n\n{FACTS} {FACTS} The",
    ],
    "open": ["The capital of France is", "Water boils at a lower temperature on a mountain, because"],
}
Writer = Callable[[list[int], int], list[int]]


def shallow(model: Decoder, n_layers: int) -> Decoder:
    """The model's first layers with its head."""
    stack = model.spec.stack
    draft = pellucid.build(replace(model.spec, stack=replace(stack, blocks=stack.blocks[:n_layers])))
    kept = draft.state_dict().keys()
    draft.load_state_dict({name: weight for name, weight in model.state_dict().items() if name in kept})
    draft.tokenizer = model.tokenizer
    return draft.eval()


def by_policy(model: Decoder, policy: Policy) -> Writer:
    def write(prompt: list[int], n: int) -> list[int]:
        return pellucid.generate(model, [prompt], max_new_tokens=n, policy=policy, ignore_eos=True)[0].ids

    return write


def by_transformers(file: Path, width: int) -> Writer:
    """Their beam search on the same file."""
    from transformers import AutoModelForCausalLM

    loaded: Any = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    theirs = loaded.eval()

    def write(prompt: list[int], n: int) -> list[int]:
        ids = torch.tensor([prompt])
        with torch.inference_mode():
            out = theirs.generate(
                ids, attention_mask=torch.ones_like(ids), num_beams=width, max_new_tokens=n, do_sample=False,
                eos_token_id=None, pad_token_id=0,
            )  # fmt: skip
        return out[0, len(prompt) :].tolist()

    return write


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a .gguf file, which transformers reads as well")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=64, help="new tokens a prompt")
    parser.add_argument("--guesses", type=int, nargs="+", default=[4, 8])
    parser.add_argument("--draft-layers", type=int, default=10)
    parser.add_argument("--width", type=int, default=4, help="beams")
    parser.add_argument("--threads", type=int, default=cores())
    parser.add_argument("--no-peer", action="store_true", help="without transformers")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every measurement to FILE")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)

    model = pellucid.load(chosen.model)
    assert isinstance(model, Decoder)
    draft = shallow(model, chosen.draft_layers)
    ways: dict[str, Writer] = {"plain": by_policy(model, GREEDY)}
    for guesses in chosen.guesses:
        ways[f"look-up, {guesses}"] = by_policy(model, pellucid.Speculation(guesses=guesses, sampling=GREEDY))
        ways[f"draft, {guesses}"] = by_policy(model, pellucid.Speculation(draft, guesses, sampling=GREEDY))
    ways["beams"] = by_policy(model, pellucid.Beams(chosen.width))
    if not chosen.no_peer:
        ways["transformers' beams"] = by_transformers(chosen.model, chosen.width)

    seen: dict[str, dict[str, list[float]]] = {}
    for kind, texts in PROMPTS.items():
        prompts = [model.tokenizer.encode_prompt(text) for text in texts]
        written = {name: [write(prompt, chosen.tokens) for prompt in prompts] for name, write in ways.items()}  # warm
        speeds: dict[str, list[float]] = {name: [] for name in ways}
        for number in range(chosen.rounds):
            for name in sorted(ways, reverse=number % 2 == 1):
                started = time.perf_counter()
                n_tokens = sum(len(ways[name](prompt, chosen.tokens)) for prompt in prompts)
                speeds[name].append(n_tokens / (time.perf_counter() - started))
        seen[kind] = speeds
        show(kind, speeds, written)
    print(f"\n{processor()}, {chosen.threads} threads, {chosen.rounds} rounds, median (range)")
    if chosen.json is not None:
        save_json(chosen.json, {"machine": processor(), "threads": chosen.threads, "tokens_per_second": seen})


def show(kind: str, speeds: dict[str, list[float]], written: dict[str, list[list[int]]]) -> None:
    """A line for each way: tokens a second, the ratio to what it is compared with, and whether the texts are equal."""
    print(f"\nthe prompt {kind}:" if kind != "open" else "\nthe prompt is open:")
    for name, values in speeds.items():
        against = "transformers' beams" if name == "beams" else "plain"
        line = f"  {name:20} {Spread.of(values).show('6.1f'):24} tokens/s"
        if name not in (against, "transformers' beams") and against in speeds:
            pairs = [mine / other for mine, other in zip(values, speeds[against], strict=True)]
            same = "same texts" if written[name] == written[against] else "OTHER TEXTS"
            line += f"   {Spread.of(pairs).show()} × {against}, {same}"
        print(line, flush=True)


if __name__ == "__main__":
    main()
