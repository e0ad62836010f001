"""The process in which a chat template runs: it can compute and answer, and nothing else. Run by path, not imported.

A template comes with a checkpoint, so it is a stranger's program. Jinja's sandbox keeps it from Python's insides; this
process bounds what the sandbox does not: no file can be opened or grow, no process started, memory ends at a limit, and
whoever started it kills it at a deadline. So a way out of the sandbox, or a loop, or ``"a" * 10 ** 10``, leads nowhere.

Its argument is how many bytes of memory it may have. Frames on both pipes: four bytes of length, then that much JSON.
Request: {template, variables, most}. Answer: {text}, or {kind, message, line}; before the first request
{limits: [...]}, those that this system has.
"""

from __future__ import annotations

import json
import signal
import struct
import sys
import time
from collections.abc import Callable
from datetime import datetime
from typing import Any, BinaryIO

import jinja2.debug  # pyright: ignore[reportUnusedImport] - imported now: later no file can be opened
import jinja2.ext
from jinja2 import Environment, Template, TemplateError, TemplateSyntaxError, nodes
from jinja2.exceptions import SecurityError
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

MESSAGE = 400  # characters of a template's own words that are passed on


class Refusal(TemplateError):
    """What ``raise_exception`` of a template raises."""


class TooLong(Exception):
    """The text grew over its limit."""


class Generation(jinja2.ext.Extension):
    """``{% generation %}…{% endgeneration %}`` marks what the model wrote, for training; here, its content."""

    tags = {"generation"}  # noqa: RUF012 - as Extension declares it

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class PublicNamespace(Namespace):
    """``namespace()`` without names that begin with an underscore: those are Python's."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # an attribute may be called self
        self, *rest = args
        attributes = dict(*rest, **kwargs)
        for name in attributes:
            PublicNamespace.check(name)
        Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        PublicNamespace.check(name)
        super().__setitem__(name, value)

    @staticmethod
    def check(name: object) -> None:
        if str(name).startswith("_"):
            raise SecurityError(f"a namespace has no attribute {name!r}")


def _refuse(message: object) -> None:
    raise Refusal(str(message))


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own ``tojson`` is for HTML and escapes ``<``."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _now(form: str) -> str:
    return datetime.now().strftime(form)


def _dict(*args: Any, **kwargs: Any) -> dict[Any, Any]:
    """The class itself would be a way to others."""
    return dict(*args, **kwargs)


def environment() -> Environment:
    """What chat templates are written for: the names and settings that ``transformers`` gives them."""
    made = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    made.filters["tojson"] = _to_json
    own = {"raise_exception": _refuse, "strftime_now": _now, "namespace": PublicNamespace, "dict": _dict}
    names: dict[str, Any] = made.globals  # pyright: ignore[reportAssignmentType] - declared as what jinja2 puts there
    names.update(own)
    del names["lipsum"]  # random text of any length
    return made


def confine(memory: int) -> list[str]:
    """Take away what rendering does not need; the names of the limits that hold here. memory: in bytes."""
    try:
        import resource
    except ImportError:  # not a POSIX system: the deadline is what remains
        return []
    held: list[str] = []
    for name, value in (("AS", memory), ("NOFILE", 0), ("FSIZE", 0), ("NPROC", 0), ("CORE", 0)):
        try:
            resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (value, value))
            held.append(name)
        except (AttributeError, OSError, ValueError):  # this system does not know it, or not this value
            continue
    return held


def _line(error: BaseException) -> int | None:
    """The line of the template that raised: jinja2 puts frames with the template's own lines in the traceback."""
    if isinstance(error, TemplateSyntaxError):
        return error.lineno
    line, trace = None, error.__traceback__
    while trace is not None:
        if "__jinja_exception__" in trace.tb_frame.f_globals:
            line = trace.tb_lineno
        trace = trace.tb_next
    return line


def _render(template: Template, variables: dict[str, Any], most: int) -> str:
    size, parts = 0, []
    for part in template.generate(variables):
        size += len(part)
        if size > most:
            raise TooLong
        parts.append(part)
    return "".join(parts)


def answer(request: dict[str, Any], compiled: Callable[[str], Template]) -> dict[str, Any]:
    """The text, or what went wrong and where. Whatever a template can raise is an answer."""
    try:
        return {"text": _render(compiled(request["template"]), request["variables"], request["most"])}
    except TooLong:
        return {"kind": "long", "message": "", "line": None}
    except MemoryError:
        return {"kind": "memory", "message": "", "line": None}
    except Exception as error:
        kind = "refused" if isinstance(error, Refusal) else "syntax" if isinstance(error, SyntaxError) else "failed"
        kind = "syntax" if isinstance(error, TemplateSyntaxError) else kind
        message = str(error)[:MESSAGE]
        named = message if isinstance(error, TemplateError) else f"{type(error).__name__}: {message}"
        return {"kind": kind, "message": named, "line": _line(error)}


def read_frame(pipe: BinaryIO) -> bytes:
    """The next frame; b"" at the end."""
    head = pipe.read(4)
    return pipe.read(struct.unpack(">I", head)[0]) if len(head) == 4 else b""


def write_frame(pipe: BinaryIO, value: dict[str, Any]) -> None:
    data = json.dumps(value).encode()
    pipe.write(struct.pack(">I", len(data)) + data)
    pipe.flush()


def main() -> None:
    """Answer requests from standard input, a line of JSON each, until it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in a terminal is meant for the program that shows the chat
    made = environment()
    last: tuple[str, Template] | None = None

    def compiled(source: str) -> Template:
        nonlocal last
        if last is None or last[0] != source:
            last = None
            last = source, made.from_string(source)
        return last[1]

    for source in ("{{ strftime_now('%d') }}", "{{ raise_exception('') }}", "{% if %}"):  # load all that comes late
        answer({"template": source, "variables": {}, "most": 9}, compiled)
    time.localtime()
    pipe = sys.stdout.buffer
    write_frame(pipe, {"limits": confine(int(sys.argv[1]))})
    while data := read_frame(sys.stdin.buffer):
        given = answer(json.loads(data), compiled)
        write_frame(pipe, given)
        if given.get("kind") == "memory":  # what is left of it is not worth keeping
            return


if __name__ == "__main__":
    main()
