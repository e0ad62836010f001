"""What is passed is checked against what is annotated, where a person calls: ``@checked()`` on a public function.

A type checker would say the same before the call, but many call from a notebook. The annotation is the only
declaration: what ``Literal["fp32", "bf16"]`` or ``int | None`` allows is what may be passed, and what an error says.
"""

from __future__ import annotations

import functools
import inspect
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Integral, Real
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from pellucid.errors import UsageError, suggest

T = TypeVar("T", bound=Callable[..., Any])
LONGEST_VALUE = 60  # characters of a value in an error; of a longer one its type is said

_WORDS: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    bool: "True or False",
    str: "a text",
    types.NoneType: "None",
}


def checked(**remedies: str) -> Callable[[T], T]:
    """A decorator for functions and dataclasses: an argument of another type than its annotation is a UsageError.

    So is a keyword that there is not. remedies: what to give instead, by name; by default it is said what the
    annotation allows, or which argument was meant.
    """

    def decorate(called: T) -> T:
        if isinstance(called, type):
            setattr(called, "__init__", _guarded(called.__init__, called, remedies))  # noqa: B010
            return typing.cast(T, called)
        return typing.cast(T, _guarded(called, called, remedies))

    return decorate


def _guarded(function: Callable[..., Any], declared: Any, remedies: Mapping[str, str]) -> Callable[..., Any]:
    signature = inspect.signature(function)
    named = [p.name for p in signature.parameters.values() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    takes_any = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
    hints: dict[str, Any] = {}

    @functools.wraps(function)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        for name in kwargs:
            if name not in named and not takes_any:
                known = [each for each in named if each != "self"]
                remedy = remedies.get(name) or suggest(name, known)
                raise UsageError(f"{declared.__name__} has no argument {name!r}", remedy)
        if not hints:
            hints.update(get_type_hints(declared, include_extras=True))
        for name, value in (*zip(named, args, strict=False), *kwargs.items()):
            if name in hints and name in named:
                refuse_mistyped(name, value, hints[name], remedies.get(name))
        return function(*args, **kwargs)

    return guarded


def refuse_mistyped(name: str, value: Any, hint: Any, remedy: str | None = None) -> None:
    """Raise UsageError, naming the argument and what it may be, where ``value`` is none of ``hint``."""
    if not fits(value, hint):
        raise UsageError(f"{name} = {_shown(value)} cannot be used", remedy or f"it must be {words(hint)}")


def _shown(value: Any) -> str:
    shape = getattr(value, "shape", None)
    if shape is not None and not isinstance(value, type):
        return f"a {type(value).__name__} of shape {tuple(shape)}"
    said = repr(value)
    return said if len(said) <= LONGEST_VALUE and "\n" not in said else f"an object of type {type(value).__name__}"


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is what an annotation allows; of an annotation that cannot be tested, every value is.

    Whole numbers are numbers, numpy's too, but True is none. A list may be a tuple, and an array or a tensor stands for
    a list of its numbers.
    """
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return fits(value, args[0])
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, each) for each in args)
    if origin is Literal:
        return any(type(value) is type(each) and value == each for each in args)
    if hint is Any or hint is None:
        return hint is Any or value is None
    if hint in (int, float):
        return not isinstance(value, bool) and isinstance(value, Integral if hint is int else Real)
    if origin is Callable:
        return callable(value)
    if origin is tuple and args and args[-1] is not ...:
        return _is_list(value) and len(value) == len(args) and all(map(fits, value, args))
    if origin in (Sequence, Iterable, tuple, list):
        return _is_list(value) and _items_fit(value, args[0] if args else Any)
    kind = dict if typing.is_typeddict(hint) else origin or hint
    if not isinstance(kind, type) or (getattr(kind, "_is_protocol", False) and not _can_be_asked(kind)):
        return True
    return isinstance(value, kind)


def _is_list(value: Any) -> bool:
    """Whether something stands for items in an order; a text or a mapping does not, where a list is wanted."""
    return hasattr(value, "__len__") and hasattr(value, "__getitem__") and not isinstance(value, str | bytes | Mapping)


def _items_fit(value: Any, hint: Any) -> bool:
    return not isinstance(value, list | tuple) or all(fits(each, hint) for each in typing.cast(Iterable[Any], value))


def _can_be_asked(protocol: type) -> bool:
    return getattr(protocol, "_is_runtime_protocol", False)


def words(hint: Any) -> str:
    """What an annotation allows: "'fp32' or 'bf16'", "a whole number or None"."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return words(args[0])
    if origin in (typing.Union, types.UnionType):
        return _either([words(each) for each in args])
    if origin is Literal:
        return _either([repr(each) for each in args])
    if hint in _WORDS:
        return _WORDS[hint]
    if origin is Callable:
        return "a function"
    if origin is tuple and args and args[-1] is not ...:
        return f"({', '.join(words(each) for each in args)})"
    if origin in (Sequence, Iterable, tuple, list):
        return f"a list, each of its items {words(args[0])}" if args and args[0] is not Any else "a list"
    name = getattr(origin or hint, "__name__", str(hint))
    return "a path" if name == "Path" else f"{'an' if name[0] in 'AEIOU' else 'a'} {name}"


def _either(choices: Sequence[str]) -> str:
    each = list(dict.fromkeys(choices))
    return f"{', '.join(each[:-1])} or {each[-1]}" if len(each) > 1 else each[0]
