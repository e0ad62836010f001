"""What was the Transformer for? Recurrent models of equal size beside it: how fast they train, and what they learn.

Three questions, one figure. speed: tokens a second of a whole training step at several lengths, with as many tokens in
every batch; all models take turns. text: bits per byte on held-out modules of Python's standard library after equal
time. recall: after equal steps, which value belonged to this key, as there are more and more pairs to keep in mind.

    python benchmarks/parallel_training.py --json training.json --plot training.svg     # over an hour
    python benchmarks/parallel_training.py --parts speed --lengths 128 512 2048
    python benchmarks/parallel_training.py --parts recall --seeds 3 --steps 3000
    python benchmarks/parallel_training.py --quick     # a minute: only to see that the script works
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from _equal import NAMES, Size, equal
from _fits import Interval, mean_interval
from _harness import Spread, cores, processor, save_json
from _pictures import BLACK, BLUE, GREEN, ORANGE, PURPLE, RED, SKY, Line, check_plot, curves, figure, save
from _recall import KEYS, VALUES, Recall, Task, recall
from _text import Text, best_of, learn_text

from pellucid.api import build
from pellucid.batch import Batch, Tokens
from pellucid.recipes.standard_library import standard_library
from pellucid.train.config import TrainOptions
from pellucid.train.memory import keep_freed_memory
from pellucid.train.objectives import nll
from pellucid.train.optim import build_optimizers
from pellucid.train.parts import OptimizerName
from pellucid.train.step import step

RIVALS = ("modern", "lstm", "gru", "lstm_attention")
RECALLERS = ("modern", "lstm", "gru", "linear", "retention", "delta")
PARTS = ("speed", "text", "recall")
TEXT_ROWS = 16  # of a batch of text
COLOURS = dict(zip(NAMES, (BLACK, RED, ORANGE, PURPLE, GREEN, SKY, BLUE), strict=True))


# --- speed ------------------------------------------------------------------------------------------------------------


@dataclass
class Speed:
    """Tokens a second, by length and round."""

    parameters: int
    by_length: dict[int, list[float]] = field(default_factory=lambda: {})


def speeds(
    size: Size, lengths: Sequence[int], tokens: int, rounds: int, seconds: float, optimizer: OptimizerName = "adamw"
) -> dict[str, Speed]:
    """All models, length after length, in turns; each step is forward, backward, clipping and the optimiser's."""
    sizes = (size.vocab_size, max(lengths), size.n_layers, size.d_model, size.head_dim)
    models = {name: build(equal(name)(*sizes)).train() for name in RIVALS}
    optimizers = {
        name: build_optimizers(model, optimizer, learning_rate=1e-4, matrix_learning_rate=1e-4, weight_decay=0.1)
        for name, model in models.items()
    }
    found = {name: Speed(model.n_parameters) for name, model in models.items()}
    for done in range(-1, rounds):  # the first round warms up
        for length in lengths:
            rows = max(1, tokens // length)
            ids = torch.randint(size.vocab_size, (rows, length + 1))
            batch = Batch(ids[:, :-1], Tokens.plain(rows, length), ids[:, 1:])
            for name, model in models.items():
                steps, start = 0, time.perf_counter()
                while steps == 0 or (done >= 0 and time.perf_counter() - start < seconds):
                    step(model, optimizers[name], nll, [batch], clip=1.0)
                    steps += 1
                if done >= 0:
                    speed = steps * rows * length / (time.perf_counter() - start)
                    found[name].by_length.setdefault(length, []).append(speed)
    return found


def show_speeds(found: dict[str, Speed], lengths: Sequence[int], tokens: int) -> None:
    print(f"\nSpeed: tokens/s of a training step, {tokens:,} tokens a batch; below, the Transformer's over it")
    print(f"  {'':18} {'parameters':>12}" + "".join(f"{n:>26}" for n in lengths))
    yardstick = found["modern"]
    for name, speed in found.items():
        cells = [Spread.of(speed.by_length[n]).show(",.0f") for n in lengths]
        print(f"  {NAMES[name]:18} {speed.parameters:>12,}" + "".join(f"{cell:>26}" for cell in cells))
        if name != "modern":
            beside = [
                Spread.of([a / b for a, b in zip(yardstick.by_length[n], speed.by_length[n], strict=True)]).show()
                for n in lengths
            ]
            print(f"  {'':31}" + "".join(f"{cell:>26}" for cell in beside))


# --- text -------------------------------------------------------------------------------------------------------------


def steps_within(
    minutes: float, size: Size, rows: int, rounds: int, seconds: float, optimizer: OptimizerName
) -> dict[str, int]:
    """How many steps of text each model makes in equal time: measured in turns, as a machine has slow minutes."""
    tokens = rows * size.context
    found = speeds(size, [size.context], tokens, rounds, seconds, optimizer)
    speed = {name: statistics.median(one.by_length[size.context]) for name, one in found.items()}
    return {name: max(10, round(minutes * 60 * each / tokens)) for name, each in speed.items()}


def show_texts(found: dict[str, list[Text]], minutes: float | None) -> None:
    given = "a few steps" if minutes is None else f"{minutes:g} minutes"
    print(f"\nText: bits per byte of held-out standard library after {given} each, the same seed and tokens a batch")
    print(
        f"  {'':18} {'optimiser':>10} {'parameters':>12} {'seconds':>9} {'steps':>8} {'M tokens':>9} {'bits/byte':>10}"
    )
    for name, runs in found.items():
        for one in runs:
            best = " ←" if len(runs) > 1 and one is best_of(runs) else ""
            row = f"{one.parameters:>12,} {one.seconds:>9.0f} {one.steps:>8,} {one.tokens / 1e6:>9.2f}"
            print(f"  {NAMES[name]:18} {one.optimizer:>10} {row} {one.bits_per_byte:>10.3f}{best}")


# --- recall -----------------------------------------------------------------------------------------------------------


def share(runs: list[Recall], pairs: int) -> Interval:
    """Per cent of queries answered right, over seeds; an interval as it is for any mean, cut where no share can be."""
    found = mean_interval([100 * run.accuracy[pairs] for run in runs])
    return Interval(found.middle, max(found.low, 0.0), min(found.high, 100.0))


def show_recalls(found: dict[str, list[Recall]], task: Task) -> None:
    seeds = max(len(runs) for runs in found.values())
    print(
        f"\nRecall: % of queries answered right, by pairs in the row, after {task.steps:,} steps of all; chance "
        f"{100 / VALUES:.1f}; {task.n_layers} layers × {task.d_model}, {seeds} seed{'s' if seeds > 1 else ''}"
    )
    head = "".join(f"{n:>20}" for n in task.pairs)
    print(f"  {'':18} {'parameters':>12} {'optimiser':>10} {'seconds':>8}{head}")
    for name, runs in found.items():
        cells = [share(runs, n).show(".1f") for n in task.pairs]
        used = "/".join(sorted({run.optimizer for run in runs}))
        seconds = statistics.median(run.seconds for run in runs)
        row = f"{runs[0].parameters:>12,} {used:>10} {seconds:>8.0f}"
        print(f"  {NAMES[name]:18} {row}" + "".join(f"{cell:>20}" for cell in cells))


# --- everything -------------------------------------------------------------------------------------------------------


def draw(
    path: Path, speed: dict[str, Speed], text: dict[str, list[Text]], recalled: dict[str, list[Recall]], task: Task
) -> None:
    """One panel a question that was asked."""
    asked = [part for part, found in zip(PARTS, (speed, text, recalled), strict=True) if found]
    drawn, axes = figure(1, len(asked), (6.4 * len(asked), 4.4))
    for panel, part in zip(axes[0], asked, strict=True):
        if part == "speed":
            lines = [
                Line(
                    NAMES[name],
                    list(one.by_length),
                    [statistics.median(x) for x in one.by_length.values()],
                    COLOURS[name],
                )
                for name, one in speed.items()
            ]
            curves(panel, lines, title="Training speed, equal parameters", x="tokens in a row", y="tokens per second")
        elif part == "text":
            lines = []
            for name, runs in text.items():
                best = best_of(runs)
                label = f"{NAMES[name]} {best.bits_per_byte:.3f}"  # of all held-out text; on the way, of its beginning
                lines.append(Line(label, [x for x, _ in best.curve], [y for _, y in best.curve], COLOURS[name]))
            title = "Learned in equal time: standard library"
            curves(
                panel,
                lines,
                title=title,
                x="seconds of training",
                y="bits per byte, held out",
                log_x=False,
                log_y=False,
            )
        else:
            lines = []
            for name, runs in recalled.items():
                bars = [share(runs, n) for n in task.pairs]
                means = [bar.middle for bar in bars]
                sure = None if len(runs) < 2 else bars
                lines.append(Line(NAMES[name], task.pairs, means, COLOURS[name], bars=sure))
            title = f"Recalled after {task.steps:,} steps"
            curves(
                panel, lines, title=title, x="pairs in a row", y="% of queries right", log_y=False, y_range=(-3, 103)
            )
            panel.axhline(100 / VALUES, color="#777777", linewidth=0.8, linestyle=":")
    save(drawn, path)


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--depth", type=int, default=Size.n_layers, help="layers of the models of speed and text")
    parser.add_argument("--width", type=int, default=Size.d_model, help="their d_model, a multiple of 64")
    optimizers = ["muon", "adamw"]
    words = "of text and recall: the better one counts, for each model"
    parser.add_argument("--optimizers", nargs="+", choices=optimizers, default=optimizers, help=words)
    speed = parser.add_argument_group("speed")
    speed.add_argument("--lengths", nargs="+", type=int, default=[128, 512, 2048])
    speed.add_argument("--tokens", type=int, default=4096, help="in every batch")
    speed.add_argument("--rounds", type=int, default=5, help="turns of every model at each length")
    speed.add_argument("--seconds", type=float, default=4.0, help="of each turn; one step is made at least")
    text = parser.add_argument_group("text")
    text.add_argument("--minutes", type=float, default=4.0, help="of training, for each model and optimiser")
    recall = parser.add_argument_group("recall")
    recall.add_argument("--pairs", nargs="+", type=int, default=[4, 8, 16, 32, 64])
    recall.add_argument("--steps", type=int, default=1500, help="updates of each model, seed and optimiser")
    recall.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=min(2, cores()))
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write everything measured to FILE")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="also draw it: .svg, .png or .pdf (needs matplotlib)")
    parser.add_argument("--quick", action="store_true", help="tiny models, a few steps: tests the script only")
    chosen = parser.parse_args()
    if chosen.plot is not None:
        check_plot(chosen.plot)
    if chosen.width % 64 or min(chosen.width, *chosen.lengths, *chosen.pairs) < 1 or max(chosen.pairs) > KEYS:
        parser.error(f"--width is a multiple of 64, lengths and pairs are positive, and there are {KEYS} keys to pair")
    if chosen.quick:
        chosen.lengths, chosen.tokens, chosen.rounds, chosen.seconds = [32, 64], 128, 2, 0.05
        chosen.depth, chosen.width, chosen.minutes, chosen.optimizers = 2, 64, None, ["adamw"]
        chosen.pairs, chosen.steps, chosen.seeds = [2, 4], 10, 2
    return chosen


def main() -> None:
    chosen = options()
    torch.set_num_threads(chosen.threads)
    keep_freed_memory()
    size = Size(chosen.depth, chosen.width, head_dim=min(64, chosen.width // 2))
    machine = f"{processor()}, {chosen.threads} threads, torch {torch.__version__}, Python {platform.python_version()}"
    print(f"{machine}; {size.n_layers} layers × {size.d_model}, vocabulary {size.vocab_size:,}", flush=True)
    speed: dict[str, Speed] = {}
    text: dict[str, list[Text]] = {}
    recalled: dict[str, list[Recall]] = {}
    task = Task(tuple(sorted(chosen.pairs)), chosen.steps)

    def keep() -> None:
        if chosen.json is not None:
            record: dict[str, Any] = {"machine": machine, "size": asdict(size), "recall_task": asdict(task)}
            for part, found in zip(PARTS, (speed, text, recalled), strict=True):
                record[part] = {
                    name: [asdict(one) for one in runs] if isinstance(runs, list) else asdict(runs)
                    for name, runs in found.items()
                }
            save_json(chosen.json, record)

    if "speed" in chosen.parts:
        speed = speeds(size, chosen.lengths, chosen.tokens, chosen.rounds, chosen.seconds)
        show_speeds(speed, chosen.lengths, chosen.tokens)
        keep()
    if "text" in chosen.parts:
        recipe = standard_library()
        texts = tuple(map(str, recipe.held_out)) if chosen.quick else recipe.texts
        asked = TrainOptions(
            steps=10, batch_size=TEXT_ROWS, precision="fp32", sample_every=0, checkpoint_every=10**9,
            held_out=recipe.options.held_out[: 2 if chosen.quick else None],
        )  # fmt: skip
        for optimizer in chosen.optimizers:
            steps: dict[str, int] = {}
            if chosen.minutes is not None:
                steps = steps_within(chosen.minutes, size, TEXT_ROWS, chosen.rounds, chosen.seconds, optimizer)
            for name in RIVALS:
                print(f"text: {NAMES[name]}, {optimizer}", file=sys.stderr, flush=True)
                given = replace(asked, steps=steps.get(name, asked.steps))
                text.setdefault(name, []).append(learn_text(name, size, optimizer, given, texts))
                keep()
        show_texts(text, chosen.minutes)
    if "recall" in chosen.parts:
        for seed in range(chosen.seeds):
            for name in RECALLERS:
                print(f"recall: {NAMES[name]}, seed {seed}", file=sys.stderr, flush=True)
                recalled.setdefault(name, []).append(recall(task, name, chosen.optimizers, seed))
                keep()
        show_recalls(recalled, task)
    if chosen.plot is not None:
        draw(chosen.plot, speed, text, recalled, task)


if __name__ == "__main__":
    main()
