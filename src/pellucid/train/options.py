"""How an option of a run is declared: type, default, legal values and help stand in one place.

A part of a run (``config``) is a frozen dataclass, and each of its fields that can be asked for is made by ``option``.
``asking`` collects them into the flat form that the command line and ``pellucid.train(...)`` take.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable
from dataclasses import MISSING, dataclass
from typing import Any, NamedTuple, TypeVar, get_type_hints

from pellucid.arguments import refuse_mistyped
from pellucid.errors import UsageError
from pellucid.values import Value


class Legal(NamedTuple):
    """The numbers an option may be, from ``least`` up to, not including, ``end``, and how that is said in an error."""

    least: int | float
    end: int | float
    words: str

    def holds(self, number: int | float) -> bool:
        """Whether a number is legal; a nan never is."""
        return self.least <= number < self.end


COUNT = Legal(1, math.inf, "at least 1")
POSITIVE = Legal(math.nextafter(0, 1), math.inf, "greater than 0, and finite")
NOT_NEGATIVE = Legal(0, math.inf, "0 or more, and finite")
SHARE = Legal(0, 1, "from 0 up to, not including, 1")
UP_TO_1 = Legal(0, math.nextafter(1, 2), "from 0 to 1")


@dataclass(frozen=True)
class Option:
    """What is said of a field when it is declared.

    flag: its name when it is asked for, if that is not the field's. neutral: the value that stands for all others in
    the identity of a run, for an option that may change while a run stays the same; MISSING for one that may not.
    alias: another flag for it on the command line.
    """

    help: str
    legal: Legal | None
    flag: str | None
    neutral: Any
    alias: str | None


def option(
    help: str,
    legal: Legal | None = None,
    *,
    default: Any = MISSING,
    flag: str | None = None,
    neutral: Any = MISSING,
    alias: str | None = None,
    later: bool = False,
) -> Any:
    """A field that can be asked for. Without ``default`` it is derived (``resolve``) where nobody asks.

    later: as ``values.later``: runs had been saved before there was this option.
    """
    told = Option(help, legal, flag, neutral, alias)
    return dataclasses.field(default=default, metadata={"option": told, "later": later})


class Declared(NamedTuple):
    """One option: the part of a run that holds it, the field there, the name it is asked by, and its type."""

    part: type[Value]
    field: str
    flag: str
    hint: Any
    default: Any
    option: Option

    @property
    def is_derived(self) -> bool:
        """Whether the option has no default, so that ``resolve`` derives it."""
        return self.default is MISSING

    @property
    def asked_hint(self) -> Any:
        """The type of what is asked for: None leaves it to be derived."""
        return self.hint | None if self.is_derived else self.hint


def declared(part: type[Value]) -> list[Declared]:
    """The options that a part declares, in order."""
    hints, found = get_type_hints(part), list[Declared]()
    for field in dataclasses.fields(part):  # pyright: ignore[reportArgumentType]
        if (made := field.metadata.get("option")) is not None:
            found.append(Declared(part, field.name, made.flag or field.name, hints[field.name], field.default, made))
    return found


def refuse_illegal(value: Any, options: Iterable[Declared], *, asked: bool = False) -> None:
    """Raise UsageError naming the option, its value and the legal ones, where a field of ``value`` is illegal.

    asked: the fields have the names that are asked by, and may be None where the option is derived.
    """
    for each in options:
        given, legal = getattr(value, each.flag if asked else each.field), each.option.legal
        refuse_mistyped(each.flag, given, each.asked_hint if asked else each.hint)
        if given is not None and legal is not None and not legal.holds(given):
            flag = f"--{each.flag.replace('_', '-')}"
            raise UsageError(f"{each.flag} = {given} cannot be used", f"{flag} must be {legal.words}")


class Part(Value):
    """A part of a run. Raises UsageError, when it is made, for a value that no run can have."""

    def __post_init__(self) -> None:
        refuse_illegal(self, declared(type(self)))


C = TypeVar("C", bound=type)


def asking(*parts: type[Value]) -> Callable[[C], C]:
    """Make a class the flat form of these parts' options: a frozen dataclass with a field for each, by its flag.

    A derived option is None there unless it is asked for. A field's metadata hold its help, its part and its alias.
    """

    def fill(cls: C) -> C:
        options = [each for part in parts for each in declared(part)]
        for each in options:
            default = None if each.is_derived else each.default
            cls.__annotations__[each.flag] = each.asked_hint
            metadata = {"help": each.option.help, "part": each.part, "alias": each.option.alias}
            setattr(cls, each.flag, dataclasses.field(default=default, metadata=metadata))
        cls.options = {each.flag: each for each in options}
        return dataclass(frozen=True)(cls)

    return fill
