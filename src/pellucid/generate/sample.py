"""Choosing the next token: pure functions on logits, and ``Sampling``, which applies them in one fixed order.

Each filter sets the logits of what it excludes to -inf; the softmax that follows renormalises what is left. All of them
keep the likeliest token. Equal logits are told apart by token id, the lower one first, so nothing depends on a sort.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from pellucid.arguments import checked
from pellucid.errors import UsageError
from pellucid.generate.policy import Decision, Line, Next, Vocabulary
from pellucid.nn.base import Model


class _Range(NamedTuple):
    low: float
    high: float
    low_allowed: bool
    words: str


_RANGES = {
    "temperature": _Range(0, math.inf, True, "0 (greedy) or more, and finite"),
    "top_k": _Range(1, math.inf, True, "a whole number of at least 1"),
    "top_p": _Range(0, 1, False, "more than 0 and at most 1"),
    "min_p": _Range(0, 1, True, "from 0 to 1"),
    "repetition_penalty": _Range(0, math.inf, False, "more than 0 and finite (1 changes nothing)"),
}


def _check(field: str, value: Any) -> None:
    low, high, low_allowed, words = _RANGES[field]
    number = isinstance(value, int if field == "top_k" else (int, float)) and not isinstance(value, bool)
    # NaN fails every comparison
    if not (number and (value >= low if low_allowed else value > low) and value <= high and math.isfinite(value)):
        raise UsageError(f"{field} is {value!r}", f"it must be {words}")


_FIRST_LOOK = (
    1024  # tokens: a nucleus is rarely larger, and finding so many takes a sixth of the time of sorting 50,000
)


def _keep_best(
    logits: Float[Tensor, "batch vocab"], least: Float[Tensor, "batch 1"], count: Int[Tensor, "batch 1"] | int
) -> Float[Tensor, "batch vocab"]:
    """Keep the ``count`` greatest logits of each row, the last of which is ``least``; of its equals the lowest ids."""
    above, equal = logits > least, logits == least
    room = count - above.sum(-1, keepdim=True)  # how many of the equal ones still fit
    return logits.masked_fill(~(above | (equal & (equal.cumsum(-1) <= room))), -torch.inf)


def greedy(logits: Float[Tensor, "batch vocab"]) -> Int[Tensor, " batch"]:
    """The likeliest token of each row; of equal ones the lowest id."""
    return logits.argmax(-1)


def temperature(logits: Float[Tensor, "batch vocab"], t: float) -> Float[Tensor, "batch vocab"]:
    """Logits of p^(1/t), up to a constant a row: t < 1 sharpens, t > 1 flattens, 0 keeps the likeliest token alone.

    Raises UsageError where t is negative or not finite.
    """
    _check("temperature", t)
    best = logits.amax(-1, keepdim=True)
    if t < torch.finfo(logits.dtype).tiny:  # 0, or what float32 would round to it
        return _keep_best(logits, best, 1)
    return (logits - best) / t  # the best is 0 first, so that no t, however small, makes inf - inf


def top_k(logits: Float[Tensor, "batch vocab"], k: int) -> Float[Tensor, "batch vocab"]:
    """Keep exactly the k likeliest tokens (all, where k exceeds the vocabulary): Fan et al. 2018, section 5.2.

    Raises UsageError where k is not a whole number of at least 1.
    """
    _check("top_k", k)
    if k >= logits.shape[-1]:
        return logits
    return _keep_best(logits, logits.topk(k).values[:, -1:], k)


def top_p(logits: Float[Tensor, "batch vocab"], p: float) -> Float[Tensor, "batch vocab"]:
    """Nucleus: keep the fewest tokens, likeliest first, whose mass reaches p: Holtzman et al. 2020, section 3.1.

    Raises UsageError where p is not in (0, 1].
    """
    _check("top_p", p)
    if p == 1:
        return logits
    # In float32 a sum of many small terms on a great one is off by more than the tail that p near 1 cuts.
    wide = torch.float32 if logits.device.type == "mps" else torch.float64  # which that device does not have
    best, vocab = logits.amax(-1, keepdim=True), logits.shape[-1]
    enough = p * (logits - best).exp().sum(-1, keepdim=True, dtype=wide)
    for size in (min(_FIRST_LOOK, vocab), vocab):
        ordered = logits.topk(size).values  # descending
        mass = (ordered - best).exp().cumsum(-1, dtype=wide)  # of the n likeliest
        if bool((mass[:, -1:] >= enough).all()):
            break
    count = ((mass < enough).sum(-1, keepdim=True) + 1).clamp(max=size)  # rounding may leave the whole mass below it
    return _keep_best(logits, ordered.gather(-1, count - 1), count)


def min_p(logits: Float[Tensor, "batch vocab"], p: float) -> Float[Tensor, "batch vocab"]:
    """Keep tokens at least p times as likely as the likeliest: Nguyen et al. 2024, section 3.

    Raises UsageError where p is not in [0, 1].
    """
    _check("min_p", p)
    if p == 0:
        return logits
    least = logits.amax(-1, keepdim=True) + math.log(p)  # p_token >= p * p_best, in logs
    return logits.masked_fill(logits < least, -torch.inf)


def repetition_penalty(
    logits: Float[Tensor, "batch vocab"], seen: Bool[Tensor, "batch vocab"], penalty: float
) -> Float[Tensor, "batch vocab"]:
    """Make tokens that were ``seen`` less likely: positive logits / penalty, negative ones * penalty.

    Keskar et al. 2019 (CTRL), section 4.1, which divides whatever the sign; dividing a negative logit would favour the
    token. Raises UsageError where penalty is not positive and finite.
    """
    _check("repetition_penalty", penalty)
    return torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


def draw(logits: Float[Tensor, "batch vocab"], generators: Sequence[torch.Generator]) -> Int[Tensor, " batch"]:
    """One token a row from softmax(logits), with one random number from the row's own (CPU) generator."""
    uniform = torch.cat([torch.rand(1, generator=generator) for generator in generators]).to(logits.device)
    probability = logits.softmax(-1)
    below = probability.cumsum(-1)
    # the first token whose cumulative probability exceeds the number
    index = torch.searchsorted(below, uniform[:, None] * below[:, -1:], right=True).clamp(max=logits.shape[-1] - 1)
    # rounding (a parallel sum need not be monotone) may point at a token that was excluded
    possible = probability.gather(-1, index) > 0
    return torch.where(possible, index, logits.argmax(-1, keepdim=True))[:, 0]


def generator_for(seed: int, *key: object) -> torch.Generator:
    """A random stream that depends on ``seed`` and ``key`` alone, and so not on what is generated beside it."""
    digest = hashlib.sha256(repr((seed, *key)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))


class Seen:
    """Which tokens stand in each line, its prompt's included: a table that follows the lines as they fork and end."""

    def __init__(self, lines: Sequence[Line], size: int, device: torch.device):
        self.table = torch.zeros(len(lines), size, dtype=torch.bool, device=device)
        for row, line in zip(self.table, lines, strict=True):
            known = [token for token in (*line.prompt_ids, *line.ids) if token < size]
            row[torch.tensor(known, dtype=torch.long, device=device)] = True

    def follow(self, going: Sequence[Next]) -> None:
        """Take the step that led to these lines."""
        parents = torch.tensor([each.parent for each in going], dtype=torch.long, device=self.table.device)
        self.table = self.table[parents]
        for row, each in zip(self.table, going, strict=True):
            row[each.line.ids] = True

    def along(self, guesses: Int[Tensor, "rows guesses"]) -> Bool[Tensor, "rows k vocab"]:
        """What has been seen before each of a line's next tokens, where these are its guesses; k = guesses + 1.

        A guess of -1 is none.
        """
        new = torch.nn.functional.one_hot(guesses.clamp(min=0), self.table.shape[1]).bool() & (guesses >= 0)[..., None]
        return torch.cat((self.table[:, None], self.table[:, None] | (new.cumsum(1) > 0)), 1)


@checked()
@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen: penalty, then temperature, then top-k, then top-p, then min-p, then a draw.

    Each step sees the distribution that the one before it left. Raises UsageError naming the field out of range.
    The simplest policy: every line goes on by one token.

    temperature: 0 takes the likeliest token (greedy) and no random number.
    top_k: how many tokens at most; None for no limit.
    top_p: the probability mass to keep; 1 keeps all.
    min_p: least probability as a fraction of the likeliest token's; 0 keeps all.
    repetition_penalty: above 1 discourages tokens that stand in the prompt or were generated; 1 does nothing.
    """

    temperature: float = 0.8
    top_k: int | None = None
    top_p: float = 0.95
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        for field in _RANGES:
            value = getattr(self, field)
            if value is not None:
                _check(field, value)

    streams: ClassVar[bool] = True

    @property
    def lookahead(self) -> int:
        """Nothing is guessed."""
        return 0

    def starts(self, n: int) -> int:
        """Each text is a line of its own from the first token on."""
        return n

    def begin(self, model: Model, lines: Sequence[Line], vocabulary: Vocabulary, n: int) -> Draws:
        """Start to write; any model that writes can be sampled."""
        return Draws(self, lines, vocabulary)

    @property
    def needs_seen(self) -> bool:
        """Whether ``pick`` looks at which tokens were seen."""
        return self.repetition_penalty != 1

    def filtered(
        self, logits: Float[Tensor, "batch vocab"], seen: Bool[Tensor, "batch vocab"] | None = None
    ) -> Float[Tensor, "batch vocab"]:
        """The logits (float32) of the distribution that is drawn from."""
        logits = logits.float()
        if self.needs_seen:
            if seen is None:
                raise UsageError("repetition_penalty needs to know which tokens were seen", "pass seen")
            logits = repetition_penalty(logits, seen, self.repetition_penalty)
        logits = temperature(logits, self.temperature)
        if self.top_k is not None:
            logits = top_k(logits, self.top_k)
        return min_p(top_p(logits, self.top_p), self.min_p)

    def probabilities(
        self, logits: Float[Tensor, "rows k vocab"], seen: Bool[Tensor, "rows k vocab"] | None = None
    ) -> Float[Tensor, "rows k vocab"]:
        """The probabilities (float32) that tokens are drawn with, at k places of each row; 0 where filtered out."""
        flat = self.filtered(logits.flatten(0, 1), None if seen is None else seen.flatten(0, 1))
        return flat.softmax(-1).view_as(logits)

    def pick(
        self,
        logits: Float[Tensor, "batch vocab"],
        seen: Bool[Tensor, "batch vocab"] | None,
        generators: Sequence[torch.Generator],
    ) -> Int[Tensor, " batch"]:
        """The next token of each row; one random stream a row; ``seen`` may be None where ``needs_seen`` is false."""
        if self.temperature == 0 and not self.needs_seen:
            return greedy(logits)  # every other filter keeps the likeliest token
        filtered = self.filtered(logits, seen)
        return greedy(filtered) if self.temperature == 0 else draw(filtered, generators)


class Draws:
    """Sampling at work: one token for each line and step, drawn with the line's own random numbers."""

    def __init__(self, sampling: Sampling, lines: Sequence[Line], vocabulary: Vocabulary):
        self.sampling, self.vocabulary = sampling, vocabulary
        self.seen = Seen(lines, vocabulary.size, vocabulary.never.device) if sampling.needs_seen else None

    def propose(self, logits: Float[Tensor, "rows k vocab"], lines: Sequence[Line]) -> Decision:
        """The same lines, each with one more token."""
        own = logits[:, 0]
        allowed = own.index_fill(-1, self.vocabulary.never, -torch.inf)
        seen = None if self.seen is None else self.seen.table
        picked = self.sampling.pick(allowed, seen, [line.generator for line in lines])[:, None]
        logprobs = own.float().log_softmax(-1).gather(-1, picked)
        for line, token, logprob in zip(lines, picked[:, 0].tolist(), logprobs[:, 0].tolist(), strict=True):
            line.push(token, logprob)
        going = [Next(i, line) for i, line in enumerate(lines) if line.reason is None]
        if self.seen is not None:
            self.seen.follow(going)
        return Decision(going, [line for line in lines if line.reason is not None])
