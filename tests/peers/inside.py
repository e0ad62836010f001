"""Inside a random GPT-2 and a random Llama, against TransformerLens 4 and nnsight: activations, grids, interventions.

It runs where pellucid, transformer_lens and nnsight can all be imported; elsewhere it says so, and compares nothing:

    python -m venv peers && peers/bin/pip install . transformer_lens nnsight
    peers/bin/python tests/peers/inside.py
"""

from __future__ import annotations

import copy
import importlib.util
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from _counts import Counts
from torch import Tensor

import pellucid
from pellucid.interpret.attribution import attribute
from pellucid.interpret.patching import pair, patch
from pellucid.interpret.record import capture
from pellucid.nn.models import Decoder

LAYERS, VOCAB, RIGHT, WRONG = 3, 101, 7, 11
TOLERANCE = 1e-4
CACHED = {  # our points, and those of TransformerLens; True where it has heads behind the time
    "resid_pre": ("hook_resid_pre", False),
    "attn_out": ("hook_attn_out", False),
    "ffn_out": ("hook_mlp_out", False),
    "resid_post": ("hook_resid_post", False),
    "attn.pattern": ("attn.hook_pattern", False),
    "attn.z": ("attn.hook_z", True),
}


def models() -> dict[str, Any]:
    """Random models of transformers, with weights large enough that attention is far from even."""
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes: dict[str, Any] = {"vocab_size": VOCAB, "initializer_range": 0.2}
    gpt2 = GPT2Config(n_layer=LAYERS, n_embd=48, n_head=4, n_positions=32, **sizes)
    llama = LlamaConfig(
        hidden_size=48, intermediate_size=96, num_hidden_layers=LAYERS, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=32, **sizes,
    )  # fmt: skip
    return {"gpt2": GPT2LMHeadModel(gpt2).eval(), "meta-llama/Llama-2-7b-hf": LlamaForCausalLM(llama).eval()}


def tokenizer() -> Any:
    """A tokenizer that the peers ask for and nothing reads."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(WordLevel({"<|endoftext|>": 0, "a": 1}, unk_token="a"))
    end = "<|endoftext|>"
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token=end, pad_token=end, unk_token="a")


def judged(counts: Counts, group: str, ours: Tensor, theirs: Tensor) -> None:
    """One comparison: equal shapes, and no number farther away than the tolerance."""
    far = float((ours - theirs).abs().max()) if ours.shape == theirs.shape else float("inf")
    note = "" if far <= TOLERANCE else f"{far:.2e} apart, shapes {tuple(ours.shape)} and {tuple(theirs.shape)}"
    counts.add(group, "wrong" if note else "right", note)


@torch.no_grad()
def beside_transformer_lens(counts: Counts, name: str, plain: Any, model: Decoder, ids: Tensor, other: Tensor) -> None:
    """Every cached point of every layer, a grid of the residual stream and one of heads, and what heads add."""
    from transformer_lens import patching  # pyright: ignore[reportMissingImports]
    from transformer_lens.model_bridge import TransformerBridge  # pyright: ignore[reportMissingImports]

    bridge: Any = TransformerBridge.boot_transformers(name, hf_model=copy.deepcopy(plain), tokenizer=tokenizer())
    _, cache = bridge.run_with_cache(ids)
    acts = capture(model, ids, "blocks.*")
    for layer in range(LAYERS):
        for point, (theirs, by_head) in CACHED.items():
            found = cache[f"blocks.{layer}.{theirs}"]
            found = found.transpose(1, 2) if by_head else found
            judged(counts, f"{name}: cache", acts[f"blocks.{layer}.{point}"], found)

    def difference(logits: Tensor) -> Tensor:
        return logits[0, -1, RIGHT] - logits[0, -1, WRONG]

    prompts = pair(model, ids, other)
    grid = patching.get_act_patch_resid_pre(bridge, other, cache, difference)
    judged(counts, f"{name}: residual grid", patch(model, prompts, RIGHT, WRONG).scores[..., 0], grid)
    grid = patching.get_act_patch_attn_head_out_all_pos(bridge, other, cache, difference)
    heads = patch(model, prompts, RIGHT, WRONG, point="attn.z", over=("layer", "head")).scores[..., 0]
    judged(counts, f"{name}: grid of heads", heads, grid)
    added = cache.stack_head_results(layer=-1, pos_slice=-1).squeeze(1)  # (heads, d_model)
    final = plain.transformer.ln_f if name == "gpt2" else plain.model.norm
    if name == "gpt2":
        added = added - added.mean(-1, keepdim=True)
    last = cache[f"blocks.{LAYERS - 1}.hook_resid_post"][0, -1]
    centred = last - last.mean() if name == "gpt2" else last
    eps = final.eps if name == "gpt2" else final.variance_epsilon
    read = (plain.lm_head.weight[RIGHT] - plain.lm_head.weight[WRONG]) * final.weight
    told = torch.cat([each[0] for each in attribute(model, ids, RIGHT, WRONG).heads])
    judged(counts, f"{name}: what heads add", told, added @ read * (centred.square().mean() + eps).rsqrt())


@torch.no_grad()
def beside_nnsight(counts: Counts, name: str, plain: Any, model: Decoder, ids: Tensor) -> None:
    """The logits after the output of each block, and of each feed-forward layer, was doubled."""
    from nnsight import LanguageModel  # pyright: ignore[reportMissingImports]

    traced: Any = LanguageModel(copy.deepcopy(plain), tokenizer=tokenizer())
    blocks = traced.transformer.h if name == "gpt2" else traced.model.layers
    for layer in range(LAYERS):
        with traced.trace(ids):
            blocks[layer].output = blocks[layer].output * 2
            streams = traced.lm_head.output.save()
        with traced.trace(ids):
            blocks[layer].mlp.output = blocks[layer].mlp.output * 2
            branches = traced.lm_head.output.save()
        for point, theirs in (("resid_post", streams), ("ffn_out", branches)):
            with model.taps(edit={f"blocks.{layer}.{point}": lambda x: 2 * x}):
                judged(counts, f"{name}: nnsight's intervention", model(ids), theirs)


def main() -> int:
    """Compare, and print what is equal."""
    missing = [each for each in ("transformer_lens", "nnsight") if importlib.util.find_spec(each) is None]
    if missing:
        print(f"compared with nothing: {' and '.join(missing)} cannot be imported here ({__file__} says how they can)")
        return 0
    counts = Counts()
    for name, plain in models().items():
        with tempfile.TemporaryDirectory() as folder:
            plain.save_pretrained(folder)
            model = pellucid.load(Path(folder))
        assert isinstance(model, Decoder)
        ids, other = torch.randint(VOCAB, (2, 1, 9), generator=torch.Generator().manual_seed(1))
        judged(counts, f"{name}: logits", model(ids).detach(), plain(ids).logits.detach())
        beside_transformer_lens(counts, name, plain, model, ids, other)
        beside_nnsight(counts, name, plain, model, ids)
    control = Counts()
    judged(control, "", torch.zeros(2), torch.full((2,), 2 * TOLERANCE))
    assert control.rows[""]["wrong"], "a difference above the tolerance must be found"
    return counts.report("inside")


if __name__ == "__main__":
    sys.exit(main())
