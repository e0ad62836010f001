"""Speculative decoding: guess several tokens cheaply, read them all at once, keep those that the model agrees with.

A forward over k + 1 tokens costs little more than one over a single token where the weights' way from memory is what
takes the time, and its logits tell the model's own distribution p after each of them. A guess x that was drawn from a
distribution q is accepted with probability min(1, p(x) / q(x)); the first that is not is replaced by a draw from
max(0, p − q), normalised, and ends the step. Behind guesses that are all accepted one more token is drawn from p. What
is written then follows p exactly, whatever q is (Leviathan et al. 2023, appendix A.1; Chen et al. 2023, theorem 1):

    P(x) = q(x) min(1, p(x) / q(x)) + P(none accepted) · max(0, p(x) − q(x)) / P(none accepted) = p(x)

Guesses that nobody drew (from a look-up, or greedy ones) have q(x) = 1. There the rule is the same as this one: draw
from p as usual, and accept the guess if it is what was drawn. So they give the very tokens of plain sampling.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from pellucid.arguments import checked
from pellucid.engine.session import Session
from pellucid.errors import UsageError
from pellucid.generate.policy import Decision, Line, Next, Vocabulary
from pellucid.generate.sample import Sampling, Seen, draw
from pellucid.nn.base import Model
from pellucid.nn.models import Decoder, EncoderDecoder


@checked()
@dataclass(frozen=True)
class Speculation:
    """Sampling, sooner: several tokens are guessed, and the model reads them together. The distribution is the same.

    draft: a smaller model that guesses, with the same vocabulary. None: guesses are looked up, as what followed the
        newest tokens where they stood last in the text (prompt look-up, Saxena 2023), which serves where a text repeats
        its prompt: summaries, corrections, code.
    guesses: how many tokens are guessed a step at most.
    longest: how many of the newest tokens are looked up at most; if these are not found, one fewer, down to 2.
    sampling: how tokens are chosen. At temperature 0, and with a look-up at any, the tokens are those of plain sampling
        with the same seed (up to the rounding of differently shaped matrix products). With a draft they follow the same
        distribution, by other random numbers.

    Raises UsageError naming the field out of range. ::

        pellucid.generate(model, text, policy=pellucid.Speculation(sampling=pellucid.Sampling(temperature=0.0)))
        pellucid.generate(large, prompt, policy=pellucid.Speculation(draft=small))
    """

    draft: Model | None = None
    guesses: int = 4
    longest: int = 3
    sampling: Sampling = Sampling()  # noqa: RUF009 - frozen

    streams: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name in ("guesses", "longest"):
            value = getattr(self, name)
            if value < 1:
                raise UsageError(f"{name} is {value!r}", "it must be a whole number of at least 1")

    @property
    def lookahead(self) -> int:
        """How many tokens are guessed at a time."""
        return self.guesses

    def starts(self, n: int) -> int:
        """Each text is a line of its own from the first token on."""
        return n

    def begin(self, model: Model, lines: Sequence[Line], vocabulary: Vocabulary, n: int) -> Speculating:
        """Start to write. Raises UsageError for a draft that is not of the model's kind or has another vocabulary."""
        if self.draft is None:
            guesser = LookUp(
                self.longest, reads_source=isinstance(model, EncoderDecoder) and model.spec.shared_embedding
            )
        else:
            refuse_unlike(self.draft, model, vocabulary.size)
            guesser = Draft(self.draft, self.sampling, vocabulary, self.guesses)
        return Speculating(self, guesser, lines, vocabulary)


def refuse_unlike(draft: Model, model: Model, size: int) -> None:
    """Raise UsageError where ``draft`` cannot guess what ``model`` writes."""
    if _kind(draft) != _kind(model):
        raise UsageError(
            f"the draft is an instance of {_kind(draft)}, the model of {_kind(model)}",
            "take a smaller model of the same kind",
        )
    ours, theirs = model.tokenizer, draft.tokenizer
    sizes = [m.spec.vocab_size if m.tokenizer is None else m.tokenizer.vocab_size for m in (draft, model)]
    if sizes[0] != sizes[1] or draft.spec.vocab_size < size:
        raise UsageError(
            f"the draft's vocabulary has {sizes[0]:,} tokens, the model's {sizes[1]:,}",
            "take a draft that was trained with the same tokenizer, or look guesses up: Speculation()",
        )
    if ours is not None and theirs is not None and ours is not theirs:
        other = next((token for token in range(size) if ours.bytes_of(token) != theirs.bytes_of(token)), None)
        if other is not None:
            raise UsageError(
                f"the draft has another vocabulary than the model: token {other} is {theirs.bytes_of(other)!r} in one"
                f" and {ours.bytes_of(other)!r} in the other",
                "take a draft that was trained with the same tokenizer, or look guesses up: Speculation()",
            )


def _kind(model: Model) -> str:
    """Which of the kinds of models it is, whatever class was made of that."""
    kinds = (kind for kind in (EncoderDecoder, Decoder) if isinstance(model, kind))
    return next(kinds, type(model)).__name__


class Guess(NamedTuple):
    """Tokens that may follow a line, and the distribution (tokens, vocab) each was drawn from; None: nobody drew."""

    ids: list[int]
    q: Float[Tensor, "guesses vocab"] | None = None


@runtime_checkable
class Guesser(Protocol):
    """Whoever guesses."""

    def guess(self, lines: Sequence[Line], most: Sequence[int]) -> list[Guess]:
        """For each line that goes on, a guess of at most ``most`` tokens, which may be 0."""
        ...


class Speculating:
    """Speculation at work: each line is continued by the guesses that are accepted and one token more."""

    def __init__(self, policy: Speculation, guesser: Guesser, lines: Sequence[Line], vocabulary: Vocabulary):
        self.policy, self.guesser, self.vocabulary = policy, guesser, vocabulary
        self.seen = Seen(lines, vocabulary.size, vocabulary.never.device) if policy.sampling.needs_seen else None
        self.guesses = [Guess([]) for _ in lines]  # those that the next logits come after

    def propose(self, logits: Float[Tensor, "rows k vocab"], lines: Sequence[Line]) -> Decision:
        """The same lines, each with at least one more token, and what is guessed to follow."""
        sampling, k = self.policy.sampling, logits.shape[1]
        allowed = logits.index_fill(-1, self.vocabulary.never, -torch.inf)
        seen = None
        if self.seen is not None:
            padded = [[*guess.ids, *[-1] * (k - 1 - len(guess.ids))] for guess in self.guesses]
            seen = self.seen.along(torch.tensor(padded, dtype=torch.long, device=logits.device).view(len(lines), k - 1))
        filtered = sampling.filtered(allowed.flatten(0, 1), None if seen is None else seen.flatten(0, 1))
        rows = zip(lines, self.guesses, filtered.view_as(allowed), strict=True)
        chosen = [self._choose(guess, row, line.generator) for line, guess, row in rows]
        logprobs = logits.float().log_softmax(-1)
        for line, tokens, row in zip(lines, chosen, logprobs, strict=True):
            own = row[torch.arange(len(tokens)), torch.tensor(tokens, device=row.device)].tolist()
            for token, logprob in zip(tokens, own, strict=True):
                line.push(token, logprob)
                if line.reason is not None:
                    break
        return self._decide(lines)

    def _choose(self, guess: Guess, filtered: Float[Tensor, "k vocab"], generator: torch.Generator) -> list[int]:
        """The guesses that are accepted, and the token that follows them."""
        accepted: list[int] = []
        for place, token in enumerate(guess.ids):
            if guess.q is None:
                drawn = self._draw(filtered[place], generator)
            else:
                drawn = accept(token, filtered[place].softmax(-1), guess.q[place], generator)
            accepted.append(drawn)
            if drawn != token:
                return accepted
        return [*accepted, self._draw(filtered[len(guess.ids)], generator)]

    def _draw(self, filtered: Float[Tensor, " vocab"], generator: torch.Generator) -> int:
        if self.policy.sampling.temperature == 0:
            return int(filtered.argmax())
        return int(draw(filtered[None], [generator]))

    def _decide(self, lines: Sequence[Line]) -> Decision:
        going = [Next(i, line) for i, line in enumerate(lines) if line.reason is None]
        if self.seen is not None:
            self.seen.follow(going)
        writing = [each.line for each in going]
        most = [min(self.policy.guesses, line.room - len(line.ids) - 1) for line in writing]
        self.guesses = self.guesser.guess(writing, most) if writing else []
        guessed = [replace(each, guesses=guess.ids) for each, guess in zip(going, self.guesses, strict=True)]
        return Decision(guessed, [line for line in lines if line.reason is not None])


def accept(token: int, p: Float[Tensor, " vocab"], q: Float[Tensor, " vocab"], generator: torch.Generator) -> int:
    """``token``, which was drawn from ``q``, with probability min(1, p / q); otherwise a draw from max(0, p − q)."""
    if float(torch.rand((), generator=generator)) * float(q[token]) < float(p[token]):
        return token
    rest = (p - q).clamp(min=0)
    rest = torch.where(rest.sum() > 0, rest, p)  # where p and q differ by rounding alone
    return int(draw(rest.log()[None], [generator]))


class LookUp:
    """Guesses what followed the newest tokens where they stood last in the same text, or in what its encoder read."""

    def __init__(self, longest: int, reads_source: bool):
        self.lengths, self.reads_source = range(longest, min(longest, 2) - 1, -1), reads_source
        self.found: dict[Line, _Index] = {}

    def guess(self, lines: Sequence[Line], most: Sequence[int]) -> list[Guess]:
        """The tokens that the text has behind the place that is found; none where there is no such place."""
        self.found = {line: self.found.get(line) or self._index(line) for line in lines}
        return [Guess(self.found[line].guess(line.ids, n)) for line, n in zip(lines, most, strict=True)]

    def _index(self, line: Line) -> _Index:
        return _Index([*(line.source if self.reads_source else ()), *line.prompt_ids], self.lengths)


class _Index:
    """Where each short run of tokens of a text ended last. It grows with the text."""

    def __init__(self, before: list[int], lengths: Sequence[int]):
        self.tokens, self.lengths, self.n_before = before, lengths, len(before)
        self.behind: dict[tuple[int, ...], int] = {}  # a run -> the place of the token that followed it last
        self.n_indexed = 0

    def guess(self, written: Sequence[int], n: int) -> list[int]:
        self.tokens += written[len(self.tokens) - self.n_before :]
        tokens = self.tokens
        for end in range(self.n_indexed + 1, len(tokens)):  # a run at the very end is followed by nothing yet
            for length in self.lengths:
                if length <= end:
                    self.behind[tuple(tokens[end - length : end])] = end
        self.n_indexed = max(self.n_indexed, len(tokens) - 1)
        for length in self.lengths:
            place = self.behind.get(tuple(tokens[-length:]))
            if place is not None:
                return self._from(place, n)
        return []

    def _from(self, place: int, n: int) -> list[int]:
        """``n`` tokens from a place on; where the text ends, the guess itself is repeated, as a text in a loop is."""
        guess: list[int] = []
        for i in range(place - len(self.tokens), place - len(self.tokens) + n):
            guess.append(self.tokens[i] if i < 0 else guess[i])
        return guess


class Draft:
    """A smaller model that guesses by sampling as the large one does, but for the penalty on repetition."""

    def __init__(self, model: Model, sampling: Sampling, vocabulary: Vocabulary, most: int):
        self.sampling, self.vocabulary = replace(sampling, repetition_penalty=1.0), vocabulary
        self.session = Session(model, slack=most)
        self.lines: list[Line] = []  # those of the session's rows

    def guess(self, lines: Sequence[Line], most: Sequence[int]) -> list[Guess]:
        """So many tokens as are asked for; fewer where the text would grow too long for this model."""
        self._follow(lines)
        longest = self.session.capacity + 1  # the last guess is not read
        wanted = {line: max(0, min(n, longest - line.length)) for line, n in zip(lines, most, strict=True)}
        ids: dict[Line, list[int]] = {line: [] for line in lines}
        q: dict[Line, list[Tensor]] = {line: [] for line in lines}
        unread = [line.tokens[len(row.ids) :] for line, row in zip(self.lines, self.session.rows, strict=True)]
        for _ in range(max((wanted[line] for line in self.lines), default=0)):
            logits = self.session.read(unread)
            on = [place for place, line in enumerate(self.lines) if len(ids[line]) < wanted[line]]
            newest = logits[on, [len(unread[place]) - 1 for place in on], : self.vocabulary.size]
            filtered = self.sampling.filtered(newest.index_fill(-1, self.vocabulary.never, -torch.inf))
            going = [self.lines[place] for place in on]
            if self.sampling.temperature == 0:
                picked = filtered.argmax(-1)
            else:
                picked = draw(filtered, [line.generator for line in going])
                for line, row in zip(going, filtered.softmax(-1), strict=True):
                    q[line].append(row)
            for line, token in zip(going, picked.tolist(), strict=True):
                ids[line].append(token)
            unread = [ids[line][-1:] if len(ids[line]) < wanted[line] else [] for line in self.lines]
        return [Guess(ids[line], torch.stack(q[line]) if q[line] else None) for line in lines]

    def _follow(self, lines: Sequence[Line]) -> None:
        """Rows for these lines, which hold what is read of them; guesses that were wrong are forgotten."""
        fits = {line for line in lines if line.length <= self.session.capacity}
        for line, row in zip(self.lines, [*self.session.rows], strict=True):
            if line not in fits:
                self.session.drop(row)
            else:
                self.session.rewind(row, max(0, len(row.ids) - (line.length - 1)))
        self.lines = [line for line in self.lines if line in fits]
        reads = isinstance(self.session.model, EncoderDecoder)
        for line in lines:
            if line in fits and line not in self.lines:
                self.session.add(line.tokens[:-1], line.source if reads else None)
                self.lines.append(line)
