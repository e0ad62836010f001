"""``pellucid chat``"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from pellucid.cli.parse import lines_of, parse
from pellucid.cli.policy import SpeculationOptions, sampled
from pellucid.cli.say import say
from pellucid.errors import PellucidError, UsageError, suggest

if TYPE_CHECKING:
    from rich.console import Console

    from pellucid.generate.chat import Chat

EXAMPLES = """
chat ./SmolLM2-135M-Instruct.Q4_1.gguf
chat HuggingFaceTB/SmolLM2-135M-Instruct --system "You answer in one sentence."
chat runs/assistant --temperature 0 < questions.txt
chat ./SmolLM2-1.7B-Instruct.gguf --draft ./SmolLM2-135M-Instruct.Q4_1.gguf
"""
COMMANDS = {
    "/help": "this list",
    "/reset": "forget the conversation, keep the system's message",
    "/undo": "take back your last message and its answer",
    "/system": "/system TEXT tells the model how to answer from now on; alone, it shows what it was told",
    "/save": "/save FILE writes the conversation as JSON",
    "/quit": "end (so does Ctrl-D)",
}


def chat(
    model: tyro.conf.Positional[str],
    system: str | None = None,
    template: Path | None = None,
    max_new_tokens: int = 1024,
    temperature: float = 0.7,
    top_k: int | None = None,
    top_p: float = 0.95,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    seed: int = 0,
    speculation: SpeculationOptions = SpeculationOptions(),  # noqa: B008 - frozen
    quantised: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    ignore_key: tuple[str, ...] = (),
) -> None:
    """Talk with a model that was taught to answer. Ctrl-C stops an answer, Ctrl-D ends; /help lists what else there is.

    Where standard input is not a terminal, each of its lines is said to the model, and only the answers are written.

    Args:
        model: A folder, a .gguf file, or ORG/NAME on the hub.
        system: What the model is told before the conversation begins.
        template: A file with the Jinja template to use instead of the model's own.
        max_new_tokens: Tokens of one answer at most.
        temperature: 0 always takes the likeliest token; 1 is the model's own distribution.
        top_k: Keep only this many of the likeliest tokens.
        top_p: Keep the likeliest tokens that together have this probability; 1 keeps all.
        min_p: Drop tokens less likely than this share of the likeliest; 0 drops none.
        repetition_penalty: Above 1, tokens that were seen become less likely; 1 changes nothing.
        seed: The same seed, in the same conversation, gives the same answers.
        quantised: Leave the weights of a .gguf file quantised in memory: it takes the file's size, and more time.
        ignore_key: Attributes of a published config.json to leave out, which no code reads.
    """
    from pellucid.cli.opening import open_model
    from pellucid.generate.chat import Chat
    from pellucid.generate.sample import Sampling
    from pellucid.text.chat import ChatTemplate, special_names

    sampling = Sampling(temperature, top_k, top_p, min_p, repetition_penalty)
    policy = sampled(sampling, speculation)
    source = None if template is None else _read(template)
    loaded = open_model(model, quantised, ignore_key)
    names = {} if loaded.tokenizer is None else special_names(loaded.tokenizer)
    own = None if source is None else ChatTemplate(source, names)
    talk = Chat(loaded, system, max_new_tokens=max_new_tokens, policy=policy, seed=seed, template=own)
    if sys.stdin.isatty():
        _converse(talk, Path(model).name)
    else:
        _answer_lines(talk, lines_of(sys.stdin.buffer))


def _read(template: Path) -> str:
    try:
        return template.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"the template {template} cannot be read: {error}", "give a text file") from error


def _answer_lines(talk: Chat, lines: Iterable[str]) -> None:
    """Every line a message, every answer followed by a line end; nothing else is written."""
    for line in lines:
        if text := line.rstrip("\r\n"):
            for piece in talk.reply(text):
                say(piece)
            say("\n")


def _converse(talk: Chat, name: str) -> None:
    from rich.console import Console
    from rich.markup import escape

    console = Console(highlight=False)
    prompt = _prompt(import_line_editing(), console.color_system is not None and not console.no_color)
    facts = f"{talk.model.n_parameters / 1e6:,.2f} M parameters · context {talk.model.spec.context:,}"
    console.print(f"[bold]{escape(name)}[/]  [dim]{facts} · /help lists commands, Ctrl-D ends[/]")
    while True:
        try:
            console.print()
            text = input(prompt)
        except KeyboardInterrupt:
            console.print("\n[dim]Ctrl-D or /quit ends[/]")
            continue
        except EOFError:
            console.print()
            return
        if text.startswith("/"):
            if not command(talk, text, console):
                return
        elif text.strip():
            _answer(talk, text, console)


def import_line_editing() -> bool:
    """Arrow keys, history and pasted lines as one text, where Python has them: whether it does."""
    try:
        import readline
    except ImportError:
        return False
    if "libedit" not in (readline.__doc__ or ""):  # which has no such setting
        readline.parse_and_bind("set enable-bracketed-paste on")
    return True


def _prompt(editing: bool, colour: bool) -> str:
    """What stands before a line that is typed. Line editing must be told what of it takes no room."""
    if not colour:
        return "you › "
    on, off = ("\001\033[1;36m\002", "\001\033[0m\002") if editing else ("\033[1;36m", "\033[0m")
    return f"{on}you ›{off} "


def _answer(talk: Chat, text: str, console: Console) -> None:
    reply = talk.reply(text)
    try:
        while True:
            say(next(reply))
    except StopIteration as end:
        why = end.value.finish_reason
        say("\n")
        if why == "length":
            console.print(f"[dim]stopped after {talk.max_new_tokens:,} tokens (--max-new-tokens)[/]")
        elif why == "context":
            console.print("[yellow]the model's context is full:[/] /undo or /reset makes room")
    except KeyboardInterrupt:
        reply.close()
        console.print("\n[dim]stopped[/]")
    except PellucidError as error:
        _complain(console, error.problem, f"{error.remedy}; /undo or /reset goes back")


def _complain(console: Console, problem: str, remedy: str = "") -> None:
    from rich.text import Text

    console.print(Text.assemble(("error: ", "bold red"), problem))
    if remedy:
        console.print(Text(f"  {remedy}", "dim"))


def command(talk: Chat, line: str, console: Console) -> bool:
    """Do what a line that begins with / says; False: the conversation is to end."""
    name, _, rest = line.strip().partition(" ")
    does: dict[str, Callable[[], None]] = {
        "/help": lambda: _help(console),
        "/reset": talk.reset,
        "/undo": lambda: console.print("[dim]taken back[/]" if talk.undo() else "[dim]there is nothing to undo[/]"),
        "/system": lambda: _system(talk, rest.strip(), console),
        "/save": lambda: _save(talk, rest.strip(), console),
        "/quit": lambda: None,
    }
    if name in does:
        does[name]()
    else:
        _complain(
            console, f"there is no command {name}", f"{suggest(name, COMMANDS)} (a space before / makes it a text)"
        )
    return name != "/quit"


def _help(console: Console) -> None:
    for name, what in COMMANDS.items():
        console.print(f"  [bold]{name:8}[/] {what}")


def _system(talk: Chat, text: str, console: Console) -> None:
    from rich.text import Text

    if text:
        talk.system = text
    console.print(
        Text("the model is told: ", "dim")
        + Text(talk.system or "nothing by you; its template may have words of its own")
    )


def _save(talk: Chat, name: str, console: Console) -> None:
    from pellucid.files import write_json

    if not name:
        _complain(console, "/save needs the name of a file", "/save talk.json")
        return
    try:
        write_json(Path(name), list(talk.messages))
    except PellucidError as error:
        _complain(console, error.problem, "choose another file")
    else:
        console.print(
            f"{len(talk.messages)} messages in {Path(name).resolve()}", style="dim", markup=False, soft_wrap=True
        )


def main(arguments: Sequence[str]) -> None:
    """Parse a command line and run it."""
    parse(chat, arguments, EXAMPLES)
