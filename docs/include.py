"""Code in the documentation is the code itself: put there by this script, and checked to be current by a test.

A page asks for a function, class or method by its place, and this script fills in what stands there now:

    <!-- code: src/pellucid/nn/rope.py rotate -->
    ```python
    ...
    ```

``python docs/include.py`` brings all pages up to date; ``--check`` only says which are not, and exits with 1.
"""

from __future__ import annotations

import ast
import re
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"(<!-- code: (?P<file>\S+) (?P<name>[\w.]+) -->\n```python\n)(?P<code>.*?)(```\n)", re.DOTALL)


def source_of(path: Path, name: str) -> str:
    """The source of a function, class, method or constant (``Class.method``, ``NAME``) as it stands in a file.

    Raises KeyError where there is none of this name.
    """
    text = path.read_text(encoding="utf-8")
    node: ast.AST = ast.parse(text)
    for part in name.split("."):
        node = next((child for child in ast.iter_child_nodes(node) if part in _names(child)), node)
        if part not in _names(node):
            raise KeyError(f"{path.relative_to(ROOT)} has no {name}")
    assert isinstance(node, ast.stmt) and node.end_lineno is not None
    decorators = getattr(node, "decorator_list", [])
    first = min([node.lineno, *(decorator.lineno for decorator in decorators)])
    return textwrap.dedent("\n".join(text.splitlines()[first - 1 : node.end_lineno])) + "\n"


def _names(node: ast.AST) -> set[str]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return {node.name}
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return {target.id for target in targets if isinstance(target, ast.Name)}


def updated(page: str) -> str:
    """A page with every included piece of code as it is now."""
    return BLOCK.sub(lambda m: m[1] + source_of(ROOT / m["file"], m["name"]) + m[5], page)


def main(arguments: list[str]) -> int:
    stale = []
    for path in sorted((ROOT / "docs").glob("**/*.md")):
        before = path.read_text(encoding="utf-8")
        after = updated(before)
        if after != before:
            stale.append(path.relative_to(ROOT))
            if "--check" not in arguments:
                path.write_text(after, encoding="utf-8")
    for path in stale:
        print(f"{path}: {'not current' if '--check' in arguments else 'brought up to date'}")
    return 1 if stale and "--check" in arguments else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
