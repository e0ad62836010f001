"""How a number that nobody asked for is declared: a method that gives it and says why."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar, overload, runtime_checkable

from pellucid.train.config import TrainOptions

T = TypeVar("T", bound=object)


@runtime_checkable  # the shape checks of the tests look
class Asked(Protocol):
    """What has open numbers: what was asked for, and where reasons are kept."""

    asked: TrainOptions

    def note(self, field: str, value: object, why: str) -> None: ...


class derived(Generic[T]):  # noqa: N801 - it is used like property
    """An open number of a run: the method of its name gives (value, why), unless it was asked for. Read once."""

    def __init__(self, derive: Callable[[Any], tuple[T, str]]):
        self.derive, self.name = derive, derive.__name__

    @overload
    def __get__(self, numbers: None, owner: object) -> derived[T]: ...
    @overload
    def __get__(self, numbers: Asked, owner: object) -> T: ...
    def __get__(self, numbers: Asked | None, owner: object) -> derived[T] | T:
        if numbers is None:
            return self
        asked = getattr(numbers.asked, self.name)
        value, why = self.derive(numbers) if asked is None else (asked, "asked for")
        numbers.note(self.name, value, why)
        numbers.__dict__[self.name] = value  # found before this descriptor from now on
        return value
