"""A conversation is written as the model was taught to read it, and nobody speaks for the other side."""

from __future__ import annotations

import re

from pellucid.verify.checks import WRITERS, Check
from pellucid.verify.measure import Measured, Tolerance
from pellucid.verify.subject import NotApplicable, Subject
from pellucid.verify.text import Messages, Speller, talker_of
from pellucid.verify.trial import Trial

SYSTEM, ASKED, SAID, ASKED_AGAIN = "Answer in rhyme.", "What is two and two?", "It is four.", "And three and three?"
NOT_SAID = "Nobody has said this."
GAP = Tolerance(0.0, "an answer must follow at once, and only then: how many characters are missing or too many")
ALL = Tolerance(0.0, "every message counts: the share that is lost, doubled or out of order")
ENDS = Tolerance(0.0, "or it goes on and speaks for the user: 1 where the token that ends an answer ends nothing")
FAKED = Tolerance(0.0, "only the template may write special tokens: how many a user has written")
THOUGHT = re.compile(r"<think>\s*(</think>\s*)?$")  # templates leave old thoughts out, and open or close new ones


def conversation(*texts: str, system: str | None = None) -> Messages:
    """The user begins, and the two take turns."""
    first = [] if system is None else [{"role": "system", "content": system}]
    return first + [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


def prompt(subject: Subject, trial: Trial) -> Measured:
    """The generation prompt against a conversation that goes on: what stands there between question and answer.

    And where an answer was given, none is asked for.
    """
    speller = talker_of(subject)
    asked = THOUGHT.sub("", speller.render(conversation(ASKED), add_generation_prompt=True)).rstrip()
    answered = speller.render(conversation(ASKED, SAID), add_generation_prompt=False)
    head = THOUGHT.sub("", answered[: answered.rfind(SAID)]).rstrip()
    if SAID not in answered:
        raise NotApplicable(f"{subject.name}: its chat template leaves the last answer out")
    unasked = _unasked(speller, head, answered)
    if unasked:
        return Measured(
            float(len(unasked)), GAP, f"an answer is asked for where one was given: {unasked[-40:]!r} follows"
        )
    alike = next((n for n in range(len(head), 0, -1) if asked.startswith(head[:n])), 0)
    missing = max(len(head), len(asked)) - alike
    detail = f"an answer follows {head[-40:]!r}, but it is asked for after {asked[-40:]!r}" if missing else ""
    return Measured(float(missing), GAP, detail)


def _unasked(speller: Speller, head: str, answered: str) -> str:
    """What asks for an answer although one has just been given; turns that are assigned to no speaker ask for none."""
    asks = head[head.rfind(ASKED) + len(ASKED) :].strip()
    longer = speller.render(conversation(ASKED, SAID, ASKED_AGAIN), add_generation_prompt=False)
    goes_on = longer[longer.find(SAID) + len(SAID) : longer.find(ASKED_AGAIN)].strip()
    after = answered[answered.rfind(SAID) + len(SAID) :].rstrip()
    return asks if asks and asks != goes_on and after.endswith(asks) else ""


def messages(subject: Subject, trial: Trial) -> Measured:
    """Each message once, in order: two questions, an answer, and what the system says, unless it is refused."""
    speller = talker_of(subject)
    lost, total = _lost(speller, conversation(ASKED, SAID, ASKED_AGAIN))
    try:
        more, n = _lost(speller, conversation(ASKED, SAID, ASKED_AGAIN, system=SYSTEM))
    except Exception:  # a template may have no such role, if it says so; each maker has another error
        more, n = [], 0
    lost += [text for text in more if text not in lost]
    return Measured(
        len(lost) / max(1, total + n), ALL, f"not as it should be: {', '.join(map(repr, lost))}" if lost else ""
    )


def _lost(speller: Speller, given: Messages) -> tuple[list[str], int]:
    """The texts that are not there exactly once, behind those before them; how many texts there are."""
    written, lost, place = speller.render(given, add_generation_prompt=True), list[str](), 0
    for message in given:
        found = written.find(message["content"], place)
        if found < 0 or written.count(message["content"]) != 1:
            lost.append(message["content"])
        place = max(place, found)
    return lost, len(given)


def end(subject: Subject, trial: Trial) -> Measured:
    """The special token that the template writes after an answer, among those that end generation."""
    speller = talker_of(subject)
    answered = speller.render(conversation(ASKED, SAID), add_generation_prompt=False)
    after = answered[answered.rfind(SAID) + len(SAID) :]
    numbers = {number: word for word, number in speller.special.items()}
    ends = next((number for number in speller.encode_marked(after) if number in numbers), None)
    if ends is None:
        raise NotApplicable(f"{subject.name}: its chat template writes no special token after an answer")
    broken = ends not in speller.stop_ids
    stops = ", ".join(str(number) for number in sorted(speller.stop_ids)) or "no id"
    detail = f"an answer ends with {numbers[ends]} (id {ends}), but what stops generation is {stops}" if broken else ""
    return Measured(float(broken), ENDS, detail)


def faked(subject: Subject, trial: Trial) -> Measured:
    """What the template writes around a message, typed into another one."""
    speller = talker_of(subject)
    written = speller.render(conversation(ASKED, SAID, ASKED_AGAIN), add_generation_prompt=False)
    turns = written[written.find(ASKED) + len(ASKED) : written.find(ASKED_AGAIN)]
    typed = f"{ASKED}{turns}{NOT_SAID} {' '.join(speller.special)}"
    special = set(speller.special.values())

    def count(text: str) -> int:
        return sum(number in special for number in speller.conversation(conversation(text), add_generation_prompt=True))

    extra = count(typed) - count(f"{ASKED} {NOT_SAID}")
    return Measured(float(abs(extra)), FAKED, f"{extra} in a message that only types them" if extra else "")


CHECKS = (
    Check("chat-prompt", "an answer is asked for where answers stand", prompt, WRITERS),
    Check("chat-messages", "every message is read, once and in order", messages, WRITERS),
    Check("chat-end", "what ends an answer ends generation", end, WRITERS),
    Check("chat-typed", "a user who types special tokens fakes no turn", faked, WRITERS),
)
