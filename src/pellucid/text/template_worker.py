"""The process in which a chat template runs: it can compute and answer, and nothing else. Run by path, not imported.

A template comes with a checkpoint, so it is a stranger's program. Jinja's sandbox keeps it from Python's insides; this
process bounds what the sandbox does not: no file can be opened or grow, no process started, memory ends at a limit, and
whoever started it kills it at a deadline. So a way out of the sandbox, or a loop, or ``"a" * 10 ** 10``, leads nowhere.

Its argument is how many bytes of memory it may have. Frames on both pipes: four bytes of length, then that much JSON.
Request: {template, variables, most, sought, marks}; what ``sought`` does is said at ``seek``, and ``marks`` at
``Generation``. Answer: {text}, or {kind, message, line}; before the first request {limits: [...]}, those that this
system has.
"""

from __future__ import annotations

import html  # noqa: F401  # pyright: ignore[reportUnusedImport] - filters import it, and two below, when first used
import json
import pprint  # noqa: F401  # pyright: ignore[reportUnusedImport]
import signal
import struct
import sys
import textwrap  # noqa: F401  # pyright: ignore[reportUnusedImport]
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, BinaryIO

import jinja2.debug  # pyright: ignore[reportUnusedImport] - imported now: later no file can be opened
import jinja2.ext
from jinja2 import Environment, Template, TemplateError, TemplateSyntaxError, nodes
from jinja2.exceptions import SecurityError
from jinja2.parser import Parser
from jinja2.runtime import Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

MESSAGE = 400  # characters of a template's own words that are passed on
SEEKING = frozenset(  # methods of texts, and a filter, whose first argument is looked for
    "split rsplit partition rpartition startswith endswith removeprefix removesuffix".split()
    + "find rfind index rindex count replace".split()
)


class Refusal(TemplateError):
    """What ``raise_exception`` of a template raises."""


class TooLong(Exception):
    """The text grew over its limit."""


class Generation(jinja2.ext.Extension):
    """``{% generation %}…{% endgeneration %}`` marks what the model wrote, for training; here, its content.

    What is set inside stays inside, as ``transformers`` has it. marks: what stands before and behind the content of a
    request; nothing, unless it asks for that.
    """

    tags = {"generation"}  # noqa: RUF012 - as Extension declares it
    marks = ("", "")

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("content"), [], [], body).set_lineno(line)

    @staticmethod
    def content(caller: Macro) -> str:
        begin, end = Generation.marks
        return f"{begin}{caller()}{end}"


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


class Dict:
    """``dict(…)`` and ``dict.fromkeys(…)``; the class itself would be a way to others."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, keys: Any, value: Any = None) -> dict[Any, Any]:
        return dict.fromkeys(keys, value)


def _names(call: nodes.Call | nodes.Filter) -> str | None:
    """What a filter or a method is called."""
    if isinstance(call, nodes.Filter):
        return call.name
    return call.node.attr if isinstance(call.node, nodes.Getattr) else None


def seek(tree: nodes.Template, sought: Mapping[str, str]) -> nodes.Template:
    """Change the words that the template looks for in texts, and not those that it writes.

    ``content.split("</think>")``, ``"[TOOL]" in content`` and ``content | replace("<a>", "")`` look for a word;
    ``"<think>" + content`` and text outside of braces write it.
    """
    places: list[nodes.Expr | nodes.Operand] = []
    for found in tree.find_all((nodes.Compare, nodes.Call, nodes.Filter, nodes.Test)):
        if isinstance(found, nodes.Compare):
            places += [found.expr, *found.ops]
        elif isinstance(found, nodes.Test):
            places += found.args
        elif _names(found) in SEEKING:
            places += found.args[:1]
    constants = [node for place in places for node in (place, *place.find_all(nodes.Const))]
    for node in {id(node): node for node in constants}.values():
        if isinstance(node, nodes.Const) and isinstance(node.value, str):
            for word, other in sought.items():
                node.value = node.value.replace(word, other)
    return tree


def environment() -> Environment:
    """What chat templates are written for: the names and settings that ``transformers`` gives them."""
    made = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    made.filters["tojson"] = _to_json
    own = {"raise_exception": _refuse, "strftime_now": _now, "namespace": PublicNamespace, "dict": Dict()}
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


def answer(request: dict[str, Any], compiled: Callable[[str, Mapping[str, str]], Template]) -> dict[str, Any]:
    """The text, or what went wrong and where. Whatever a template can raise is an answer."""
    try:
        template = compiled(request["template"], request["sought"])
        Generation.marks = tuple(request["marks"])
        return {"text": _render(template, request["variables"], request["most"])}
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
    last: tuple[str, Mapping[str, str], Template] | None = None

    def compiled(source: str, sought: Mapping[str, str]) -> Template:
        nonlocal last
        if last is None or last[:2] != (source, sought):
            last = None
            tree = seek(made.parse(source), sought) if sought else source
            last = source, sought, made.from_string(tree)
        return last[2]

    for source in ("{{ strftime_now('%d') }}", "{{ raise_exception('') }}", "{% if %}"):  # load all that comes late
        answer({"template": source, "variables": {}, "most": 9, "sought": {}, "marks": ("", "")}, compiled)
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
