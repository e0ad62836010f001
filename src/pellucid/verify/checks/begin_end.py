"""What begins a text begins it once, and what ends it stands where the model expects it."""

from __future__ import annotations

from pellucid.verify.checks import Check
from pellucid.verify.measure import Measured, Tolerance
from pellucid.verify.subject import NotApplicable, Subject
from pellucid.verify.text import Speller, speller_of
from pellucid.verify.trial import TEXTS, Trial

SEEN = Tolerance(0.0, "a model is trained on texts of one form: how many things are otherwise")
TALK = ({"role": "user", "content": "What is two and two?"},)


def measure(subject: Subject, trial: Trial) -> Measured:
    """Prompts of texts, and, with a chat template, of a conversation."""
    speller = speller_of(subject)
    wrong = [fault for text in TEXTS for fault in _faults(subject, speller, text)]
    if speller.chat_template and speller.bos_id is not None:
        twice = [speller.bos_id] * 2
        if speller.encode_marked(speller.render(TALK, add_generation_prompt=True))[:2] == twice:
            wrong.append("the chat template writes the begin-of-text token twice")
        elif _talk(speller)[:2] == twice:
            wrong.append("a conversation that is encoded begins twice")
    wrong = list(dict.fromkeys(wrong))
    return Measured(float(len(wrong)), SEEN, "; ".join(wrong))


def _talk(speller: Speller) -> list[int]:
    try:
        return speller.conversation(TALK, add_generation_prompt=True)
    except NotApplicable:
        return []


def _faults(subject: Subject, speller: Speller, text: str) -> list[str]:
    """What is wrong with the prompt of one text."""
    alone, prompt = speller.encode(text), speller.encode_prompt(text)
    places = range(len(prompt) - len(alone) + 1)
    start = next((i for i in places if prompt[i : i + len(alone)] == alone), None)
    if start is None:
        return ["a text is spelled otherwise in a prompt than alone"]
    before, after = prompt[:start], prompt[start + len(alone) :]
    bos = speller.bos_id
    wrong = ["the same token begins a prompt twice"] if len(set(before)) < len(before) else []
    if len(set(after)) < len(after):
        wrong.append("the same token ends a prompt twice")
    if bos is not None and bos in alone:
        wrong.append("the begin-of-text token stands in a text without being asked for")
    if subject.kind == "decoder" and set(after) & {*speller.stop_ids, speller.eos_id}:
        wrong.append("a prompt ends with the token that ends a text: nothing is left to write")
    return wrong


CHECKS = (Check("begin-end", "a text begins and ends with the right tokens, once each", measure),)
