"""How fast is training beside other programs? Tokens a second, quiet and beside busy processes of normal priority.

The same step is taken by a plain loop with a thread for each core, by one whose number of threads follows the load
(as in `pellucid train --minutes`), by one with a single thread, and by transformers' GPT-2 in a plain loop. All take
turns, in processes of their own, at each number of busy processes, which this script starts and stops. Nothing else
should run.

    python benchmarks/busy.py --rounds 5 --json busy.json
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from _contestants import OURS, Job
from _harness import AbsentError, Spread, Worker, cores, processor, save_json

SHAPE: dict[str, Any] = {"n_layers": 4, "d_model": 128, "n_heads": 2, "context": 256, "vocab_size": 4096, "batch": 8}
SETTLE = 1.0  # seconds between the start of the busy processes and the first turn


@dataclass(frozen=True)
class Entry:
    """Who takes part, with how many threads (0: one a core), and whether they follow the load."""

    title: str
    contestant: str
    threads: int = 0
    follow: bool = False


ENTRIES = (
    Entry("a thread a core", OURS),
    Entry("threads that follow the load", OURS, follow=True),
    Entry("one thread", OURS, threads=1),
    Entry("transformers, a thread a core", "hf-gpt2"),
)


@contextmanager
def busy(count: int) -> Iterator[None]:
    """``count`` processes of normal priority that only compute, until the block ends."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        if count:
            time.sleep(SETTLE)
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def measure(seconds: float, rounds: int, loads: list[int]) -> dict[int, dict[str, list[float]]]:
    """Tokens a second by load, entry and round. Entries that cannot start are left out, and told."""
    same: dict[str, Any] = {**SHAPE, "precision": "fp32", "mode": "eager"}
    jobs = {entry: Job(entry.contestant, **same, threads=entry.threads or cores()) for entry in ENTRIES}
    speeds: dict[int, dict[str, list[float]]] = {load: {} for load in loads}
    with ExitStack() as stack:
        workers: dict[Entry, Worker] = {}
        for entry, job in jobs.items():
            try:
                workers[entry] = Worker(asdict(job))
            except AbsentError as error:
                print(f"{entry.title} cannot be measured: {error}")
                continue
            stack.callback(workers[entry].close)
        for _ in range(rounds):
            for load in loads:
                with busy(load):
                    for entry, worker in workers.items():
                        took = worker.turn(seconds, entry.follow)
                        speed = took["steps"] * jobs[entry].tokens / took["seconds"]
                        speeds[load].setdefault(entry.title, []).append(speed)
    return speeds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=12.0, help="of each turn")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--loads", type=int, nargs="+", default=[0, 1, 2], help="numbers of busy processes")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    print(f"{processor()}, {cores()} cores; tokens a second: median (lowest–highest) of {asked.rounds} turns\n")
    speeds = measure(asked.seconds, asked.rounds, asked.loads)
    titles = [entry.title for entry in ENTRIES if entry.title in speeds[asked.loads[0]]]
    print("| | " + " | ".join("quiet" if load == 0 else f"beside {load} busy" for load in asked.loads) + " |")
    print("|---|" + "---|" * len(asked.loads))
    for title in titles:
        print(f"| {title} | " + " | ".join(Spread.of(speeds[load][title]).show(",.0f") for load in asked.loads) + " |")
    if asked.json is not None:
        save_json(asked.json, {"seconds": asked.seconds, "speeds": speeds})


if __name__ == "__main__":
    main()
