"""Imports only point down the house (docs/architecture.md), none goes in a circle, and the front door is light."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from package import HOUSE, NAME, ROOT, Package, is_ours, room

from pellucid.cli.main import COMMANDS

# From the ground up. A room may import what lies on lower storeys, never a room beside it.
# Planned rooms stand here already, so that each is built in its place.
STOREYS: list[set[str]] = [
    {"errors", "rooms"},
    {"files", "arguments"},
    {"values"},
    {"predicates"},
    {"spec", "batch", "taps", "text"},
    {"designs", "nn", "data"},
    {"engine", "families"},
    {"surgery"},
    {"checkpoints"},
    {"doctor"},
    {"train", "generate", "interpret"},
    {"evaluate", "recipes", "look"},
    {"api"},
    {"verify"},
    {"__init__"},  # pellucid itself: the names met first
    {"examine"},
    {"cli", "serve"},
    {"__main__"},
]
# Models do not know where text comes from: whoever needs both stands above both.
APART = {(model, text) for model in ("nn", "families", "surgery") for text in ("text", "data")}

# Each takes longer to import than a command line should take to answer.
HEAVY = {
    *("torch", "numpy", "jaxtyping", "safetensors", "tokenizers", "rich"),
    *("transformers", "datasets", "huggingface_hub", "tensorboard", "matplotlib"),
}


def storey(name: str) -> int:
    return next(i for i, rooms in enumerate(STOREYS) if name in rooms)


def pointing_up(package: Package) -> list[str]:
    """Imports of a room that is not below, wherever they stand: at the top, in a function, or for types only."""
    found: list[str] = []
    for each in package.imports:
        here, there = room(each.module), room(each.target)
        if is_ours(each.target) and here != there and (storey(there) >= storey(here) or (here, there) in APART):
            found.append(str(each))
    return found


def loads(package: Package) -> dict[str, set[str]]:
    """What each module imports when it is loaded: modules of ours by their own name, others by their top one."""
    graph: dict[str, set[str]] = {module: set() for module in package.files}
    for each in package.imports:
        if each.on_load:
            graph[each.module].add(each.target if is_ours(each.target) else each.target.split(".")[0])
    return graph


def circle(graph: dict[str, set[str]]) -> list[str]:
    """Some modules that import each other in a circle, the first one again at the end; empty where there are none."""
    done: set[str] = set()

    def visit(module: str, path: list[str]) -> list[str]:
        if module in path:
            return [*path[path.index(module) :], module]
        if module in done:
            return []
        for target in sorted(graph.get(module, ())):
            if found := visit(target, [*path, module]):
                return found
        done.add(module)
        return []

    return next((found for module in sorted(graph) if (found := visit(module, []))), [])


def loaded_with(graph: dict[str, set[str]], start: str) -> set[str]:
    """All that importing ``start`` loads; ``a.b.c`` loads ``a`` and ``a.b`` first."""
    seen: set[str] = set()
    waiting = [start]
    while waiting:
        module = waiting.pop()
        if module not in seen:
            seen.add(module)
            parts = module.split(".")
            waiting += [".".join(parts[:i]) for i in range(1, len(parts))] + sorted(graph.get(module, ()))
    return seen


def test_every_room_has_its_storey() -> None:
    known = set[str]().union(*STOREYS)
    assert sum(map(len, STOREYS)) == len(known), "a room stands on two storeys"
    assert {room(module) for module in HOUSE.files} <= known


def test_the_page_shows_the_same_house() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    picture = page.split("```text\n")[1].split("```")[0]
    assert [set(line.replace("(", "").replace(")", "").split()) for line in reversed(picture.splitlines())] == STOREYS
    planned = set(re.findall(r"\((\w+)\)", picture))
    assert planned == set[str]().union(*STOREYS) - {room(module) for module in HOUSE.files}


def test_imports_point_down() -> None:
    assert pointing_up(HOUSE) == []


def test_nothing_imports_in_a_circle() -> None:
    assert circle(loads(HOUSE)) == []


@pytest.mark.parametrize("start", [NAME, f"{NAME}.cli.main", *(f"{NAME}.cli.{command}" for command in COMMANDS)])
def test_the_front_doors_load_nothing_heavy(start: str) -> None:
    assert start in HOUSE.files
    assert loaded_with(loads(HOUSE), start) & HEAVY == set()


def test_importing_the_package_imports_neither_torch_nor_numpy() -> None:
    script = "import sys, pellucid; print(sorted({'torch', 'numpy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


# --- controls: each rule sees what breaks it --------------------------------------------------------------------------


def house(folder: Path, files: dict[str, str]) -> Package:
    """A small package made of these files."""
    for name, source in {"__init__.py": "", **files}.items():
        path = folder / NAME / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source, encoding="utf-8")
    return Package(folder)


@pytest.mark.parametrize(
    ("importer", "statement"),
    [
        ("data/store.py", "from pellucid.nn.masks import dense"),
        ("data/store.py", "def late():\n    import pellucid.nn.masks"),
        (
            "families/gemma.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from pellucid.data import store",
        ),
        ("nn/block.py", "from pellucid.checkpoints import native"),
        ("train/loop.py", "from pellucid.generate.decode import generate"),
        ("interpret/lens.py", "from pellucid.train import loop"),
        ("errors.py", "from pellucid.files import write_file"),
        ("api.py", "import pellucid.cli.main"),
        ("generate/decode.py", "import pellucid"),
    ],
)
def test_an_import_that_points_up_is_seen(tmp_path: Path, importer: str, statement: str) -> None:
    assert len(pointing_up(house(tmp_path, {importer: statement}))) == 1


def test_an_import_that_points_down_is_allowed(tmp_path: Path) -> None:
    source = "from pellucid.spec import A\nfrom pellucid.nn.feed_forward import B\nimport torch.nn"
    assert pointing_up(house(tmp_path, {"nn/block.py": source})) == []


def test_a_relative_import_is_seen(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="relative"):
        pointing_up(house(tmp_path, {"nn/block.py": "from . import ffn"}))


def test_a_circle_is_seen_unless_a_late_import_breaks_it(tmp_path: Path) -> None:
    ring = {
        "nn/a.py": "import pellucid.nn.b",
        "nn/b.py": "from pellucid.nn import c",
        "nn/c.py": "import pellucid.nn.a",
    }
    a, b, c = "pellucid.nn.a", "pellucid.nn.b", "pellucid.nn.c"
    assert circle(loads(house(tmp_path / "ring", ring))) == [a, b, c, a]
    ring["nn/c.py"] = "def late():\n    import pellucid.nn.a"
    assert circle(loads(house(tmp_path / "open", ring))) == []


def test_a_heavy_module_is_seen_behind_others(tmp_path: Path) -> None:
    files = {
        "cli/main.py": "import pellucid.cli.a",
        "cli/a.py": "import pellucid.nn.b",
        "nn/__init__.py": "import torch.nn",
    }
    assert "torch" in loaded_with(loads(house(tmp_path, files)), "pellucid.cli.main")
