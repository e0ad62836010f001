"""The package as its source says it is: its modules, and what each imports. Nothing here is executed."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).parents[2]
SRC = ROOT / "src"
NAME = "pellucid"


@dataclass(frozen=True)
class Import:
    """``module`` imports ``target``: ``on_load``, or only when a function is called or types are checked."""

    module: str
    target: str
    line: int
    on_load: bool

    def __str__(self) -> str:
        return f"{self.module}:{self.line} imports {self.target}"


@dataclass(frozen=True)
class Package:
    """The Python files under ``root / NAME``, by module name; a package stands for its ``__init__``."""

    root: Path

    @cached_property
    def files(self) -> dict[str, Path]:
        found: dict[str, Path] = {}
        for path in sorted((self.root / NAME).rglob("*.py")):
            parts = path.relative_to(self.root).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
        return found

    @cached_property
    def trees(self) -> dict[str, ast.Module]:
        return {module: ast.parse(path.read_text(encoding="utf-8")) for module, path in self.files.items()}

    @cached_property
    def imports(self) -> list[Import]:
        """Every import, of other packages too; the target of ``from pellucid.nn import masks`` is the module masks."""
        return [found for module, tree in self.trees.items() for found in self._imports_of(module, tree)]

    def _imports_of(self, module: str, tree: ast.Module) -> Iterator[Import]:
        for node, on_load in _statements(tree, on_load=True):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    yield Import(module, alias.name, node.lineno, on_load)
            elif isinstance(node, ast.ImportFrom):
                assert node.module and not node.level, f"{module}:{node.lineno}: a relative import"
                for alias in node.names:
                    full = f"{node.module}.{alias.name}"
                    yield Import(module, full if full in self.files else node.module, node.lineno, on_load)


def _statements(node: ast.AST, on_load: bool) -> Iterator[tuple[ast.AST, bool]]:
    """All nodes below, each with whether it runs when its module is loaded."""
    for child in ast.iter_child_nodes(node):
        yield child, on_load
        later = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
            for statement in child.body:
                yield statement, False
                yield from _statements(statement, False)
            for statement in child.orelse:
                yield statement, on_load
                yield from _statements(statement, on_load)
        else:
            yield from _statements(child, on_load and not later)


def room(module: str) -> str:
    """``pellucid.nn.masks`` is in the room ``nn``; ``pellucid`` itself is the front door, ``__init__``."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def is_ours(module: str) -> bool:
    return module == NAME or module.startswith(NAME + ".")


HOUSE = Package(SRC)
