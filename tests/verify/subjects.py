"""Small clean models of every kind, ours and of transformers, with random weights that no symmetry spares."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import transformers as hf
from torch import nn

import pellucid
from pellucid.designs import DESIGNS, design
from pellucid.designs.language_models import classic, modern
from pellucid.nn.models import Decoder, Encoder, EncoderDecoder
from pellucid.spec import (
    POST_NORM,
    AttentionSpec,
    BlockSpec,
    Causal,
    DecoderSpec,
    EmbedSpec,
    EncoderDecoderSpec,
    EncoderHeadSpec,
    EncoderSpec,
    FFNSpec,
    Full,
    LayerNormSpec,
    LearnedSpec,
    Mask,
    MaskedLMHeadSpec,
    Prefix,
    PrefixPart,
    StackSpec,
)

VOCAB, CONTEXT, WIDTH, LAYERS = 97, 64, 32, 2


def noisy(model: Any) -> Any:
    """Every weight moved away from where it was initialised: no bias is 0, no two layers agree."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:  # others are computed, and not saved: sinusoids
                weight.add_(torch.randn(weight.shape, generator=generator) * 0.2)
    return model.eval()


# --- ours ------------------------------------------------------------------------------------------------------------


def decoder(name: str = "modern") -> Decoder:
    return noisy(pellucid.build(design(name)(VOCAB, CONTEXT, LAYERS, WIDTH, 8)))


def learned() -> Decoder:
    """Its positions are a table: they are noticed even where all move together."""
    return noisy(pellucid.build(classic(VOCAB, CONTEXT, LAYERS, WIDTH, 8)))


def prefixed(mask: Mask = Causal() | Prefix(6)) -> Decoder:
    """A prefix language model: its first six tokens see each other."""
    spec = design("modern")(VOCAB, CONTEXT, LAYERS, WIDTH, 8)
    assert isinstance(spec, DecoderSpec)
    blocks = tuple(replace(block, mixer=replace(block.mixer, mask=mask)) for block in spec.stack.blocks)
    return noisy(pellucid.build(replace(spec, stack=replace(spec.stack, blocks=blocks))))


def _encoder_spec(head: EncoderHeadSpec | None, vocab: int = VOCAB) -> EncoderSpec:
    norm = LayerNormSpec()
    block = BlockSpec(AttentionSpec(4, 4, 8, mask=Full()), FFNSpec(48), norm, POST_NORM)
    embed = EmbedSpec(LearnedSpec(), norm=norm)
    return EncoderSpec(vocab, CONTEXT, embed, StackSpec(WIDTH, (block,) * LAYERS, None), head)


def encoder(head: EncoderHeadSpec | None = MaskedLMHeadSpec()) -> Encoder:
    return noisy(pellucid.build(_encoder_spec(head)))


def pair() -> EncoderDecoder:
    """Its two sides have vocabularies of their own."""
    side = modern(VOCAB, CONTEXT, LAYERS, WIDTH, 8)
    blocks = tuple(replace(block, cross=AttentionSpec(4, 4, 8, mask=Full())) for block in side.stack.blocks)
    side = replace(side, stack=replace(side.stack, blocks=blocks))
    spec = EncoderDecoderSpec(_encoder_spec(None, 71), side, start_id=1, shared_embedding=False)
    return noisy(pellucid.build(spec))


# --- theirs ----------------------------------------------------------------------------------------------------------

SIZES: dict[str, Any] = {
    "vocab_size": VOCAB, "hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": 4,
    "intermediate_size": 48, "max_position_embeddings": CONTEXT, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
LONGER: dict[str, Any] = SIZES | {"max_position_embeddings": CONTEXT + 2}  # positions count from 2
GROUPED: dict[str, Any] = SIZES | {"num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0}
SEQ2SEQ: dict[str, Any] = {
    "vocab_size": VOCAB, "d_model": WIDTH, "encoder_layers": LAYERS, "decoder_layers": LAYERS,
    "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48,
    "max_position_embeddings": CONTEXT,
}  # fmt: skip


def _theirs(make: Callable[[], nn.Module]) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return noisy(make())


def implemented(attention: str) -> dict[str, Any]:
    """Every config takes it, though none declares it."""
    return {"attn_implementation": attention}


def gpt2(attention: str = "sdpa") -> Any:
    sizes: Any = {
        "vocab_size": VOCAB, "n_embd": WIDTH, "n_layer": LAYERS, "n_head": 4, "n_positions": CONTEXT,
    }  # fmt: skip
    config = hf.GPT2Config(**sizes, bos_token_id=1, eos_token_id=2, **implemented(attention))
    return _theirs(lambda: hf.GPT2LMHeadModel(config))


def llama(attention: str = "sdpa") -> Any:
    return _theirs(lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**GROUPED, **implemented(attention))))


def bert(attention: str = "sdpa") -> Any:
    return _theirs(lambda: hf.BertForMaskedLM(hf.BertConfig(**SIZES, **implemented(attention))))


def t5(**changes: Any) -> Any:
    sizes: Any = {
        "vocab_size": VOCAB, "d_model": WIDTH, "d_kv": 8, "d_ff": 48, "num_layers": LAYERS, "num_heads": 4,
        "decoder_start_token_id": 0,
    }  # fmt: skip
    return _theirs(lambda: hf.T5ForConditionalGeneration(hf.T5Config(**sizes, **changes)))


def bart() -> Any:
    return _theirs(lambda: hf.BartForConditionalGeneration(hf.BartConfig(**SEQ2SEQ)))


def marian() -> Any:
    config = hf.MarianConfig(**SEQ2SEQ, pad_token_id=0, eos_token_id=1, forced_eos_token_id=1, decoder_start_token_id=0)
    return _theirs(lambda: hf.MarianMTModel(config))


OURS: dict[str, Callable[[], Any]] = {
    **{name: (lambda name=name: decoder(name)) for name in DESIGNS},
    "prefix": prefixed,
    "own-prefix": lambda: prefixed(Causal() | PrefixPart()),
    "encoder": encoder,
    "encoder without a head": lambda: encoder(None),
    "encoder and decoder": pair,
}
THEIRS: dict[str, Callable[[], Any]] = {
    "gpt2": gpt2,
    "llama": llama,
    "mistral": lambda: _theirs(lambda: hf.MistralForCausalLM(hf.MistralConfig(**GROUPED, sliding_window=6))),
    "mixtral": lambda: _theirs(lambda: hf.MixtralForCausalLM(hf.MixtralConfig(**GROUPED, num_local_experts=4))),
    "qwen2": lambda: _theirs(lambda: hf.Qwen2ForCausalLM(hf.Qwen2Config(**GROUPED))),
    "qwen3": lambda: _theirs(lambda: hf.Qwen3ForCausalLM(hf.Qwen3Config(**GROUPED))),
    "gemma3": lambda: _theirs(lambda: hf.Gemma3ForCausalLM(hf.Gemma3TextConfig(**GROUPED, sliding_window=6))),
    "gemma2": lambda: _theirs(lambda: hf.Gemma2ForCausalLM(hf.Gemma2Config(**GROUPED, sliding_window=6))),
    "neox": lambda: _theirs(lambda: hf.GPTNeoXForCausalLM(hf.GPTNeoXConfig(**SIZES))),
    "bert": bert,
    "bert without a head": lambda: _theirs(lambda: hf.BertModel(hf.BertConfig(**SIZES))),
    "bert, a classifier": lambda: _theirs(lambda: hf.BertForSequenceClassification(hf.BertConfig(**SIZES))),
    "roberta": lambda: _theirs(lambda: hf.RobertaForMaskedLM(hf.RobertaConfig(**LONGER))),
    "albert": lambda: _theirs(lambda: hf.AlbertForMaskedLM(hf.AlbertConfig(**SIZES, embedding_size=16))),
    "t5": t5,
    "t5, gated": lambda: t5(feed_forward_proj="gated-gelu", tie_word_embeddings=False),
    "bart": bart,
    "marian": marian,
}
