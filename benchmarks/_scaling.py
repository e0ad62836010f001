"""What attention_scaling.py has measured, as tables, verdicts and a picture."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from _fits import UNKNOWN, Interval, exponent, exponent_over_rounds
from _harness import Spread
from _mixers import D_MODEL, HEAD_DIM, HEADS, LAYERS, MODES, WINDOW, Contestant, Group, Mode
from _pictures import BLACK, BLUE, GREEN, GREY, ORANGE, PURPLE, RED, Line, curves, figure, save, short

TITLES: dict[Group, str] = {
    "kernel": f"kernels: q, k, v given, 1 row, {HEADS} heads × {HEAD_DIM}, float32",
    "mixer": f"mixers: x given, {D_MODEL} wide; projections in and out are part of the work",
    "decode": f"decoding: one token more, {LAYERS} layers × {D_MODEL} without feed-forward",
}
COLOURS = {"full": BLACK, "window": BLUE, "blocks": PURPLE, "linear": GREEN, "delta": ORANGE, "lstm": RED}
LINEAR_TARGET, FASTER_TARGET, PEER_TARGET, FLAT_TARGET = 1.1, 15.0, 1.0, 0.05
AT = 16384  # the length at which the window is compared
Key = tuple[Group, str]


@dataclass
class Measured:
    """All cells of one contestant: times (seconds, by mode, length and round), memory, and why a cell is missing."""

    who: Contestant
    times: dict[Mode, dict[int, list[float]]] = field(default_factory=lambda: {"forward": {}, "both": {}})
    memory: dict[Mode, dict[int, int]] = field(default_factory=lambda: {"forward": {}, "both": {}})
    alone: dict[Mode, dict[int, float]] = field(default_factory=lambda: {"forward": {}, "both": {}})
    absent: list[str] = field(default_factory=list)
    error: float | None = None  # largest difference from the reference kernel

    def median(self, mode: Mode, n: int) -> float | None:
        times = self.times[mode].get(n)
        return statistics.median(times) if times else None

    def time_exponent(self, mode: Mode, fit_from: int) -> Interval:
        """Over the rounds, one slope each."""
        sizes = [n for n in sorted(self.times[mode]) if n >= fit_from]
        if len(sizes) < 2:
            return UNKNOWN
        return exponent_over_rounds(sizes, list(zip(*(self.times[mode][n] for n in sizes), strict=True)))

    def memory_exponent(self, mode: Mode, fit_from: int) -> Interval:
        cells = {n: size for n, size in sorted(self.memory[mode].items()) if n >= fit_from and size > 0}
        return exponent(list(cells), list(cells.values()))


# --- showing ----------------------------------------------------------------------------------------------------------


def table(everyone: Sequence[Measured], group: Group, mode: Mode, what: str, sizes: Sequence[int], fit: int) -> None:
    """One line a contestant: a cell a length, and the exponent with its interval."""
    print(f"\n{TITLES[group]} · {what}")
    print("  {:22}".format("") + "".join(f"{short(n):>10}" for n in sizes) + f"   exponent from {short(fit)}")
    for found in everyone:
        if found.who.group != group or (mode == "both" and not found.who.backward):
            continue
        if "memory" in what:
            cells = [found.memory[mode].get(n) for n in sizes]
            shown = ["–" if x is None else f"{x / 2**20:,.1f}" for x in cells]
            power = found.memory_exponent(mode, fit)
        else:
            times = [found.median(mode, n) for n in sizes]
            shown = ["–" if x is None else f"{x * 1e3:,.2f}" for x in times]
            power = found.time_exponent(mode, fit)
        print(f"  {found.who.name:22}" + "".join(f"{cell:>10}" for cell in shown) + f"   {power.show()}")


def report(everyone: Sequence[Measured], sizes: Sequence[int], fit: int) -> None:
    """Every table, then who took part and what is missing."""
    groups = {found.who.group for found in everyone}
    for group in ("kernel", "mixer"):
        if group in groups:
            table(everyone, group, "forward", "forward, ms", sizes, fit)
            table(everyone, group, "both", "forward and backward, ms", sizes, fit)
            table(everyone, group, "forward", "forward, memory in MiB", sizes, fit)
            table(everyone, group, "both", "forward and backward, memory in MiB", sizes, fit)
    if "decode" in groups:
        table(everyone, "decode", "forward", "ms a token, by tokens in the cache", sizes, min(sizes))
    print("\nWho took part")
    for found in everyone:
        who, error = found.who, "" if found.error is None else f"; off the reference by {found.error:.0e}"
        try:
            package = f"{who.package} {version(who.package)}"
        except PackageNotFoundError:
            package = who.package
        print(f"  {who.group:6} {who.name:22} {package}: {who.note}{error}")
        for why in found.absent:
            print(f"  {'':29} not measured: {why}")


@dataclass(frozen=True)
class Verdict:
    """A target, what was measured, and whether that meets it (None: not measured)."""

    target: str
    measured: str
    met: bool | None

    def show(self) -> str:
        word = {True: "met", False: "MISSED", None: "not measured"}[self.met]
        return f"  {self.target:84} {self.measured:>22}   {word}"


def at_most(target: str, limit: float, measured: Interval) -> Verdict:
    missing = measured.middle != measured.middle
    return Verdict(f"{target} ≤ {limit:g}", measured.show(), None if missing else measured.middle <= limit)


def at_least(target: str, limit: float, ratios: Sequence[float]) -> Verdict:
    if not ratios:
        return Verdict(f"{target} ≥ {limit:g}", "", None)
    spread = Spread.of(ratios)
    return Verdict(f"{target} ≥ {limit:g}", spread.show(), spread.median >= limit)


def ratios(slower: Measured | None, faster: Measured | None, mode: Mode, n: int) -> list[float]:
    """How many times faster, round by round; nothing where one of the two was not measured."""
    if slower is None or faster is None:
        return []
    return [a / b for a, b in zip(slower.times[mode].get(n, []), faster.times[mode].get(n, []), strict=False)]


def fastest_peer(everyone: Sequence[Measured], group: Group, kind: str, mode: Mode, n: int) -> Measured | None:
    """Of those that do the same work, the quickest at this length; torch itself is no peer, nor who is blind."""
    peers = [
        found
        for found in everyone
        if (found.who.group, found.who.kind) == (group, kind)
        and found.who.peer not in (None, "torch")
        and "blind " not in found.who.name
        and found.median(mode, n) is not None
    ]
    return min(peers, key=lambda found: found.median(mode, n) or 0.0, default=None)


def verdicts(everyone: Sequence[Measured], sizes: Sequence[int], fit: int) -> list[Verdict]:
    """The targets of the issue."""
    named: dict[Key, Measured] = {(found.who.group, found.who.name): found for found in everyone}
    at = AT if AT in sizes else max(sizes)
    made: list[Verdict] = []
    linear: list[Key] = [
        ("kernel", "window: blocked"), ("kernel", "BigBird: blocked"), ("mixer", "window"), ("mixer", "linear")
    ]  # fmt: skip
    for key in linear:
        if key in named:
            for mode, words in MODES.items():
                name = f"{key[1]} ({key[0]}), {words}"
                made.append(at_most(f"{name}: time, exponent", LINEAR_TARGET, named[key].time_exponent(mode, fit)))
                made.append(at_most(f"{name}: memory, exponent", LINEAR_TARGET, named[key].memory_exponent(mode, fit)))
    ours, full = named.get(("kernel", "window: blocked")), named.get(("kernel", "full: SDPA"))
    if ours is not None:
        faster = ratios(full, ours, "forward", at)
        made.append(at_least(f"window {WINDOW} at {short(at)}: times faster than full, forward", FASTER_TARGET, faster))
    against: list[tuple[str, Measured | None, Group, str]] = [
        (f"window {WINDOW} (kernel)", ours, "kernel", "window"),
        ("linear (mixer)", named.get(("mixer", "linear")), "mixer", "linear"),
        ("full (mixer)", named.get(("mixer", "full")), "mixer", "full"),
    ]
    for words, mine, group, kind in against:
        for mode in MODES if mine is not None else ():
            reached = max((n for n in sizes if n <= at and fastest_peer(everyone, group, kind, mode, n)), default=at)
            peer = fastest_peer(everyone, group, kind, mode, reached)
            name = peer.who.name if peer else "any peer"
            target = f"{words} at {short(reached)}, {mode}: times faster than {name}"
            made.append(at_least(target, PEER_TARGET, ratios(peer, mine, mode, reached)))
    for name in ("ring window", "linear", "delta rule", "LSTM"):
        found = named.get(("decode", name))
        if found is not None:
            slope = found.time_exponent("forward", min(sizes))
            made.append(at_most(f"decoding, {name}: time a token, exponent", FLAT_TARGET, slope))
    return made


def draw(everyone: Sequence[Measured], fit: int, path: Path) -> None:
    """Kernels above, mixers below: forward, with the backward, memory; at the right exponents, and decoding."""
    drawn, axes = figure(2, 4, (21, 9))
    for row, group in enumerate(("kernel", "mixer")):
        some = [found for found in everyone if found.who.group == group]

        def line(found: Measured, cells: dict[int, float]) -> Line:
            colour = COLOURS[found.who.kind]
            return Line(found.who.name, list(cells), list(cells.values()), colour, dashed=found.who.peer is not None)

        for column, (mode, words) in enumerate(MODES.items()):
            cells = [(found, {n: 1e3 * statistics.median(t) for n, t in found.times[mode].items()}) for found in some]
            curves(
                axes[row, column], [line(*cell) for cell in cells],
                title=f"{group}s: {words}", x="tokens", y="milliseconds",
            )  # fmt: skip
        memory = [(found, {n: size / 2**20 for n, size in found.memory["both"].items() if size}) for found in some]
        curves(
            axes[row, 2], [line(*cell) for cell in memory],
            title=f"{group}s: memory, forward and backward", x="tokens", y="MiB above inputs and weights",
        )  # fmt: skip
    decode = [found for found in everyone if found.who.group == "decode"]
    curves(
        axes[1, 3],
        [
            Line(found.who.name, list(t), [1e3 * statistics.median(x) for x in t.values()], COLOURS[found.who.kind])
            for found in decode
            if (t := found.times["forward"])
        ],
        title="decoding one token", x="tokens in the cache", y="milliseconds",
    )  # fmt: skip
    draw_exponents(axes[0, 3], everyone, fit)
    drawn.suptitle("One row of tokens, float32, CPU.  Solid lines and dots: pellucid; dashed, hollow: peers and torch")
    save(drawn, path)


def draw_exponents(axes: Any, everyone: Sequence[Measured], fit: int) -> None:
    """A dot and its interval for each forward's time."""
    some = [(found, found.time_exponent("forward", fit)) for found in everyone if found.who.group != "decode"]
    some = [(found, power) for found, power in some if power.middle == power.middle]
    for place, (found, power) in enumerate(reversed(some)):
        colour = COLOURS[found.who.kind]
        if power.low == power.low:
            axes.plot([power.low, power.high], [place, place], color=colour, linewidth=2)
        axes.plot(power.middle, place, "o", color=colour, mfc="white" if found.who.peer else colour)
    names = [f"{found.who.name}{' (mixer)' if found.who.group == 'mixer' else ''}" for found, _ in reversed(some)]
    axes.set_yticks(range(len(some)), names, fontsize=8)
    axes.axvline(LINEAR_TARGET, color=GREY, linewidth=0.8)
    axes.axvline(2.0, color=GREY, linewidth=0.8, linestyle=":")
    axes.set_title(f"forward: exponents (target ≤ {LINEAR_TARGET})")
    axes.set_xlabel(f"time ∝ tokens to the power of …, from {short(fit)} (95 % interval)")
    axes.grid(axis="y", visible=False)


def record(found: Measured, fit: int) -> dict[str, Any]:
    """A contestant, for JSON: seconds and bytes."""
    return {
        "group": found.who.group,
        "name": found.who.name,
        "package": found.who.package,
        "note": found.who.note,
        "off_the_reference_by": found.error,
        "seconds": found.times,
        "bytes": found.memory,
        "absent": found.absent,
        "time_exponents": {mode: found.time_exponent(mode, fit).record() for mode in MODES},
        "memory_exponents": {mode: found.memory_exponent(mode, fit).record() for mode in MODES},
    }
