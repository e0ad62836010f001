"""How fast is a training step, beside the peers? Tokens a second and FLOP utilisation, in one run, in ratios.

Every row is one shape, precision and mode. Each contestant has a process of its own, is warmed up, and then all take
turns, A B C D A B C D …, with one that only multiplies matrices: the peak of the utilisation. What else the machine
does then touches all alike, and the ratio of two neighbours in time says more than two speeds. Nothing is asserted.

    python benchmarks/train_step.py --shapes small --precisions fp32 --modes eager compiled
    python benchmarks/train_step.py --quick          # tiny: only to see that the script works
"""

from __future__ import annotations

import argparse
import math
import platform
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from _contestants import CONTESTANTS, OURS, Job
from _harness import AbsentError, Spread, Worker, cores, processor, save_json

TARGET = 1.0  # of the best peer
PEAK_SECONDS = 1.0
NEAR = 0.2  # nats from ln(vocab_size) that a first loss may be: all weights are drawn alike


@dataclass(frozen=True)
class Shape:
    n_layers: int
    d_model: int
    n_heads: int
    context: int
    vocab_size: int
    batch: int


SHAPES = {
    "small": Shape(n_layers=6, d_model=384, n_heads=6, context=256, vocab_size=50_304, batch=8),
    "base": Shape(n_layers=12, d_model=768, n_heads=12, context=512, vocab_size=50_304, batch=4),
}
TINY = Shape(n_layers=2, d_model=64, n_heads=2, context=32, vocab_size=512, batch=2)


@dataclass(frozen=True)
class Row:
    """One shape, precision and mode: what every contestant did, and why some did not."""

    title: str
    peak: float  # FLOP/s: the best turn of the row, as nothing but matrix products ever makes it faster
    facts: dict[str, dict[str, Any]]
    speeds: dict[str, list[float]]  # tokens a second, by round
    absent: dict[str, str]

    @property
    def best_peer(self) -> str | None:
        """The peer with the highest median speed."""
        peers = {name: Spread.of(speeds).median for name, speeds in self.speeds.items() if name != OURS}
        return max(peers, key=lambda name: peers[name], default=None)

    def ratio(self, peer: str) -> Spread:
        """Our speed over the peer's, round by round."""
        return Spread.of([ours / theirs for ours, theirs in zip(self.speeds[OURS], self.speeds[peer], strict=True)])

    def utilisation(self, name: str) -> Spread:
        """Useful FLOP/s over the peak."""
        flops = self.facts[name]["flops"] / self.facts[name]["tokens"]
        return Spread.of([speed * flops / self.peak for speed in self.speeds[name]])


def measure(title: str, jobs: Sequence[Job], rounds: int, seconds: float) -> Row:
    """Warm everyone up, one after the other, then let them take turns."""
    workers: dict[str, Worker] = {}
    absent: dict[str, str] = {}
    with ExitStack() as stack:
        for job in jobs:
            try:
                worker = Worker(asdict(job))
            except AbsentError as why:
                absent[job.contestant] = str(why)
                continue
            stack.callback(worker.close)
            worker.facts["tokens"] = job.tokens
            workers[job.contestant] = worker
        speeds: dict[str, list[float]] = {name: [] for name in workers}
        for _ in range(rounds):
            for name, worker in list(workers.items()):
                try:
                    took = worker.turn(PEAK_SECONDS if name == "peak" else seconds)
                except AbsentError as why:
                    absent[name] = str(why)
                    del workers[name], speeds[name]
                    continue
                per_step = worker.facts["flops"] if name == "peak" else worker.facts["tokens"]
                speeds[name].append(took["steps"] * per_step / took["seconds"])
                worker.facts["peak_bytes"] = took["peak_bytes"]
    if "peak" in absent:
        raise SystemExit(f"the machine's peak could not be measured: {absent['peak']}")
    peak = max(speeds.pop("peak"))
    return Row(title, peak, {name: worker.facts for name, worker in workers.items()}, speeds, absent)


def show(row: Row, vocab_size: int) -> None:
    """A row as a table: one line a contestant, and one with the verdict."""
    print(f"\n{row.title}   peak {row.peak / 1e9:,.0f} GFLOP/s")
    line = "  {:15} {:>24} {:>18} {:>19} {:>9} {:>9} {:>7} {:>8}"
    heads = ("tokens/s (min–max)", "utilisation %", "pellucid ÷ it", "M params", "GF/token", "GiB", "loss 0")
    print(line.format("", *heads))
    for name in CONTESTANTS:
        if name in row.absent:
            print(f"  {name:15} not measured: {row.absent[name]}")
        if name not in row.speeds:
            continue
        facts = row.facts[name]
        beside = row.ratio(name).show() if OURS in row.speeds and name != OURS else ""
        print(
            line.format(
                name,
                Spread.of(row.speeds[name]).show(",.0f"),
                row.utilisation(name).show(".0f", 100),
                beside,
                f"{facts['parameters'] / 1e6:.2f}",
                f"{facts['flops'] / facts['tokens'] / 1e9:.3f}",
                f"{facts['peak_bytes'] / 2**30:.1f}",
                f"{facts['first_loss']:.3f}",
            )
        )
        expected = math.log(vocab_size)
        if abs(facts["first_loss"] - expected) > NEAR:
            print(f"  {'':15} loss 0 is not near ln({vocab_size}) = {expected:.3f}: this is other work!")
    print(f"  {verdict(row)}", flush=True)


def verdict(row: Row) -> str:
    """Our ratio to the best peer, and whether it meets the target; who is missing is said with it."""
    best = row.best_peer
    if best is None or OURS not in row.speeds:
        return "nothing to compare"
    ratio = row.ratio(best)
    met = "met" if ratio.median >= TARGET else "MISSED"
    missing = [name for name in row.absent if name in CONTESTANTS]
    without = f"; without {', '.join(missing)}" if missing else ""
    return f"pellucid ÷ best peer ({best}): {ratio.show()}   target ≥ {TARGET:.2f}: {met}{without}"


def record(row: Row) -> dict[str, Any]:
    """A row, for JSON."""
    best = row.best_peer if OURS in row.speeds else None
    contestants = {
        name: row.facts[name]
        | {"tokens_per_second": speeds, "utilisation": row.utilisation(name)}
        | ({"pellucid_over_it": row.ratio(name)} if OURS in row.speeds else {})
        for name, speeds in row.speeds.items()
    }
    return {
        "title": row.title,
        "peak_flops_per_second": row.peak,
        "contestants": contestants,
        "absent": row.absent,
        "best_peer": best,
        "pellucid_over_best_peer": row.ratio(best) if best else None,
    }


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--precisions", nargs="+", choices=["fp32", "bf16"], default=["fp32", "bf16"])
    parser.add_argument("--modes", nargs="+", choices=["eager", "compiled"], default=["eager", "compiled"])
    parser.add_argument("--contestants", nargs="+", choices=list(CONTESTANTS), default=list(CONTESTANTS))
    parser.add_argument("--rounds", type=int, default=5, help="turns that everyone has in each row")
    parser.add_argument("--seconds", type=float, default=6.0, help="of each turn; two steps are made at least")
    parser.add_argument("--batch", type=int, help="rows of a batch, instead of the shape's own")
    parser.add_argument("--threads", type=int, default=cores())
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write everything measured to FILE")
    parser.add_argument("--quick", action="store_true", help="a tiny shape, two short rounds: tests the script only")
    return parser.parse_args()


def main() -> None:
    chosen = options()
    shapes = {"tiny": TINY} if chosen.quick else {name: SHAPES[name] for name in chosen.shapes}
    rounds, seconds = (2, 0.2) if chosen.quick else (chosen.rounds, chosen.seconds)
    machine = f"{processor()}, {chosen.threads} threads, Python {platform.python_version()}"
    print(f"{machine}; {rounds} rounds of {seconds:g} s")
    rows: list[tuple[Row, int]] = []
    for name, shape in shapes.items():
        size = asdict(shape) | ({"batch": chosen.batch} if chosen.batch else {})
        for precision in chosen.precisions:
            for mode in chosen.modes:
                title = (
                    f"{name}: {shape.n_layers} layers × {shape.d_model}, batch {size['batch']} × {shape.context}, "
                    f"vocabulary {shape.vocab_size:,} · {precision} · {mode}"
                )
                settings = {"precision": precision, "mode": mode, "threads": chosen.threads}
                jobs = [Job(contestant=who, **size, **settings) for who in ["peak", *chosen.contestants]]
                row = measure(title, jobs, rounds, seconds)
                show(row, shape.vocab_size)
                rows.append((row, shape.vocab_size))
                if chosen.json is not None:
                    save_json(chosen.json, {"machine": machine, "rows": [record(row) for row, _ in rows]})
    told = {name: facts for row, _ in rows for name, facts in row.facts.items()}
    print("\nWho took part")
    for name in CONTESTANTS:
        if name in told:
            facts = told[name]
            differs = f": {facts['differs']}" if facts["differs"] else ""
            print(f"  {name} {facts['version']}, torch {facts['torch']}{differs}")
    print("\nEverything, shortly")
    for row, _ in rows:
        print(f"  {row.title.partition(':')[0]:6} {' · '.join(row.title.split(' · ')[1:]):16} {verdict(row)}")


if __name__ == "__main__":
    main()
