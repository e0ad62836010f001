"""The token that ends a text: learned where a text ends, and nowhere else."""

from __future__ import annotations

from collections.abc import Sequence

from pellucid.doctor.checks import Check
from pellucid.doctor.report import Complaint, number_of
from pellucid.doctor.subject import Kind, Row, Subject

FEWEST = 8  # ends of texts that are expected, below which a missing one says nothing
LETTERS = 2  # of a token, at least, of most texts
TOO_OFTEN = 0.5  # of what is scored


def never(subject: Subject) -> Complaint | None:
    """No end of a text is scored anywhere."""
    assert subject.vocabulary is not None
    ends = subject.vocabulary.ends
    if not ends or _expected(subject) < FEWEST:
        return None
    if any(target in ends for row in subject.rows for target in row.targets) or not any(r.scored for r in subject.rows):
        return None
    stopped = sum(_has_end(row, ends) for row in subject.rows)
    if stopped and subject.vocabulary.pad in ends:
        said = (
            f"{number_of(stopped, len(subject.rows), 'rows')} end with the token that also pads, and it is not scored"
        )
        remedy = "pad with a token of its own, or make labels from the attention mask: the model would not stop"
        return Complaint("refuse", said, remedy)
    cut = "; what is read has it, but it is not scored" if stopped else ""
    said = f"no text of {len(subject.rows):,} rows is scored at the token that ends it{cut}"
    return Complaint("warn", said, "put the end-of-text token behind each text or answer: the model would not stop")


def _expected(subject: Subject) -> float:
    """How many texts or answers end in these rows: those that something follows, or by the length of texts."""
    if subject.answers:
        return float(len(subject.rows))
    finished = sum(piece.stop < len(row.documents) for row in subject.rows for piece in row.pieces())
    letters = sum(map(len, subject.texts)) / max(1, len(subject.texts))
    tokens = sum(len(row.ids) for row in subject.rows)
    return finished + (tokens * LETTERS / letters if len(subject.texts) >= FEWEST else 0.0)


def _has_end(row: Row, ends: frozenset[int]) -> bool:
    return any(number in ends for number in row.ids)


def always(subject: Subject) -> Complaint | None:
    """The end of a text is most of what is scored."""
    assert subject.vocabulary is not None
    found = [target for row in subject.rows for target in row.targets if target is not None]
    often = sum(target in subject.vocabulary.ends for target in found)
    if len(found) < 16 or often <= TOO_OFTEN * len(found):
        return None
    said = f"{number_of(often, len(found), 'scored places')} are the token that ends a text"
    return Complaint("refuse", said, "give padding the label -100: the model would learn to write nothing")


def after_cut(subject: Subject) -> Complaint | None:
    """Texts that were cut, and end as if that were all."""
    assert subject.vocabulary is not None
    if len(subject.cuts) != len(subject.rows):
        return None
    cut = [row for row, each in zip(subject.rows, subject.cuts, strict=True) if 0 < each.after < each.before]
    wrong = sum(bool(row.scored) and row.targets[row.scored[-1]] in subject.vocabulary.ends for row in cut)
    if not wrong:
        return None
    said = f"{number_of(wrong, len(cut), 'texts that were cut')} are scored at an end that is not theirs"
    return Complaint("warn", said, "put the end-of-text token behind a text before it is cut")


WRITERS: tuple[Kind, ...] = ("decoder", "encoder-decoder")
CHECKS: Sequence[Check] = (
    Check("end-never", "does it learn to stop?", never, ("rows", "vocabulary"), WRITERS),
    Check("end-always", "does it learn more than to stop?", always, ("rows", "vocabulary"), WRITERS),
    Check("end-after-cut", "does it stop where a text ends?", after_cut, ("rows", "vocabulary", "cuts"), WRITERS),
)
