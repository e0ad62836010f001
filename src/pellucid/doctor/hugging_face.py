"""A model, a collator and a dataset of the transformers library as a subject: what its trainer would give the model.

Nothing here imports the library: objects are asked by what they have. What a collator makes is what counts, so labels
are taken from it and the shift from the model, whose own loss is compared with its logits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from pellucid.batch import IGNORE
from pellucid.doctor.hugging_face_trial import Trial, shift_of
from pellucid.doctor.subject import Chat, Cut, Kind, Row, Subject, Template, Vocabulary
from pellucid.errors import DataError, UsageError

TOGETHER = 8  # examples that the collator is given at once


def subject_of(
    model: Any,
    dataset: Sequence[Mapping[str, Any]],
    collator: Callable[[list[Any]], Mapping[str, Any]],
    tokenizer: Any = None,
    *,
    held_out: Sequence[Mapping[str, Any]] = (),
    raw: Sequence[Mapping[str, Any]] = (),
    raw_held_out: Sequence[Mapping[str, Any]] = (),
    learning_rate: float | None = None,
    micro_batches: int = 1,
    fresh: bool | None = None,
    most: int = 256,
) -> Subject:
    """What is known of such objects. dataset, held_out: what the collator is given. raw: the same examples before they
    were tokens, with ``text`` or ``messages``. Raises UsageError where the collator does not give a model's inputs."""
    kind = _kind(model)
    training = _collated(dataset, collator, most)
    step = shift_of(model, training[0]) if kind == "decoder" and training else 0
    pad = getattr(model.config, "pad_token_id", None)
    rows = [row for batch in training for row in _rows(batch, kind, step, pad)]
    template = None if tokenizer is None or not getattr(tokenizer, "chat_template", None) else _template(tokenizer)
    texts = [example["text"] for example in raw if isinstance(example.get("text"), str)]
    talks = [example["messages"] for example in raw if isinstance(example.get("messages"), list)][:most]
    chats, cuts = _chats(talks, rows, template), _cuts(texts[: len(rows)], rows, tokenizer)
    if chats and kind == "decoder":
        rows = [_split(row, chats) for row in rows]
    trial = Trial(model, learning_rate, micro_batches, rows[:TOGETHER])
    config = model.config
    return Subject(
        name=type(model).__name__,
        kind=kind,
        rows=rows,
        held_out=[row for batch in _collated(held_out, collator, most) for row in _rows(batch, kind, step, pad)],
        vocabulary=None if tokenizer is None else _vocabulary(tokenizer, model),
        table=model.get_input_embeddings().weight.shape[0],
        classes=config.num_labels if kind == "classifier" and _names_classes(training) else None,
        context=getattr(config, "max_position_embeddings", None),
        fresh=fresh,
        texts=texts,
        held_texts=[example["text"] for example in raw_held_out if isinstance(example.get("text"), str)],
        chats=chats,
        template=template if chats else None,
        cuts=cuts,
        trial=trial,
    )


def _kind(model: Any) -> Kind:
    name = type(model).__name__
    if "Classification" in name:
        return "classifier"
    if getattr(model.config, "is_encoder_decoder", False):
        return "encoder-decoder"
    writes = "CausalLM" in name or "LMHead" in name or hasattr(model, "prepare_inputs_for_generation")
    return "decoder" if writes and "Masked" not in name else "encoder"


def _names_classes(batches: Sequence[Mapping[str, Tensor]]) -> bool:
    """Whether labels are numbers of classes; of a regression, and of many labels at once, they are not."""
    return not any(batch["labels"].is_floating_point() for batch in batches)


def _collated(dataset: Sequence[Any], collator: Callable[[list[Any]], Any], most: int) -> list[dict[str, Tensor]]:
    batches: list[dict[str, Tensor]] = []
    for first in range(0, min(len(dataset), most), TOGETHER):
        examples = [dataset[place] for place in range(first, min(first + TOGETHER, len(dataset), most))]
        given: Any = collator(examples)
        batch = {name: value for name, value in dict(given).items() if isinstance(value, Tensor)}
        if "labels" not in batch or "input_ids" not in batch or batch["input_ids"].ndim != 2:
            shapes = ", ".join(f"{name} {tuple(value.shape)}" for name, value in batch.items())
            remedy = "it has to give input_ids (batch, time) and labels"
            raise UsageError(f"the collator gives {shapes or 'no tensors'}", remedy)
        batches.append(batch)
    return batches


def _rows(batch: Mapping[str, Tensor], kind: Kind, step: int, pad: int | None) -> Iterator[Row]:
    """The rows of what a collator gives; at place t, the label that the model scores there."""
    for place in range(len(batch["input_ids"])):
        origin = {name: value[place : place + 1] for name, value in batch.items()}
        ids, labels = batch["input_ids"][place].tolist(), batch["labels"][place].reshape(-1).tolist()
        targets = tuple(None if label == IGNORE else label for label in labels)
        if kind == "encoder-decoder":
            start = [0, *labels[:-1]]  # what is read does not matter here; where text is, does
            last = max((at for at, target in enumerate(targets) if target not in (None, pad)), default=-1)
            documents = tuple(0 if at <= last else -1 for at in range(len(labels)))
            yield Row(tuple(max(0, each) for each in start), targets, documents, tuple(ids), origin)
            continue
        documents = _documents(origin, len(ids))
        if kind == "decoder":
            targets = (*targets[step:], *[None] * step)
        yield Row(tuple(ids), targets, documents, (), origin)


def _documents(row: Mapping[str, Tensor], time: int) -> tuple[int, ...]:
    """By a mask that numbers them, or positions that begin anew; -1 where nothing is attended to."""
    mask = (
        row["attention_mask"][0].tolist() if "attention_mask" in row and row["attention_mask"].ndim == 2 else [1] * time
    )
    if max(mask, default=1) > 1:
        return tuple(number - 1 for number in mask)
    numbers = [0] * time
    if "position_ids" in row:
        positions = row["position_ids"][0].tolist()
        for place in range(1, time):
            numbers[place] = numbers[place - 1] + (positions[place] != positions[place - 1] + 1)
    return tuple(number if there else -1 for number, there in zip(numbers, mask, strict=True))


def _split(row: Row, chats: Sequence[Chat]) -> Row:
    """The row with conversations told apart that follow one another in it, where nothing else tells them apart."""
    if len(set(row.documents) - {-1}) > 1:
        return row
    text, starts = "," + ",".join(map(str, row.ids)) + ",", set[int]()
    for chat in chats:
        wanted = "," + ",".join(map(str, chat.ids)) + ","
        at = text.find(wanted)
        while at >= 0:
            starts.add(text.count(",", 0, at))
            at = text.find(wanted, at + 1)
    documents = list(row.documents)
    for start in sorted(starts - {0}):
        documents[start:] = [number if number < 0 else number + 1 for number in documents[start:]]
    return replace(row, documents=tuple(documents))


def _vocabulary(tokenizer: Any, model: Any) -> Vocabulary:
    stops = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    named: list[Any] = [tokenizer.eos_token_id, *(stops if isinstance(stops, list | tuple) else [stops])]
    ends = frozenset(number for number in named if isinstance(number, int))
    special = dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))
    special |= {str(token): number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    roles = {"begin": tokenizer.bos_token_id, "pad": tokenizer.pad_token_id, "unknown": tokenizer.unk_token_id}
    return Vocabulary(len(tokenizer), tokenizer.decode, special, ends=ends, **roles)


def _template(tokenizer: Any) -> Template:
    def text(messages: Sequence[Mapping[str, Any]], prompt: bool) -> str:
        try:
            return tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=prompt)
        except Exception as error:
            if type(error).__module__.split(".")[0] != "jinja2":  # which is not imported here
                raise
            raise DataError(str(error), "give the conversation in the form that the template wants") from error

    def ids(messages: Sequence[Mapping[str, Any]], prompt: bool) -> list[int]:
        return tokenizer(text(messages, prompt), add_special_tokens=False)["input_ids"]

    return Template(text, ids)


def _chats(talks: Sequence[Any], rows: Sequence[Row], template: Template | None) -> list[Chat]:
    """Conversations with their tokens; where each has a row of its own, the row's, and what is scored of them."""
    if len(talks) == len(rows):  # the token at a place is learned where it is the target of the place before
        shifted = [[False, *(target is not None for target in row.targets[:-1])] for row in rows]
        return [Chat(*each) for each in zip(talks, [row.ids for row in rows], shifted, strict=True)]
    chats: list[Chat] = []
    for messages in talks:
        try:
            ids = [] if template is None else template.ids(messages, False)
        except DataError:
            ids = []
        chats.append(Chat(messages, ids, [False] * len(ids)))
    return chats


def _cuts(texts: Sequence[str], rows: Sequence[Row], tokenizer: Any) -> list[Cut]:
    if tokenizer is None or len(texts) != len(rows):
        return []
    cuts: list[Cut] = []
    for text, row in zip(texts, rows, strict=True):
        whole = len(tokenizer(text, truncation=False, verbose=False)["input_ids"])
        read = row.source or tuple(one for one, number in zip(row.ids, row.documents, strict=True) if number >= 0)
        cuts.append(Cut(whole, min(len(read), whole), whole, len(row.scored)))
    return cuts
