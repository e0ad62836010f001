"""What the benchmarks' plots share: quiet axes, and names written beside the lines instead of a legend."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from _fits import Interval

# Okabe & Ito's colours, told apart by everyone
BLACK, ORANGE, SKY, GREEN = "#000000", "#e69f00", "#56b4e9", "#009e73"
BLUE, RED, PURPLE, GREY = "#0072b2", "#d55e00", "#cc79a7", "#777777"


@dataclass(frozen=True)
class Line:
    """A named curve; ``dashed`` for what is not ours. bars: low and high of each point."""

    name: str
    xs: Sequence[float]
    ys: Sequence[float]
    colour: str
    dashed: bool = False
    bars: Sequence[Interval] | None = None


def figure(rows: int, columns: int, size: tuple[float, float]) -> tuple[Any, Any]:
    """A matplotlib figure and its axes as a 2-d array, drawn without a display."""
    matplotlib: Any = import_module("matplotlib")
    matplotlib.use("Agg")
    matplotlib.rcParams |= {
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.color": "#e8e8e8",
        "axes.axisbelow": True,
        "axes.titlesize": 10,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "svg.fonttype": "none",
        "svg.hashsalt": "pellucid",
    }
    pyplot = import_module("matplotlib.pyplot")
    return pyplot.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")


def check_plot(path: Path) -> None:
    """End with one line, before anything is measured, where the figure could not be written in the end."""
    try:
        import_module("matplotlib")
    except ModuleNotFoundError as error:
        raise SystemExit("--plot needs matplotlib: make bench installs it, or pip install 'pellucid[bench]'") from error
    if path.suffix not in (".svg", ".png", ".pdf") or not path.absolute().parent.is_dir():
        raise SystemExit(f"--plot {path}: give the name of an .svg, .png or .pdf in a folder that exists")


def save(drawn: Any, path: Path) -> None:
    """Write the figure in the format of the file's ending."""
    drawn.savefig(path, dpi=150)
    import_module("matplotlib.pyplot").close(drawn)


def short(n: float) -> str:
    """1024 as 1k."""
    return f"{n / 1024:g}k" if n >= 1024 and n % 1024 == 0 else f"{n:g}"


def curves(
    axes: Any,
    lines: Sequence[Line],
    *,
    title: str,
    x: str,
    y: str,
    log_x: bool = True,
    log_y: bool = True,
    y_range: tuple[float, float] | None = None,
) -> None:
    """Lines over axes that say what they are, each with its name where it ends."""
    lines = [line for line in lines if len(line.xs)]
    if log_x:
        axes.set_xscale("log", base=2)
    if log_y:
        axes.set_yscale("log")
    for line in lines:
        style = {"color": line.colour, "linestyle": (0, (4, 2)) if line.dashed else "-", "linewidth": 1.6}
        axes.plot(line.xs, line.ys, marker="o", markersize=3, **style)
        if line.bars is not None:
            low, high = [bar.low for bar in line.bars], [bar.high for bar in line.bars]
            axes.fill_between(line.xs, low, high, color=line.colour, alpha=0.15, linewidth=0)
    axes.set_title(title)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    if log_x:
        every = sorted({n for line in lines for n in line.xs})
        axes.set_xticks(every, [short(n) for n in every])
    axes.minorticks_off()
    if log_y:
        ticker = import_module("matplotlib.ticker")
        axes.yaxis.set_major_locator(ticker.LogLocator(base=10, subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(ticker.StrMethodFormatter("{x:,.6g}"))
    axes.margins(x=0.04)
    if y_range is not None:
        axes.set_ylim(*y_range)
    name_ends(axes, lines)


def name_ends(axes: Any, lines: Sequence[Line]) -> None:
    """Each name right of its line's last point, moved up or down so that none lies on another."""
    axes.figure.canvas.draw()  # places are known only then
    left, right = axes.get_xlim()
    to_pixels, height = axes.transData.transform, 11 * axes.figure.dpi / 72
    wanted = [to_pixels((line.xs[-1], line.ys[-1]))[1] for line in lines]
    places = spread(wanted, height)
    x_pixels = axes.transAxes.transform((1.0, 0.0))[0]
    for line, y_pixels in zip(lines, places, strict=True):
        at = axes.transAxes.inverted().transform((x_pixels, y_pixels))
        ends = axes.transAxes.inverted().transform(to_pixels((line.xs[-1], line.ys[-1])))
        axes.annotate(
            line.name,
            xy=(ends[0], ends[1]),
            xytext=(1.03, at[1]),
            xycoords="axes fraction",
            textcoords="axes fraction",
            color=line.colour,
            va="center",
            fontsize=8,
            arrowprops={"arrowstyle": "-", "color": line.colour, "linewidth": 0.5, "alpha": 0.5, "shrinkB": 2},
            annotation_clip=False,
        )
    axes.set_xlim(left, right)


def spread(wanted: Sequence[float], apart: float) -> list[float]:
    """The places nearest to ``wanted``, in their order, of which no two are closer than ``apart``.

    Neighbours that are too close become a group around the mean of where they want to be.
    """
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    groups: list[list[int]] = []
    for i in order:
        groups.append([i])
        while len(groups) > 1 and _bottom(groups[-1], wanted, apart) < _top(groups[-2], wanted, apart) + apart:
            last = groups.pop()
            groups[-1] += last
    places = [0.0] * len(wanted)
    for group in groups:
        for step, i in enumerate(group):
            places[i] = _bottom(group, wanted, apart) + step * apart
    return places


def _bottom(group: Sequence[int], wanted: Sequence[float], apart: float) -> float:
    return sum(wanted[i] for i in group) / len(group) - (len(group) - 1) * apart / 2


def _top(group: Sequence[int], wanted: Sequence[float], apart: float) -> float:
    return _bottom(group, wanted, apart) + (len(group) - 1) * apart
