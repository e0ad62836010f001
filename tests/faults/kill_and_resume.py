"""Kill -9 a training run again and again, resume it each time, and compare with a run that was left alone, bit for bit.

    python tests/faults/kill_and_resume.py --kills 20
    python tests/faults/kill_and_resume.py --kills 4 --steps 50 --kind encoder --text notes.txt

Every third kill waits for a checkpoint that is being written (its folder still has its temporary name), every sixth
until it has its name, when older ones are removed; the others come after a random number of steps, the first while the
text is still being prepared. At the end comes one more, between the last line of the metrics and the finished model.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

OPTIONS = (
    "--depth 2 --d-model 64 --context 64 --batch-size 4 --micro-batches 2 --vocab-size 512 --dropout 0.1 "
    "--validate-every 7 --sample-every 11 --checkpoint-every 3 --precision fp32"
).split()

# what is trained: the options beside those above
KINDS: dict[str, tuple[str, ...]] = {
    "decoder": (),
    "encoder": ("--objective", "mlm"),
    "spans": ("--objective", "spans"),
    "denoise": ("--objective", "denoise"),
    "ul2": ("--objective", "ul2"),
    "prefix": ("--objective", "prefix"),
    "fim": ("--objective", "fim"),
    "rtd": ("--objective", "rtd"),
    "ahead": ("--tokens-ahead", "3"),
    "pairs": ("--objective", "seq2seq", "--smoothing", "0.1", "--schedule", "inverse_sqrt"),
    "frozen": ("--freeze", "embed.*"),
}


@dataclass
class Run:
    """A command line but for its folder."""

    text: Path
    steps: int
    kind: str = "decoder"
    minutes: float | None = None  # instead of steps

    def command(self, out: Path) -> list[str]:
        length = ["--steps", str(self.steps)] if self.minutes is None else ["--minutes", str(self.minutes)]
        return [*self.train(out), *length, *OPTIONS, *KINDS[self.kind]]

    def train(self, out: Path) -> list[str]:
        return [sys.executable, "-m", "pellucid", "train", str(self.text), "--out", str(out)]


@dataclass
class Report:
    """What happened: how many kills came at a random step, inside a checkpoint write, just after one, and so on."""

    at_step: int = 0
    in_checkpoint: int = 0
    after_checkpoint: int = 0
    before_training: int = 0
    finishing: int = 0  # not counted as a kill: a fast run may end before it comes
    differences: list[str] = field(default_factory=list)

    @property
    def kills(self) -> int:
        return self.at_step + self.in_checkpoint + self.after_checkpoint + self.before_training


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PELLUCID_CACHE": tempfile.gettempdir()}


def run_to_end(run: Run, out: Path) -> None:
    subprocess.run(run.command(out), check=True, env=environment(), stdout=subprocess.DEVNULL)


def lines(out: Path) -> int:
    try:
        return (out / "metrics.jsonl").read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0


def being_written(out: Path) -> bool:
    try:
        return any(name.endswith(".tmp") for name in os.listdir(out / "checkpoints"))
    except FileNotFoundError:
        return False


def finishing(out: Path) -> bool:
    try:
        return b'"final_' in (out / "metrics.jsonl").read_bytes()
    except FileNotFoundError:
        return False


def run_and_kill(run: Run, out: Path, moment: str, wait: int, report: Report, errors: Path) -> None:
    """Start the run and kill it at ``moment``: start, step (after ``wait`` more lines), checkpoint, after or finish."""
    before = lines(out)
    with errors.open("w") as stream:
        process = subprocess.Popen(run.command(out), env=environment(), stdout=stream, stderr=stream)
    seen_start = seen_write = False
    while process.poll() is None:
        now = lines(out)
        seen_start = seen_start or now != before
        seen_write = seen_start and (seen_write or being_written(out))
        if moment == "start" and out.exists():
            time.sleep(0.05)
            break
        if moment == "step" and now >= before + wait and seen_start:
            break
        if moment == "checkpoint" and seen_write:
            break
        if moment == "after" and seen_write and not being_written(out):
            break
        if moment == "finish" and finishing(out):
            break
        if moment in ("start", "step"):
            time.sleep(0.002)
    if moment == "finish" and process.poll() == 0:
        return
    if process.poll() is not None:
        problem = f"the run ended before it could be killed (exit {process.returncode}): {errors.read_text()}"
        raise AssertionError(problem)
    process.send_signal(signal.SIGKILL)
    process.wait()
    if moment == "start":
        report.before_training += 1
    elif moment == "finish":
        report.finishing += 1
    elif being_written(out):
        report.in_checkpoint += 1
    elif moment == "after":
        report.after_checkpoint += 1
    else:
        report.at_step += 1


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def some_text(folder: Path, kind: str) -> Path:
    """A text of Python's own, or of its lines as pairs."""
    source = Path(sysconfig.get_paths()["stdlib"])
    text = "".join((source / name).read_text() for name in ("heapq.py", "ast.py", "cmd.py", "csv.py"))
    path = folder / ("pairs.tsv" if kind == "pairs" else "text.txt")
    if kind == "pairs":
        lines = [line.strip() for line in text.splitlines() if 8 < len(line.strip()) < 60]
        text = "".join(f"{line}\t{line[::-1]}\n" for line in lines)
    path.write_text(text)
    return path


def torture(
    folder: Path, kills: int, seed: int = 0, kind: str = "decoder", text: Path | None = None, steps: int | None = None
) -> Report:
    """Train once undisturbed and once with ``kills`` kills; the report lists every file that differs."""
    rng, report = random.Random(seed), Report()
    run = Run(text or some_text(folder, kind), steps or 12 * kills + 12, kind)
    whole, broken = folder / "whole", folder / "broken"
    run_to_end(run, whole)
    for i in range(kills):
        moment = "start" if i == 0 else "checkpoint" if i % 3 == 1 else "after" if i % 6 == 5 else "step"
        run_and_kill(run, broken, moment, rng.randint(1, 8), report, folder / "errors.log")
    run_and_kill(run, broken, "finish", 0, report, folder / "errors.log")
    run_to_end(run, broken)
    last = f"checkpoints/step-{run.steps:08d}"
    names = ("model.safetensors", "metrics.jsonl", "spec.json", "tokenizer.json")
    for name in (*names, f"{last}/model.safetensors", f"{last}/optimizer.safetensors"):
        if digest(whole / name) != digest(broken / name):
            report.differences.append(name)
    report.differences += [str(path) for path in broken.rglob("*.tmp")]
    return report


def torture_minutes(folder: Path, kills: int, minutes: float, seed: int = 0, kind: str = "decoder") -> Report:
    """Train for ``minutes`` with ``kills`` kills; the clock decides how many steps there are.

    So the run is then repeated from its run.json, and the report lists every file that differs.
    """
    rng, report = random.Random(seed), Report()
    run = Run(some_text(folder, kind), 1, kind, minutes)
    broken, again = folder / "broken", folder / "again"
    for i in range(kills):
        moment = "checkpoint" if i % 3 == 1 else "step"
        run_and_kill(run, broken, moment, rng.randint(1, 20), report, folder / "errors.log")
    run_to_end(run, broken)
    repeat = [*run.train(again), "--run", str(broken / "run.json")]
    subprocess.run(repeat, check=True, env=environment(), stdout=subprocess.DEVNULL)
    names = ("model.safetensors", "metrics.jsonl", "spec.json", "tokenizer.json")
    report.differences += [name for name in names if digest(broken / name) != digest(again / name)]
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", choices=KINDS, default="decoder")
    parser.add_argument("--text", type=Path, help="learned from, instead of Python's own source")
    parser.add_argument("--steps", type=int, help="of the run [default: 12 for each kill, and 12]")
    parser.add_argument("--minutes", type=float, help="of the run, instead of steps; it is then repeated, and compared")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if asked.minutes is None:
            report = torture(Path(folder), asked.kills, asked.seed, asked.kind, asked.text, asked.steps)
        else:
            report = torture_minutes(Path(folder), asked.kills, asked.minutes, asked.seed, asked.kind)
    print(
        f"{report.kills} kills: {report.before_training} before training, {report.at_step} at a random step, "
        f"{report.in_checkpoint} inside a checkpoint write, {report.after_checkpoint} just after one; "
        f"and {report.finishing} while the finished model was written"
    )
    print("differences: " + (", ".join(report.differences) or "none: weights and metrics are equal bit for bit"))
    sys.exit(1 if report.differences else 0)


if __name__ == "__main__":
    main()
