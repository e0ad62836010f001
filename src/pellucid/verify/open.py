"""From what a person names to a subject."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path
from typing import Any, Literal

from pellucid.arguments import checked
from pellucid.errors import UsageError
from pellucid.verify.subject import Subject

Through = Literal["auto", "pellucid", "transformers"]


@checked()
def open_subject(
    what: Any, *, through: Through = "auto", quantised: bool = False, ignore: Collection[str] = (), **how: Any
) -> Subject:
    """A model of ours, a transformers model, a callable; or a folder, name, GGUF file or ``file.py:function``.

    through: what opens a folder or name: "pellucid", "transformers", or whichever made it. quantised, ignore: as in
    ``pellucid.load``. how: for a callable, see ``function.Function``. Raises UsageError for anything else, and where
    through, quantised or ignore does not fit.
    """
    if isinstance(what, Subject):
        return what
    if isinstance(what, str | Path):
        return _named(str(what), through, quantised, ignore, how)
    if quantised:
        raise UsageError("quantised = True is for the name of a GGUF file", "leave it out")
    from torch import nn

    from pellucid.nn.models import Model

    if isinstance(what, Model):
        from pellucid.verify.ours import Ours

        _nothing_more(how)
        return Ours(what)  # type: ignore[arg-type]
    if isinstance(what, nn.Module) and hasattr(getattr(what, "config", None), "model_type"):
        from pellucid.verify.hugging_face import HuggingFace

        return HuggingFace(what, **how)
    if callable(what):
        from pellucid.verify.function import Function

        return Function(what, **how)
    raise UsageError(
        f"a {type(what).__name__} is nothing that can be verified",
        "a model, a folder or name of one, or a function from ids to logits",
    )


def _named(name: str, through: Through, quantised: bool, ignore: Collection[str], how: dict[str, Any]) -> Subject:
    if quantised and not name.lower().endswith(".gguf"):
        raise UsageError(f"quantised = True, but {name} is no GGUF file", "leave quantised out: nothing in it is")
    if ".py:" in name:
        from pellucid.verify.function import load_function

        return load_function(name, **how)
    if name.endswith(".py"):
        raise UsageError(f"{name} is a file of Python, which may define many functions", f"name one: {name}:FUNCTION")
    from pellucid.api import is_ours, load, locate

    path = locate(name)
    own = path.suffix == ".gguf" or is_ours(path)
    if through == "transformers" and own:
        raise UsageError(f"{name} is not a folder that transformers reads", "leave --through out")
    if own or through == "pellucid" or (through == "auto" and not _transformers_here()):
        _nothing_more(how)
        from pellucid.verify.ours import Ours

        opened = load(path, quantised=quantised, ignore=ignore)
        return Ours(opened, Path(name).stem if path.suffix == ".gguf" else Path(os.path.abspath(name)).name)
    if ignore:
        raise UsageError(f"ignore = {list(ignore)}, but transformers opens {name}", "add --through pellucid")
    from pellucid.verify.hugging_face import load_hugging_face

    return load_hugging_face(path, Path(os.path.abspath(name)).name, **how)


def _nothing_more(how: dict[str, Any]) -> None:
    if how:
        raise UsageError(f"{', '.join(how)}: a model of ours says itself what it is", "leave it out")


def _transformers_here() -> bool:
    from importlib.util import find_spec

    return find_spec("transformers") is not None
