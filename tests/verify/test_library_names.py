"""What checks need of the transformers library is found by whatever name the library has for it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from subjects import THEIRS, VOCAB
from torch import Tensor, nn

from pellucid.verify import hugging_face_facts as facts
from pellucid.verify.hugging_face import HuggingFace
from pellucid.verify.run import verify


class Sums(nn.Module):
    """A small model with a cache: each token's logits are of the sum of all vectors until there, which it keeps."""

    dtype, device = torch.float32, torch.device("cpu")

    def __init__(self, forgets: bool = False):
        super().__init__()
        self.table = nn.Embedding.from_pretrained(torch.randn(VOCAB, 8, generator=torch.Generator().manual_seed(0)))
        self.forgets = forgets
        self.config: Any = SimpleNamespace(
            model_type="llama", is_encoder_decoder=False, vocab_size=VOCAB, hidden_size=8, num_hidden_layers=1
        )
        self.config.get_text_config = lambda: self.config

    def get_input_embeddings(self) -> nn.Module:
        return self.table

    def sums(self, ids: Tensor, before: Tensor | None) -> tuple[Tensor, Tensor]:
        x = self.table(ids).cumsum(1)
        if before is not None and not self.forgets:
            x = x + before
        return x @ self.table.weight.T, x[:, -1:]


class Newer(Sums):
    def forward(self, input_ids: Tensor, cache: Any = None, use_cache: bool = False) -> dict[str, Any]:
        logits, kept = self.sums(input_ids, cache)
        return {"logits": logits, "cache": kept if use_cache else None}


class Older(Sums):
    def forward(self, input_ids: Tensor, past_key_values: Any = None, use_cache: bool = False) -> dict[str, Any]:
        logits, kept = self.sums(input_ids, past_key_values)
        return {"logits": logits, "past_key_values": kept if use_cache else None}


class AmongTheRest(Sums):
    def forward(self, input_ids: Tensor, cache: Any = None, **rest: Any) -> dict[str, Any]:
        logits, kept = self.sums(input_ids, cache)
        return {"logits": logits, "cache": kept if rest["use_cache"] else None}


class Without(Sums):
    def forward(self, input_ids: Tensor, **rest: Any) -> dict[str, Any]:
        return {"logits": self.sums(input_ids, None)[0]}


@pytest.mark.parametrize("kind", [Newer, Older, AmongTheRest])
def test_a_cache_is_tried_under_each_of_its_names(kind: type[Sums]) -> None:
    assert verify(HuggingFace(kind()), ["cache"])["cache"].verdict == "pass"
    assert verify(HuggingFace(kind(forgets=True)), ["cache"])["cache"].verdict == "fail"


def test_a_model_without_a_cache_is_not_asked_for_pieces() -> None:
    found = verify(HuggingFace(Without()), ["cache"])["cache"]
    assert found.verdict == "not applicable" and "takes no cache" in found.detail


@pytest.mark.parametrize("name", THEIRS)
def test_every_model_that_writes_has_a_cache_in_this_release(name: str) -> None:
    model = THEIRS[name]()
    assert facts.kind_of(model) == "encoder" or facts.cache_name(facts.arguments(model)) is not None
