"""A published encoder beside ours, under each of its heads; and any model of ours, as their library opens it."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import transformers
from against_hf import BATCH, TIME, VOCAB, config_json, gap, loss_gradient_gap, noisy, random_ids
from against_pairs import ragged
from safetensors.torch import save_file
from torch import Tensor

from pellucid.batch import IGNORE, Batch, Tokens
from pellucid.families.registry import config_of, spec_of
from pellucid.families.weights import export_weights
from pellucid.nn.models import AnyModel, Encoder

TYPES = (torch.arange(TIME).expand(BATCH, TIME) > torch.tensor([[9], [3], [20]])).long()
N_CLASSES = 3


def with_head(kind: Any, config: Any) -> Any:
    """Their class with random weights, named in its config as files name it."""
    torch.manual_seed(0)
    reference = noisy(kind(config))
    reference.config.architectures = [kind.__name__]
    return reference


def answer(reference: Any, ids: Tensor, types: Tensor | None, **more: Any) -> Tensor:
    """What their head gives, in our shape."""
    out = reference(ids, token_type_ids=types, **more)
    if "logits" not in out:
        return out.pooler_output
    return out.logits[:, None] if out.logits.ndim == 2 else out.logits


@torch.no_grad()
def head_gap(model: Encoder, reference: Any, types: Tensor | None = TYPES, ids: Tensor | None = None) -> float:
    """``types`` None: ours is given none, and neither is theirs."""
    ids = random_ids() if ids is None else ids
    return gap(model(ids, types=types), answer(reference, ids, types))


@torch.no_grad()
def padded_head_gap(
    model: Encoder, reference: Any, side: str, tokens: Tokens | None = None, first: int = 0, pad: int | None = None
) -> float:
    """Padded on one side. ``tokens``: what ours is told about it instead of the truth.

    first: what theirs calls the place of the first token; where ``pad`` is their padding, theirs finds it out itself.
    """
    ids, valid = random_ids(), ragged(side, TIME)
    truth = Tokens.padded(valid)
    told = {"position_ids": truth.pos.clamp(min=0) + first} if pad is None else {}
    if pad is not None:
        ids = ids.masked_fill(ids == pad, pad + 1).masked_fill(~valid, pad)
    want = answer(reference, ids, TYPES, attention_mask=valid.long(), **told)
    got = model(ids, truth if tokens is None else tokens, TYPES)
    return gap(got[valid], want[valid]) if want.shape[:2] == valid.shape else gap(got, want)


def head_gradient_gap(family: ModuleType, model: Encoder, reference: Any, ids: Tensor) -> float:
    """As ``gradient_gap``, of right-padded rows of two types, for a head that predicts."""
    valid, generator = ragged("right", TIME), torch.Generator().manual_seed(3)
    kind = type(reference).__name__
    n = VOCAB if "MaskedLM" in kind else N_CLASSES
    if "Sequence" in kind:
        labels = torch.randint(n, (BATCH, 1), generator=generator)
    else:
        labels = torch.randint(n, (BATCH, TIME), generator=generator).masked_fill(~valid, IGNORE)
        labels[:, ::3] = IGNORE
    loss = reference(ids, attention_mask=valid.long(), token_type_ids=TYPES, labels=labels.squeeze(1)).loss
    return loss_gradient_gap(family, model, reference, Batch(ids, Tokens.padded(valid), labels, types=TYPES), loss)


def reopened(model: AnyModel, folder: Path, model_type: str | None = None, same_config: bool = True) -> Any:
    """Our model as their library opens it from files; every weight of ours is used, and none of theirs is missing.

    same_config: their config of it, written again, says the same model to us.
    """
    config, table = config_of(model.spec, model_type)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(export_weights(model, table), folder / "model.safetensors", {"format": "pt"})
    theirs, info = getattr(transformers, config["architectures"][0]).from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    theirs.config.architectures = config["architectures"]
    assert (spec_of(config_json(theirs))[0] == model.spec) == same_config
    return theirs.eval()
