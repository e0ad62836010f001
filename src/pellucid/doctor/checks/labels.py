"""What is scored: the next token, some of it and not all, at places that hold a token, by classes that there are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from pellucid.doctor.checks import Check
from pellucid.doctor.report import Complaint, number_of
from pellucid.doctor.subject import Kind, Row, Subject

FEWEST = 16  # scored places, below which nothing is said about a share
SURE = 0.9
HIDDEN_NOWHERE = 0.3  # of the rows of a masked language model, at most
WORDS: tuple[tuple[int, str, str], ...] = (
    (0, "never", "each place is scored by the token that it reads"),
    (2, "twice", "each place is scored by the token after the next one"),
)


def shift(subject: Subject) -> Complaint | None:
    """Targets that are not the next token."""
    hits, n = Counter[int](), 0
    for row in subject.rows:
        for piece in row.pieces():
            for place in range(piece.start, piece.stop - 2):
                if (target := row.targets[place]) is not None:
                    n += 1
                    hits.update(step for step in range(3) if row.ids[place + step] == target)
    if n < FEWEST or hits[1] >= n / 2:
        return None
    for step, often, what in WORDS:
        if hits[step] >= SURE * n:
            said = f"labels are shifted {often}: at {number_of(hits[step], n, 'scored places')}, {what}"
            return Complaint("refuse", said, "shift in one place: models of transformers shift the labels themselves")
    said = f"only {number_of(hits[1], n, 'scored places')} are scored by the next token"
    return Complaint("refuse", said, "labels are the ids themselves, -100 where nothing is learned")


def nothing(subject: Subject) -> Complaint | None:
    """Rows in which nothing is scored."""
    without = sum(not row.scored for row in subject.rows)
    by_chance = HIDDEN_NOWHERE if subject.kind == "encoder" else 0.0  # in a short row, no token may be drawn
    if without <= by_chance * len(subject.rows):
        return None
    said = f"in {number_of(without, len(subject.rows), 'rows')} nothing is scored"
    remedy = "look how labels are made: answers may be cut away, or not be found"
    return Complaint("refuse" if without == len(subject.rows) else "warn", said, remedy)


def questions(subject: Subject) -> Complaint | None:
    """Conversations in which what the model is asked is learned, too."""
    asked = learned = 0
    for chat in subject.chats:
        scored = "".join(_told(subject, part) for part in _stretches(chat.ids, chat.scored))
        for message in chat.messages:
            content = message.get("content")
            if message.get("role") == "user" and isinstance(content, str) and len(content.split()) > 1:
                asked += 1
                learned += _plain(content) in _plain(scored)
    if learned < max(1, asked // 2):
        return None
    said = f"{number_of(learned, asked, 'questions')} are learned, too, beside the answers"
    return Complaint("warn", said, "score answers only, unless the model is to ask as well")


def _stretches(ids: Sequence[int], scored: Sequence[bool]) -> Iterator[list[int]]:
    group: list[int] = []
    for number, one in zip(ids, scored, strict=True):
        if one:
            group.append(number)
        elif group:
            yield group
            group = []
    yield group


def _told(subject: Subject, ids: Sequence[int]) -> str:
    assert subject.vocabulary is not None
    special = set(subject.vocabulary.special.values())
    return subject.vocabulary.decode([number for number in ids if number not in special]) + "\n"


def _plain(text: str) -> str:
    return "".join(text.split()).casefold()


def unused_places(subject: Subject) -> Complaint | None:
    """Places without a token that are scored."""
    padding = sum(number < 0 for row in subject.rows for number in row.documents)
    scored = sum(_is_padding(row, place) for row in subject.rows for place in row.scored)
    if not scored:
        return None
    said = f"{number_of(scored, padding, 'places of padding')} are scored"
    return Complaint("refuse", said, "give padding the label -100: the model would learn to write it")


def _is_padding(row: Row, place: int) -> bool:
    """The last place before a text, which predicts its first token, is none."""
    return row.documents[place] < 0 and (place + 1 >= len(row.documents) or row.documents[place + 1] < 0)


def impossible(subject: Subject) -> Complaint | None:
    """Labels that are no token of the model."""
    assert subject.table is not None
    found = [target for row in subject.rows for target in row.targets if target is not None]
    bad = [target for target in found if not 0 <= target < subject.table]
    if not bad:
        return None
    said = f"{number_of(len(bad), len(found), 'labels')} are none of {subject.table:,} tokens, such as {bad[0]}"
    return Complaint("refuse", said, "what is not to be scored has the label -100")


def hidden(subject: Subject) -> Complaint | None:
    """Masked tokens that the model sees, or all tokens scored."""
    scored = [(row.ids[place], row.targets[place]) for row in subject.rows for place in row.scored]
    there = sum(number >= 0 for row in subject.rows for number in row.documents)
    if len(scored) < FEWEST:
        return None
    seen = sum(given == wanted for given, wanted in scored)
    if seen > SURE * len(scored):
        said = f"at {number_of(seen, len(scored), 'scored places')} the model reads the token that it is to find"
        return Complaint("refuse", said, "hide tokens behind the mask, and give all others the label -100")
    if len(scored) > SURE * there:
        said = f"{number_of(len(scored), there, 'places')} are hidden"
        return Complaint("refuse", said, "hide about 15 % of them")
    return None


def classes(subject: Subject) -> Complaint | None:
    """Labels of a classifier that it has no class for, that training never shows, or that are all one."""
    assert subject.classes is not None
    known = Counter(target for row in subject.rows for target in row.targets if target is not None)
    held = Counter(target for row in subject.held_out for target in row.targets if target is not None)
    for where, counts in (("", known), (" of held-out rows", held)):
        if bad := sorted(label for label in counts if not 0 <= label < subject.classes):
            n = sum(counts[label] for label in bad)
            said = f"{number_of(n, sum(counts.values()), 'labels')}{where} are none of {subject.classes} classes"
            return Complaint("refuse", f"{said}, such as {bad[0]}", "classes are counted from 0; give num_labels")
    if unseen := sorted(held.keys() - known.keys()):
        said = f"classes {', '.join(map(str, unseen[:5]))} are held out, but never trained on"
        return Complaint("refuse", said, "split so that each class is on both sides")
    if len(known) == 1 and sum(known.values()) >= FEWEST:
        return Complaint(
            "refuse",
            f"all {sum(known.values()):,} labels are class {next(iter(known))}",
            "shuffle, or look how labels are read",
        )
    return None


def same_rows(subject: Subject) -> Complaint | None:
    """Rows that are all one and the same."""
    different = {(row.ids, row.source) for row in subject.rows}
    if len(subject.rows) < FEWEST or len(different) > len(subject.rows) // 2:
        return None
    said = f"{len(subject.rows):,} rows are {len(different):,} different ones"
    return Complaint("refuse" if len(different) == 1 else "warn", said, "look how rows are drawn")


MODELS: tuple[Kind, ...] = ("decoder", "encoder", "encoder-decoder")
CHECKS: Sequence[Check] = (
    Check("nothing-scored", "is something scored in every row?", nothing, ("rows",)),
    Check("shift", "are labels shifted once?", shift, ("rows",), ("decoder",)),
    Check("questions-scored", "are answers learned, and not questions?", questions, ("chats", "vocabulary")),
    Check("padding-scored", "is padding not scored?", unused_places, ("rows",), MODELS),
    Check("labels", "is every label a token?", impossible, ("rows", "table"), MODELS),
    Check("hidden", "is hidden what is to be found?", hidden, ("rows",), ("encoder",)),
    Check("classes", "is every label a class that is trained?", classes, ("rows", "classes"), ("classifier",)),
    Check("same-rows", "are rows different?", same_rows, ("rows",)),
)
