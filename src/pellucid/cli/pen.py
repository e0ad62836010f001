"""Shapes of an SVG picture, placed with y upwards, as models are drawn; legible on a light and on a dark page."""

from __future__ import annotations

from collections.abc import Sequence
from xml.sax.saxutils import escape, quoteattr

CHAR = 0.54  # mean width of a letter over the size of its font, a little more than usual fonts have
LINE = 14.0  # from one line of text to the next

# kind of box -> (fill, border) on a light page, and on a dark one
COLOURS = {
    "attention": ("#ffe1bd", "#c9762b", "#5a3a17", "#d99a55"),
    "linear": ("#d3efd9", "#3f8f5a", "#1d4a2d", "#69b783"),
    "recurrent": ("#e6daf8", "#7a56b8", "#3b2a5c", "#a98be0"),
    "ffn": ("#c9e6f7", "#3a83ad", "#173f57", "#6db3da"),
    "norm": ("#f7f2b8", "#a3962a", "#4c4611", "#cabb4c"),
    "embedding": ("#fbdde2", "#bb5a6c", "#5a2530", "#de8897"),
    "head": ("#dfe0f8", "#5f66b8", "#2c3062", "#9197e2"),
    "gain": ("#eceef1", "#8a929c", "#30363d", "#8a929c"),
}
FONT = "font-family: system-ui, -apple-system, 'Segoe UI', Roboto, Helvetica, Arial, sans-serif"


def _style() -> str:
    plain = {
        "page": ("fill: #ffffff", "fill: #0f141a"),
        "frame": ("fill: #f4f5f7; stroke: #c3c9d1", "fill: #171d25; stroke: #3d4652"),
        "wire": ("stroke: #2b3138", "stroke: #c6ced8"),
        "tip": ("fill: #2b3138", "fill: #c6ced8"),
        "dot": ("fill: #ffffff; stroke: #2b3138", "fill: #0f141a; stroke: #c6ced8"),
        "text": ("fill: #1d2127", "fill: #e8edf3"),
        "faint": ("fill: #59636e", "fill: #a3aebb"),
        "some": ("fill: #e3b07c", "fill: #8a5c2c"),
        "every": ("fill: #c9762b", "fill: #e0a362"),
        "none": ("fill: #fff6ea", "fill: #3a2a17"),
        "on": ("fill: #3a83ad", "fill: #6db3da"),
    }
    day = [f".{kind} {{ fill: {c[0]}; stroke: {c[1]} }}" for kind, c in COLOURS.items()]
    day += [f".{name} {{ {rule[0]} }}" for name, rule in plain.items()]
    night = [f".{kind} {{ fill: {c[2]}; stroke: {c[3]} }}" for kind, c in COLOURS.items()]
    night += [f".{name} {{ {rule[1]} }}" for name, rule in plain.items()]
    shared = [f"text {{ {FONT}; font-size: 13px }}", ".small { font-size: 10.5px }", ".wire { fill: none }"]
    shared += [".title { font-size: 17px }", ".strong { font-weight: 600 }"]
    return " ".join([*shared, *day, "@media (prefers-color-scheme: dark) {", *night, "}"])


def fits(width: float, size: float = 10.5) -> int:
    """How many letters stand side by side in this width."""
    return max(8, int(width / (CHAR * size)))


class Pen:
    """What has been drawn, and how far it reaches. All y are heights above the bottom."""

    def __init__(self) -> None:
        self.shapes: list[str] = []
        self.left = self.bottom = 0.0
        self.right = self.top = 0.0

    def _reach(self, x0: float, y0: float, x1: float, y1: float) -> None:
        self.left, self.right = min(self.left, x0), max(self.right, x1)
        self.bottom, self.top = min(self.bottom, y0), max(self.top, y1)

    def rect(
        self, kind: str, x: float, y: float, width: float, height: float, radius: float = 5.0, at: int | None = None
    ) -> None:
        """A rectangle with its lower left corner at (x, y); ``at``: below what was drawn from that number on."""
        self._reach(x, y, x + width, y + height)
        place = f'x="{x:g}" y="{-y - height:g}" width="{width:g}" height="{height:g}"'
        shape = f'<rect class="{kind}" {place} rx="{radius:g}"/>'
        self.shapes.insert(len(self.shapes) if at is None else at, shape)

    def text(self, x: float, y: float, words: str, kind: str = "text", anchor: str = "middle") -> None:
        """A line of text on the height y."""
        wide = len(words) * CHAR * (17 if "title" in kind else 10.5 if "small" in kind else 13)
        before = {"start": 0.0, "middle": 0.5, "end": 1.0}[anchor] * wide
        self._reach(x - before, y - 4, x - before + wide, y + 12)
        self.shapes.append(f'<text class="{kind}" x="{x:g}" y="{-y:g}" text-anchor="{anchor}">{escape(words)}</text>')

    def wire(self, *points: tuple[float, float], tip: bool = True) -> None:
        """A line through the points, with an arrow's tip at the last."""
        for x, y in points:
            self._reach(x, y, x, y)
        path = " L".join(f"{x:g} {-y:g}" for x, y in points)
        self.shapes.append(f'<path class="wire" d="M{path}"/>')
        if tip:
            self._tip(points[-2], points[-1])

    def curve(self, x: float, y: float, out: float, height: float) -> None:
        """A loop that leaves (x, y) sideways by ``out`` and comes back at the height y + height."""
        self._reach(x + min(0, out), y, x + max(0, out), y + height)
        ends = f"M{x:g} {-y - height:g} C{x + 1.3 * out:g} {-y - height:g} {x + 1.3 * out:g} {-y:g} {x:g} {-y:g}"
        self.shapes.append(f'<path class="wire" d="{ends}"/>')
        self._tip((x + out, y), (x, y))

    def _tip(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        (x0, y0), (x, y) = start, end
        dx, dy = (x > x0) - (x < x0), (y > y0) - (y < y0)
        back = [(x - 6 * dx + 3.2 * dy, y - 6 * dy + 3.2 * dx), (x - 6 * dx - 3.2 * dy, y - 6 * dy - 3.2 * dx)]
        points = " ".join(f"{a:g},{-b:g}" for a, b in [(x, y), *back])
        self.shapes.append(f'<polygon class="tip" points="{points}"/>')

    def plus(self, x: float, y: float, radius: float = 8.0) -> None:
        """⊕ around (x, y)."""
        self.shapes.append(f'<circle class="dot" cx="{x:g}" cy="{-y:g}" r="{radius:g}"/>')
        arm = radius - 3.5
        self.wire((x - arm, y), (x + arm, y), tip=False)
        self.wire((x, y - arm), (x, y + arm), tip=False)

    def sine(self, x: float, y: float, radius: float = 11.0) -> None:
        """A wave in a circle: positions as sines."""
        self._reach(x - radius, y - radius, x + radius, y + radius)
        self.shapes.append(f'<circle class="dot" cx="{x:g}" cy="{-y:g}" r="{radius:g}"/>')
        r = radius - 3
        wave = f"M{x - r:g} {-y:g} Q{x - r / 2:g} {-y - 1.6 * r:g} {x:g} {-y:g} T{x + r:g} {-y:g}"
        self.shapes.append(f'<path class="wire" d="{wave}"/>')

    def svg(self, label: str, margin: float = 24.0) -> str:
        """All of it as a file."""
        x, y = self.left - margin, -self.top - margin
        width, height = self.right - self.left + 2 * margin, self.top - self.bottom + 2 * margin
        view = f'viewBox="{x:g} {y:g} {width:g} {height:g}" width="{width:g}" height="{height:g}"'
        page = f'<rect class="page" x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}"/>'
        head = f'<svg xmlns="http://www.w3.org/2000/svg" {view} role="img" aria-label={quoteattr(label)}>'
        title = f"<title>{escape(label)}</title>"
        return "\n".join([head, title, f"<style>{_style()}</style>", page, *self.shapes, "</svg>", ""])


def lines_height(lines: Sequence[str]) -> float:
    """Height of a box with a title and these lines below it."""
    return 26 + (LINE - 1) * len(lines) + (4 if lines else 0)
