"""One idea a file: none is longer than 400 lines, no function longer than 80."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from package import HOUSE, Package

MAX_FILE, MAX_FUNCTION = 400, 80


def too_long(package: Package) -> list[str]:
    """Files and functions over the limit, with their lengths in lines."""
    found: list[str] = []
    for module, tree in package.trees.items():
        lines = len(package.files[module].read_text(encoding="utf-8").splitlines())
        if lines > MAX_FILE:
            found.append(f"{module}: {lines}")
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                if length > MAX_FUNCTION:
                    found.append(f"{module}.{node.name}: {length}")
    return found


def test_files_and_functions_are_short() -> None:
    assert too_long(HOUSE) == []


@pytest.mark.parametrize(("extra", "seen"), [(0, []), (1, ["pellucid.long: 401", "pellucid.long.f: 81"])])
def test_one_line_too_many_is_seen(tmp_path: Path, extra: int, seen: list[str]) -> None:
    (tmp_path / "pellucid").mkdir()
    body = ["def f():"] + ["    pass"] * (MAX_FUNCTION - 1 + extra)
    source = ["#"] * (MAX_FILE + extra - len(body)) + body
    (tmp_path / "pellucid" / "long.py").write_text("\n".join(source) + "\n", encoding="utf-8")
    assert too_long(Package(tmp_path)) == seen
