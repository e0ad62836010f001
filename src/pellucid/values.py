"""Frozen dataclasses as JSON: strict both ways, so that what was saved is what is built. Used by specs and by runs."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from pellucid.errors import SpecError, UsageError, suggest
from pellucid.files import read_json, write_json

MOST = 4096  # objects in one list, such as the layers of a model: each is made, so a damaged number must not get far

# Not typing.Self: the shape checks of the tests decorate methods, where Self means nothing.
V = TypeVar("V", bound="Value")


class Value:
    """Base of every frozen dataclass that goes to JSON and back. Each becomes an object with its ``type`` by name."""

    _types: ClassVar[dict[str, type[Value]]] = {}

    def __init_subclass__(cls, *, abstract: bool = False, **kwargs: Any) -> None:
        """abstract: a class of which only subclasses have objects, and so are found in JSON."""
        super().__init_subclass__(**kwargs)
        if not abstract:
            Value._types[cls.__name__] = cls

    def to_json(self) -> dict[str, Any]:
        """A JSON value: lists for tuples, and ``{"times": n, "of": value}`` for n equal neighbours."""
        return encode(self)

    @classmethod
    def from_json(cls: type[V], value: Any) -> V:
        """The inverse of ``to_json``. Raises SpecError naming the field that is unknown, missing or of another type."""
        return decode(value, cls, cls.__name__)

    def save(self, path: Path) -> None:
        """Write as a JSON file, whole or not at all."""
        write_json(path, self.to_json())

    @classmethod
    def load(cls: type[V], path: Path) -> V:
        """Read a JSON file that ``save`` wrote. Raises SpecError naming file and field."""
        try:
            return cls.from_json(read_json(path, SpecError))
        except SpecError as error:
            if str(path) in error.problem:
                raise
            raise SpecError(f"{path}: {error.problem}", error.remedy) from error


def later(default: Any) -> Any:
    """A field that a class got after values of it had been saved: it is written only where it is not the default.

    So the JSON of an older value, and with it the hash by which files belong together, stays what it was.
    """
    return dataclasses.field(default=default, metadata={"later": True})


def encode(value: Any) -> Any:
    """A JSON value from dataclasses, tuples and plain values."""
    if isinstance(value, Value):
        fields = {f.name: f for f in dataclasses.fields(value)}  # pyright: ignore[reportArgumentType]
        given = {name: getattr(value, name) for name in fields}
        said = {k: v for k, v in given.items() if not (fields[k].metadata.get("later") and v == fields[k].default)}
        return {"type": type(value).__name__, **{name: encode(each) for name, each in said.items()}}
    if isinstance(value, tuple):
        return _fold([encode(item) for item in typing.cast(tuple[Any, ...], value)])
    return value


def _fold(items: list[Any]) -> list[Any]:
    folded: list[Any] = []
    for item in items:
        if folded and isinstance(item, dict) and folded[-1]["of"] == item:
            folded[-1]["times"] += 1
        else:
            folded.append({"times": 1, "of": item} if isinstance(item, dict) else item)
    return [x["of"] if isinstance(x, dict) and x["times"] == 1 else x for x in folded]


def decode(value: Any, hint: Any, where: str) -> Any:
    """``value`` as the annotated type ``hint``; ``where`` is the path that errors name."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        kinds = [a for a in args if a is not type(None)]
        named = {a.__name__: a for a in kinds if isinstance(a, type) and issubclass(a, Value)}
        if isinstance(value, dict) and named:
            return _dataclass(typing.cast(dict[str, Any], value), tuple(named.values()), where)
        for kind in kinds:
            try:
                return decode(value, kind, where)
            except SpecError:
                continue
        raise SpecError(f"{where}: {value!r} is not one of {', '.join(getattr(a, '__name__', str(a)) for a in args)}")
    if origin is typing.Literal:
        if value not in args:
            raise SpecError(f"{where}: {value!r} is not allowed", suggest(str(value), map(str, args)))
        return value
    if origin is tuple:
        return _tuple(value, args[0], where)
    if isinstance(hint, type) and issubclass(hint, Value):
        if not isinstance(value, dict):
            raise SpecError(f"{where}: expected an object, found {value!r}")
        return _dataclass(typing.cast(dict[str, Any], value), (hint,), where)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value) if abs(value) < 2**1023 else math.inf
    if hint is not Any and (not isinstance(value, hint) or (hint is int and isinstance(value, bool))):
        raise SpecError(f"{where}: expected {hint.__name__}, found {value!r}")
    if hint is float and not math.isfinite(value):
        raise SpecError(f"{where}: {value!r} is no finite number")
    if hint is int and not -(2**63) <= value < 2**63:
        raise SpecError(f"{where}: {value!r} is no number of 64 bits")
    return value


def _tuple(value: Any, item: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(value, list):
        raise SpecError(f"{where}: expected a list, found {value!r}")
    entries: list[tuple[int, Any]] = []
    objects = 0
    for i, entry in enumerate(typing.cast(list[Any], value)):
        folded = isinstance(entry, dict) and set(typing.cast(dict[str, Any], entry)) == {"times", "of"}
        times, entry = (entry["times"], entry["of"]) if folded else (1, entry)
        if type(times) is not int or times < 1:
            raise SpecError(f"{where}[{i}].times: {times!r} is not a number of repeats")
        objects += times
        if isinstance(entry, dict) and objects > MOST:
            place = f"{where}[{i}].times: {times}" if folded else f"{where}: these"
            raise SpecError(f"{place} make more than {MOST} entries")
        entries.append((times, entry))
    out: list[Any] = []
    for i, (times, entry) in enumerate(entries):
        out += [decode(entry, item, f"{where}[{i}]")] * times
    return tuple(out)


@lru_cache
def _hints(cls: type[Value]) -> dict[str, Any]:
    """The types of the fields by name."""
    return typing.get_type_hints(cls)


def _dataclass(value: dict[str, Any], allowed: tuple[type[Value], ...], where: str) -> Value:
    name = value.get("type")
    known = {n: t for n, t in Value._types.items() if issubclass(t, allowed)}  # pyright: ignore[reportPrivateUsage]
    if not isinstance(name, str) or name not in known:
        raise SpecError(f"{where}: unknown type {name!r}", suggest(str(name), known))
    cls = known[name]
    fields = {f.name: f for f in dataclasses.fields(cls)}  # pyright: ignore[reportArgumentType]
    hints = _hints(cls)
    given = {k: v for k, v in value.items() if k != "type"}
    for key in given:
        if key not in fields:
            raise SpecError(f"{where}: {name} has no field {key!r}", suggest(key, fields))
    for key, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and key not in given:
            raise SpecError(f"{where}: {name} lacks the field {key!r}")
    decoded = {k: decode(v, hints[k], f"{where}.{k}") for k, v in given.items()}
    try:
        return cls(**decoded)
    except (SpecError, UsageError) as error:  # a value that is impossible, or does not go with another: say where
        raise SpecError(f"{where}: {error.problem}", error.remedy) from error
