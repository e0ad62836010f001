"""llama.cpp's own vocabularies and test vectors: the ids that it gives for some fifty texts each, and ours.

What it does otherwise than the makers of a vocabulary is explained: it never writes a letter and its mark as one
character (NFC), as the tokenizers of Qwen 2 and 3.5 do. Its ids are then ours without that step.
"""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path

from _counts import Counts
from _llama_cpp import unpacked

from pellucid.checkpoints.gguf.file import GGUFFile
from pellucid.errors import CheckpointError
from pellucid.text.tokenizer import Tokenizer
from pellucid.text.tokenizer_gguf import from_metadata

BETWEEN = "\n__ggml_vocab_test__\n"  # texts of an .inp file


def read(path: Path) -> Tokenizer | CheckpointError:
    """The vocabulary, or why it is refused."""
    try:
        return from_metadata(GGUFFile(path).metadata, path.name)
    except CheckpointError as error:
        return error


def uncomposed(tokenizer: Tokenizer, text: str) -> list[int]:
    """Ids of the text as it is, without the vocabulary's first step."""
    inner = copy.deepcopy(tokenizer.inner)
    inner.normalizer = None  # pyright: ignore[reportAttributeAccessIssue]
    return Tokenizer(inner, tokenizer.roles).encode(text)


def compare(path: Path, counts: Counts) -> None:
    """All vectors of a vocabulary."""
    name = path.stem.removeprefix("ggml-vocab-")
    texts = path.with_name(f"{path.name}.inp").read_bytes().decode().split(BETWEEN)
    lines = path.with_name(f"{path.name}.out").read_text(encoding="utf-8").splitlines()
    expected = [[int(number) for number in line.split()] for line in lines]
    tokenizer = read(path)
    if isinstance(tokenizer, CheckpointError):
        counts.add(name, "refused", tokenizer.problem.split(": ", 1)[-1][:100], len(expected))
        return
    composes = tokenizer.as_json()["normalizer"] == {"type": "NFC"}
    for text, ids in zip(texts[:-1], expected, strict=True):  # behind the last is nothing
        ours = tokenizer.encode(text)
        if ours == ids:
            counts.add(name, "right")
        elif composes and uncomposed(tokenizer, text) == ids:
            counts.add(name, "explained", f"{text!a:.60} is composed first")
        else:
            counts.add(name, "wrong", f"{text!r:.60}: expected {ids[:12]}, seen {ours[:12]}")


def main() -> int:
    """Print the counts; 1 where any is wrong."""
    counts = Counts()
    with tempfile.TemporaryDirectory() as folder:
        files = unpacked("models/ggml-vocab-", Path(folder))
        for path in files:
            if path.with_name(f"{path.name}.inp") in files:
                compare(path, counts)
    return counts.report("llama.cpp's vectors of tokenizers")


if __name__ == "__main__":
    raise SystemExit(main())
