"""How fast does one row get its tokens, beside llama.cpp, its fork ik_llama.cpp and transformers?

One process, one GGUF file, greedy, the same prompt as token ids, the same number of threads. In each round every
contestant takes its turn: it writes one token, then ``--tokens`` more, and the time between is what is counted, so that
reading the prompt is left out. What is compared is the ratio to the first contestant within a round. Contestants that
are not installed are left out with a word. How many of the tokens are those of our float32 model is said, too.

    python benchmarks/decode.py SmolLM2-135M-Instruct.Q4_1.gguf --threads 1
    pip install xllamacpp ik-llama-cpp-python             # prebuilt llama.cpp and ik_llama.cpp
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from _harness import Spread, cores, processor, save_json

import pellucid
from pellucid.nn.native.library import library

TEXT = "Water boils at a lower temperature on a mountain, because the air is thinner there. For the same reason"
GREEDY = pellucid.Sampling(temperature=0.0)
Writer = Callable[[list[int], int], list[int]]


def ours(file: Path, threads: int, **how: Any) -> Writer:
    model = pellucid.load(file, **how)

    def write(prompt: list[int], n: int) -> list[int]:
        return pellucid.generate(model, [prompt], max_new_tokens=n, sampling=GREEDY, ignore_eos=True)[0].ids

    return write


def transformers(file: Path, threads: int, dtype: torch.dtype = torch.float32) -> Writer:
    auto = import_module("transformers").AutoModelForCausalLM
    model = auto.from_pretrained(file.parent, gguf_file=file.name, dtype=dtype).eval()

    def write(prompt: list[int], n: int) -> list[int]:
        ids = torch.tensor([prompt])
        with torch.inference_mode():
            out = model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=n, do_sample=False, eos_token_id=None,
                pad_token_id=0,
            )  # fmt: skip
        return out[0, len(prompt) :].tolist()

    return write


def llama_cpp(file: Path, threads: int) -> Writer:
    x = import_module("xllamacpp")
    params = x.CommonParams()
    params.model.path, params.n_ctx, params.n_parallel = str(file), 1024, 1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    server = x.Server(params)

    def write(prompt: list[int], n: int) -> list[int]:
        asked = {"prompt": prompt, "n_predict": n, "temperature": 0, "ignore_eos": True, "cache_prompt": False}
        answer = server.handle_completions(asked | {"max_tokens": n, "return_tokens": True})
        answer = json.loads(answer) if isinstance(answer, str) else answer
        return (answer.get("tokens") or [-1] * n)[:n]

    return write


def ik_llama_cpp(file: Path, threads: int) -> Writer:
    model = import_module("ik_llama_cpp").IkLlama(str(file), n_ctx=1024, n_threads=threads, verbose=False)

    def write(prompt: list[int], n: int) -> list[int]:
        return list(model.generate(prompt, max_tokens=n, temperature=0.0))[:n]

    return write


CONTESTANTS: dict[str, Callable[[Path, int], Writer]] = {
    "pellucid, as published": lambda file, threads: ours(file, threads, quantised=True),
    "pellucid, float32": ours,
    "pellucid, bfloat16": lambda file, threads: ours(file, threads, dtype=torch.bfloat16),
    "transformers, float32": transformers,
    "transformers, bfloat16": lambda file, threads: transformers(file, threads, torch.bfloat16),
    "llama.cpp": llama_cpp,
    "ik_llama.cpp": ik_llama_cpp,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a .gguf file")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--threads", type=int, default=cores())
    parser.add_argument("--only", nargs="+", choices=CONTESTANTS, default=list(CONTESTANTS), metavar="NAME")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every measurement to FILE")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)

    writers: dict[str, Writer] = {}
    for name in chosen.only:
        try:
            writers[name] = CONTESTANTS[name](chosen.model, chosen.threads)
        except ImportError as error:
            print(f"{name}: left out, {error}")
    tokenizer: Any = pellucid.load(chosen.model, quantised=True).tokenizer
    prompt = tokenizer.encode_prompt(TEXT)
    written = {name: write(prompt, chosen.tokens) for name, write in writers.items()}  # also to warm up
    speeds: dict[str, list[float]] = {name: [] for name in writers}
    for number in range(chosen.rounds):
        for name in sorted(writers, reverse=number % 2 == 1):
            begun = time.perf_counter()
            writers[name](prompt, 1)
            first = time.perf_counter()
            writers[name](prompt, chosen.tokens + 1)
            speeds[name].append(chosen.tokens / (time.perf_counter() - first - (first - begun)))
    show(speeds, written)
    kernels = f"kernels by {library.ops.instructions()[0]}" if library.ready() else f"no kernels: {library.why}"
    print(f"\n{processor()}, {chosen.threads} threads, {kernels}; {chosen.rounds} rounds, median (range)")
    if chosen.json is not None:
        save_json(chosen.json, {"machine": processor(), "threads": chosen.threads, "tokens_per_second": speeds})


def show(speeds: dict[str, list[float]], written: dict[str, list[int]]) -> None:
    """A line for each contestant: tokens a second, the first one's speed in units of its own, and equal tokens."""
    first, right = next(iter(speeds)), written.get("pellucid, float32")
    for name, values in speeds.items():
        line = f"{name:24} {Spread.of(values).show('6.1f'):24} tokens/s"
        if name != first:
            pairs = [mine / other for mine, other in zip(speeds[first], values, strict=True)]
            line += f"   {first} is {Spread.of(pairs).show()} ×"
        if right is not None:
            same = sum(a == b for a, b in zip(written[name], right, strict=False))
            line += f"   {same} of {len(right)} tokens as float32"
        print(line, flush=True)


if __name__ == "__main__":
    main()
