"""nn/ knows no model family: families are data, and what one of them needs is an idea with a name of its own."""

from __future__ import annotations

import io
import re
import tokenize
from pathlib import Path

import pytest
from package import SRC

FAMILIES = {
    *("gpt", "bert", "roberta", "albert", "llama", "mistral", "mixtral", "qwen", "gemma", "neox", "pythia"),
    *("t5", "bart", "marian", "vit", "falcon", "bloom", "deepseek", "olmo"),
}
NN = SRC / "pellucid" / "nn"


def words(identifier: str) -> set[str]:
    """The words of an identifier in lower case, with and without digits: ``LlamaMLP_v2`` -> llama, mlp, v2, v."""
    for odd in ("ViT", "NeoX", "RoBERTa", "DeepSeek", "OLMo"):
        identifier = identifier.replace(odd, odd.capitalize())
    cut = re.findall(r"[A-Z]+(?![a-z])\d*|[A-Z]?[a-z]+\d*|\d+", identifier)
    return {form.lower() for word in cut for form in (word, word.rstrip("0123456789"))}


def family_names(source: str) -> list[str]:
    """Identifiers and one-word strings with a family in them, each with its line. Comments and prose may cite."""
    found: list[str] = []
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.NAME:
            text = token.string
        elif token.type == tokenize.STRING and re.fullmatch(r"[\w-]+", token.string.strip("rbuRBU'\"")):
            text = token.string.strip("rbuRBU'\"").replace("-", "_")
        else:
            continue
        if words(text) & FAMILIES:
            found.append(f"{token.start[0]}: {text}")
    return found


@pytest.mark.parametrize("path", sorted(NN.rglob("*.py")), ids=lambda path: str(path.relative_to(NN)))
def test_no_family_is_named(path: Path) -> None:
    assert words(path.stem) & FAMILIES == set()
    assert family_names(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "line",
    [
        "class LlamaMLP: ...",
        "x = gpt2_gelu",
        "T5Bias = 1",
        "def neox(): ...",
        "if kind == 'qwen3': ...",
        "ViTPatch = 1",
    ],
)
def test_a_family_name_is_seen(line: str) -> None:
    assert len(family_names(line)) == 1


@pytest.mark.parametrize(
    "line",
    [
        "class BucketedBias: ...",
        "invite = vital = 1",
        "# as in T5",
        '"""The rule of GPT-2 (Radford et al. 2019)."""',
        "barter = 't'",
    ],
)
def test_citations_and_other_words_are_allowed(line: str) -> None:
    assert family_names(line) == []
