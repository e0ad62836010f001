"""How do time and memory of attention and its alternatives grow with the length? Every peer in the same run.

First each contestant runs alone in a process of its own, which measures its memory and tells what is too long or too
large to be timed. Then all take turns in one process, round by round and length by length, so that whatever else the
machine does touches all alike. Exponents are slopes in log-log. Nothing is asserted; whether a target is met is said.

    python benchmarks/attention_scaling.py --json scaling.json --plot scaling.svg   # all of it: about an hour
    python benchmarks/attention_scaling.py --sizes 4096 8192 16384 --only window full
    python benchmarks/attention_scaling.py --quick    # short rows: only to see that the script and the peers work
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from _harness import HERE, cores, processor, save_json
from _mixer_memory import SHORT
from _mixers import HEAD_DIM, MODES, ROOM, WINDOW, Contestant, Mode, contestants, one_row
from _pictures import check_plot, short
from _scaling import Measured, draw, record, report, verdicts

from pellucid.nn.kernels import reference
from pellucid.nn.masks import Visible, dense
from pellucid.train.memory import keep_freed_memory

SIZES = (1024, 2048, 4096, 8192, 16384, 32768)
FIT_FROM = 4096  # shorter rows are mostly overhead
CHECKED = 1024  # tokens of the comparison with the reference, which takes n² memory


def measure_alone(found: Measured, sizes: Sequence[int], threads: int, limits: dict[str, float]) -> None:
    """Memory, and whether time and memory allow to go on, from a process of the contestant's own."""
    who = found.who
    job = {"contestant": f"{who.group}/{who.name}", "sizes": list(sizes), "threads": threads} | limits
    command = [sys.executable, str(HERE / "_mixer_memory.py"), json.dumps(job)]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    for line in ended.stdout.splitlines():
        told = json.loads(line)
        mode, n = told["mode"], told["n"]
        if "why" in told:
            found.absent.append(f"{mode} from {short(n)}: {told['why']}")
        else:
            found.alone[mode][n] = told["seconds"]
            if told["bytes"] is not None:
                found.memory[mode][n] = told["bytes"]
    if ended.returncode:
        printed = [line.strip() for line in ended.stderr.splitlines() if line.strip()]
        found.absent.append(printed[-1] if printed else f"ended with exit code {ended.returncode}")


def largest_difference(who: Contestant, n: int) -> float | None:
    """Between a kernel's result and the reference's for the mask that it is said to have."""
    if who.mask is None:
        return None
    case = who.build(n)
    q, k, v = (leaf.detach() for leaf in case.leaves)
    visible = Visible(None, dense(who.mask, one_row(n), one_row(n)))
    with torch.no_grad():
        mine = case.call(case.prepare())
        return float((mine - reference(q, k, v, visible, bias=None, scale=HEAD_DIM**-0.5)).abs().max())


def timed(work: Any, made: Any, seconds: float, known: float) -> float:
    """Median seconds of one go, over as many as fit into ``seconds``; short ones are done once before that."""
    took: list[float] = []
    if known < SHORT:
        work(made)
    begin = time.perf_counter()
    while not took or (time.perf_counter() - begin < seconds and len(took) < ROOM - 1):
        start = time.perf_counter()
        work(made)
        took.append(time.perf_counter() - start)
    return statistics.median(took)


def take_turns(
    everyone: Sequence[Measured], sizes: Sequence[int], rounds: int, seconds: float, keep: Callable[[], None]
) -> None:
    """All rounds: length by length, contestant by contestant, forward and then forward and backward; then ``keep``."""
    for done in range(rounds):
        for n in sizes:
            for found in everyone:
                modes: list[Mode] = [mode for mode in MODES if n in found.alone[mode]]
                if found.who.group == "decode":
                    modes = ["forward"]
                if not modes:
                    continue
                case = found.who.build(n)
                made = case.prepare()
                for mode in modes:
                    known = found.alone[mode].get(n, 0.0)
                    found.times[mode].setdefault(n, []).append(timed(case.work(mode), made, seconds, known))
                del case, made
                give_back()
        keep()
        print(f"round {done + 1} of {rounds}", file=sys.stderr, flush=True)


def give_back() -> None:
    """Memory that one contestant has freed is not the next one's to find."""
    gc.collect()
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", type=int, default=list(SIZES), help=f"in tokens, multiples of {WINDOW}")
    parser.add_argument("--fit-from", type=int, default=FIT_FROM, help="shortest length that exponents are fitted to")
    parser.add_argument("--only", nargs="+", metavar="WORD", help="contestants with a WORD in group, name or kind")
    parser.add_argument("--rounds", type=int, default=5, help="turns that everyone has at each length")
    parser.add_argument("--seconds", type=float, default=0.5, help="of each turn; one go is made at least")
    parser.add_argument(
        "--max-seconds", type=float, default=30.0, help="for one go; what would take longer is left out"
    )
    parser.add_argument("--max-gib", type=float, default=8.0, help="for one go; what would need more is left out")
    parser.add_argument("--threads", type=int, default=min(2, cores()))
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every measurement to FILE")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="also draw it: .svg, .png or .pdf (needs matplotlib)")
    parser.add_argument("--quick", action="store_true", help="short rows, two short rounds: tests the script only")
    chosen = parser.parse_args()
    wrong = [n for n in chosen.sizes if n < WINDOW or n % WINDOW]
    if wrong:
        parser.error(f"--sizes {wrong[0]}: peers cut rows into pieces of up to {WINDOW}, so give multiples of that")
    if chosen.plot is not None:
        check_plot(chosen.plot)
    return chosen


def main() -> None:
    chosen = options()
    sizes, fit, rounds, seconds = sorted(chosen.sizes), chosen.fit_from, chosen.rounds, chosen.seconds
    if chosen.quick:
        sizes, fit, rounds, seconds = [512, 1024], 512, 2, 0.01
    limits = {"seconds": chosen.max_seconds, "bytes": chosen.max_gib * 2**30}
    torch.set_num_threads(chosen.threads)
    keep_freed_memory()
    everyone = [
        Measured(who)
        for who in contestants()
        if not chosen.only or any(word in f"{who.group} {who.name} {who.kind}" for word in chosen.only)
    ]
    machine = f"{processor()}, {chosen.threads} threads, torch {torch.__version__}, Python {platform.python_version()}"
    print(f"{machine}; {rounds} rounds of {seconds:g} s", flush=True)
    for found in everyone:
        if found.who.group != "decode":
            print(f"alone: {found.who.group} {found.who.name}", file=sys.stderr, flush=True)
            measure_alone(found, sizes, chosen.threads, limits)
            if found.alone["forward"]:
                found.error = largest_difference(found.who, min(CHECKED, sizes[0]))
                give_back()

    def keep() -> None:
        if chosen.json is not None:
            settings = {"machine": machine, "rounds": rounds, "seconds": seconds, "sizes": sizes, "fit_from": fit}
            told = {"verdicts": [vars(verdict) for verdict in verdicts(everyone, sizes, fit)]}
            save_json(chosen.json, settings | told | {"contestants": [record(found, fit) for found in everyone]})

    take_turns(everyone, sizes, rounds, seconds, keep)
    report(everyone, sizes, fit)
    print("\nTargets")
    for verdict in verdicts(everyone, sizes, fit):
        print(verdict.show())
    if chosen.plot is not None:
        draw(everyone, fit, chosen.plot)


if __name__ == "__main__":
    main()
