"""Beam search: the likeliest texts, searched for with a few candidates at a time instead of drawn.

With beams h₁ … h_B of t tokens each, every step ranks all continuations (h, token) by

    ln p(h, token) = ln p(h) + ln p(token | h)

and keeps the best B that go on. One that ends becomes a finished text, of which the best B are kept too, ranked by

    score = ln p / n^α      (n: generated tokens, the end of text included; α: ``length_penalty``)

since ln p alone falls with every token and so favours short texts (Wu et al. 2016, section 7, with a divisor of their
own). The rules for stopping are those of transformers' ``generate``, so that both find the same texts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from pellucid.arguments import checked
from pellucid.errors import UsageError
from pellucid.generate.policy import Decision, Line, Next, Score, Vocabulary
from pellucid.generate.sample import Seen, repetition_penalty
from pellucid.nn.base import Model


@checked()
@dataclass(frozen=True)
class Beams:
    """Beam search: several texts at once, of which the likeliest go on. Nothing is drawn, and nothing can be streamed.

    width: how many candidates go on at each step. 1 is greedy search that may look beyond an end of text.
    length_penalty: α of score = ln p / n^α. 0 prefers short texts, 1 is the mean over tokens, more prefers long ones.
    early_stopping: when a prompt's search ends. True: as soon as ``width`` texts have ended. False: when also the best
        candidate, were it to end now, would be no better than the worst of these. "never": when no candidate could
        become better before ``max_new_tokens``, if it had no more to pay.
    repetition_penalty: above 1 discourages tokens that stand in the prompt or were generated; 1 does nothing.
    penalise: what the penalty acts on. "logits", as sampling does, then normalised; or "logprobs", as transformers'
        beam search does: weaker where the model is sure, for ln p is near 0 then.

    Raises UsageError naming the field out of range. ::

        best, second = pellucid.generate(model, "Guten Tag", policy=pellucid.Beams(4), n=2)
        print(best.text, best.score)
    """

    width: int = 4
    length_penalty: float = 1.0
    early_stopping: bool | Literal["never"] = False
    repetition_penalty: float = 1.0
    penalise: Literal["logits", "logprobs"] = "logits"

    streams: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _check("width", self.width, self.width >= 1, "a whole number of at least 1")
        _check("length_penalty", self.length_penalty, math.isfinite(self.length_penalty), "a finite number")
        positive = 0 < self.repetition_penalty < math.inf
        _check("repetition_penalty", self.repetition_penalty, positive, "more than 0 and finite (1 changes nothing)")

    @property
    def lookahead(self) -> int:
        """Nothing is guessed."""
        return 0

    def starts(self, n: int) -> int:
        """One line a prompt: the first step forks it. Raises UsageError for more texts than beams."""
        if n > self.width:
            raise UsageError(f"{n} texts of each prompt, but {self.width} beams", f"use at least {n} beams")
        return 1

    def begin(self, model: Model, lines: Sequence[Line], vocabulary: Vocabulary, n: int) -> Searching:
        """Start to search; any model whose rows can be forked can be searched."""
        return Searching(self, lines, vocabulary, n)


class _Candidate(NamedTuple):
    """A continuation of one of a prompt's beams. Candidates are ranked by these fields in this order."""

    loss: float  # -ln p of the whole text, penalties included
    parent: int
    token: int
    logprob: float  # of the token alone, under the model itself


class Searching:
    """Beam search at work: one search for each prompt, all of them a step further at a time."""

    def __init__(self, beams: Beams, lines: Sequence[Line], vocabulary: Vocabulary, n: int):
        self.beams, self.vocabulary, self.n = beams, vocabulary, n
        self.searches = {line.request: _Search(beams, line.room) for line in lines}
        penalised = beams.repetition_penalty != 1
        self.seen = Seen(lines, vocabulary.size, vocabulary.never.device) if penalised else None

    def propose(self, logits: Float[Tensor, "rows k vocab"], lines: Sequence[Line]) -> Decision:
        """The beams that go on, and the best texts of each prompt whose search is over."""
        candidates: dict[int, list[_Candidate]] = {line.request: [] for line in lines}
        for parent, (line, some) in enumerate(zip(lines, self._candidates(logits[:, 0], lines), strict=True)):
            candidates[line.request] += [_Candidate(-total, parent, token, own) for total, token, own in some]
        going: list[Next] = []
        ended: list[Line] = []
        for request, some in candidates.items():
            search = self.searches[request]
            more = search.step(lines, sorted(some))
            going += more
            if not more:
                ended += search.best(self.n)
        if self.seen is not None:
            self.seen.follow(going)
        return Decision(going, ended)

    def _candidates(
        self, logits: Float[Tensor, "rows vocab"], lines: Sequence[Line]
    ) -> list[list[tuple[float, int, float]]]:
        """For each line its likeliest continuations: ln p of the whole text, the token, and ln p of it alone.

        So many that ``width`` of them do not end the text, whichever of the stop tokens are among them.
        """
        logprobs = logits.float().log_softmax(-1)
        scores = logprobs
        if self.seen is not None:
            penalty, table = self.beams.repetition_penalty, self.seen.table
            if self.beams.penalise == "logprobs":
                scores = repetition_penalty(logprobs, table, penalty)
            else:
                scores = repetition_penalty(logits.float(), table, penalty).log_softmax(-1)
        scores = scores.index_fill(-1, self.vocabulary.never, -torch.inf)
        so_far = [line.score.logprob if line.score else 0.0 for line in lines]
        scores = scores + torch.tensor(so_far, device=scores.device)[:, None]
        n_stops = max(len(line.stop_ids) for line in lines)
        best = scores.topk(min(max(2, 1 + n_stops) * self.beams.width, scores.shape[-1]))
        own = logprobs.gather(-1, best.indices)
        rows = zip(best.values.tolist(), best.indices.tolist(), own.tolist(), strict=True)
        return [[one for one in zip(*row, strict=True) if one[0] != -math.inf] for row in rows]


class _Search:
    """One prompt's search: its finished texts, best first, and whether better ones may still come."""

    def __init__(self, beams: Beams, room: int):
        self.beams, self.room = beams, room
        self.finished: list[Line] = []

    def step(self, lines: Sequence[Line], candidates: Sequence[_Candidate]) -> list[Next]:
        """The beams that go on from ``candidates``, best first; none where the search is over."""
        width = self.beams.width
        going: list[Next] = []
        for rank, (loss, parent, token, logprob) in enumerate(candidates):
            if rank >= width and len(going) == width:
                break
            line = lines[parent].fork()
            line.push(token, logprob)
            line.score = Score(-loss, len(line.ids), self.beams.length_penalty)
            if line.reason is None:
                going.append(Next(parent, line))
            elif rank < width:  # what ends farther down was only looked at so that enough beams go on
                self.finished.append(line)
        self.finished.sort(key=_score, reverse=True)
        del self.finished[width:]
        going = going[:width]
        return going if going and self._may_improve(going[0].line) else []

    def _may_improve(self, best: Line) -> bool:
        """Whether the search goes on from ``best``, the likeliest of the candidates that have not ended."""
        beams = self.beams
        if len(self.finished) < beams.width:
            return True
        if beams.early_stopping is True:
            return False
        assert best.score is not None
        longest = self.room if beams.early_stopping == "never" and beams.length_penalty > 0 else len(best.ids)
        return float(Score(best.score.logprob, longest, beams.length_penalty)) > _score(self.finished[-1])

    def best(self, n: int) -> list[Line]:
        """The n best finished texts (fewer where there are no more), each with its rank as its place."""
        for place, line in enumerate(self.finished[:n]):
            line.place = place
        return self.finished[:n]


def _score(line: Line) -> float:
    assert line.score is not None
    return float(line.score)


def _check(field: str, value: Any, legal: bool, words: str) -> None:
    if not legal:
        raise UsageError(f"{field} is {value!r}", f"it must be {words}")
