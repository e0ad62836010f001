"""The state of linearised attention, in two forms that are equal: token by token, and in chunks of matrix products.

Each head keeps a matrix S, from which a query reads z = Sᵀq. A token first lets S fade, then writes into it::

    S = diag(α) S + k uᵀ        u = v                            a sum
                                u = β (v − (diag(α) S)ᵀ k)       the delta rule: less what k has found there

α is 1 and k zero where no token is: the state passes by. α is 0 where a document begins: nothing is left of the one
before. So there are no masks, and packed documents are exact. In chunks only products of α occur, no logarithm and no
quotient, so that no gate overflows.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

CHUNK = 64  # a power of two. Measured: 32 and 64 cost alike, and 32 keeps twice the states for the backward

Heads = Float[Tensor, "batch heads time head_dim"]
Written = Float[Tensor, "batch heads time width"]  # what is stored under the keys; head_dim wide, or wider
State = Float[Tensor, "batch heads head_dim width"]
Decay = Float[Tensor, "#batch #heads #time #head_dim"]  # α; an axis of 1 holds for all of it


def by_steps(
    q: Heads, k: Heads, v: Written, decay: Decay | None, beta: Float[Tensor, "batch heads time"] | None, state: State
) -> tuple[Written, State]:
    """z of each token and the last state, by the formula above. The arguments are those of ``by_chunks``."""
    time, reads = q.shape[2], [v[:, :, :0]]
    for t in range(time):
        query, key, u = (x[:, :, t : t + 1] for x in (q, k, v))
        if decay is not None:
            state = decay[:, :, t if decay.shape[2] > 1 else 0, :, None] * state
        if beta is not None:
            u = beta[:, :, t, None, None] * (u - key @ state)
        state = state + key.mT * u  # (b, h, d, 1) · (b, h, 1, w)
        reads.append(query @ state)
    return torch.cat(reads, 2), state


def by_chunks(
    q: Heads,
    k: Heads,
    v: Written,
    decay: Decay | None,
    beta: Float[Tensor, "batch heads time"] | None,
    state: State,
    chunk: int = CHUNK,
) -> tuple[Written, State]:
    """z of each token and the last state, by matrix products; time and memory are linear in the number of tokens.

    decay: α, one a head or, for a sum, one a channel of the keys; None: 1. beta: the delta rule's β;
    None: a sum. state: S before the first token. chunk: how many tokens meet in one product, a power of two.
    Sums in chunks: Sun et al. 2023, equation 7. The delta rule's: Yang et al. 2024b, section 3.
    """
    time = q.shape[2]
    chunk = min(chunk, 1 << (time - 1).bit_length())
    q, k, v = _cut(q, chunk), _cut(k, chunk), _cut(v, chunk)  # (b, h, n, c, d): n chunks of c tokens
    if decay is not None and decay.shape[2] == 1:
        decay = decay.expand(-1, -1, time if time % chunk else chunk, -1)  # chunks that fade alike are one chunk
    fade = None if decay is None else _cut(decay, chunk, 1.0)
    if beta is None:
        z, state = _sum(q, k, v, fade, state)
    else:
        z, state = _delta(q, k, v, fade, _cut(beta[..., None], chunk), state)
    return z.flatten(2, 3)[:, :, :time], state


def _cut(x: Tensor, chunk: int, fill: float = 0.0) -> Tensor:
    """(b, h, time, d) -> (b, h, n, c, d), the last chunk filled up with what leaves the state alone."""
    missing = -x.shape[2] % chunk
    x = F.pad(x, (0, 0, 0, missing), value=fill) if missing else x.contiguous()
    return x.unflatten(2, (-1, chunk))


def _fade(
    q: Float[Tensor, "*some c d"], k: Float[Tensor, "*some c d"], decay: Float[Tensor, "*rows c channels"]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What is left within a chunk. With P(s, t) the product of α over s < r ≤ t:

    scores (c, c): Σ_i q_ti k_si P_i(s, t), and 0 where s > t. read (c, d): q_t P(0, t), for the state before the chunk.
    write (c, d): k_s P(s, c), for the state after it. total (channels): P(0, c).

    By doubling: two neighbours make a block of twice the size. What a token of the first has stored fades to that
    block's end (``write``), and from there to where one of the second reads (``read``): their product is the score.
    """
    scores, read, write, total = (q * k).sum(-1)[..., None, None], q * decay, k, decay.unsqueeze(-2)
    size = 1
    while size < decay.shape[-2]:
        a1, a2 = scores.unflatten(-3, (-1, 2)).unbind(-3)  # (blocks, size, size)
        t1, t2 = total.unflatten(-3, (-1, 2)).unbind(-3)  # (blocks, 1, channels)
        read, write = read.unflatten(-2, (-1, 2, size)), write.unflatten(-2, (-1, 2, size))
        across = read[..., 1, :, :] @ write[..., 0, :, :].mT
        scores = torch.cat((F.pad(a1, (0, size)), torch.cat((across, a2), -1)), -2)
        one = torch.ones_like(t1)
        read = (read * torch.stack((one, t1), -3)).flatten(-4, -2)
        write = (write * torch.stack((t2, one), -3)).flatten(-4, -2)
        total = t1 * t2
        size *= 2
    return scores.squeeze(-3), read, write, total[..., 0, 0, :]


def _fade_alike(
    chunk: int, fade: Tensor | None, like: Tensor
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """P(s, t), P(0, t), P(s, c) and P(0, c) where all channels fade alike; None instead of ones."""
    if fade is None:
        return torch.ones(chunk, chunk, dtype=like.dtype, device=like.device).tril(), None, None, None
    one = torch.ones_like(fade)
    return _fade(one, one, fade)


def _times(x: Tensor, by: Tensor | None) -> Tensor:
    return x if by is None else x * by


def _sum(q: Tensor, k: Tensor, v: Tensor, fade: Tensor | None, state: Tensor) -> tuple[Tensor, Tensor]:
    if fade is None or fade.shape[-1] == 1:
        within, since, until, total = _fade_alike(q.shape[-2], fade, q)
        scores, read, write = (q @ k.mT) * within, _times(q, since), _times(k, until)
    else:
        scores, read, write, total = _fade(q, k, fade)
    before, state = _carry(write.mT @ v, None if total is None else total[..., None], state)
    return scores @ v + read @ before, state


def _delta(q: Tensor, k: Tensor, v: Tensor, fade: Tensor | None, beta: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """Each token's u depends on those before it, linearly: one triangular system a chunk gives U − W S for any S."""
    within, since, until, total = _fade_alike(q.shape[-2], fade, q)
    found = beta * (k @ k.mT) * within  # by k_t of what u_s wrote; the solver takes s < t, and ones where s = t
    knowns = beta * torch.cat((v, _times(k, since)), -1)
    u, w = torch.linalg.solve_triangular(found, knowns, upper=False, unitriangular=True).tensor_split([v.shape[-1]], -1)
    write = _times(k, until).mT
    stays = torch.eye(k.shape[-1], dtype=k.dtype, device=k.device)
    before, state = _carry(write @ u, _times(stays, None if total is None else total[..., None]) - write @ w, state)
    scores = (q @ k.mT) * within
    return scores @ (u - w @ before) + _times(q, since) @ before, state


def _carry(added: Tensor, kept: Tensor | None, state: Tensor) -> tuple[Tensor, Tensor]:
    """S before each chunk and S at the end, where a chunk makes kept · S + added of S; kept is a column or a matrix.

    A loop, and of the cheapest steps: sums of all chunks at once are slower (measured), products of all are cubic.
    """
    n, before = added.shape[2], [state]
    factors = (None,) * n if kept is None else kept.expand(-1, -1, n, -1, -1).unbind(2)
    for new, factor in zip(added.unbind(2), factors, strict=True):  # unbound at once: its backward is one stack
        if factor is None:
            state = state + new
        else:
            state = torch.addcmul(new, factor, state) if factor.shape[-1] == 1 else factor @ state + new
        before.append(state)
    return torch.stack(before[:-1], 2), state
