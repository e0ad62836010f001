"""Does llama.cpp, with an adapter of ours beside a model of ours, say what we say?

Tiny random models of its architectures, each with an adapter of uneven ranks and strengths. Compared are the
log-probabilities of all tokens after some prompts. llama.cpp's attention rounds to half precision, so base and adapted
model may both be a little off; the controls, which must differ far more, are the base without the adapter, and the
adapter at half its strength. llama.cpp comes compiled in a package (``pip install xllamacpp==2026.10.11549``)::

    python tests/peers/gguf_adapters.py
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from _counts import Counts

import pellucid
from pellucid.families.registry import spec_of
from pellucid.nn.models import build_model
from pellucid.surgery.holding import parameters_of, switch
from pellucid.surgery.lora import LoRA, Ranked, adapt
from pellucid.text.tokenizer import Tokenizer

sys.path.insert(0, str(Path(__file__).parents[1] / "properties"))
from gguf_files import MODELS

NEAR, TABLE, VISIBLE = 2e-3, 2e-2, 10  # nats; TABLE: llama.cpp's GELU is a table of float16 numbers; times NEAR
GELU = ("gemma",)
TEXT = "the cat sat on the mat and the dog ran to the house of the old man with a hat " * 4
PROMPTS = ("the cat ran to the old house", "the man sat", "a hat on the dog of the")
LORAS = {
    "blocks": LoRA(rank=3, alpha=5.0, ranked=(Ranked(pattern="*.attn.*", rank=2, alpha=9.0),)),
    "head": LoRA(targets=("*.ffn.*", "head"), rank=3, alpha=5.0),
}


def model_with_text(name: str, tokenizer: Tokenizer) -> Any:
    """A random model of this architecture, with a vocabulary that llama.cpp takes."""
    model: Any = build_model(spec_of({**MODELS[name], "vocab_size": tokenizer.vocab_size})[0])
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.2)
    model.tokenizer = tokenizer
    return model.eval()


def ours(model: Any, prompts: Sequence[list[int]]) -> torch.Tensor:
    """ln p of the token after each prompt, (prompts, vocab)."""
    with torch.no_grad():
        return torch.stack([model(torch.tensor([ids]))[0, -1].log_softmax(-1) for ids in prompts])


def theirs(base: Path, prompts: Sequence[list[int]], size: int, adapter: Path | None, scale: float = 1.0) -> Any:
    """The same by llama.cpp; NaN where it does not tell, as after a prompt that it ends at once."""
    import xllamacpp  # pyright: ignore

    asked: Any = xllamacpp.CommonParams()
    asked.model.path, asked.n_ctx, asked.n_parallel, asked.verbosity = str(base), 128, 1, -1
    asked.warmup, asked.cpuparams.n_threads = False, 1
    asked.cache_type_k = asked.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    if adapter is not None:
        asked.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(adapter), scale)]
    server = xllamacpp.Server(asked)
    found = torch.full((len(prompts), size), torch.nan)
    for row, ids in zip(found, prompts, strict=True):
        said = server.handle_completions({"prompt": ids, "n_predict": 1, "n_probs": size, "temperature": 0})
        for each in ((said["choices"][0]["logprobs"] or {}).get("content") or [{"top_logprobs": []}])[0][
            "top_logprobs"
        ]:
            row[each["id"]] = each["logprob"]
    return found


def gap(a: torch.Tensor, b: torch.Tensor) -> float:
    """The largest difference where both say something; infinite where one says nothing at all."""
    known = ~a.isnan() & (b > -30)
    return float((a - b)[known].abs().max()) if bool(known.any()) else float("inf")


def compare(name: str, which: str, tokenizer: Tokenizer, folder: Path, counts: Counts) -> None:
    model = adapt(model_with_text(name, tokenizer), LORAS[which])
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in parameters_of(model, "adapter").values():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    ids = [tokenizer.encode(each) for each in PROMPTS]
    wanted = ours(model, ids)
    base, adapter = folder / "base.gguf", folder / "adapter.gguf"
    pellucid.convert(model, adapter, to="gguf-adapter", force=True)
    switch(model, None)
    pellucid.convert(model, base, to="gguf", quantisation="f32", force=True)
    size, most = tokenizer.vocab_size, TABLE if name.startswith(GELU) else NEAR
    plain = gap(theirs(base, ids, size, None), ours(model, ids))
    beside = gap(theirs(base, ids, size, adapter), wanted)
    without = gap(theirs(base, ids, size, None), wanted)
    half = gap(theirs(base, ids, size, adapter, 0.5), wanted)
    fits = plain < most and beside < most and min(without, half) > VISIBLE * most
    note = f"base {plain:.1e}, adapted {beside:.1e}, without it {without:.1e}, at half {half:.1e} nats apart"
    counts.add(f"{name} ({which})", "right" if fits else "wrong", "" if fits else note)
    print(f"{name} ({which}): {note}", flush=True)


def main(names: Sequence[str]) -> int:
    if find_spec("xllamacpp") is None:
        print("xllamacpp is not installed, so nothing is compared: pip install xllamacpp==2026.10.11549")
        return 0
    tokenizer, counts = Tokenizer.train([TEXT], 300), Counts()
    with tempfile.TemporaryDirectory() as folder:
        for name in names or MODELS:
            compare(name, "blocks", tokenizer, Path(folder), counts)
        compare("llama", "head", tokenizer, Path(folder), counts)
    return counts.report("adapters in llama.cpp")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
