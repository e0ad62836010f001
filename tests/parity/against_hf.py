"""A published implementation beside ours, with the same random weights: how far apart are they?"""

from __future__ import annotations

import json
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from pellucid.batch import IGNORE, Batch, Tokens
from pellucid.families.registry import config_of, spec_of
from pellucid.families.table import Table
from pellucid.families.weights import export_weights, load_weights, to_theirs
from pellucid.nn.models import Decoder, build_model
from pellucid.spec import BlockSpec, ModelSpec
from pellucid.verify import hugging_face_facts as facts

TOLERANCE = 1e-5  # fp32; the closest trap, exact for tanh GELU, is larger
VISIBLE = 1e-3  # what a wrong model must differ by
BATCH, TIME, VOCAB = 3, 24, 61


def noisy(model: nn.Module, seed: int = 0) -> Any:
    """Every parameter moved away from where it was initialised: no bias is 0, no gain is 1, no two layers agree."""
    generator = torch.Generator().manual_seed(seed)
    extra = [buffer for name, buffer in model.named_buffers() if name.endswith("bias")]  # one library keeps a bias so
    with torch.no_grad():
        for weight in (*model.parameters(), *extra):
            weight.add_(torch.randn(weight.shape, generator=generator) * 0.2)
    return model.eval()


def random_theirs(model_type: str, *settings: dict[str, Any]) -> Any:
    """Their causal language model with random weights; later settings replace earlier ones."""
    torch.manual_seed(0)
    merged = {name: deepcopy(value) for each in settings for name, value in each.items()}  # theirs completes some
    return noisy(AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **merged)))


def config_json(model: Any) -> dict[str, Any]:
    """The config as its file has it, defaults written out."""
    return json.loads(model.config.to_json_string(use_diff=False))


def table_of(family: ModuleType, spec: ModelSpec) -> Table:
    return family.table(spec) if hasattr(family, "table") else family.TABLE


def ours(family: ModuleType, theirs: Any) -> Any:
    """Our model, by the family's own translation."""
    model = build_model(family.to_spec(config_json(theirs)))
    load_weights(model, theirs.state_dict(), table_of(family, model.spec))
    return model.eval()


def as_in_memory(family: ModuleType, model: Any, theirs: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """One tensor a weight of ours under the names that their module has; their files may have others."""
    table, names = table_of(family, model.spec), theirs.state_dict().keys()
    each = (to_theirs(tensors, version) for version in (table, *table.versions))
    return next(given for given in each if given.keys() <= names)


def random_ids(batch: int = BATCH, time: int = TIME) -> Tensor:
    return torch.randint(VOCAB, (batch, time), generator=torch.Generator().manual_seed(1))


def gap(a: Tensor, b: Tensor) -> float:
    assert a.shape == b.shape
    return float((a - b).abs().max())


@torch.no_grad()
def logits_gap(model: Decoder, theirs: Any) -> float:
    ids = random_ids()
    return gap(model(ids), theirs(ids).logits)


@torch.no_grad()
def padded_gap(model: Decoder, theirs: Any, side: str) -> float:
    """Rows of unequal length, padded on one side, compared where there are tokens."""
    ids, lengths = random_ids(), torch.tensor([TIME, TIME - 7, 2])
    place = torch.arange(TIME).expand_as(ids)
    valid = place < lengths[:, None] if side == "right" else place >= TIME - lengths[:, None]
    tokens = Tokens.padded(valid)
    theirs_logits = theirs(ids, attention_mask=valid.long(), position_ids=tokens.pos.clamp(min=0)).logits
    return gap(model(ids, tokens)[valid], theirs_logits[valid])


def their_cache_name(theirs: Any) -> str:
    """What this release of the library calls the cache that a model reads."""
    name = facts.cache_name(facts.arguments(theirs))
    assert name is not None
    return name


@torch.no_grad()
def cached_gap(model: Decoder, theirs: Any) -> float:
    """A prefill, a chunk, then token by token, over either cache: all logits, against the full forward too."""
    ids, full = random_ids(), theirs(random_ids()).logits
    cuts = [0, 9, 14, *range(15, TIME + 1)]
    past, cache, worst = None, model.new_cache(BATCH, TIME), 0.0
    name = their_cache_name(theirs)
    for start, end in pairwise(cuts):
        step = theirs(ids[:, start:end], **{name: past}, use_cache=True)
        past, logits = facts.cache_of(step), model(ids[:, start:end], cache=cache)
        worst = max(worst, gap(logits, step.logits), gap(logits, full[:, start:end]))
    return worst


@torch.no_grad()
def greedy_tokens(model: Decoder, ids: Tensor, n: int) -> Tensor:
    cache, new = model.new_cache(len(ids), ids.shape[1] + n), ids
    for _ in range(n):
        new = model(new, cache=cache)[:, -1:].argmax(-1)
        ids = torch.cat((ids, new), 1)
    return ids


@torch.no_grad()
def inner_gaps(model: Decoder, theirs: Any) -> dict[str, float]:
    """What flows inside: attention patterns and residual streams, at our activation points and at theirs."""
    ids = random_ids()
    with model.taps(read=["blocks.*.attn.pattern", "blocks.*.resid_pre", "final_norm"]) as acts:
        model(ids)
    usual = theirs.config._attn_implementation
    theirs.set_attn_implementation("eager")
    out = theirs(ids, output_attentions=True, output_hidden_states=True)
    theirs.set_attn_implementation(usual)
    gaps = {"final_norm": gap(acts["final_norm"], out.hidden_states[-1])}
    for i, (pattern, resid) in enumerate(zip(out.attentions, out.hidden_states, strict=False)):
        gaps[f"pattern {i}"] = gap(acts[f"blocks.{i}.attn.pattern"], pattern)
        gaps[f"resid_pre {i}"] = gap(acts[f"blocks.{i}.resid_pre"], resid)
    return gaps


def gradient_gap(family: ModuleType, model: Decoder, theirs: Any) -> float:
    """Largest |difference| / |gradient| over weights, of the gradient of the mean loss, by the family's own table."""
    ids = random_ids()
    labels = torch.cat((ids[:, 1:], torch.full((BATCH, 1), IGNORE)), 1)
    batch = Batch(ids, Tokens.plain(BATCH, TIME), labels)
    return loss_gradient_gap(family, model, theirs, batch, theirs(ids, labels=ids).loss)


def loss_gradient_gap(family: ModuleType, model: Any, theirs: Any, batch: Batch, their_loss: Tensor) -> float:
    """The same, for any batch, and the loss that theirs makes of it."""
    model.zero_grad()
    theirs.zero_grad()
    loss = model.nll_sum(batch) / (batch.labels != IGNORE).sum()
    assert gap(loss.detach(), their_loss.detach()) <= TOLERANCE
    loss.backward()
    their_loss.backward()
    named = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    grads = as_in_memory(family, model, theirs, named)
    expected = {name: p.grad for name, p in theirs.named_parameters()}
    assert grads.keys() - {name for name, _ in theirs.named_buffers()} == expected.keys()
    return max(relative(grads[name], want) for name, want in expected.items())


def exported(model: Decoder, folder: Path, model_type: str | None = None) -> Any:
    """Our model as their library opens it from files; every weight of ours is used, and none of theirs is missing."""
    config, table = config_of(model.spec, model_type)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(export_weights(model, table), folder / "model.safetensors", {"format": "pt"})
    opened: Any = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    theirs, info = opened
    assert not any(info.values()), info
    if "num_experts_per_tok" in config:
        theirs.set_experts_implementation("eager")  # their own loop takes experts of any width
    return theirs.eval()


def agrees(family: ModuleType, theirs: Any, folder: Path, gradients: bool = True) -> None:
    """Logits, at once and over caches, and gradients; and what we write is the same model, to them and to us."""
    model = ours(family, theirs)
    assert logits_gap(model, theirs) <= TOLERANCE
    assert cached_gap(model, theirs) <= TOLERANCE
    if gradients:
        assert gradient_gap(family, model, theirs) <= TOLERANCE
    again = exported(model, folder)
    assert logits_gap(model, again) <= TOLERANCE
    assert spec_of(config_json(again))[0] == model.spec


def agrees_inside(family: ModuleType, theirs: Any) -> None:
    """Padded rows, greedy text, attention patterns and residual streams."""
    model, prompt = ours(family, theirs), random_ids(2, 6)
    for side in ("left", "right"):
        assert padded_gap(model, theirs, side) <= TOLERANCE
    everywhere = torch.ones_like(prompt)
    text = theirs.generate(prompt, attention_mask=everywhere, do_sample=False, max_new_tokens=12, pad_token_id=0)
    assert torch.equal(greedy_tokens(model, prompt, 12), text)
    gaps = inner_gaps(model, theirs)
    assert len(gaps) == 1 + 2 * model.spec.n_layers
    assert max(gaps.values()) <= TOLERANCE, gaps


def comes_back(family: ModuleType, theirs: Any) -> None:
    """Weights go out as they came in, bit for bit; of a tied head there is one."""
    model, weights = ours(family, theirs), theirs.state_dict()
    given = as_in_memory(family, model, theirs, model.state_dict())
    tied = {"lm_head.weight"} if model.spec.head.tied else set()
    assert weights.keys() - given.keys() == tied
    assert all(torch.equal(given[name], weights[name]) for name in given)


def edited(edit: Callable[[Any], None]) -> Callable[[Decoder], Decoder]:
    """A control that changes the weights of every block in place."""

    def control(model: Decoder) -> Decoder:
        wrong = forced(model.spec, model)
        with torch.no_grad():
            for block in wrong.blocks:
                edit(block)
        return wrong

    return control


def swapped(*parts: str) -> Callable[[Decoder], Decoder]:
    """A control that exchanges two weights of every block, such as ``attn.k.weight`` and ``attn.v.weight``."""

    def swap(block: Any) -> None:
        a, b = (block.get_parameter(part) for part in parts)
        first = a.clone()
        a.copy_(b)
        b.copy_(first)

    return edited(swap)


def relative(grad: Tensor, want: Tensor) -> float:
    """|difference| / |gradient|; where the gradient is none but for rounding (keys have no bias to learn), of 1e-2."""
    return float((grad - want).norm() / max(float(want.norm()), 1e-2))


def every_block(spec: Any, mixer: dict[str, Any] | None = None, **changes: Any) -> Any:
    """The spec, of a decoder or an encoder, with these fields of every block (``mixer``: of its attention) replaced."""

    def changed(block: BlockSpec) -> BlockSpec:
        attention: Any = replace(block.mixer, **(mixer or {}))
        return replace(block, mixer=attention, **changes)

    return replace(spec, stack=replace(spec.stack, blocks=tuple(map(changed, spec.stack.blocks))))


def forced(spec: ModelSpec, weights_of: nn.Module) -> Any:
    """A model of another spec, made to take the same weights in the same order: what a silent mistake amounts to."""
    model = build_model(spec)
    with torch.no_grad():
        for mine, theirs in zip(model.parameters(), weights_of.parameters(), strict=True):
            assert mine.shape == theirs.shape
            mine.copy_(theirs)
    return model.eval()


def without(spec: ModelSpec, weights_of: nn.Module) -> Any:
    """A model of a spec that has fewer weights, with those that it has: something was left out."""
    model, weights = build_model(spec), weights_of.state_dict()
    assert len(model.state_dict()) < len(weights)
    model.load_state_dict({name: weights[name] for name in model.state_dict()})
    return model.eval()
