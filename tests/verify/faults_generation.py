"""Faults of the loop that writes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from faults_base import Fault, of
from subjects import decoder, gpt2, llama, pair
from torch import Tensor

from pellucid.batch import Tokens
from pellucid.engine.reader import Reader
from pellucid.generate import decode
from pellucid.generate.sample import Sampling

Patch = pytest.MonkeyPatch


def prompts_unmasked(model: Any, monkeypatch: Patch) -> None:
    """Prompts of unequal length are padded, and the padding is read."""
    tokens = Reader._tokens

    def unmasked(self: Reader, spans: Any) -> Any:
        ids, there = tokens(self, spans)
        return ids, Tokens(there.pos[:, :1] + torch.arange(ids.shape[1]))

    monkeypatch.setattr(Reader, "_tokens", unmasked)


def second_best(model: Any, monkeypatch: Patch) -> None:
    monkeypatch.setattr(Sampling, "pick", lambda self, logits, *_: logits.topk(2).indices[:, 1])


def their_prompts_unmasked(model: Any, monkeypatch: Patch) -> None:
    generate = model.generate

    def unmasked(ids: Tensor, attention_mask: Tensor) -> Any:
        return generate(ids, attention_mask=torch.ones_like(attention_mask))

    monkeypatch.setattr(model, "generate", unmasked)


def their_own_ideas(model: Any, monkeypatch: Patch) -> None:
    """Something in the loop changes logits by the way."""
    from transformers import LogitsProcessorList

    generate = model.generate
    worse = LogitsProcessorList([lambda ids, scores: -scores])
    monkeypatch.setattr(model, "generate", lambda *args, **given: generate(*args, **given, logits_processor=worse))


def own_dice(model: Any, monkeypatch: Patch) -> None:
    """The seed is not what is thrown."""

    def unseeded(*_: Any) -> torch.Generator:
        generator = torch.Generator()
        generator.seed()
        return generator

    monkeypatch.setattr(decode, "generator_for", unseeded)


def their_own_dice(model: Any, monkeypatch: Patch) -> None:
    generate = model.generate

    def unseeded(*args: Any, **given: Any) -> Any:
        torch.seed()
        return generate(*args, **given)

    monkeypatch.setattr(model, "generate", unseeded)


FAULTS: list[Fault] = [
    *of(
        "greedy",
        ("prompts' padding is read", decoder, prompts_unmasked),
        ("the second best is taken, of an encoder–decoder", pair, second_best),
        ("the second best is taken", decoder, second_best),
        ("theirs read prompts' padding", llama, their_prompts_unmasked),
        ("theirs take the least likely", gpt2, their_own_ideas),
    ),
    *of(
        "seeded",
        ("the seed is ignored", decoder, own_dice),
        ("theirs ignores the seed", gpt2, their_own_dice),
    ),
]
