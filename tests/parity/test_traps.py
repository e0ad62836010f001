"""Traps of PyTorch and of training that give no error, each sprung on purpose beside the code that avoids it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from against_hf import TOLERANCE, VISIBLE, gap
from torch import Tensor, nn
from torch.distributed import destroy_process_group, init_process_group
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.nn import functional as F

from pellucid.batch import IGNORE, Batch, Tokens
from pellucid.nn.init import initialise
from pellucid.nn.kernels import attend, reference
from pellucid.nn.masks import lower
from pellucid.nn.models import Decoder
from pellucid.spec import (
    AttentionSpec,
    BlockSpec,
    Causal,
    DecoderSpec,
    EmbedSpec,
    FFNSpec,
    LayerNormSpec,
    LearnedSpec,
    Mask,
    StackSpec,
    Window,
)

HEADS, KEYS, HEAD_DIM = 2, 12, 8
SCALE = HEAD_DIM**-0.5


def qkv(n_queries: int) -> tuple[Tensor, Tensor, Tensor]:
    """The last ``n_queries`` queries of a row of KEYS tokens, and all keys and values."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, HEADS, KEYS, HEAD_DIM, generator=generator) * 2 for _ in range(3))
    return q[:, :, -n_queries:], k, v


def by_loops(q: Tensor, k: Tensor, v: Tensor, window: int = KEYS) -> Tensor:
    """Causal attention with a window, one query at a time, in float64."""
    z, first = torch.zeros(q.shape, dtype=torch.float64), KEYS - q.shape[2]
    for head in range(HEADS):
        for i in range(q.shape[2]):
            place = first + i
            seen = range(max(0, place - window + 1), place + 1)  # ``window`` tokens, the query's own the last of them
            scores = [float(q[0, head, i].double() @ k[0, head, j].double()) * SCALE for j in seen]
            total = sum(math.exp(s - max(scores)) for s in scores)
            for score, j in zip(scores, seen, strict=True):
                z[0, head, i] += math.exp(score - max(scores)) / total * v[0, head, j].double()
    return z.float()


def ours(q: Tensor, k: Tensor, v: Tensor, mask: Mask) -> Tensor:
    n = q.shape[2]
    visible = lower(mask, Tokens.plain(1, n, KEYS - n), Tokens.plain(1, KEYS))
    fused = attend(q, k, v, visible, scale=SCALE)
    assert gap(fused, reference(q, k, v, visible, scale=SCALE)) <= TOLERANCE
    return fused


@pytest.mark.parametrize("n_queries", [1, 3, KEYS])
def test_a_causal_flag_on_a_rectangle_aligns_to_the_wrong_corner(n_queries: int) -> None:
    q, k, v = qkv(n_queries)
    wanted = by_loops(q, k, v)
    assert gap(ours(q, k, v, Causal()), wanted) <= TOLERANCE
    trap = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    if n_queries == KEYS:
        assert gap(trap, wanted) <= TOLERANCE  # the one case where it is right, and the one where we use it
    else:
        assert gap(trap, wanted) > VISIBLE  # measured: 5.8 (1 query), 6.3 (3)


def test_a_bool_mask_given_as_floats_is_a_bias() -> None:
    q, k, v = qkv(KEYS)
    allowed = torch.ones(KEYS, KEYS, dtype=torch.bool).tril()
    wanted = by_loops(q, k, v)
    assert gap(F.scaled_dot_product_attention(q, k, v, attn_mask=allowed), wanted) <= TOLERANCE
    assert gap(F.scaled_dot_product_attention(q, k, v, attn_mask=allowed.float()), wanted) > VISIBLE
    tokens = Tokens.padded(torch.ones(1, KEYS, dtype=torch.bool))  # nothing is provable: our mask is a tensor, and bool
    visible = lower(Causal(), tokens, tokens)
    assert visible.allowed is not None
    assert visible.allowed.dtype == torch.bool
    assert gap(attend(q, k, v, visible, scale=SCALE), wanted) <= TOLERANCE


@pytest.mark.parametrize("n_queries", [1, 3, KEYS])
@pytest.mark.parametrize("window", [1, 4, KEYS - 1, KEYS])
def test_a_window_off_by_one(n_queries: int, window: int) -> None:
    q, k, v = qkv(n_queries)
    wanted = by_loops(q, k, v, window)
    assert gap(ours(q, k, v, Causal() & Window(window)), wanted) <= TOLERANCE
    for wrong in {max(window - 1, 1), min(window + 1, KEYS)} - {window}:
        assert gap(ours(q, k, v, Causal() & Window(wrong)), wanted) > VISIBLE


# --- micro-batches ----------------------------------------------------------------------------------------------------


def small_model() -> Decoder:
    norm = LayerNormSpec()
    block = BlockSpec(AttentionSpec(2, 2, 8), FFNSpec(32), norm)
    return initialise(Decoder(DecoderSpec(31, 32, EmbedSpec(LearnedSpec()), StackSpec(16, (block,) * 2, norm))), seed=1)


def flat_gradient(model: nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def test_averaging_the_means_of_uneven_micro_batches_is_another_gradient() -> None:
    model, generator = small_model(), torch.Generator().manual_seed(0)
    ids = torch.randint(31, (4, 32), generator=generator)
    labels = torch.randint(31, (4, 32), generator=generator)
    for row, kept in enumerate([32, 1, 2, 1]):  # one long answer and three short ones
        labels[row, kept:] = IGNORE

    def alone(i: int) -> Batch:
        return Batch(ids[i : i + 1], Tokens.plain(1, 32), labels[i : i + 1])

    count = int((labels != IGNORE).sum())
    (model.nll_sum(Batch(ids, Tokens.plain(4, 32), labels)) / count).backward()
    true = flat_gradient(model)
    model.zero_grad()
    for i in range(4):
        (model.nll_sum(alone(i)) / count).backward()
    assert gap(flat_gradient(model), true) <= TOLERANCE * float(true.abs().max())
    model.zero_grad()
    for i in range(4):
        (model.nll_sum(alone(i)) / int((labels[i] != IGNORE).sum()) / 4).backward()
    cosine = float(F.cosine_similarity(flat_gradient(model), true, dim=0))
    assert cosine < 0.95  # measured: 0.38


# --- distributed ------------------------------------------------------------------------------------------------------


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield
    destroy_process_group()


@pytest.mark.usefixtures("one_process")
def test_clipping_sharded_beside_plain_gradients_raises_in_torch() -> None:
    mesh = init_device_mesh("cpu", (1,))
    plain = nn.Parameter(torch.ones(4))
    sharded = nn.Parameter(distribute_tensor(torch.ones(4), mesh, [Shard(0)]))
    assert isinstance(sharded.data, DTensor)
    for weight in (plain, sharded):
        weight.grad = torch.full_like(weight, 3.0)
    assert float(nn.utils.clip_grad_norm_([plain], 1.0)) == 6.0  # either kind alone is clipped
    with pytest.raises(RuntimeError, match=r"mixed torch\.Tensor and DTensor"):
        nn.utils.clip_grad_norm_([plain, sharded], 1.0)
