"""Writing with a model: prompts go in, completions come out; ``write`` is the loop, a policy chooses the tokens.

``generate`` and ``stream`` run the same steps; a row's text does not depend on the rows beside it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeAlias

from pellucid.arguments import checked
from pellucid.checkpoints.by_name import opened
from pellucid.engine.memory import refuse_large_cache
from pellucid.engine.prompts import refuse_unreadable
from pellucid.engine.session import Row, Session, writer_of
from pellucid.errors import UsageError
from pellucid.generate.policy import Decision, FinishReason, Line, Policy, Score
from pellucid.generate.sample import Sampling, generator_for
from pellucid.generate.stop import StopDecoder
from pellucid.generate.write import write
from pellucid.nn.base import Model
from pellucid.nn.models import EncoderDecoder
from pellucid.spec import EncoderDecoderSpec

Prompt: TypeAlias = str | Sequence[int]
REMEDIES = {"model": "give a model, e.g. of pellucid.load, or the name of one"} | {
    each.name: f"pass sampling=pellucid.Sampling({each.name}=…)" for each in fields(Sampling)
}


@dataclass(frozen=True)
class Completion:
    """What was written after one prompt; ``str(completion)`` is the text.

    text: the new text alone, cut before the stop string; empty where the model has no tokenizer.
    ids: every token generated, the ones that ended it (end of text, the stop string's) included.
    logprobs: ln p of each of ``ids`` under the model itself, before any penalty, temperature or filter.
    finish_reason: "stop" (a stop string), "eos" (end of text), "length" (max_new_tokens), or "context": the next token
        would stand farther from the beginning than the model was trained for.
    score: what a search ranked it by, and how that was normalised; None where nothing was ranked.
    """

    prompt: Prompt
    text: str
    ids: list[int]
    finish_reason: FinishReason
    n_prompt: int
    logprobs: list[float]
    score: Score | None = None

    @property
    def n_generated(self) -> int:
        """How many tokens were generated."""
        return len(self.ids)

    def __str__(self) -> str:
        return self.text

    def __rich_repr__(self) -> Iterator[tuple[str, Any]]:
        yield "prompt", self.prompt
        yield "text", self.text
        yield "finish_reason", self.finish_reason
        yield "n_prompt", self.n_prompt
        yield "n_generated", self.n_generated
        yield "mean_logprob", round(sum(self.logprobs) / len(self.logprobs), 4)
        if self.score is not None:
            yield "score", round(float(self.score), 4)

    def __repr__(self) -> str:
        return f"Completion({', '.join(f'{name}={value!r}' for name, value in self.__rich_repr__())})"


@checked(**REMEDIES, prompts="give a text, a list of texts, or a list of lists of token ids: [[1, 2, 3]]")
def generate(
    model: Model | str | Path,
    prompts: str | Sequence[Prompt],
    *,
    max_new_tokens: int = 256,
    sampling: Sampling | None = None,
    policy: Policy | None = None,
    n: int = 1,
    stop: str | Sequence[str] = (),
    seed: int = 0,
    ignore_eos: bool = False,
    show: Collection[str] = (),
) -> list[Completion]:
    """Continue each prompt: a text (encoded behind the begin-of-text token) or token ids; of one or of unequal lengths.

    model: also the name of one, which is then loaded at each call.
    An encoder–decoder reads the prompts and writes what answers them, from its ``start_id`` on.

    The same seed gives the same completion, alone or in any batch (up to the rounding of differently shaped matrix
    products): a row's random numbers depend on the seed, its prompt, and how many equal prompts stand before it.
    sampling: how each token is drawn (default: ``Sampling()``).
    policy: another way to write, in place of ``sampling``: ``Beams``, ``Speculation``, or one of your own.
    show: special tokens that the text shows, as they are written; the others are left out of it.
    stop: texts that end a completion; special tokens written out in them count, though they are not shown.
    n: completions of each prompt, which follow each other in the list: samples, or the best texts of a search.
    ignore_eos: go on past the end-of-text token.

    Raises UsageError where a prompt exceeds the context or holds an unknown id, where a text or a stop string meets a
    model without a tokenizer, and where the policy cannot write with this model; RunError where logits are not finite.
    The model's training mode is left as it was. ::

        print(pellucid.generate(model, "Once upon a time", sampling=pellucid.Sampling(temperature=0.0))[0])
        best, second = pellucid.generate(model, "Once upon a time", policy=pellucid.Beams(4), n=2)
    """
    model = opened(model)
    prompts = [prompts] if isinstance(prompts, str) else prompts
    policy = _policy(sampling, policy)
    lines = _lines(model, prompts, policy, n, max_new_tokens, stop, seed, ignore_eos, show)
    ended: list[Line] = []
    if lines:
        session = _session_for(model, lines, policy)
        with session.evaluating():
            for decision in _steps(model, lines, policy, n, session):
                ended += decision.ended
    ended.sort(key=lambda line: (line.request, line.place))
    return [_completion(prompts[line.request], line) for line in ended]


@checked(**REMEDIES)
def stream(
    model: Model | str | Path,
    prompt: Prompt,
    *,
    max_new_tokens: int = 256,
    sampling: Sampling | None = None,
    policy: Policy | None = None,
    stop: str | Sequence[str] = (),
    seed: int = 0,
    ignore_eos: bool = False,
    show: Collection[str] = (),
    session: Session | None = None,
) -> Generator[str, None, Completion]:
    """``generate`` for one prompt, yielding its text in pieces as it becomes certain.

    The pieces, joined, are the text of the Completion, which is the generator's return value. The arguments are checked
    at once, not at the first piece. It may be abandoned or interrupted anywhere: no mode is held while it waits.
    session: to write in, with room for the whole text. Its one row afterwards holds what was read of prompt and
        completion; a row that it has already is used as far as it begins like the prompt.
    Raises as ``generate`` does, and UsageError for a policy that knows its text only at the end. ::

        for piece in pellucid.stream(model, "Once upon a time"):
            print(piece, end="", flush=True)
    """
    model = opened(model)
    policy = _policy(sampling, policy)
    if not policy.streams:
        raise UsageError(
            f"{type(policy).__name__} knows the text only when it is complete", "use generate, or leave policy out"
        )
    lines = _lines(model, [prompt], policy, 1, max_new_tokens, stop, seed, ignore_eos, show)
    if model.tokenizer is None:
        raise UsageError("stream shows text, but the model has no tokenizer", "use generate, and read .ids")
    return _pieces(prompt, _steps(model, lines, policy, 1, session or _session_for(model, lines, policy)))


def _pieces(prompt: Prompt, steps: Iterator[Decision]) -> Generator[str, None, Completion]:
    shown = 0
    for decision in steps:
        (line,) = decision.ended or [each.line for each in decision.going]
        text, shown = "".join(line.pieces[shown:]), len(line.pieces)
        if text:
            yield text
        if line.reason is not None:
            return _completion(prompt, line)
    raise AssertionError("the policy ended without a text")


def _completion(prompt: Prompt, line: Line) -> Completion:
    assert line.reason is not None
    return Completion(prompt, "".join(line.pieces), line.ids, line.reason, len(line.source), line.logprobs, line.score)


def _policy(sampling: Sampling | None, policy: Policy | None) -> Policy:
    if policy is None:
        return Sampling() if sampling is None else sampling
    if sampling is not None:
        raise UsageError(
            "both sampling and policy are given, and policy takes the place of sampling",
            "leave one out; Speculation takes a sampling of its own: Speculation(..., sampling=Sampling(...))",
        )
    return policy


def _session_for(model: Model, lines: Sequence[Line], policy: Policy) -> Session:
    """A session with room for these lines; the last token of a text is never read."""
    capacity = max(len(line.prompt_ids) + line.room - 1 for line in lines)
    refuse_large_cache(model, len(lines), capacity, max(len(line.source) for line in lines))
    return Session(model, capacity=capacity, slack=policy.lookahead)


def _steps(model: Model, lines: list[Line], policy: Policy, n: int, session: Session) -> Iterator[Decision]:
    """The loop, with a row of the session for each prompt; one that it has already may have been read."""
    kept = [*session.rows]
    rows: list[Row] = []
    for line in {line.request: line for line in lines}.values():
        source = tuple(line.source) if isinstance(model, EncoderDecoder) else None
        if kept and kept[0].source == source:
            row = kept.pop(0)
            session.rewind_to(row, line.prompt_ids)
        else:
            row = session.add(line.prompt_ids, source)
        rows.append(row)
    for row in kept:
        session.drop(row)
    return write(session, rows, lines, policy, n)


# --- what the caller asked for, checked ------------------------------------------------------------------------------


def _lines(
    model: Model,
    prompts: Sequence[Prompt],
    policy: Policy,
    n: int,
    max_new_tokens: int,
    stop: str | Sequence[str],
    seed: int,
    ignore_eos: bool,
    show: Collection[str],
) -> list[Line]:
    """The lines to begin with, ``policy.starts(n)`` for each prompt."""
    for name, value in (("max_new_tokens", max_new_tokens), ("n", n)):
        if value < 1:
            raise UsageError(f"{name} is {value}", "it must be at least 1")
    writer_of(model)
    starts = policy.starts(n)
    tokenizer, context = model.tokenizer, model.spec.context
    stops = [stop] if isinstance(stop, str) else list(stop)
    if stops and tokenizer is None:
        raise UsageError(
            f"stop is {stops!r}, but the model has no tokenizer to turn its tokens into text",
            "load the model from a folder that holds one, or leave stop out",
        )
    bytes_of, special = _spelling(tokenizer, stops, show)
    lines: list[Line] = []
    copies: Counter[tuple[int, ...]] = Counter()
    for i, prompt in enumerate(prompts):
        read = ids = _prompt_ids(model, prompt, f"prompt {i}" if len(prompts) > 1 else "the prompt")
        if isinstance(model, EncoderDecoder):
            ids = [model.spec.start_id]
        key = tuple(read)
        left = context - len(ids) + 1  # + 1: what is predicted at the last position need not be read
        for place in range(starts):
            lines.append(
                Line(
                    i,
                    place,
                    read,
                    ids,
                    room=min(max_new_tokens, left),
                    full="length" if max_new_tokens <= left else "context",
                    generator=generator_for(seed, key, copies[key]),
                    stop_ids=() if tokenizer is None or ignore_eos else tokenizer.stop_ids,
                    bytes_of=bytes_of,
                    decoder=StopDecoder(stops, special.values()),
                    special=special,
                )
            )
            copies[key] += 1
    return lines


def _spelling(
    tokenizer: Any, stops: Sequence[str], show: Collection[str]
) -> tuple[Callable[[int], bytes] | None, dict[int, str]]:
    """The bytes that each token shows; and the special tokens that show none, where a stop string may hold them."""
    if tokenizer is None:
        return None, {}
    if not stops and not show:
        return tokenizer.bytes_of, {}
    shown = {n: written.encode() for written, n in tokenizer.special.items() if written in show}
    hidden = {n: written for written, n in tokenizer.special.items() if written not in show}
    return lambda n: shown[n] if n in shown else tokenizer.bytes_of(n), hidden


def _prompt_ids(model: Model, prompt: Prompt, name: str) -> list[int]:
    """The prompt's token ids, at least one; raises UsageError where they cannot be read by this model."""
    if isinstance(prompt, int):
        raise UsageError(f"{name} is the number {prompt}", "token ids come as a list for each prompt: [[1, 2, 3]]")
    tokenizer, spec = model.tokenizer, model.spec
    spec = spec.encoder if isinstance(spec, EncoderDecoderSpec) else spec  # the side that reads
    if isinstance(prompt, str) or not len(prompt):
        if tokenizer is None:
            raise UsageError(
                f"{name} is {'a text' if len(prompt) else 'empty'}, but the model has no tokenizer",
                "load the model from a folder that holds one, or pass token ids",
            )
        ids: list[int] = tokenizer.encode_prompt(prompt or "")
        if not ids and tokenizer.bos_id is None:
            raise UsageError(f"{name} is empty", "this model has no begin-of-text token: give it a first word")
        ids = ids or [tokenizer.bos_id]
    else:
        ids = [int(token) for token in prompt]
    refuse_unreadable(ids, name, room=spec.context, vocab_size=spec.vocab_size)
    return ids
