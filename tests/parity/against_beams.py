"""Beam search of transformers beside ours, on the same random weights: the same texts, with the same scores?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from against_hf import noisy, ours
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, MarianConfig, MarianMTModel

from pellucid.families import llama, marian
from pellucid.generate.beam import Beams
from pellucid.generate.decode import generate

VOCAB, END, START = 13, 3, 12  # few tokens, so that texts end at all lengths
PENALTIES: tuple[float, ...] = (0.0, 1.0, 2.0)
STOPPINGS: tuple[Any, ...] = (False, True, "never")
Text = tuple[tuple[int, ...], float]


class Ids:
    """A tokenizer of nothing but ids, one of which ends a text."""

    vocab_size = VOCAB
    bos_id = None
    stop_ids = (END,)
    never_ids: tuple[int, ...] = ()

    def bytes_of(self, token: int) -> bytes:
        return bytes([97 + token])


def tiny_llama(seed: int) -> tuple[Any, Any]:
    """Theirs and ours, in float64: then no rounding of a differently shaped product decides between two texts."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=64, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    return _pair(llama, noisy(LlamaForCausalLM(config), seed))


def tiny_marian(seed: int, **changes: Any) -> tuple[Any, Any]:
    """As ``tiny_llama``."""
    torch.manual_seed(seed)
    settings: dict[str, Any] = {
        "vocab_size": VOCAB, "d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2,
        "decoder_attention_heads": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "max_position_embeddings": 64,
        "init_std": 0.3, "decoder_start_token_id": START, "pad_token_id": None, "eos_token_id": None,
        "forced_eos_token_id": None,
    }  # fmt: skip
    config = MarianConfig(**{**settings, **changes})
    reference = MarianMTModel(config)
    with torch.no_grad():  # the layers outweigh the tied embedding, which by itself would repeat a token for ever
        for name, weight in reference.named_parameters():
            if weight.ndim == 2 and "embed" not in name and "shared" not in name:
                weight.add_(torch.randn(weight.shape) * 0.8)
        reference.final_logits_bias[0, END] = 1.5  # so that texts end at many lengths
    return _pair(marian, reference.eval())


def _pair(family: Any, theirs: Any) -> tuple[Any, Any]:
    model = ours(family, theirs).double()
    model.tokenizer = Ids()
    return theirs.double(), model


def prompts_of(seed: int, lengths: Sequence[int] = (5, 5)) -> list[list[int]]:
    generator = torch.Generator().manual_seed(1000 + seed)
    return [torch.randint(VOCAB, (length,), generator=generator).tolist() for length in lengths]


def their_texts(
    theirs: Any, prompts: list[list[int]], width: int, new: int, n: int, **options: Any
) -> list[list[Text]]:
    """The n best texts of each prompt with their scores; prompts are equally long."""
    ids = torch.tensor(prompts)
    out = theirs.generate(
        ids, attention_mask=torch.ones_like(ids), num_beams=width, num_return_sequences=n, max_new_tokens=new,
        do_sample=False, eos_token_id=END, pad_token_id=0, output_scores=True, return_dict_in_generate=True, **options,
    )  # fmt: skip
    before = 1 if theirs.config.is_encoder_decoder else ids.shape[1]
    written = [cut(row, new) for row in out.sequences[:, before:]]
    flat = list(zip(written, out.sequences_scores.tolist(), strict=True))
    return [flat[i * n : (i + 1) * n] for i in range(len(prompts))]


def cut(row: Tensor, new: int) -> tuple[int, ...]:
    """A text up to its end; what follows is padding."""
    ids = row.tolist()
    return tuple(ids[: ids.index(END) + 1] if END in ids else ids[:new])


def our_texts(model: Any, prompts: list[list[int]], new: int, n: int, beams: Beams) -> list[list[Text]]:
    completions = generate(model, prompts, max_new_tokens=new, policy=beams, n=n)
    flat = [(tuple(c.ids), float(c.score)) for c in completions if c.score is not None]
    assert len(flat) == n * len(prompts)
    return [flat[i * n : (i + 1) * n] for i in range(len(prompts))]


def gap_of(a: list[list[Text]], b: list[list[Text]]) -> float:
    """The largest difference of scores; infinite where a text differs, or its rank."""
    worst = 0.0
    for ours_, theirs_ in zip(a, b, strict=True):
        for (ids, score), (wanted, right) in zip(ours_, theirs_, strict=True):
            worst = max(worst, abs(score - right) if ids == wanted else float("inf"))
    return worst
