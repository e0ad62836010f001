"""Run a chat template where it can do no harm: in a process of its own, which is kept for the next time.

Starting it takes a tenth of a second, rendering a conversation about a millisecond.
"""

from __future__ import annotations

import atexit
import json
import os
import struct
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from pellucid.errors import DataError

MAX_TEMPLATE = 1 << 18  # characters; the longest published ones have some 30,000
MAX_TEXT = 1 << 23  # characters, of what goes in and of what comes out
SECONDS = 3.0  # for one conversation; real ones take a thousandth of that
MEMORY = 512 << 20  # bytes of address space of its process, Python and jinja2 included
_START_SECONDS = 60.0  # for the process itself, on a machine that is busy with other things
_WORKER = Path(__file__).with_name("template_worker.py")
_REMEDY = "give another template, or continue a text with `pellucid generate`"
_PROBLEMS = {
    "syntax": "the chat template is not valid Jinja",
    "refused": "the chat template refuses this conversation",
    "failed": "the chat template fails",
    "long": "the chat template writes more than {most:,} characters",
    "memory": "the chat template needs more memory than a template may have",
}


class _Process:
    """One worker; ``ask`` is a request and its answer. Not for several threads at once."""

    def __init__(self) -> None:
        self.owner = os.getpid()  # a forked child must not speak on its parent's pipes
        # -P: files beside the worker must not stand in for the standard library's
        self.child = subprocess.Popen(
            [sys.executable, "-P", str(_WORKER), str(MEMORY)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        if self.ask(None, _START_SECONDS) is None:
            raise DataError(f"the process for chat templates does not start: {sys.executable}", "is jinja2 installed?")

    def ask(self, request: dict[str, Any] | None, seconds: float) -> dict[str, Any] | None:
        """The answer (the greeting, without a request), or None: the process has died, or did when time was up."""
        requests, answers = self.child.stdin, self.child.stdout
        assert requests is not None
        assert answers is not None
        timer = threading.Timer(seconds, self.child.kill)
        timer.daemon = True
        timer.start()
        try:
            if request is not None:
                data = json.dumps(request).encode()
                requests.write(struct.pack(">I", len(data)) + data)
                requests.flush()
            return _read(answers)
        except OSError:  # it died before it had read all
            return None
        finally:
            timer.cancel()

    def alive(self) -> bool:
        return self.owner == os.getpid() and self.child.poll() is None

    def end(self) -> None:
        """Kill it and forget it; a process that a fork has inherited is left to its owner."""
        for pipe in (self.child.stdin, self.child.stdout):
            try:
                if pipe is not None:
                    pipe.close()
            except OSError:  # what was not yet written went to a process that has gone
                continue
        if self.owner == os.getpid():
            self.child.kill()
            self.child.wait()


def _read(answers: IO[bytes]) -> dict[str, Any] | None:
    head = answers.read(4)
    size = struct.unpack(">I", head)[0] if len(head) == 4 else 0
    # JSON writes a character in at most twelve bytes
    data = answers.read(size) if 0 < size <= 12 * MAX_TEXT + 4096 else b""
    return json.loads(data) if data and len(data) == size else None


_lock = threading.Lock()
_process: _Process | None = None


@atexit.register
def _end() -> None:
    global _process
    if _process is not None:
        _process.end()
        _process = None


def render(
    source: str,
    variables: Mapping[str, Any],
    sought: Mapping[str, str] | None = None,
    marks: tuple[str, str] = ("", ""),
) -> str:
    """What the template ``source`` writes, given ``variables`` (JSON values).

    sought: word -> what the template is to look for in its place; where it writes the word, the word stays. marks: what
    is put before and behind each text that the template marks as the model's (``{% generation %}``).
    Time (``SECONDS``), sizes and memory are bounded, the latter on systems that let a process bound its own (Linux).
    Raises DataError, with the template's line, where it is not valid, fails, refuses what it is given or asks for more
    than it may have.
    """
    if len(source) > MAX_TEMPLATE:
        raise DataError(f"the chat template is {len(source):,} characters long; at most {MAX_TEMPLATE:,}", _REMEDY)
    request = {"template": source, "variables": dict(variables), "most": MAX_TEXT}
    request |= {"sought": dict(sought or {}), "marks": marks}
    with _lock:
        answer = _ask(request)
    if answer is None:
        raise DataError(f"the chat template did not finish within {SECONDS:g} s, or broke its process", _REMEDY)
    if "text" in answer:
        return answer["text"]
    kind, line = answer["kind"], answer["line"]
    message = "".join(char if char.isprintable() else " " for char in answer["message"])  # it may be the template's own
    where = "" if line is None else f" at line {line}"
    remedy = "give the conversation in the form it wants" if kind == "refused" else _REMEDY
    problem = _PROBLEMS[kind].format(most=MAX_TEXT)
    raise DataError(f"{problem}{where}{': ' if message else ''}{message}", remedy)


def _ask(request: dict[str, Any]) -> dict[str, Any] | None:
    global _process
    if _process is not None and not _process.alive():
        _end()
    if _process is None:
        _process = _Process()
    done = False
    try:
        answer = _process.ask(request, SECONDS)
        done = answer is not None and answer.get("kind") != "memory"
        return answer
    finally:
        if not done:  # it hangs, has gone, or was interrupted in the middle of an answer: the next one starts anew
            _end()
