"""Where the kernels come from: built before, or built once by torch's own loader, or not there, and why.

The C++ beside this file is compiled with the first quantised model that is loaded, or by ``build()``. What was built
lies in ``~/.cache/pellucid`` under a hash of its source and of torch's version. ``PELLUCID_NATIVE=0`` leaves it out.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import sys
import sysconfig
import threading
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Size, Tensor
from torch.utils.flop_counter import register_flop_formula

KINDS = ("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS")  # that kernels know
SOURCES = ("portable.cpp", "avx2.cpp", "avx512.cpp", "operators.cpp")
FLAGS = ("-O3", "-fno-math-errno", "-ffp-contract=off")  # a product and a sum are rounded apart, as torch rounds them
NAME = "pellucid_native"
WHOLE = "whole"  # a file that says that all others are there


class Library:
    """The operators ``torch.ops.pellucid_native``, once they are loaded; ``why`` says why they are not."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._settled = False  # whether they are loaded, or cannot be: nothing is tried a second time
        self.ops: Any = None
        self.why = ""

    def ready(self, build: bool = False) -> bool:
        """Whether the operators can be called. build: compile them, where nobody has."""
        if not self._settled and not torch.compiler.is_compiling():
            with self._lock:
                if not self._settled:
                    self._find(build)
        return self.ops is not None

    def _find(self, build: bool) -> None:
        if os.environ.get("PELLUCID_NATIVE", "1") == "0":
            self.why, self._settled = "PELLUCID_NATIVE=0", True
            return
        folder = _folder()
        try:
            if not (folder / WHOLE).exists():
                self.why = _lacking()
                if self.why or not build:
                    self.why, self._settled = self.why or "they are not built yet", bool(self.why)
                    return
                _compile(folder)
            else:
                torch.ops.load_library(folder / f"{NAME}.so")
        except (OSError, RuntimeError, ImportError) as error:
            lines = [line for line in str(error).splitlines() if line.strip()]
            self.why = f"building failed: {lines[0] if lines else type(error).__name__}"
        else:
            self.ops, self.why = getattr(torch.ops, NAME), ""
            register_flop_formula(self.ops.linear)(_flops)
        self._settled = True


def _lacking() -> str:
    """What is missing for building the kernels here; "" where nothing is."""
    if sys.platform == "win32":
        return "they are not built on Windows"
    compilers = (os.environ.get("CXX", ""), "c++", "g++", "clang++")
    if not any(shutil.which(name) for name in compilers if name):
        return "there is no C++ compiler"
    return (
        "" if shutil.which("ninja", path=_path()) else "there is no ninja, which torch builds with: pip install ninja"
    )


def _path() -> str:
    """Where programs are looked for: beside this Python's own, too, whose environment need not be activated."""
    return os.pathsep.join((os.environ.get("PATH", os.defpath), sysconfig.get_path("scripts")))


def _folder() -> Path:
    """Where kernels of this source lie, for this torch and this kind of processor."""
    here = Path(__file__).parent
    digest = hashlib.sha256(repr((torch.__version__, platform.machine(), sys.platform, FLAGS)).encode())
    for path in sorted(here.iterdir()):
        if path.suffix in (".cpp", ".h", ".inl"):
            digest.update(path.read_bytes())
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(cache, "pellucid", f"native-{digest.hexdigest()[:16]}")


def _compile(folder: Path) -> None:
    """Build the operators and load them; one process builds, others wait for it."""
    from filelock import FileLock

    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        if (folder / WHOLE).exists():
            torch.ops.load_library(folder / f"{NAME}.so")
            return
        from torch.utils import cpp_extension

        print(f"pellucid: compiling kernels for fast decoding, once, into {folder} ...", file=sys.stderr, flush=True)
        sources = [str(Path(__file__).parent / name) for name in SOURCES]
        options: dict[str, Any] = {"extra_cflags": list(FLAGS), "build_directory": str(folder)}
        before, os.environ["PATH"] = os.environ.get("PATH", os.defpath), _path()
        try:
            cpp_extension.load(NAME, sources, is_python_module=False, **options)
        finally:
            os.environ["PATH"] = before
        (folder / WHOLE).touch()


library = Library()


def build() -> bool:
    """Compile the kernels unless they are there; whether they can be used now. ``library.why`` says why not."""
    return library.ready(build=True)


def opened(blocks: UInt8[Tensor, "*axes bytes"], kind: str) -> Float[Tensor, "*axes d_in"] | None:
    """The numbers of blocks, bit for bit those of ``nn.formats``; None where no kernel can make them."""
    if kind not in KINDS or blocks.device.type != "cpu" or torch.compiler.is_compiling() or not library.ready():
        return None
    return library.ops.open(blocks.contiguous(), kind)


def _flops(x: Size, blocks: Size, *others: Any, **_: Any) -> int:
    return 2 * x.numel() * blocks[0]
