"""How long does it take to begin? Whole processes, from start to exit, beside an empty Python and `import torch`.

Commands take turns: each round runs every one once, and the first, which writes byte code and fills the disk cache,
does not count. Whether a target is met is printed, never asserted: a machine may be busy.

    python benchmarks/startup.py --rounds 15
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from _harness import Spread, processor, save_json


@dataclass(frozen=True)
class Command:
    """What to run, and within how many seconds it should be over; None for what is only there to compare with."""

    name: str
    arguments: tuple[str, ...]
    target: float | None = None


def commands() -> list[Command]:
    python, installed = sys.executable, Path(sys.executable).with_name("pellucid")
    face = (str(installed),) if installed.exists() else (python, "-m", "pellucid")
    return [
        Command("python -c pass", (python, "-c", "pass")),
        Command("import torch", (python, "-c", "import torch")),
        Command("import pellucid", (python, "-c", "import pellucid"), 0.2),
        Command("pellucid --help", (*face, "--help"), 0.5),
        Command("pellucid train --help", (*face, "train", "--help")),
    ]


def seconds_of(command: Command) -> float:
    """One run. Raises CalledProcessError where it fails: what breaks at once is not fast."""
    start = time.perf_counter()
    subprocess.run(command.arguments, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every measurement to FILE")
    chosen = parser.parse_args()

    asked = commands()
    for command in asked:
        seconds_of(command)
    times: dict[str, list[float]] = {command.name: [] for command in asked}
    for _ in range(chosen.rounds):
        for command in asked:
            times[command.name].append(seconds_of(command))

    print(f"{processor()}, Python {sys.version.split()[0]}; {chosen.rounds} rounds\n")
    print(f"  {'':24} {'seconds (min–max)':>20}   target")
    for command in asked:
        spread = Spread.of(times[command.name])
        verdict = ""
        if command.target is not None:
            verdict = f"≤ {command.target:.1f}: {'met' if spread.median <= command.target else 'MISSED'}"
        print(f"  {command.name:24} {spread.show():>20}   {verdict}".rstrip())
    if chosen.json is not None:
        save_json(chosen.json, {"machine": processor(), "seconds": times})


if __name__ == "__main__":
    main()
