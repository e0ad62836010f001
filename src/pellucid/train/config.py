"""What a person asks of a run, and what a run is: two frozen values. ``resolve`` turns the first into the second.

Each option is declared once, as a field of the part of a run that it decides (``parts``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import MISSING, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pellucid.designs import is_own, sized
from pellucid.errors import SpecError, UsageError, suggest
from pellucid.files import read_json
from pellucid.spec import ModelSpec
from pellucid.train.adaptation import Adaptation
from pellucid.train.options import Declared, asking, declared, refuse_illegal
from pellucid.train.parts import (
    FeedSpec,
    Keeping,
    ObjectiveSpec,
    Optimiser,
    Reading,
    Runtime,
    Schedule,
    Seed,
    Sizing,
    Start,
    TextSpec,
)
from pellucid.train.schedule import Decision
from pellucid.values import Value, later

# --- asking ----------------------------------------------------------------------------------------------------------


@asking(Sizing, Schedule, Seed, Reading, TextSpec, ObjectiveSpec, Start, Adaptation, Optimiser, Runtime, Keeping)
class TrainOptions(Value):
    """What is asked of a run. What is not (None) follows from the text's size and the time there is."""

    options: ClassVar[dict[str, Declared]]

    if TYPE_CHECKING:  # the fields are the options of the parts above
        __dataclass_fields__: ClassVar[dict[str, Any]]

        def __init__(self, **asked: Any) -> None: ...

        def __getattr__(self, name: str) -> Any: ...

    def __post_init__(self) -> None:
        for flag in self.options:
            if isinstance(given := getattr(self, flag), list):  # of a caller in Python
                object.__setattr__(self, flag, tuple(given))  # pyright: ignore[reportUnknownArgumentType]
        refuse_illegal(self, self.options.values(), asked=True)
        if self.design is not None and not is_own(self.design) and self.design not in sized():
            raise UsageError(f"there is no design {self.design!r}", suggest(self.design, sized()))
        if self.minutes is not None and self.steps is not None:
            raise UsageError("both minutes and steps are given", "give the one that should decide")


@dataclass(frozen=True)
class Reason(Value):
    """Where a number came from."""

    field: str
    value: str
    why: str


class EarlierFormError(SpecError):
    """A run as it was written before its parts were nested."""


# --- a run -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Run(Value):
    """A run with every number fixed: with the same data, seed, machine and thread count it gives the same weights.

    Saved as ``run.json`` beside every checkpoint, and accepted back by ``pellucid train --run run.json``.
    """

    model: ModelSpec
    feed: FeedSpec
    objective: ObjectiveSpec
    start: Start
    optimiser: Optimiser
    schedule: Schedule
    runtime: Runtime
    keeping: Keeping
    seed: int
    options: TrainOptions
    reasons: tuple[Reason, ...] = ()
    adapter: Adaptation = later(Adaptation())  # noqa: RUF009 - frozen

    @property
    def steps(self) -> int:
        """The number of steps: what the run has had, once it is closed; until then, what was expected at its start."""
        return self.schedule.total(self.schedule.decisions)

    @property
    def tokens_per_step(self) -> int:
        return self.feed.tokens_per_step

    @property
    def texts(self) -> tuple[str, ...]:
        """What the feed is read from; () for a feed that the caller made."""
        return self.feed.texts if isinstance(self.feed, TextSpec) else ()

    @classmethod
    def load(cls, path: Path) -> Run:
        """Read what ``save`` wrote. Raises SpecError naming file and field, or the version that wrote another form."""
        value = read_json(path, SpecError)
        if isinstance(value, dict) and value.get("type") == "Run" and "spec" in value:
            raise EarlierFormError(
                f"{path} was written by an earlier pellucid 0.1.0, in a form that this one cannot go on with",
                "finish the run with the version that began it, or start anew with another folder with --out; a "
                "finished model in that folder opens as before",
            )
        return super().load(path)

    def identity(self) -> Run:
        """The run without what may change while it is the same run, and without how its numbers were found."""
        neutral = {each.field: each.option.neutral for each in OPERATIONAL.values()}
        return replace(
            self,
            keeping=replace(self.keeping, **neutral),
            schedule=replace(self.schedule, minutes=None, decisions=()),
            runtime=replace(self.runtime, follow_load=None),
            options=TrainOptions(),
            reasons=(),
        )

    def closed(self, decisions: Sequence[Decision] | None = None) -> Run:
        """The run as ``decisions`` (default: its own) have made it: nothing more is decided when it is repeated."""
        made = self.schedule.decisions if decisions is None else tuple(decisions)
        return replace(
            self,
            schedule=replace(self.schedule, minutes=None, decisions=made),
            runtime=replace(self.runtime, follow_load=False),
        )

    def with_operations(self, options: TrainOptions) -> Run:
        """The same run with the operational options that are asked for now."""
        default = TrainOptions()
        asked = {
            each.field: getattr(options, flag)
            for flag, each in OPERATIONAL.items()
            if getattr(options, flag) != getattr(default, flag)
        }
        return replace(self, keeping=replace(self.keeping, **asked))


# what may change when a run goes on: it decides what is kept and shown, never what is computed
OPERATIONAL = {each.flag: each for each in declared(Keeping) if each.option.neutral is not MISSING}


def changed(before: TrainOptions, now: TrainOptions) -> list[str]:
    """Options that are asked for now but that the run was not started with, so that resuming it cannot meet them."""
    default = TrainOptions()
    return [
        f"{f.name} = {getattr(now, f.name)!r}, not {getattr(before, f.name)!r}"
        for f in fields(TrainOptions)
        if f.name not in OPERATIONAL and getattr(now, f.name) not in (getattr(before, f.name), getattr(default, f.name))
    ]
