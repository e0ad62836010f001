"""How the figures of docs look: dark on white, so that they can be read on light and on dark pages."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from torch import Tensor

COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#777777"]  # Okabe & Ito's, told apart by everyone


def panels(columns: int, width: float = 8.0, height: float = 3.0) -> tuple[Any, list[Any]]:
    """A matplotlib figure and its axes, side by side; drawn without a display, the same file each time."""
    matplotlib = import_module("matplotlib")
    matplotlib.use("svg")
    matplotlib.rcParams |= {"svg.hashsalt": "pellucid", "svg.fonttype": "none", "font.size": 8}
    matplotlib.rcParams |= {"font.family": "sans-serif", "axes.spines.top": False, "axes.spines.right": False}
    pyplot = import_module("matplotlib.pyplot")
    figure, axes = pyplot.subplots(1, columns, figsize=(width, height), layout="constrained", squeeze=False)
    return figure, list(axes[0])


def name_axes(axes: Any, title: str, x: str, y: str, *, log: str = "") -> None:
    """Words on a panel; ``log`` names the axes that are logarithmic."""
    axes.set_title(title, fontsize=9)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    if "x" in log:
        axes.set_xscale("log", base=2)
    if "y" in log:
        axes.set_yscale("log")


def squares(axes: Any, cells: Tensor, title: str, x: str = "key", y: str = "query") -> None:
    """A matrix as dark and light cells."""
    axes.imshow(cells, cmap="Blues", vmin=0, vmax=float(cells.max()), interpolation="nearest")
    axes.set(xticks=[], yticks=[], xlabel=x, ylabel=y)
    axes.set_title(title, fontsize=9)


def save(drawn: Any, path: Path) -> None:
    """Write a figure, or a drawing that is SVG text already. No date, so that the same figure is the same file."""
    if isinstance(drawn, str):
        path.write_text(drawn, encoding="utf-8")
        return
    drawn.savefig(path, metadata={"Date": None}, facecolor="white")
    import_module("matplotlib.pyplot").close(drawn)
