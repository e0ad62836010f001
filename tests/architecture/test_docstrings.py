"""Every public class, function and method says what it is, itself or in its class.

What overrides a method or answers a protocol may leave it to the class that asks for it.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from package import HOUSE, Package

# May become fewer.
WITHOUT = {
    "pellucid.checkpoints.tensors.Digest.hex",
    "pellucid.families.table.Row.targets",
    "pellucid.text.chat.Vocabulary.special",
    "pellucid.text.chat.Vocabulary.chat_template",
    "pellucid.text.template_worker.Generation.parse",
    "pellucid.text.template_worker.PublicNamespace.check",
    "pellucid.text.template_worker.write_frame",
}
Function = ast.FunctionDef | ast.AsyncFunctionDef


def public(tree: ast.Module) -> Iterator[tuple[str, str, bool]]:
    """(name, own name if it is a method, whether it or its class says what it is) of what others may call."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef | Function) and not node.name.startswith("_") and not exempt(node):
            told = ast.get_docstring(node) or ""
            yield node.name, "", bool(told)
            for child in node.body if isinstance(node, ast.ClassDef) else ():
                if isinstance(child, Function) and not child.name.startswith("_") and not exempt(child):
                    named = re.search(rf"\b{child.name}\b", told)
                    yield f"{node.name}.{child.name}", child.name, bool(ast.get_docstring(child) or named)


def exempt(node: ast.ClassDef | Function) -> bool:
    """Signatures of one function, and numbers of a run that are derived: these return their reason."""
    return any(ast.unparse(decorator) in ("overload", "derived") for decorator in node.decorator_list)


def undocumented(package: Package) -> list[str]:
    """Public names that nothing says what they are; of methods, those that no class of the package explains."""
    found = [(module, *each) for module, tree in package.trees.items() for each in public(tree)]
    told = {method for _, _, method, documented in found if documented} - {""}
    return [f"{module}.{name}" for module, name, method, documented in found if not (documented or method in told)]


def test_public_names_have_docstrings() -> None:
    assert set(undocumented(HOUSE)) <= WITHOUT


@pytest.mark.parametrize(
    ("source", "seen"),
    [
        ("def f(): pass", ["pellucid.room.f"]),
        ("class A: pass", ["pellucid.room.A"]),
        ("class A:\n    '''.'''\n    def f(self): pass", ["pellucid.room.A.f"]),
        (
            "class A:\n    '''.'''\n    def f(self):\n        '''.'''\nclass B(A):\n    '''.'''\n    def f(self): pass",
            [],
        ),
        ("def _f(): pass\nclass _A: pass", []),
    ],
)
def test_a_missing_docstring_is_seen(tmp_path: Path, source: str, seen: list[str]) -> None:
    (tmp_path / "pellucid").mkdir()
    (tmp_path / "pellucid" / "room.py").write_text(source, encoding="utf-8")
    assert undocumented(Package(tmp_path)) == seen
