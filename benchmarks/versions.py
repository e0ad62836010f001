"""Is this checkout as fast as another one? Training steps, generation and import, both in turns, as ratios.

Each checkout has a process for training and one for generation, with the same threads and allocator. They take short
turns, one directly after the other, and the order alternates: what the machine does meanwhile meets both. The ratio is
the median over all pairs of turns; above 1, this checkout is the faster one.

    git worktree add ../before REVISION
    python benchmarks/versions.py --before ../before --rounds 5
    python benchmarks/versions.py --before ../before --model SmolLM2-135M-Instruct.Q4_1.gguf
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path

from _harness import HERE, Spread, cores, end, processor, save_json

TARGET, TURNS = 0.97, 3
# Both checkouts must understand these programs: they use what has been public since version 0.1. The first two take a
# turn for each line that they read.
TRAIN = """
import json, os, pathlib, statistics, sys, tempfile
import pellucid
text, steps = sys.argv[1], int(sys.argv[2])
for _ in sys.stdin:
    with tempfile.TemporaryDirectory() as folder:
        out = pathlib.Path(folder) / "run"
        pellucid.train(text, out, steps=steps, depth=4, context=256, vocab_size=2048, batch_size=16, sample_every=0,
                       validate_every=10**6, checkpoint_every=10**6, precision="fp32")
        lines = [json.loads(line) for line in (out / "timings.jsonl").read_text().splitlines()]
    speeds = [line["tokens_per_second"] for line in lines if "tokens_per_second" in line]
    print(json.dumps({"training, tokens/s": statistics.median(speeds[len(speeds) // 3:])}), flush=True)
"""
GENERATE = """
import json, sys, time
import pellucid
model, tokens = pellucid.load(sys.argv[1]), int(sys.argv[2])
greedy = pellucid.Sampling(temperature=0.0)
prompts = [f"Once upon a time there was a king who had {i} daughters." for i in range(8)]
pellucid.generate(model, prompts, max_new_tokens=4, sampling=greedy, ignore_eos=True)
for _ in sys.stdin:
    found = {}
    for rows in (1, 8):
        start = time.perf_counter()
        written = pellucid.generate(model, prompts[:rows], max_new_tokens=tokens, sampling=greedy, ignore_eos=True)
        seconds = time.perf_counter() - start
        found[f"generation, {rows} row{'s' * (rows > 1)}, tokens/s"] = sum(w.n_generated for w in written) / seconds
    print(json.dumps(found), flush=True)
"""
IMPORT = """
import json, time
start = time.perf_counter()
import pellucid
print(json.dumps({"imports/s": 1 / (time.perf_counter() - start)}))
"""


class Side:
    """A program that runs on the package of a checkout, idle between turns."""

    def __init__(self, checkout: Path, program: str, *arguments: str, threads: int):
        settings = {
            "PYTHONPATH": str(checkout / "src"),
            "OMP_NUM_THREADS": str(threads),
            "MALLOC_TRIM_THRESHOLD_": "4000000000",
            "MALLOC_MMAP_THRESHOLD_": "4000000000",
        }
        self.checkout = checkout
        self._printed = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115  (see close)
        self._process = subprocess.Popen(
            [sys.executable, "-c", program, *arguments], text=True, env=os.environ | settings,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._printed,
        )  # fmt: skip

    def turn(self) -> dict[str, float]:
        """What the program measures in one turn. Raises SystemExit with its error where it has ended."""
        assert self._process.stdin is not None and self._process.stdout is not None
        with suppress(BrokenPipeError):  # the program has ended, and what it printed says why
            print(file=self._process.stdin, flush=True)
        for line in self._process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        self._printed.seek(0)
        raise SystemExit(f"{self.checkout}: {(self._printed.read().strip().splitlines() or ['it ended'])[-1]}")

    def close(self) -> None:
        """End the process."""
        end(self._process, self._printed)


def imported(checkout: Path) -> dict[str, float]:
    """How many imports a second, by one in a process of its own."""
    path = {"PYTHONPATH": str(checkout / "src")}
    done = subprocess.run([sys.executable, "-c", IMPORT], stdout=subprocess.PIPE, check=True, env=os.environ | path)
    return json.loads(done.stdout)


def sample_text(folder: Path) -> Path:
    """Some real text that every machine has: the source code of Python's own library."""
    library = Path(os.__file__).parent
    path = folder / "library.txt"
    path.write_text("\n".join(f.read_text(encoding="utf-8", errors="replace") for f in sorted(library.glob("*.py"))))
    return path


def small_model(folder: Path, text: Path) -> Path:
    """A model for generation, where none is given: trained for a few steps by this checkout."""
    out = folder / "model"
    sizes = "steps=8, depth=6, batch_size=4, vocab_size=2048"
    program = f"import sys, pellucid; pellucid.train(sys.argv[1], sys.argv[2], {sizes})"
    settings = {"PYTHONPATH": str(HERE.parent / "src")}
    subprocess.run([sys.executable, "-c", program, str(text), str(out)], check=True, env=os.environ | settings)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, required=True, help="the other checkout")
    parser.add_argument("--model", help="folder or file to generate with (default: one trained for a few steps)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=24, help="training steps a turn")
    parser.add_argument("--tokens", type=int, default=24, help="new tokens a turn")
    parser.add_argument("--threads", type=int, default=cores())
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every measurement to FILE")
    chosen = parser.parse_args()
    if not (chosen.before / "src" / "pellucid").is_dir():
        parser.error(f"{chosen.before} is no checkout of pellucid: make one with `git worktree add`")

    both = {"before": chosen.before.resolve(), "now": HERE.parent}
    seen: dict[str, dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        text = sample_text(Path(folder))
        model = chosen.model or str(small_model(Path(folder), text))
        loops = [(TRAIN, (str(text), str(chosen.steps))), (GENERATE, (model, str(chosen.tokens)))]
        with ExitStack() as stack:
            kept: list[dict[str, Callable[[], dict[str, float]]]] = []
            for program, arguments in loops:
                pair = {side: Side(path, program, *arguments, threads=chosen.threads) for side, path in both.items()}
                kept.append({side: process.turn for side, process in pair.items()})
                for process in pair.values():
                    stack.callback(process.close)
            for turn in range(chosen.rounds * TURNS):
                order = sorted(both, reverse=turn % 2 == 1)
                for turns in ({side: partial(imported, both[side]) for side in both}, *kept):
                    for side in order:
                        for name, value in turns[side]().items():
                            seen.setdefault(name, {}).setdefault(side, []).append(value)
                print(f"turn {turn + 1} of {chosen.rounds * TURNS}", file=sys.stderr, flush=True)

    print(f"{processor()}, {chosen.threads} threads; now ÷ before, median (range) of {chosen.rounds * TURNS} pairs\n")
    for name, measured in seen.items():
        pairs = [now / before for now, before in zip(measured["now"], measured["before"], strict=True)]
        spread = Spread.of(pairs)
        verdict = "met" if spread.median >= TARGET else "MISSED"
        medians = " → ".join(f"{statistics.median(measured[side]):,.1f}" for side in ("before", "now"))
        print(f"  {name:28} {spread.show('.3f'):22} ≥ {TARGET}: {verdict:7} {medians}")
    if chosen.json is not None:
        save_json(chosen.json, {"machine": processor(), "threads": chosen.threads, "measured": seen})


if __name__ == "__main__":
    main()
