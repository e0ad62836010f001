"""A person's own function, by name: ``module:function`` or ``path/file.py:function``. Its file is run, as theirs."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from pellucid.errors import UsageError, suggest


def function_of(name: str) -> Callable[..., Any]:
    """The function; its module is looked for in the current folder first. Only what a person names may come here.

    Raises UsageError where there is no such file, module or function, and where it cannot be run.
    """
    where, _, wanted = name.rpartition(":")
    module = _run(where)
    function = getattr(module, wanted, None)
    if not callable(function):
        there = [each for each, value in vars(module).items() if callable(value) and not each.startswith("_")]
        raise UsageError(f"{where} has no function {wanted!r}", suggest(wanted, there))
    return function


def _run(where: str) -> ModuleType:
    path, here = Path(where), str(Path.cwd())
    is_file = path.suffix == ".py"
    if is_file and not path.is_file():
        raise UsageError(f"there is no file {where}", "give path/to/file.py:function, or module:function")
    sys.path.insert(0, str(path.resolve().parent) if is_file else here)  # for what it imports itself
    try:
        if not is_file:
            return importlib.import_module(where)
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    except Exception as error:  # whatever a stranger's file raises
        raise UsageError(f"{where} cannot be run: {type(error).__name__}: {error}", "run it by itself first") from error
    finally:
        del sys.path[0]
