"""Runs beside each other: what they differ in, their curves, and whether a difference is more than chance.

Runs that differ in nothing but their seed are one *group*. Its mean has an interval from its seeds (Student 1908), and
so has the difference of two groups (Welch 1947), whose variances need not be alike.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from statistics import NormalDist, fmean, variance

from pellucid.errors import RunError
from pellucid.train.checkpoint import RUN
from pellucid.train.config import OPERATIONAL, Run, TrainOptions
from pellucid.train.metrics import METRICS, finals, read_metrics

CONFIDENCE = 0.95
# the quantile of Student's t for 95 % and few degrees of freedom, from 1 on; beyond, an expansion is as exact
_T95 = (12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281)


@dataclass(frozen=True)
class Trained:
    """One run: its settings, and its held-out measure by step. final: of all that was held out, None until it ends."""

    name: str
    run: Run
    measure: str
    curve: tuple[tuple[int, float], ...]
    final: float | None

    @staticmethod
    def load(folder: Path) -> Trained:
        """Raises RunError where the folder holds no run, or one that measured nothing."""
        if not (folder / RUN).is_file():
            raise RunError(f"{folder} holds no {RUN}", "give a folder that `pellucid train` wrote")
        lines, run = read_metrics(folder / METRICS), Run.load(folder / RUN)
        done = finals(lines)
        training = {"step", "loss", "grad_norm", "learning_rate"}
        measure = next(iter(done), None) or next((k for line in lines for k in line if k not in training), None)
        if measure is None:
            raise RunError(f"{folder} has measured nothing that was held out", "train with --validation above 0")
        curve = tuple((line["step"], float(line[measure])) for line in lines if measure in line)
        return Trained(str(folder), run, measure, curve, done.get(measure))

    @cached_property
    def settings(self) -> dict[str, object]:
        """What was asked for, but for the seed and for what is only kept and shown."""
        hidden = {"seed", *OPERATIONAL}
        asked = {each.name: getattr(self.run.options, each.name) for each in fields(TrainOptions)}
        return {"texts": self.run.texts, **{name: value for name, value in asked.items() if name not in hidden}}

    def at(self, share: float) -> float | None:
        """The measure at the last validation within this share of the steps; None before the first."""
        passed = [value for step, value in self.curve if step <= share * self.run.steps]
        return passed[-1] if passed else None


@dataclass(frozen=True)
class Interval:
    """A mean and half the width of its interval of 95 %; None where there is but one run."""

    mean: float
    half: float | None


@dataclass(frozen=True)
class Group:
    """Finished runs that differ in nothing but their seeds."""

    runs: tuple[Trained, ...]

    @property
    def finals(self) -> list[float]:
        """The final measures of the runs that have ended."""
        return [each.final for each in self.runs if each.final is not None]

    @property
    def name(self) -> str:
        return ", ".join(each.name for each in self.runs)

    @property
    def interval(self) -> Interval:
        """Of the final measure, over seeds."""
        values = self.finals
        if len(values) < 2:
            return Interval(values[0], None)
        return Interval(fmean(values), _t(float(len(values) - 1)) * math.sqrt(variance(values) / len(values)))

    def minus(self, other: Group) -> Interval:
        """The difference of two means. half: None where either group has one run only."""
        a, b = self.finals, other.finals
        mean = fmean(a) - fmean(b)
        if min(len(a), len(b)) < 2:
            return Interval(mean, None)
        u, v = variance(a) / len(a), variance(b) / len(b)
        if u + v == 0:
            return Interval(mean, 0.0)
        freedom = (u + v) ** 2 / (u**2 / (len(a) - 1) + v**2 / (len(b) - 1))
        return Interval(mean, _t(freedom) * math.sqrt(u + v))


def _t(freedom: float) -> float:
    """How many standard errors an interval of 95 % reaches, with so many degrees of freedom (not fewer than 1)."""
    whole = math.floor(freedom)  # between two of the table the wider one
    if whole <= len(_T95):
        return _T95[max(whole, 1) - 1]
    z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)


def groups(runs: Sequence[Trained]) -> list[Group]:
    """The finished runs, those alike but for their seeds together, in the order of their first.

    Raises RunError where runs are measured differently, so that no number compares them.
    """
    measures = {each.measure: each.name for each in runs}
    if len(measures) > 1:
        said = ", ".join(f"{name} by {measure}" for measure, name in measures.items())
        raise RunError(f"the runs are measured differently: {said}", "compare runs of one objective")
    found: list[list[Trained]] = []
    for each in runs:
        if each.final is None:
            continue
        alike = next((group for group in found if group[0].settings == each.settings), None)
        if alike is None:
            found.append([each])
        else:
            alike.append(each)
    return [Group(tuple(each)) for each in found]


def differences(runs: Sequence[Trained]) -> dict[str, list[object]]:
    """The settings in which runs differ: name -> the value of each run."""
    names = runs[0].settings
    values = {name: [each.settings[name] for each in runs] for name in names}
    return {name: each for name, each in values.items() if any(value != each[0] for value in each)}
