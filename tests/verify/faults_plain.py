"""Faults in models with the weights that libraries draw: so small that they say again what they read, come what may.

The other faults are planted in models whose weights were moved, where they show in every token. Here they show only to
who looks at numbers.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as hf
from faults_base import Fault, called_with, of, through, without
from faults_forward import forgets, positions_restart, their_cache_forgets
from faults_generation import their_prompts_unmasked
from subjects import CONTEXT, GROUPED, LAYERS, SEQ2SEQ, VOCAB, WIDTH, implemented
from torch import Tensor
from torch.nn import functional as F

import pellucid
from pellucid.batch import IGNORE
from pellucid.designs import design

Patch = pytest.MonkeyPatch


def drawn(make: Callable[[], Any]) -> Callable[[], Any]:
    """A model as its maker draws it."""

    def made() -> Any:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return make().eval()

    return made


T5: dict[str, Any] = {
    "vocab_size": VOCAB, "d_model": WIDTH, "d_kv": 8, "d_ff": 48, "num_layers": LAYERS, "num_heads": 4,
    "decoder_start_token_id": 0,
}  # fmt: skip
GPT2: dict[str, Any] = {
    "vocab_size": VOCAB, "n_embd": WIDTH, "n_layer": LAYERS, "n_head": 4, "n_positions": CONTEXT,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
gpt2 = drawn(lambda: hf.GPT2LMHeadModel(hf.GPT2Config(**GPT2)))
llama = drawn(lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**GROUPED, **implemented("eager"))))
t5 = drawn(lambda: hf.T5ForConditionalGeneration(hf.T5Config(**T5)))
bart = drawn(lambda: hf.BartForConditionalGeneration(hf.BartConfig(**SEQ2SEQ)))
ours = drawn(lambda: pellucid.build(design("modern")(VOCAB, CONTEXT, LAYERS, WIDTH, 8)))

# --- who sees whom ---------------------------------------------------------------------------------------------------


def one_head_unmasked(model: Any, monkeypatch: Patch) -> None:
    """The first head of the last layer sees everything."""
    written = sys.modules[type(model).__module__]
    attend, last = written.eager_attention_forward, model.model.layers[-1].self_attn

    def attended(module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, *rest: Any, **how: Any) -> Any:
        out, weights = attend(module, q, k, v, mask, *rest, **how)
        if module is last:
            out = torch.cat([attend(module, q, k, v, mask * 0, *rest, **how)[0][:, :, :1], out[:, :, 1:]], 2)
        return out, weights

    monkeypatch.setattr(written, "eager_attention_forward", attended)


def one_layer_too_far(model: Any, monkeypatch: Patch) -> None:
    """The mask of the last layer has one token too many."""

    def widened(given: dict[str, Any]) -> dict[str, Any]:
        mask = given["attention_mask"].clone()
        mask.diagonal(1, -2, -1).zero_()
        return given | {"attention_mask": mask}

    called_with(widened, f"model.layers.{LAYERS - 1}.self_attn")(model, monkeypatch)


def remembers_shapes(model: Any, monkeypatch: Patch) -> None:
    """What was read first in a shape is read ever after."""
    kept: dict[torch.Size, Tensor] = {}

    def hook(module: Any, args: Any, out: Tensor) -> Tensor:
        return kept.setdefault(out.shape, out)

    model.get_input_embeddings().register_forward_hook(hook)


def overflows_in_half(x: Tensor) -> Tensor:
    """In a short type, by way of float16, whose numbers end at 65504."""
    return (x * 3e4).half().to(x.dtype) / 3e4 if x.dtype == torch.bfloat16 else x


# --- the cache -------------------------------------------------------------------------------------------------------


def updating(change: Callable[[Any, int, Tensor, Tensor], None]) -> Callable[[Any, Patch], None]:
    """The library's cache is not what it was, once it holds something and ``n`` more tokens have come."""

    def plant(model: Any, monkeypatch: Patch) -> None:
        from transformers.cache_utils import DynamicLayer

        update = DynamicLayer.update

        def updated(self: Any, k: Tensor, v: Tensor, *rest: Any, **how: Any) -> tuple[Tensor, Tensor]:
            all_k, all_v = update(self, k, v, *rest, **how)
            if all_k.shape[2] > k.shape[2]:
                self.keys, self.values = all_k.clone(), all_v.clone()
                change(self, k.shape[2], all_k, all_v)
            return self.keys, self.values

        monkeypatch.setattr(DynamicLayer, "update", updated)

    return plant


def drop_first(layer: Any, n: int, k: Tensor, v: Tensor) -> None:
    layer.values[:, :, 0] = 0.0


def overwrite(layer: Any, n: int, k: Tensor, v: Tensor) -> None:
    """The token before stands where this one should."""
    layer.keys[:, :, -n - 1], layer.values[:, :, -n - 1] = k[:, :, -n], v[:, :, -n]


def lose_all_but_last(layer: Any, n: int, k: Tensor, v: Tensor) -> None:
    """Of a piece of several tokens."""
    layer.values[:, :, -n:-1] = 0.0


# --- the loss --------------------------------------------------------------------------------------------------------


def loss(change: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Any, Patch], None]:
    """Of logits and labels that are shifted already."""

    def plant(model: Any, monkeypatch: Patch) -> None:
        def computed(logits: Tensor, labels: Tensor, **_: Any) -> Tensor:
            return change(logits[:, :-1], labels[:, 1:])

        monkeypatch.setattr(type(model), "loss_function", property(lambda self: computed))

    return plant


def mean_of_means(logits: Tensor, labels: Tensor) -> Tensor:
    """Each row counts the same, however many tokens it has."""
    rows = zip(logits, labels, strict=True)
    return torch.stack([F.cross_entropy(row, wanted, ignore_index=IGNORE) for row, wanted in rows]).mean()


def scores_padding(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits.mT, labels.clamp(min=0))


FAULTS: list[Fault] = [
    *of(
        "future future-gradient",
        ("a head without a mask", llama, one_head_unmasked),
        ("a layer that sees one token too many", llama, one_layer_too_far),
    ),
    *of("padding-left", ("a head without a mask", llama, one_head_unmasked)),
    *of("batch", ("a table that remembers shapes", gpt2, remembers_shapes)),
    *of("bf16", ("too large for a short type", gpt2, through(overflows_in_half))),
    *of(
        "cache greedy",
        ("the first token is dropped", gpt2, updating(drop_first)),
        ("the first token is dropped", llama, updating(drop_first)),
        ("the first token is dropped", t5, updating(drop_first)),
        ("the first token is dropped", bart, updating(drop_first)),
        ("a place is written twice", gpt2, updating(overwrite)),
        ("a place is written twice", llama, updating(overwrite)),
        ("a cache that forgets", ours, forgets),
        ("theirs forgets", gpt2, their_cache_forgets),
    ),
    *of("cache cache-ragged", ("of a piece only the last token stays", llama, updating(lose_all_but_last))),
    *of(
        "greedy",
        ("positions begin again at 0", llama, called_with(positions_restart)),
        ("positions count padding", gpt2, without("position_ids")),
        ("prompts' padding is read", gpt2, their_prompts_unmasked),
        ("the source's padding is read", bart, their_prompts_unmasked),
    ),
    *of(
        "labels",
        ("a mean of rows' means", llama, loss(mean_of_means)),
        ("padding is scored", llama, loss(scores_padding)),
    ),
]
