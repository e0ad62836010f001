"""Linearised attention against the papers' equations, written out a token at a time in float64, and against others'
gated delta rule. Equations that are wrong in one place must differ: so the tests are known to see."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.models.qwen3_next.modeling_qwen3_next import torch_recurrent_gated_delta_rule

from pellucid.batch import Tokens
from pellucid.nn.documents import find_documents
from pellucid.nn.linear_attention import LinearAttention
from pellucid.nn.norms import RMSNorm
from pellucid.nn.rope import rotation
from pellucid.nn.running_sum import by_chunks, by_steps
from pellucid.spec import (
    DecayRule,
    DeltaRule,
    GatedDecayRule,
    KernelRule,
    LinearAttentionSpec,
    RMSNormSpec,
    RotarySpec,
    UpdateRule,
)

D_MODEL, N_HEADS, HEAD_DIM = 12, 3, 4
LENGTHS = (70, 1, 64, 15)  # documents of a row: borders within chunks of 64, at their ends, and far from both
TIME = sum(LENGTHS)
RULES: dict[str, UpdateRule] = {
    "kernel": KernelRule(),
    "kernel, both sides": KernelRule(causal=False),
    "decay": DecayRule(),
    "gated decay": GatedDecayRule(rank=3, temperature=2.0),
    "delta": DeltaRule(),
}

# --- the equations, for one head of one document; ``wrong`` names what a control breaks ------------------------------


def kernel(q: Tensor, k: Tensor, v: Tensor, wrong: str, both: bool = False) -> Tensor:
    """Katharopoulos et al. 2020, equation 4: V'_i = Σ_j sim(Q_i, K_j) V_j / Σ_j sim(Q_i, K_j); causal: j ≤ i."""

    def phi(x: Tensor) -> Tensor:  # equation 7
        return F.relu(x) if wrong == "relu" else F.elu(x) + 1

    rows: list[Tensor] = []
    for i in range(len(q)):
        seen = len(q) if both else i + 1
        similarity = phi(k[:seen]) @ phi(q[i])
        total = similarity @ v[:seen]
        rows.append(total if wrong == "no normaliser" else total / similarity.sum())
    return torch.stack(rows)


def decayed(q: Tensor, k: Tensor, v: Tensor, head: int, wrong: str) -> Tensor:
    """Sun et al. 2023, equation 5: D_nm = γ^(n−m) for n ≥ m; Retention = (Q Kᵀ ⊙ D) V. γ of a head: equation 8."""
    gamma = 1 - 2.0 ** (-5 - head)
    rows: list[Tensor] = []
    for n in range(len(q)):
        distance = n - torch.arange(n + 1, dtype=torch.double)
        if wrong == "decay a position late":
            distance = (distance - 1).clamp(min=0)
        rows.append((gamma**distance * (k[: n + 1] @ q[n])) @ v[: n + 1])
    return torch.stack(rows)


def gated(q: Tensor, k: Tensor, v: Tensor, alpha: Tensor, wrong: str) -> Tensor:
    """Yang et al. 2024a, equation 3: S_t = (α_tᵀ 1) ⊙ S_{t−1} + k_tᵀ v_t, o_t = q_t S_t."""
    state, rows = torch.zeros(HEAD_DIM, HEAD_DIM, dtype=torch.double), list[Tensor]()
    for t in range(len(q)):
        if wrong == "decay a position late":
            state = alpha[t][:, None] * (state + torch.outer(k[t], v[t]))
        else:
            state = alpha[t][:, None] * state + torch.outer(k[t], v[t])
        rows.append(q[t] @ state)
    return torch.stack(rows)


def delta(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, wrong: str) -> Tensor:
    """Schlag et al. 2021, section 4.2: v̄ = W φ(k), W = W + β (v − v̄) ⊗ φ(k), y = W φ(q)."""
    if wrong != "no unit length":
        q, k = q / q.norm(dim=-1, keepdim=True), k / k.norm(dim=-1, keepdim=True)
    fast, rows = torch.zeros(HEAD_DIM, HEAD_DIM, dtype=torch.double), list[Tensor]()
    for t in range(len(q)):
        old = fast @ k[t] * (wrong != "a sum")
        rate = 1.0 if wrong == "beta ignored" else beta[t]
        fast = fast + rate * torch.outer(v[t] - old, k[t])
        rows.append(fast @ q[t])
    return torch.stack(rows)


def turned(x: Tensor, base: float) -> Tensor:
    """Su et al. 2021, equation 15: pair i of the token at position t turns by t · base^(−2i/d)."""
    half = x.shape[-1] // 2
    angle = torch.arange(len(x))[:, None] * base ** (-torch.arange(half, dtype=torch.double) / half)
    a, b = x[:, :half], x[:, half:]
    return torch.cat((a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()), -1)


def document(mixer: LinearAttention, spec: LinearAttentionSpec, x: Tensor, wrong: str) -> Tensor:
    """The whole mixer on one document, (time, d_model), head by head."""
    rule, outs = spec.rule, list[Tensor]()
    for h in range(N_HEADS):
        rows = slice(h * HEAD_DIM, (h + 1) * HEAD_DIM)
        q, k, v = (F.linear(x, p.weight[rows], p.bias[rows]) for p in (mixer.q, mixer.k, mixer.v))
        if isinstance(rule, DeltaRule):
            q, k = F.silu(q), F.silu(k)
        if spec.rotary is not None and wrong != "not turned":
            q, k = turned(q, spec.rotary.base), turned(k, spec.rotary.base)
        if isinstance(rule, KernelRule):
            z = kernel(q, k, v, wrong, both=not rule.causal)
        elif isinstance(rule, DecayRule):
            z = decayed(q, k, v, h, wrong)
        elif isinstance(rule, GatedDecayRule):
            assert mixer.decay is not None
            z = gated(q, k, v, mixer.decay(x)[:, rows].sigmoid() ** (1 / rule.temperature), wrong)
        else:
            assert mixer.beta is not None
            z = delta(q, k, v, mixer.beta(x)[:, h].sigmoid(), wrong)
        if isinstance(mixer.out_norm, RMSNorm):
            z = z / (z.square().mean(-1, keepdim=True) + 1e-6).sqrt() * mixer.out_norm.weight
        if mixer.gate is not None and wrong != "no gate":
            z = z * F.silu(F.linear(x, mixer.gate.weight[rows]))
        outs.append(z)
    return F.linear(torch.cat(outs, -1), mixer.o.weight, mixer.o.bias)


def written_out(mixer: LinearAttention, spec: LinearAttentionSpec, x: Tensor, wrong: str = "") -> Tensor:
    """The whole mixer on rows of documents, each by itself."""
    lengths = (TIME,) if wrong == "one document" else LENGTHS
    return torch.stack([torch.cat([document(mixer, spec, part, wrong) for part in row.split(lengths)]) for row in x])


# --- parity ----------------------------------------------------------------------------------------------------------


def made(name: str) -> tuple[LinearAttentionSpec, LinearAttention, Tensor, Tokens]:
    rule = RULES[name]
    spec = LinearAttentionSpec(N_HEADS, HEAD_DIM, rule, bias=True, out_bias=True)
    if not isinstance(rule, KernelRule):  # a norm would hide whether it divides by its weights
        spec = replace(spec, rotary=RotarySpec(base=100.0), out_norm=RMSNormSpec(), out_gate=True)
    generator = torch.Generator().manual_seed(1)
    mixer = LinearAttention(spec, D_MODEL).double()
    with torch.no_grad():
        for weight in mixer.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.4)
    x = torch.randn(2, TIME, D_MODEL, generator=generator, dtype=torch.double)
    seg = torch.repeat_interleave(torch.arange(len(LENGTHS)), torch.tensor(LENGTHS)).expand(2, -1)
    return spec, mixer, x, Tokens.packed(seg)


def ours(mixer: LinearAttention, spec: LinearAttentionSpec, x: Tensor, tokens: Tokens) -> Tensor:
    turns = None if spec.rotary is None else rotation(spec.rotary, HEAD_DIM, tokens)
    return mixer(x, find_documents(tokens, rotation=turns))


def gradients(run: Callable[[Tensor], Tensor], mixer: LinearAttention, x: Tensor) -> list[Tensor]:
    """Of a weighted sum of the outputs: by the inputs, and by every weight."""
    x = x.clone().requires_grad_()
    weights = torch.randn(x.shape, generator=torch.Generator().manual_seed(2), dtype=x.dtype)
    return list(torch.autograd.grad((run(x) * weights).sum(), [x, *mixer.parameters()]))


@pytest.mark.parametrize("name", RULES)
def test_outputs_and_gradients(name: str) -> None:
    spec, mixer, x, tokens = made(name)
    expected = written_out(mixer, spec, x).detach()
    # the angles are float32
    torch.testing.assert_close(ours(mixer, spec, x, tokens).detach(), expected, atol=1e-6, rtol=1e-6)
    got = gradients(lambda x: ours(mixer, spec, x, tokens), mixer, x)
    for a, b in zip(got, gradients(lambda x: written_out(mixer, spec, x), mixer, x), strict=True):
        torch.testing.assert_close(a, b, atol=2e-6 * b.abs().max().item(), rtol=0)
    with torch.no_grad():
        narrow = ours(mixer.float(), spec, x.float(), tokens)
    assert (narrow - expected).abs().max() < 1e-5


CONTROLS = {
    "kernel": ["no normaliser", "relu", "one document"],
    "kernel, both sides": ["no normaliser", "relu", "one document"],
    "decay": ["decay a position late", "one document", "not turned", "no gate"],
    "gated decay": ["decay a position late", "one document", "not turned"],
    "delta": ["beta ignored", "a sum", "no unit length", "one document", "not turned"],
}


@pytest.mark.parametrize(("name", "wrong"), [(name, wrong) for name, all_ in CONTROLS.items() for wrong in all_])
def test_control_wrong_equations_differ(name: str, wrong: str) -> None:
    spec, mixer, x, tokens = made(name)
    with torch.no_grad():
        difference = (ours(mixer, spec, x, tokens) - written_out(mixer, spec, x, wrong)).abs().max()
    assert not difference < 1e-3  # relu may divide by zero


# --- somebody else's -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", [by_chunks, by_steps])
@pytest.mark.parametrize("decaying", [False, True])
def test_the_delta_rule_of_transformers(form: Any, decaying: bool) -> None:
    """Its decay is one number a head and token; its queries are divided by sqrt(head_dim)."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 2, N_HEADS, TIME, HEAD_DIM, generator=generator)
    q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
    beta, state = torch.rand(2, N_HEADS, TIME, generator=generator), torch.randn(2, N_HEADS, HEAD_DIM, HEAD_DIM)
    log_decay = -torch.rand(2, N_HEADS, TIME, generator=generator) * decaying

    def theirs(x: Tensor) -> Tensor:
        return x.transpose(1, 2)

    expected, last = torch_recurrent_gated_delta_rule(
        theirs(q), theirs(k), theirs(v), theirs(log_decay), theirs(beta), state, output_final_state=True
    )
    got, kept = form(q / HEAD_DIM**0.5, k, v, log_decay.exp()[..., None] if decaying else None, beta, state)
    torch.testing.assert_close(theirs(got), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(kept, last, atol=1e-5, rtol=1e-5)
