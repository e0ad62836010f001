"""Train on a text that is larger than the memory that may be used, and report the peak.

    python tests/faults/memory_of_texts.py --megabytes 2000 --limit 1000

The text is made here: numbered lines of random words, so that nothing repeats. The run is a process of its own, which
may have no more than ``limit`` megabytes of data (RLIMIT_DATA, where the system has it); the peak of its resident
memory is what the system counted.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

MEGABYTE = 1_000_000
WORDS = 20_000
OPTIONS = (
    "--steps 3 --depth 2 --d-model 32 --context 32 --batch-size 4 --precision fp32 --sample-every 0 --validation 0.001"
).split()


def write_text(path: Path, megabytes: float, separator: str = "") -> None:
    """A text of random words in numbered lines; ``separator`` stands after every thousand lines."""
    rng = random.Random(0)
    letters = "etaoinshrdlucmfwypvbgkqjxz"
    words = ["".join(rng.choices(letters, k=rng.randint(2, 9))) for _ in range(WORDS)]
    paragraphs = [" ".join(rng.choices(words, k=120)) for _ in range(2000)]
    number, written = 0, 0
    with path.open("w", encoding="utf-8") as stream:
        while written < megabytes * MEGABYTE:
            number += 1
            written += stream.write(f"{number} {paragraphs[rng.randrange(2000)]} {rng.choice(words)}\n")
            if separator and number % 1000 == 0:
                written += stream.write(f"{separator}\n")


# A small process between this one and the measured one. The system counts as a process's own peak what it had before
# it became another program, and a process that is forked from a test session begins with all memory of that session.
BETWEEN = """
import resource, subprocess, sys
if limit := int(sys.argv[1]):
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
code = subprocess.run(sys.argv[2:]).returncode
print()
print(code, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


def peak_of(arguments: list[str], limit: float | None = None) -> tuple[int, float, str]:
    """Exit code, peak resident memory in megabytes, and output of ``pellucid`` with these arguments."""
    command = [sys.executable, "-m", "pellucid", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PELLUCID_CACHE": tempfile.gettempdir()}
    between = [sys.executable, "-S", "-c", BETWEEN, str(int((limit or 0) * MEGABYTE)), *command]
    run = subprocess.run(
        between, env=environment, text=True, check=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    said, figures = run.stdout.rstrip("\n").rsplit("\n", 1)
    code, most = map(int, figures.split())
    return code, most * (1 if sys.platform == "darwin" else 1024) / MEGABYTE, said


def train(text: Path, out: Path, limit: float | None = None, vocab_size: int | None = None) -> tuple[int, float, str]:
    """A few steps on ``text``."""
    vocabulary = [] if vocab_size is None else ["--vocab-size", str(vocab_size)]
    return peak_of(["train", str(text), "--out", str(out), *OPTIONS, *vocabulary], limit)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, default=2000)
    parser.add_argument("--limit", type=float, default=1000)
    parser.add_argument("--separator", default="", help="e.g. <|endoftext|>: many documents instead of one")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder, "text.txt")
        write_text(text, asked.megabytes, asked.separator)
        code, peak, said = train(text, Path(folder, "out"), asked.limit)
    print(said)
    print(f"{asked.megabytes:.0f} MB of text, exit {code}: peak resident memory {peak:.0f} MB, limit {asked.limit:.0f}")
    sys.exit(code or peak > asked.limit)


if __name__ == "__main__":
    main()
