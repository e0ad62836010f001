"""The logit lens: read the residual stream out early, as if each layer were the last one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pellucid.errors import UsageError
from pellucid.nn.models import Decoder


@dataclass(frozen=True)
class Lens:
    """What the model would guess after each point of its depth; logarithms are natural (nats).

    points: names of the residuals, shallow to deep; the last one is the model's own output.
    ids, probs: the likeliest next tokens, best first.
    actual_nll, actual_rank: -ln p and rank (1 is the best guess) of the token that really comes next; so one fewer.
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
    model: Decoder,
    residuals: Mapping[str, Float[Tensor, "batch time d_model"]],
    ids: Int[Tensor, "batch time"],
    top: int = 5,
) -> Lens:
    """Decode every residual with the model's own final norm and head (nostalgebraist, *interpreting GPT: the logit
    lens*, 2020).

    residuals: by point name, shallow to deep; the last one must be the last block's ``resid_post``, whose row is then
    exactly the model's output. One layer's (batch, time, vocab) logits are held at a time, beside the output's.
    Raises UsageError where there is nothing to read.
    """
    if not residuals:
        raise UsageError("the logit lens needs at least one residual", "capture 'embed' and 'blocks.*.resid_post'")
    actual = ids[:, 1:, None]
    output = model.unembed(list(residuals.values())[-1]).float().log_softmax(-1)
    rows: list[tuple[Tensor, ...]] = []
    for residual in residuals.values():
        logp = model.unembed(residual).float().log_softmax(-1)  # (batch, time, vocab)
        best = logp.topk(min(top, logp.shape[-1]), dim=-1)
        actual_logp = logp[:, :-1].gather(-1, actual)
        rank = (logp[:, :-1] > actual_logp).sum(-1) + 1
        entropy = -torch.xlogy(logp.exp(), logp.exp()).sum(-1)
        # a logit of -inf is a probability of 0: it adds nothing to the sum, where 0 * (-inf) would add NaN
        kl = torch.where(output.isneginf(), 0.0, output.exp() * (output - logp)).sum(-1)
        rows.append((best.indices, best.values.exp(), -actual_logp[..., 0], rank, entropy, kl))
    stacked = [torch.stack(column).cpu() for column in zip(*rows, strict=True)]
    return Lens(tuple(residuals), *stacked)
