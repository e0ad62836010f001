"""A conversation with a model: messages as its template writes them, read once, answered token by token."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from pathlib import Path

from pellucid.arguments import checked
from pellucid.checkpoints.by_name import opened
from pellucid.engine.session import Session
from pellucid.errors import DataError, UsageError
from pellucid.generate.decode import REMEDIES, Completion, generate, stream
from pellucid.generate.policy import Policy
from pellucid.generate.sample import Sampling
from pellucid.nn.base import Model
from pellucid.nn.models import Decoder, EncoderDecoder
from pellucid.spec import EncoderDecoderSpec
from pellucid.text.chat import ChatTemplate, Message, encode_chat, template_of
from pellucid.text.disguise import Spoken

MAX_NEW_TOKENS = 1024


@checked(**REMEDIES)
def chat(
    model: Model | str | Path,
    messages: str | Sequence[Message],
    *,
    max_new_tokens: int = MAX_NEW_TOKENS,
    sampling: Sampling | None = None,
    policy: Policy | None = None,
    seed: int = 0,
    template: ChatTemplate | None = None,
) -> Completion:
    """What the model answers to a conversation: messages {"role": …, "content": …}, or one text of a user.

    template: in place of the tokenizer's own. Raises UsageError where the model has no tokenizer or no template, or the
    conversation does not fit into its context; DataError for what ``pellucid.text.chat`` refuses. ::

        model = pellucid.load("SmolLM2-135M-Instruct.Q4_1.gguf")
        print(pellucid.chat(model, "What is the capital of France?"))
    """
    model = opened(model)
    given = [{"role": "user", "content": messages}] if isinstance(messages, str) else messages
    ids, show = conversation_ids(model, given, template), markers(model, template)
    return generate(
        model, [ids], max_new_tokens=max_new_tokens, sampling=sampling, policy=policy, seed=seed, show=show
    )[0]  # fmt: skip


def markers(model: Model, template: ChatTemplate | None = None) -> frozenset[str]:
    """Special tokens that belong into what is shown of an answer: those that the template names, to take earlier
    answers apart (``</think>``), but for the ends of a turn."""
    source = template_of(model.tokenizer).source if template is None else template.source
    ends = model.tokenizer.stop_ids
    return frozenset(word for word, n in model.tokenizer.special.items() if n not in ends and word in source)


def conversation_ids(model: Model, messages: Sequence[Message], template: ChatTemplate | None = None) -> list[int]:
    """What the model reads before it answers. Raises as ``chat`` does."""
    if not isinstance(model, Decoder | EncoderDecoder):
        raise UsageError("an encoder reads whole texts and cannot answer", "chat with a model that writes")
    if model.tokenizer is None:
        raise UsageError("this model has no tokenizer, so it cannot read a conversation", "load it with its tokenizer")
    ids = encode_chat(model.tokenizer, messages, template=template)
    spec = model.spec.encoder if isinstance(model.spec, EncoderDecoderSpec) else model.spec
    if len(ids) > spec.context:
        raise UsageError(
            f"the conversation is {len(ids):,} tokens long, but the model's context is {spec.context:,}",
            "shorten it: leave out earlier messages",
        )
    return ids


class Chat:
    """A conversation that goes on. Between two replies the keys and values of what was read are kept, and used again as
    far as the conversation begins as it did; otherwise all of it is read anew. The replies are the same.

    messages: so far, the system's first; they may be changed between replies.
    """

    def __init__(
        self,
        model: Model,
        system: str | None = None,
        *,
        max_new_tokens: int = MAX_NEW_TOKENS,
        sampling: Sampling | None = None,
        policy: Policy | None = None,
        seed: int = 0,
        template: ChatTemplate | None = None,
    ):
        """Raises as ``chat`` does, without waiting for the first message."""
        self.model, self.template = model, template
        self.max_new_tokens, self.sampling, self.policy, self.seed = max_new_tokens, sampling, policy, seed
        self.messages: list[Message] = []
        self.system = system
        self._session: Session | None = None
        conversation_ids(model, [*self.messages, {"role": "user", "content": "Hello"}], template)
        self._markers = markers(model, template)

    @property
    def system(self) -> str | None:
        """The system's message, which stands first; None: there is none."""
        first = self.messages[0] if self.messages else {}
        return first["content"] if first.get("role") == "system" else None

    @system.setter
    def system(self, text: str | None) -> None:
        rest = self.messages if self.system is None else self.messages[1:]
        self.messages = rest if text is None else [{"role": "system", "content": text}, *rest]

    def reset(self) -> None:
        """Forget everything but the system's message."""
        self.messages = self.messages[: self.system is not None]

    def undo(self) -> bool:
        """Take back the last message of the user and what followed; False where there is none."""
        asked = [i for i, message in enumerate(self.messages) if message["role"] == "user"]
        if asked:
            del self.messages[asked[-1] :]
        return bool(asked)

    def reply(self, text: str) -> Generator[str, None, Completion]:
        """Say ``text`` as the user; yields the answer in pieces, and returns the Completion.

        Left or interrupted in the middle, what was written so far is the answer. Raises, and leaves the messages as
        they were, where the conversation does not fit into the context any more or the template refuses it.
        """
        asked: list[Message] = [*self.messages, {"role": "user", "content": text}]
        ids = conversation_ids(self.model, asked, self.template)
        steps = stream(
            self.model, ids, max_new_tokens=self.max_new_tokens, sampling=self.sampling, policy=self.policy,
            seed=self.seed, show=self._markers, session=self._session_for(len(ids)),
        )  # fmt: skip
        written = ""
        try:
            while True:
                piece = next(steps)
                written += piece
                yield piece
        except StopIteration as end:
            completion: Completion = end.value
            written = self._spoken(completion.ids, written, asked)
            return completion
        finally:
            self.messages = [*asked, {"role": "assistant", "content": written}]

    def _spoken(self, ids: Sequence[int], written: str, asked: Sequence[Message]) -> str:
        """The answer as the template is to read it later: with its markers, where it does not refuse them."""
        tokenizer = self.model.tokenizer
        own = {number: word.encode() for word, number in tokenizer.special.items() if word in self._markers}
        if own.keys().isdisjoint(ids):
            return written
        said = Spoken.of((own.get(n) or tokenizer.bytes_of(n), n in own) for n in ids)
        template = template_of(tokenizer) if self.template is None else self.template
        try:
            template.render([*asked, {"role": "assistant", "content": said}])
        except DataError:
            return b"".join(tokenizer.bytes_of(n) for n in ids).decode("utf-8", "replace")
        return said

    def _session_for(self, n_read: int) -> Session:
        """The session of earlier replies, where it has room for another one behind ``n_read`` tokens; or a new one."""
        context = self.model.spec.context
        needed = min(n_read + self.max_new_tokens - 1, context)
        if self._session is None or self._session.capacity < needed:
            lookahead = 0 if self.policy is None else self.policy.lookahead
            capacity = min(2 * needed, context)  # room for the next messages, too
            self._session = Session(self.model, capacity=capacity, slack=lookahead)
        return self._session
