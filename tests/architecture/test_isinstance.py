"""The theory rarely asks which type a spec is: a module answers for its own spec, and a spec for itself."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from package import HOUSE, Package, room

MOST = 22  # may become fewer


def questions(package: Package) -> list[str]:
    """Where a module of ``nn`` asks whether something is of a class that ``spec`` or ``predicates`` defines."""
    described = {
        node.name
        for module, tree in package.trees.items()
        if room(module) in ("spec", "predicates")
        for node in tree.body
        if isinstance(node, ast.ClassDef)
    }
    return [
        f"{module}:{node.lineno}"
        for module, tree in package.trees.items()
        if room(module) == "nn"
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "isinstance"
        if described & {name.id for name in ast.walk(node.args[1]) if isinstance(name, ast.Name)}
    ]


def test_the_theory_rarely_asks_for_the_type_of_a_spec() -> None:
    assert len(questions(HOUSE)) <= MOST


@pytest.mark.parametrize(("asked", "seen"), [("A", 1), ("int | A", 1), ("(int, A)", 1), ("int", 0), ("B", 0)])
def test_a_question_is_seen(tmp_path: Path, asked: str, seen: int) -> None:
    files = {"spec": "class A: pass", "nn": f"class B: pass\ndef f(x): return isinstance(x, {asked})", "data": ""}
    (tmp_path / "pellucid").mkdir()
    for name, source in files.items():
        (tmp_path / "pellucid" / f"{name}.py").write_text(source, encoding="utf-8")
    assert len(questions(Package(tmp_path))) == seen
