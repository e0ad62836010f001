"""Which module computes which spec: each module says so itself, ``@computes(AttentionSpec)``; no list names them all.

The module stands in the file of ``nn`` that is called like the file of its spec (``spec/attention.py`` and
``nn/attention.py``), which is read when the first one is built. A spec from outside the library needs no such file:
the import of its module is enough.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any, TypeVar

from torch import nn

from pellucid.errors import SpecError
from pellucid.values import Value

T = TypeVar("T", bound=type[nn.Module])
M = TypeVar("M", bound=nn.Module)

_MODULES: dict[type[Value], type[nn.Module]] = {}


def computes(*specs: type[Value]) -> Callable[[T], T]:
    """A decorator: the module is what these specs describe, and is called with one of them and with sizes."""

    def enter(module: T) -> T:
        _MODULES.update(dict.fromkeys(specs, module))
        return module

    return enter


def build(spec: Value, sizes: Any, kind: type[M] = nn.Module) -> M:
    """The module that a spec describes, its weights not yet drawn.

    sizes: what the module must know beside its spec, such as d_model. Raises SpecError where no module computes the
    spec, or where it is not of the ``kind`` that its place asks for.
    """
    described = type(spec)
    if described not in _MODULES and described.__module__.startswith("pellucid.spec."):
        import_module(described.__module__.replace(".spec.", ".nn."))
    module = _MODULES.get(described)
    if module is None or not issubclass(module, kind):
        wanted = "module" if kind is nn.Module else kind.__name__
        raise SpecError(
            f"{described.__name__}: no {wanted} computes it", f"put @computes({described.__name__}) on its class"
        )
    return module(spec, sizes)
