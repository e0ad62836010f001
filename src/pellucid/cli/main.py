"""``pellucid COMMAND ...``: finds the command, runs it, and turns errors into a message and an exit code.

Exit codes: 0 done; 1 something given is unusable (a file, a model, a folder); 2 the command line is wrong; 75 stopped
on request, everything saved, the same command goes on; 130 interrupted where there was nothing to save.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from io import TextIOWrapper

COMMANDS = {
    "train": "train a model from scratch on your text",
    "tune": "teach a model the answers of your conversations",
    "generate": "continue a prompt",
    "chat": "talk with a model that was taught to answer",
    "look": "see attention, guesses and losses, layer by layer",
    "evaluate": "how well a model predicts a text: bits per byte, perplexity",
    "compare": "two trained runs or more: curves, seeds, intervals",
    "convert": "write a model for transformers or llama.cpp",
    "doctor": "would a training learn what is meant? data, rows, labels, first steps",
    "verify": "does a model keep its promises? ours, or any of transformers",
    "info": "sizes and costs of a model, a spec or a design",
    "demo": "train, write and look, on this Python's own source code",
}
HELP = f"""pellucid: the Transformer, whole.

usage: pellucid COMMAND [options]      (pellucid COMMAND --help shows all of them)

{chr(10).join(f"  {name:9} {what}" for name, what in COMMANDS.items())}

examples
  pellucid demo
  pellucid train book.txt --out runs/book --minutes 5
  pellucid generate runs/book "Once upon a time"
  pellucid look runs/book "To be, or not to be" --html look.html
  pellucid convert runs/book --to gguf --out book.gguf
  pellucid info modern --depth 12

The same `pellucid train` again goes on where it stopped. Ctrl-C saves first.
"""
EXIT_ERROR, EXIT_USAGE, EXIT_SAVED, EXIT_INTERRUPTED = 1, 2, 75, 130


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point; exits the process with one of the codes above."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")  # where a character cannot be shown, "?" is better than nothing at all
    warnings.showwarning = _warn
    sys.exit(run(list(sys.argv[1:] if arguments is None else arguments)))


def run(arguments: list[str]) -> int:
    """Run one command line; returns the exit code."""
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        return 0
    if arguments[0] in ("-V", "--version"):
        from importlib.metadata import version

        print(f"pellucid {version('pellucid')}")
        return 0
    name, rest = arguments[0], arguments[1:]
    if name not in COMMANDS:
        from pellucid.errors import suggest

        return _complain(f"there is no command {name!r}", suggest(name, COMMANDS), EXIT_USAGE)
    return _guarded(lambda: import_module(f"pellucid.cli.{name}").main(rest))


def _guarded(command: Callable[[], None]) -> int:
    from pellucid.errors import PellucidError, UsageError

    try:
        command()
    except PellucidError as error:
        code = EXIT_USAGE if isinstance(error, UsageError) else getattr(error, "exit_code", EXIT_ERROR)
        return _complain(error.problem, error.remedy, code)
    except KeyboardInterrupt:
        return _complain("interrupted", "", EXIT_INTERRUPTED)
    except BrokenPipeError:  # the reader of our output (head, less) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except SystemExit as stop:  # tyro has printed help or what is wrong with a flag
        return stop.code if isinstance(stop.code, int) else EXIT_USAGE
    except OSError as error:  # a disk or folder that fails where nobody expects it to
        where = f"{error.filename}: " if error.filename else ""
        return _complain(f"{where}{error.strerror or error}", "check the path and the disk", EXIT_ERROR)
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and "can't allocate memory" not in str(error):
            raise
        return _complain("out of memory", "try a smaller model, context or batch, or more --micro-batches", EXIT_ERROR)
    return 0


def _warn(message: Warning | str, category: type[Warning], *where: object) -> None:
    """A warning as a person reads it, without the line of code that gave it."""
    print(f"warning: {message}", file=sys.stderr)


def _complain(problem: str, remedy: str, code: int) -> int:
    from rich.console import Console
    from rich.text import Text

    label = {EXIT_SAVED: ("stopped: ", "yellow"), EXIT_INTERRUPTED: ("", "")}.get(code, ("error: ", "bold red"))
    console = Console(stderr=True, soft_wrap=True)
    console.print(Text.assemble(label, problem))
    if remedy:
        console.print(Text(f"  {remedy}", "dim"))
    return code
