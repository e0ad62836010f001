"""The logit lens: read the residual stream out early, as if each layer were the last one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pellucid.errors import UsageError
from pellucid.nn.models import Decoder, Encoder
from pellucid.nn.wide import wide_dtype

# Logits are computed in chunks of this size; a handful of such tensors are alive at once.
CHUNK_BYTES = 64 << 20


@dataclass(frozen=True)
class Lens:
    """What the model would guess after each point of its depth; logarithms are natural (nats).

    points: names of the residuals, shallow to deep; the last one is the model's own output.
    ids, probs: the likeliest tokens, best first.
    actual_nll, actual_rank: -ln p and rank (1 is the best guess) of the token that really stands there; where that is
        the next one, nothing follows the last.
    entropy: of each distribution. kl: D(output || this layer), what is lost by reading here instead of at the output.
    """

    points: tuple[str, ...]
    ids: Int[Tensor, "layer batch time rank"]
    probs: Float[Tensor, "layer batch time rank"]
    actual_nll: Float[Tensor, "layer batch next"]
    actual_rank: Int[Tensor, "layer batch next"]
    entropy: Float[Tensor, "layer batch time"]
    kl: Float[Tensor, "layer batch time"]


@torch.inference_mode()
def logit_lens(
    model: Decoder | Encoder,
    residuals: Mapping[str, Float[Tensor, "batch time d_model"]],
    ids: Int[Tensor, "batch time"],
    top: int = 5,
    ahead: int = 1,
) -> Lens:
    """Decode every residual with the model's own final norm and head (nostalgebraist, *interpreting GPT: the logit
    lens*, 2020).

    residuals: by point name, shallow to deep; the last one must be the last block's ``resid_post``, whose row is then
    exactly the model's output. ahead: which token a position guesses, 1 for the next one, 0 for its own (a masked-LM
    head). Tokens are decoded a few at a time, so that many rows of a large vocabulary take no more memory than one of a
    small one. Raises UsageError where there is nothing to read.
    """
    if not residuals:
        raise UsageError("the logit lens needs at least one residual", "record 'embed' and 'blocks.*.resid_post'")
    batch, time = ids.shape
    streams = [stream.flatten(0, 1) for stream in residuals.values()]  # (tokens, d_model)
    # as many tokens as positions; behind the end the first ones stand in, and what is said of them is cut off below
    actual = torch.cat((ids[:, ahead:], ids[:, :ahead]), 1).flatten()
    size = max(1, CHUNK_BYTES // (4 * model.spec.vocab_size))
    parts: list[list[tuple[Tensor, ...]]] = [[] for _ in streams]
    for start in range(0, batch * time, size):
        part = slice(start, start + size)
        output = _log_probs(model, streams[-1][part])
        p_output = output.exp()
        for found, stream in zip(parts, streams, strict=True):
            logp = output if stream is streams[-1] else _log_probs(model, stream[part])
            found.append(_read_out(logp, output, p_output, actual[part], top))
    rows = [[torch.cat(column).cpu() for column in zip(*found, strict=True)] for found in parts]
    columns = (torch.stack(column).unflatten(1, (batch, time)) for column in zip(*rows, strict=True))
    ids_, probs, nll, rank, entropy, kl = columns
    guessing = time - ahead  # positions that have a token to guess
    return Lens(tuple(residuals), ids_, probs, nll[..., :guessing], rank[..., :guessing], entropy, kl)


def _log_probs(model: Decoder | Encoder, residual: Float[Tensor, "part d_model"]) -> Float[Tensor, "part vocab"]:
    logits = model.unembed(residual[None])[0]
    return logits.log_softmax(-1, dtype=wide_dtype(logits.dtype))


def _read_out(
    logp: Float[Tensor, "part vocab"],
    output: Float[Tensor, "part vocab"],
    p_output: Float[Tensor, "part vocab"],
    actual: Int[Tensor, " part"],
    top: int,
) -> tuple[Tensor, ...]:
    """The fields of ``Lens`` for some positions of one layer."""
    best = logp.topk(min(top, logp.shape[-1]), dim=-1)
    actual_logp = logp.gather(-1, actual[..., None])
    rank = (logp > actual_logp).sum(-1) + 1
    # a logit of -inf is a probability of 0: it adds nothing to a sum, where 0 * (-inf) would add NaN
    entropy = -(logp.exp() * logp.clamp(min=torch.finfo(logp.dtype).min)).sum(-1)
    kl = torch.where(output.isneginf(), 0.0, p_output * (output - logp)).sum(-1)
    return best.indices, best.values.exp(), -actual_logp[..., 0], rank, entropy, kl
