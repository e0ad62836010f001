"""What a person sees while a model trains: a live panel in a terminal, a line now and then anywhere else."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from pellucid.batch import Batch
from pellucid.look.ink import spark
from pellucid.look.rows import show_rows
from pellucid.nn.models import AnyModel, Decoder, Encoder
from pellucid.train.config import Run
from pellucid.train.loop import Result
from pellucid.train.report import Progress as State
from pellucid.train.report import Reporter

SAMPLE_TOKENS = 60


def write_sample(model: AnyModel) -> str:
    """A few tokens of the model's own, from nothing; "" of a model that does not write by itself."""
    if not isinstance(model, Decoder):
        return ""
    from pellucid.generate.decode import generate
    from pellucid.generate.sample import Sampling

    return generate(model, [""], max_new_tokens=SAMPLE_TOKENS, sampling=Sampling(temperature=0.8), ignore_eos=True)[
        0
    ].text


def clock(seconds: float) -> str:
    """h:mm:ss or m:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def sparkline(values: list[float], width: int) -> str:
    """The course of a value, as many characters as fit, each the mean of its share."""
    if len(values) < 2:
        return ""
    n = min(width, len(values))
    means = [
        sum(part) / len(part) for i in range(n) if (part := values[i * len(values) // n : (i + 1) * len(values) // n])
    ]
    return spark(means)


class Lines(Reporter):
    """Plain lines, about every ten seconds: for logs and pipes."""

    every = 10.0

    def __init__(self, console: Console, show_batch: bool = False):
        self.console, self.show_batch = console, show_batch
        self.last = 0.0
        self.measures: Mapping[str, float] = {}

    def message(self, text: str) -> None:
        self.console.print(text, style="dim", highlight=False, markup=False)

    @contextmanager
    def working(self, what: str, total: int) -> Iterator[Callable[[int], None]]:
        """A bar while the block runs, named ``what``; yields a function to be told how much of ``total`` was done."""
        bars = Progress(
            TextColumn("{task.description:28}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn(),
            console=self.console, transient=True, disable=not self.console.is_terminal,
        )  # fmt: skip
        started = time.perf_counter()
        with bars:
            task = bars.add_task(what, total=total)
            yield lambda n: bars.advance(task, n)
        self.message(f"{what}: {total:,} bytes, {time.perf_counter() - started:.1f} s")

    def start(self, run: Run, done: int) -> None:
        if not done:
            self.console.print(reasons_table(run))
        precision = run.runtime.precision
        what = "training" if not done else f"going on after step {done:,}"
        about = "" if run.schedule.minutes is None else f"{run.schedule.minutes:g} minutes, about "
        self.console.print(
            f"[bold]{what}[/]: {about}{run.steps:,} steps of {run.tokens_per_step:,} tokens, {precision}"
        )

    def reading(self, batches: Callable[[], Sequence[Batch]], model: AnyModel) -> None:
        if self.show_batch:
            show_rows(batches()[0], model.tokenizer, self.console, shifted=not isinstance(model, Encoder))

    def progress(self, state: State) -> None:
        now = time.perf_counter()
        if now - self.last > self.every or state.step == state.steps:
            self.last = now
            self.console.print(status(state, self.measures), highlight=False, soft_wrap=True)

    def validated(self, step: int, metrics: Mapping[str, float]) -> None:
        self.measures = metrics

    def sample(self, step: int, text: str) -> None:
        self.console.print(
            Panel(Text(text), title=f"the model writes, at step {step:,}", title_align="left", border_style="dim")
        )

    def finished(self, result: Result, folder: Path) -> None:
        """The last lines of a run: what came out, and what to do with it."""
        if result.metrics:
            self.console.print(f"held out: [bold]{in_words(result.metrics, 4)}[/]", highlight=False)
        self.console.print(result.model)
        self.console.print(f"saved in [bold]{folder}[/]; next:", highlight=False)
        self.console.print(
            f'  pellucid generate {folder} "..."\n  pellucid look {folder} "..."', highlight=False, markup=False
        )


class Panels(Lines):
    """A live panel: progress, loss curve, speed, and what the model writes."""

    def __init__(self, console: Console, show_batch: bool = False):
        super().__init__(console, show_batch)
        self.losses: list[float] = []
        self.state: State | None = None
        self.written: tuple[int, str] | None = None
        self.live: Live | None = None

    def start(self, run: Run, done: int) -> None:
        super().start(run, done)
        self.live = Live(get_renderable=self._panel, console=self.console, refresh_per_second=4, transient=True)
        self.live.start()

    def progress(self, state: State) -> None:
        self.state = state
        self.losses.append(state.loss)

    def sample(self, step: int, text: str) -> None:
        self.written = (step, text)

    def end(self) -> None:
        """Stop the live display; its last status and sample stay on the screen."""
        if self.live is not None:
            self.live.stop()
            self.live = None
        if self.state is not None:
            self.console.print(status(self.state, self.measures), highlight=False, soft_wrap=True)
        if self.written is not None:
            super().sample(*self.written)

    def _panel(self) -> Panel | Text:
        state = self.state
        if state is None:
            return Text("first step...", "dim")
        width = max(20, min(self.console.width - 20, 90))
        filled = round(width * state.step / state.steps)
        grid = Table.grid(padding=(0, 2))
        grid.add_row("step", Text.assemble(("━" * filled, "cyan"), ("━" * (width - filled), "bright_black")))
        grid.add_row("", f"{state.step:,} of {state.steps:,} · {clock(state.seconds_left)} left")
        grid.add_row("loss", Text(sparkline(self.losses, width), "cyan"))
        grid.add_row("", Text(f"{state.loss:.3f} nats a token"))
        grid.add_row("held out", Text(in_words(self.measures) or "not yet", "bold"))
        used = f"{state.utilisation:.0%} of this machine's measured peak"
        grid.add_row("speed", f"{state.tokens_per_second:,.0f} tokens/s · {used}")
        parts: list[Table | Panel] = [grid]
        if self.written is not None:
            step, text = self.written
            title = f"the model writes, at step {step:,}"
            parts.append(Panel(Text(text), title=title, title_align="left", border_style="dim"))
        return Panel(Group(*parts), title="pellucid train", title_align="left", border_style="cyan")


def in_words(measures: Mapping[str, float], digits: int = 3) -> str:
    """Named measures in words: "1.234 bits per byte, 2.345 perplexity"."""
    return ", ".join(f"{value:.{digits}f} {name.replace('_', ' ')}" for name, value in measures.items())


def status(state: State, measures: Mapping[str, float]) -> str:
    """One line about where a run stands."""
    bits = f" · held out {in_words(measures)}" if measures else ""
    return (
        f"step {state.step:,}/{state.steps:,} · loss {state.loss:.3f}{bits} · {state.tokens_per_second:,.0f} tokens/s "
        f"({state.utilisation:.0%} of peak) · {clock(state.seconds_left)} left"
    )


def reasons_table(run: Run) -> Table:
    """Every number of the run and where it came from."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", title_justify="left")
    table.add_column("number")
    table.add_column("value", justify="right")
    table.add_column("where it came from", style="dim")
    for reason in run.reasons:
        table.add_row(Text(reason.field), Text(reason.value, "bold"), Text(reason.why))
    return table


@contextmanager
def display(show_batch: bool = False) -> Iterator[Lines]:
    """The reporter that fits where the output goes. show_batch: it shows rows of the first step."""
    console = Console()
    shown = (Panels if console.is_terminal else Lines)(console, show_batch)
    try:
        yield shown
    finally:
        shown.end()
