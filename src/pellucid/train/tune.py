"""``tune``: a model that answers, taught by conversations; what is recognised and derived is said before it trains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from pellucid.arguments import checked
from pellucid.checkpoints.by_name import load
from pellucid.checkpoints.peft.write import save_adapter
from pellucid.data.answered import AnsweredConversations
from pellucid.data.conversations import read_conversations, split_conversations
from pellucid.doctor.ours import ROWS, subject_of
from pellucid.doctor.subject import Chat, Cut, Subject, Template
from pellucid.errors import DataError, UsageError
from pellucid.nn.models import Decoder
from pellucid.text.answers import Answered, mark_answers
from pellucid.text.chat import Message, encode_chat, template_of
from pellucid.train.examined import look_first
from pellucid.train.loop import Result
from pellucid.train.report import Reporter
from pellucid.train.run import train
from pellucid.train.validate import held_out_sums

LONGEST = 1024  # places of a row that is not asked for
TOKENS = 2048  # of a step that is not asked for
ADAPTER = "adapter"  # the folder of the adapter, in that of the run


@dataclass(frozen=True, eq=False)
class Tuned:
    """What came of it. before, after: the measures of held-out answers. adapter: its folder, which peft opens."""

    result: Result
    before: Mapping[str, float]
    after: Mapping[str, float]
    adapter: Path


@checked(data="name files of conversations, one a line")
def tune(
    model: str | Path,
    data: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    minutes: float | None = None,
    steps: int | None = None,
    rank: int = 16,
    targets: Sequence[str] = ("*blocks.*",),
    context: int | None = None,
    batch_size: int | None = None,
    validation: float = 0.1,
    quantised: bool = False,
    seed: int = 0,
    reporter: Reporter | None = None,
    doctor: bool = True,
    **asked: Any,
) -> Tuned:
    """Teach a model the answers of conversations, by an adapter (LoRA) beside it; the same call goes on where it stood.

    data: JSONL files of OpenAI's ``messages``, ShareGPT's ``conversations`` or Alpaca's columns. The model's own chat
    template writes each conversation, and only what the model is to write is learned. minutes: how long, all in all
    (default: 5); or steps. doctor: rows are looked at first (docs/doctor.md). asked: other options of training. The
    folder ``out`` is the run's; the adapter in PEFT's files lies in it. Raises UsageError for a model that has no chat
    template or does not write, DataError for conversations that cannot be used, and as ``train`` does.
    """
    reporter = reporter or Reporter()
    files = [str(each) for each in ([data] if isinstance(data, str | Path) else data)]
    lesson = gather(model, files, context, batch_size, validation, quantised, seed, reporter)
    feed = lesson.feed
    if doctor:
        look_first(lesson.subject, reporter)
    before = feed.score(held_out_sums(lesson.base, feed.evaluation()))
    del lesson
    many: dict[str, Any] = {"steps": steps} if minutes is None else {"minutes": minutes, "steps": steps}
    lora: dict[str, Any] = {"lora": tuple(targets), "lora_rank": rank, "lora_alpha": 2.0 * rank, "optimizer": "adamw"}
    result = train(
        feed, out, reporter=reporter, init_from=str(model), seed=seed, lora_quantised=quantised, doctor=False,
        **many, **lora, **asked,
    )  # fmt: skip
    after = feed.score(held_out_sums(result.model, feed.evaluation()))
    folder = Path(out) / ADAPTER
    save_adapter(result.model, folder, base=str(model))
    return Tuned(result, before, after, folder)


@dataclass(frozen=True, eq=False)
class Lesson:
    """Conversations for a model. subject: what the doctor looks at."""

    base: Decoder
    feed: AnsweredConversations
    subject: Subject


def gather(
    model: str | Path,
    files: Sequence[str],
    context: int | None,
    batch_size: int | None,
    validation: float,
    quantised: bool,
    seed: int,
    reporter: Reporter,
) -> Lesson:
    """Read conversations and write them as the model's template does, and say what was found. Raises as ``tune``."""
    found = read_conversations(files)
    base = load(model, quantised=quantised)
    if not isinstance(base, Decoder) or base.tokenizer is None:
        raise UsageError(f"{model} is no model that answers", "tune a decoder with its tokenizer")
    template = template_of(base.tokenizer)
    reporter.message(f"{len(found.messages):,} conversations: {found.kind}; {found.duplicates:,} duplicates left out")
    training, held = split_conversations(found.messages, validation, seed)
    marked = (_marked(base.tokenizer, training), _marked(base.tokenizer, held))
    context = context or _context(marked[0], base.spec.context)
    rows = max(1, sum(len(each.ids) for each in marked[0]) // context)
    batch_size = batch_size or max(1, min(TOKENS // context, rows))
    feed = AnsweredConversations(*marked, context=context, batch_size=batch_size, seed=seed)
    _say(reporter, feed, marked[0])
    subject = replace(
        subject_of(feed, base.spec, base.tokenizer, name=", ".join(files)),
        chats=[Chat(each, one.ids, one.scored) for each, one in zip(training, marked[0], strict=True)][:ROWS],
        texts=[_said(each) for each in training],
        held_texts=[_said(each) for each in held],
        template=Template(template.render, partial(encode_chat, base.tokenizer)),
        cuts=[_cut(each, context) for each in marked[0]],
    )
    return Lesson(base, feed, subject)


def _said(messages: Sequence[Message]) -> str:
    return "\n".join(str(message.get("content")) for message in messages)


def _cut(each: Answered, context: int) -> Cut:
    """A conversation that is longer than a row is left out."""
    places, learned = len(each.ids) - 1, sum(each.scored)
    return Cut(places, places, learned, learned) if places <= context else Cut(places, 0, learned, 0)


def _marked(tokenizer: Any, conversations: Sequence[list[Message]]) -> list[Answered]:
    marked: list[Answered] = []
    for number, messages in enumerate(conversations):
        try:
            marked.append(mark_answers(tokenizer, messages, tokenizer.stop_ids))
        except DataError as error:
            raise DataError(f"conversation {number}: {error.problem}", error.remedy) from error
    return marked


def _context(conversations: Sequence[Answered], most: int) -> int:
    """Rows as long as the longest conversation, up to what the model reads, in steps of 32."""
    longest = max(len(each.ids) - 1 for each in conversations)
    return min(-(-longest // 32) * 32, most, LONGEST)


def _say(reporter: Reporter, feed: AnsweredConversations, conversations: Sequence[Answered]) -> None:
    answers, ended = (sum(getattr(each, name) for each in conversations) for name in ("answers", "ended"))
    scored = sum(sum(each.scored) for each in conversations)
    total = sum(len(each.ids) for each in conversations)
    lines = [
        f"{scored:,} of {total:,} tokens are learned: {answers:,} answers, {ended:,} with the token that ends one",
        f"{feed.batch_size} rows of {feed.context} tokens a step; {len(feed.validation):,} conversations are held out",
    ]
    if conversations[0].marked:
        lines.append("answers are what the chat template marks as the model's ({% generation %})")
    if feed.n_left_out:
        lines.append(f"{feed.n_left_out:,} conversations are longer than a row, and left out")
    if left_out := sum(each.left_out for each in conversations):
        lines.append(f"{left_out:,} answers are only read: the template writes them otherwise when others follow")
    if ended < answers:
        lines.append("the chat template ends answers without a token that stops the model: it will not learn to stop")
    for line in lines:
        reporter.message(line)
