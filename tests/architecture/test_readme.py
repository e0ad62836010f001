"""What the README says is so: its tree is the disk's, its commands exist with their flags, its links lead somewhere.

What makes this checkable: a block whose first line starts with ``src/pellucid/`` is the tree, one entry a line, name
first, a level deeper where it is indented more; in a ``console`` block commands start with ``$ ``, all else is output.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import io
import os
import re
import shlex

import pytest
from package import NAME, ROOT, SRC

import pellucid
from pellucid.cli.main import COMMANDS, run

README = ROOT / "README.md"
# Commands that are not ours; what they do is not checked.
OTHERS = {"git", "cd", "python", "pip", "ls", "open", "xdg-open"}


@functools.cache
def readme() -> str:
    return README.read_text(encoding="utf-8")


def blocks(text: str, language: str = r"\w*") -> list[str]:
    """The contents of fenced code blocks of this language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def tree_entries(block: str) -> list[str]:
    """Paths that a tree block names, from the root of the repository; folders end with a slash."""
    paths: list[str] = []
    parents: list[tuple[int, str]] = []
    for line in block.splitlines():
        if not line.strip():
            continue
        depth = len(line) - len(line.lstrip())
        while parents and parents[-1][0] >= depth:
            parents.pop()
        path = (parents[-1][1] if parents else "") + line.split()[0]
        paths.append(path)
        if path.endswith("/"):
            parents.append((depth, path))
    return paths


def rooms_on_disk() -> set[str]:
    """Every module and package that stands directly in the package, except its dunder files."""
    folder = SRC / NAME
    packages = {f"src/{NAME}/{path.parent.name}/" for path in folder.glob("*/__init__.py")}
    return packages | {f"src/{NAME}/{path.name}" for path in folder.glob("*.py") if not path.name.startswith("__")}


def shell_commands(text: str) -> list[list[str]]:
    """Commands of console blocks, as words; a backslash at the end of a line goes on in the next."""
    lines = "\n".join(blocks(text, "console")).replace("\\\n", " ").splitlines()
    found: list[list[str]] = []
    for line in lines:
        if line.startswith("$ "):
            for command in re.split(r"\s(?:&&|\|)\s", line[2:]):
                words = shlex.split(command, comments=True)
                while words and re.fullmatch(r"\w+=.*", words[0]):  # a variable set for the command
                    words.pop(0)
                found.append(words)
    return found


@functools.cache
def help_of(*words: str) -> str:
    """What ``pellucid … --help`` prints; it must succeed."""
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as printed:
        patch.setenv("COLUMNS", "200")
        patch.setenv("NO_COLOR", "1")
        assert run([*words, "--help"]) == 0
    return printed.getvalue()


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))


def wrong_with(words: list[str]) -> list[str]:
    """What is wrong with a command: an unknown program, command, flag or make target."""
    program = os.path.basename(words[0])
    if program == "make":
        targets = [word for word in words[1:] if "=" not in word and not word.startswith("-")]
        return [f"make has no target {target}" for target in targets if target not in make_targets()]
    if program == NAME:
        command = words[1] if len(words) > 1 else "--help"
        if command.startswith("-"):
            return []
        if command not in COMMANDS:
            return [f"{NAME} has no command {command}"]
        flags = [word.split("=")[0] for word in words[2:] if re.match(r"--?[a-z]", word)]
        known = re.findall(r"(?<![\w-])--?[a-z][\w-]*", help_of(command))
        return [f"{NAME} {command} has no flag {flag}" for flag in flags if flag not in known]
    return [] if program in OTHERS else [f"unknown command {program}"]


def test_the_tree_is_the_disks() -> None:
    trees = [block for block in blocks(readme()) if block.startswith(f"src/{NAME}/")]
    assert len(trees) == 1, f"README.md has {len(trees)} blocks that start with src/{NAME}/"
    entries = tree_entries(trees[0])
    missing = [
        entry for entry in entries if not (ROOT / entry).exists() or (ROOT / entry).is_dir() != entry.endswith("/")
    ]
    assert missing == []
    assert rooms_on_disk() - set(entries) == set()


def test_its_commands_exist() -> None:
    commands = shell_commands(readme())
    assert ["make", "demo"] in commands
    assert ["make", "test"] in commands
    assert [wrong for words in commands for wrong in wrong_with(words)] == []


@pytest.mark.parametrize("command", COMMANDS)
def test_the_examples_in_help_exist(command: str) -> None:
    examples = re.findall(r"^ *\$ (.+)$", help_of(command), flags=re.MULTILINE)
    assert examples
    assert [wrong for line in examples for wrong in wrong_with(shlex.split(line))] == []


def test_its_python_names_exist() -> None:
    for block in blocks(readme(), "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == NAME:
                assert hasattr(pellucid, node.attr), f"README.md: there is no pellucid.{node.attr}"


def test_its_links_lead_somewhere() -> None:
    pages = [README, *sorted((ROOT / "docs").rglob("*.md")), ROOT / "CONTRIBUTING.md"]
    dead: list[str] = []
    for page in pages:
        prose = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
        targets = re.findall(r"\]\(([^)\s]+)\)", prose) + re.findall(r'(?:src|href)="([^"]+)"', prose)
        local = [target.split("#")[0] for target in targets if not re.match(r"https?:|mailto:|#", target)]
        dead += [f"{page.name}: {target}" for target in local if not (page.parent / target).exists()]
    assert dead == []


# --- controls ---------------------------------------------------------------------------------------------------------


def test_a_tree_is_read_by_its_indentation() -> None:
    block = (
        "src/pellucid/  the package\n  spec.py  what\n  nn/\n    masks.py  who sees whom\n  api.py\ntests/\n  parity/\n"
    )
    assert tree_entries(block) == [
        *(
            "src/pellucid/",
            "src/pellucid/spec.py",
            "src/pellucid/nn/",
            "src/pellucid/nn/masks.py",
            "src/pellucid/api.py",
        ),
        *("tests/", "tests/parity/"),
    ]


def test_commands_are_read_from_console_blocks_only() -> None:
    shell = '$ make demo && pellucid look "a b" \\\n    --html x\noutput\n$ A=1 make test  # all\n'
    text = f"```console\n{shell}```\n```\n$ no\n```\n"
    assert shell_commands(text) == [["make", "demo"], ["pellucid", "look", "a b", "--html", "x"], ["make", "test"]]


@pytest.mark.parametrize(
    ("command", "wrong"),
    [
        ("pellucid look runs/x 'text' --html page.html", 0),
        ("make test ARGS=-x", 0),
        ("pellucid look runs/x 'text' --htm page.html", 1),
        ("pellucid lok runs/x", 1),
        ("make tests", 1),
        ("frobnicate", 1),
    ],
)
def test_a_wrong_command_is_seen(command: str, wrong: int) -> None:
    assert len(wrong_with(shlex.split(command))) == wrong
