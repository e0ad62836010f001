"""Is this checkout as fast as another one? Training steps, generation and import, both in turns, as ratios.

Each measurement is a process of its own, with the same threads and allocator for both checkouts. Rounds alternate, and
so does the order within a round. A ratio above 1 means that this checkout is the faster one.

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
from pathlib import Path

from _harness import HERE, Spread, cores, processor, save_json

TARGET = 0.97
# Both checkouts must understand these programs: they use what has been public since version 0.1.
TRAIN = """
import json, os, pathlib, statistics, sys, tempfile
import pellucid
text, minimum = sys.argv[1], int(sys.argv[2])
with tempfile.TemporaryDirectory() as folder:
    out = pathlib.Path(folder) / "run"
    pellucid.train(text, out, steps=minimum, depth=4, context=256, vocab_size=2048, batch_size=16, sample_every=0,
                   validate_every=10**6, checkpoint_every=10**6, precision="fp32")
    lines = [json.loads(line) for line in (out / "timings.jsonl").read_text().splitlines()]
speeds = [line["tokens_per_second"] for line in lines if "tokens_per_second" in line]
print(json.dumps({"training, tokens/s": statistics.median(speeds[len(speeds) // 3:])}))
"""
GENERATE = """
import json, sys, time
import pellucid
model, tokens = pellucid.load(sys.argv[1]), int(sys.argv[2])
greedy = pellucid.Sampling(temperature=0.0)
found = {}
for rows in (1, 8):
    prompts = ["Once upon a time there was a king who had" for _ in range(rows)]
    prompts = [f"{prompt} {i} daughters." for i, prompt in enumerate(prompts)]
    pellucid.generate(model, prompts, max_new_tokens=4, sampling=greedy, ignore_eos=True)
    start = time.perf_counter()
    written = pellucid.generate(model, prompts, max_new_tokens=tokens, sampling=greedy, ignore_eos=True)
    seconds = time.perf_counter() - start
    found[f"generation, {rows} row{'s' * (rows > 1)}, tokens/s"] = sum(w.n_generated for w in written) / seconds
print(json.dumps(found))
"""
IMPORT = """
import json, time
start = time.perf_counter()
import pellucid
print(json.dumps({"imports/s": 1 / (time.perf_counter() - start)}))
"""


def measure(checkout: Path, program: str, *arguments: str, threads: int) -> dict[str, float]:
    """What a program prints when it runs on the package of this checkout. Raises SystemExit with its error."""
    settings = {
        "PYTHONPATH": str(checkout / "src"),
        "OMP_NUM_THREADS": str(threads),
        "MALLOC_TRIM_THRESHOLD_": "4000000000",
        "MALLOC_MMAP_THRESHOLD_": "4000000000",
    }
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, env=os.environ | settings
    )
    if done.returncode:
        raise SystemExit(f"{checkout}: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


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
    parser.add_argument("--steps", type=int, default=40, help="training steps a measurement")
    parser.add_argument("--tokens", type=int, default=96, help="new tokens a measurement")
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
        programs = [(IMPORT, ()), (TRAIN, (str(text), str(chosen.steps))), (GENERATE, (model, str(chosen.tokens)))]
        for number in range(chosen.rounds):
            for program, arguments in programs:
                for side in sorted(both, reverse=number % 2 == 1):
                    for name, value in measure(both[side], program, *arguments, threads=chosen.threads).items():
                        seen.setdefault(name, {}).setdefault(side, []).append(value)
            print(f"round {number + 1} of {chosen.rounds}", file=sys.stderr, flush=True)

    print(f"{processor()}, {chosen.threads} threads, {chosen.rounds} rounds; now ÷ before, median (range)\n")
    for name, sides in seen.items():
        pairs = [now / before for now, before in zip(sides["now"], sides["before"], strict=True)]
        ratio = statistics.median(sides["now"]) / statistics.median(sides["before"])
        verdict = "met" if ratio >= TARGET else "MISSED"
        spread = Spread(ratio, min(pairs), max(pairs)).show(".3f")
        medians = " → ".join(f"{statistics.median(sides[side]):,.1f}" for side in ("before", "now"))
        print(f"  {name:28} {spread:22} ≥ {TARGET}: {verdict:7} {medians}")
    if chosen.json is not None:
        save_json(chosen.json, {"machine": processor(), "threads": chosen.threads, "measured": seen})


if __name__ == "__main__":
    main()
