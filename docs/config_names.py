"""Every name that some architecture of transformers has for an attribute of its config, into ``families/names.txt``.

Run it with a new release of that library installed: ``python docs/config_names.py``. An attribute of a published config
that a family of ours does not know is refused where its name is among these, since it may change what the model
computes, and ignored where it is not. The library's source is read and not imported: fields, arguments and other
spellings of the classes whose names end in Config, and what the models read of a config.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from importlib.metadata import distribution
from pathlib import Path

NAMES = Path(__file__).parent.parent / "src" / "pellucid" / "families" / "names.txt"
READ = re.compile(r"\b\w*config\.([a-z_]\w*)\b(?!\()|(?:getattr|hasattr)\(\s*(?:self\.)?\w*config,\s*[\"'](\w+)[\"']")
KEYWORD = re.compile(r"kwargs\.(?:pop|get)\(\s*[\"'](\w+)[\"']")


def declared(tree: ast.AST) -> Iterator[str]:
    """Attributes of the config classes of a module: fields, arguments, assignments, and other spellings."""
    for kind in ast.walk(tree):
        if not (isinstance(kind, ast.ClassDef) and kind.name.endswith("Config")):
            continue
        for node in ast.walk(kind):
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                yield node.target.id
            elif isinstance(node, ast.FunctionDef) and node.name == "__init__":
                yield from (each.arg for each in (*node.args.args, *node.args.kwonlyargs))
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                yield node.attr
            elif isinstance(node, ast.Assign) and any(
                isinstance(target, ast.Name) and target.id == "attribute_map" for target in node.targets
            ):
                yield from (str(key.value) for key in ast.walk(node) if isinstance(key, ast.Constant))


def names(library: Path) -> set[str]:
    """All names in the source of the library."""
    found: set[str] = set()
    for path in sorted(library.rglob("*.py")):
        if re.fullmatch(r"configuration_\w+\.py", path.name):
            text = path.read_text(encoding="utf-8")
            found |= {*declared(ast.parse(text)), *KEYWORD.findall(text)}
        if re.fullmatch(r"(modeling|configuration)_\w+\.py", path.name):
            found |= {name for pair in READ.findall(path.read_text(encoding="utf-8")) for name in pair}
    return {name for name in found if re.fullmatch(r"[A-Za-z]\w*", name)} - {"self", "kwargs"}


def text() -> str:
    """What the file holds: the release, then the names, one a line."""
    library = distribution("transformers")
    return "\n".join([library.version, *sorted(names(Path(str(library.locate_file("transformers")))))]) + "\n"


if __name__ == "__main__":
    NAMES.write_text(text(), encoding="utf-8")
    sys.stdout.write(f"{NAMES.name}: {len(NAMES.read_text(encoding='utf-8').split()) - 1:,} names\n")
