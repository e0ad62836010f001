"""tyro, set up once for all commands."""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from difflib import get_close_matches
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import tyro

from pellucid.errors import DataError, UsageError


def parse(command: Callable[..., None], arguments: Sequence[str], examples: str) -> None:
    """Call ``command`` with its arguments from the command line; ``examples`` end its help text."""
    shown = "\n".join(f"  $ pellucid {line}" for line in examples.strip().splitlines())
    parameters = inspect.signature(command).parameters.values()
    hints = get_type_hints(command, include_extras=True)
    form = _form(command, {p.name: (hints[p.name], p.default) for p in parameters})
    refuse_misspelt(command.__name__, _flags(form), arguments)
    given = tyro.cli(
        form,
        args=list(arguments),
        prog=f"pellucid {command.__name__}",
        description=f"{_summary(command)}\n\nexamples\n{shown}",
        config=(tyro.conf.OmitArgPrefixes,),
    )
    values = dict(vars(given))
    for name, hint in hints.items():
        if _is_options(hint):  # made here rather than in tyro, so that what they refuse is said as all else is
            asked = [vars(values.pop(f"{name}_{title}")) for title, _, _ in _groups(hint)]
            values[name] = hint(**{field: value for part in asked for field, value in part.items()})
    command(**values)


# --- hints, before the parser gives up --------------------------------------------------------------------------------

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.IGNORECASE)
SURE, LIKELY = 0.8, 0.6  # how alike what is given and what is meant are, of 1
_OF_MINUTES = {"s": 1 / 60, "sec": 1 / 60, "m": 1, "min": 1, "h": 60, "hours": 60, "d": 1440}


def _flags(form: type) -> dict[str, set[Any]]:
    """Every flag of a form, and the types of its values."""
    found: dict[str, set[Any]] = {"--help": set()}
    for name, hint in get_type_hints(form, include_extras=True).items():
        asked, *said = get_args(hint) if get_origin(hint) is Annotated else (hint,)
        if isinstance(asked, type) and dataclasses.is_dataclass(asked):
            found |= _flags(asked)
        elif tyro.conf.Positional not in said:
            own = [one for one in (getattr(each, "name", None) for each in said) if isinstance(one, str)]
            others = [alias for each in said for alias in getattr(each, "aliases", None) or ()]
            kinds = set(get_args(asked) or (asked,))
            flag = f"--{(own or [name])[-1].replace('_', '-')}"
            found |= dict.fromkeys((flag, *others), kinds)
            if bool in kinds:
                found[flag.replace("--", "--no-", 1)] = set()
    return found


def refuse_misspelt(command: str, flags: dict[str, set[Any]], arguments: Sequence[str]) -> None:
    """Raise UsageError, with what was meant, for a flag that there is not and a number with a unit behind it."""
    for place, argument in enumerate(arguments):
        if argument == "--":
            return
        if not argument.startswith("--"):
            continue
        name, _, value = argument.partition("=")
        name = name.replace("_", "-")
        if name not in flags:
            near = [get_close_matches(name, flags, 1, cutoff) for cutoff in (SURE, LIKELY)]
            if near[1] and not near[0]:  # the parser itself says what is surely meant
                raise UsageError(f"{command} has no flag {name}", f"did you mean {near[1][0]}?")
            continue
        value = value or next(iter(arguments[place + 1 : place + 2]), "")
        kinds = flags[name]
        if kinds & {int, float} and not kinds - {int, float, NoneType} and (number := _NUMBER.match(value)):
            unit = value[number.end() :].lower()
            if unit.isalpha():
                minutes = float(number[0]) * _OF_MINUTES.get(unit, 1) if name == "--minutes" else None
                right = number[0] if minutes is None else f"{minutes:g}"
                what = "whole number" if float not in kinds else "number"
                raise UsageError(f"{name} {value} cannot be used", f"it is a {what} without a unit: {name} {right}")


def text_of(argument: str) -> str:
    """The argument itself; standard input for "-". Raises DataError where that is not UTF-8."""
    return argument if argument != "-" else "".join(lines_of(sys.stdin.buffer))


def lines_of(stream: Iterable[bytes]) -> Iterator[str]:
    """The lines of standard input, as they come. Raises DataError at the first that is not UTF-8."""
    before = 0
    for line in stream:
        try:
            yield line.decode()
        except UnicodeDecodeError as error:
            raise DataError(
                f"standard input is not UTF-8: byte {before + error.start} is 0x{line[error.start]:02x}",
                "convert it from the encoding it is in, e.g. iconv -f ISO-8859-1 -t UTF-8",
            ) from error
        before += len(line)


def _summary(command: Callable[..., Any]) -> str:
    """The docstring up to its ``Args:``, which tyro shows beside each flag."""
    return inspect.cleandoc(command.__doc__ or "").split("\nArgs:")[0].strip()


# --- what help and errors call a value: MODEL rather than STR, INT rather than {None}|INT ----------------------------


def _form(of: Callable[..., Any], fields: dict[str, tuple[Any, Any]]) -> type:
    """A dataclass for a function, or for a dataclass but without its checks. fields: name -> (type, default).

    It has the name and docstring of what it is ``of``, by which tyro finds what is written about each field.
    """
    asked: list[tuple[str, Any, Any]] = []
    for name, (hint, default) in fields.items():
        if _is_options(hint):
            for title, part, options in _groups(hint):
                form = _form(part, options)
                heading = tyro.conf.arg(name=title)
                asked.append((f"{name}_{title}", Annotated[form, heading], dataclasses.field(default=form())))
        else:
            given = {} if default is inspect.Parameter.empty else {"default": default}
            asked.append((name, _hint(name, hint, default), dataclasses.field(**given)))
    namespace = {"__doc__": of.__doc__, "__module__": of.__module__}
    return dataclasses.make_dataclass(of.__name__, asked, frozen=True, kw_only=True, namespace=namespace)


def _is_options(hint: Any) -> bool:
    return isinstance(hint, type) and dataclasses.is_dataclass(hint)


def _groups(options: type) -> list[tuple[str, type, dict[str, tuple[Any, Any]]]]:
    """The fields of a dataclass as help shows them: heading, the class that explains it, name -> (type, default).

    A field may say in its metadata which ``part`` it belongs to, and its ``help``; by itself all are one group.
    """
    groups: dict[type, dict[str, tuple[Any, Any]]] = {}
    hints = get_type_hints(options)
    for field in dataclasses.fields(options):
        hint, told = hints[field.name], field.metadata.get("help")
        alias = field.metadata.get("alias")
        hint = Annotated[hint, tyro.conf.arg(help=told, aliases=[alias] if alias else None)] if told else hint
        groups.setdefault(field.metadata.get("part", options), {})[field.name] = (hint, field.default)
    return [
        (part.__name__.removesuffix("Options").removesuffix("Spec").lower(), part, of) for part, of in groups.items()
    ]


def _hint(name: str, hint: Any, default: Any) -> Any:
    """The type with a word for its values, and without a default that says nothing; what it says itself comes last."""
    asked, *annotations = get_args(hint) if get_origin(hint) is Annotated else (hint,)
    word = None
    if tyro.conf.Positional in annotations:
        word = name.upper() if default is inspect.Parameter.empty else f"[{name.upper()}]"
    elif default is None:
        word = "|".join(_word(kind) for kind in get_args(asked) if kind is not NoneType)
    empty = default in (None, "", (), inspect.Parameter.empty)
    ours = tyro.conf.arg(metavar=word, help_behavior_hint="" if empty else None)
    return Annotated[(asked, ours, *annotations)]  # pyright: ignore[reportInvalidTypeForm]


def _word(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return "{" + ",".join(get_args(kind)) + "}"
    return kind.__name__.upper()
