"""A model of Python source code, from what every machine with Python has: its own standard library."""

from __future__ import annotations

import gzip
import lzma
import sysconfig
from dataclasses import dataclass, replace
from pathlib import Path

from pellucid.errors import DataError
from pellucid.train.config import TrainOptions

# held out by name: twenty modules of every kind, large and small
HELD_OUT = (
    "argparse ast bdb calendar codecs cmd configparser csv dataclasses datetime "
    "difflib dis doctest fractions ftplib heapq inspect mailbox pdb statistics"
).split()
# tests, tables and bundled tools: little of it reads like the modules themselves
LEFT_OUT = {"test", "idlelib", "lib2to3", "encodings", "pydoc_data", "turtledemo", "ensurepip", "site-packages"}


@dataclass(frozen=True)
class Recipe:
    """What to train on, and what is asked of the run; ``held_out`` are the files that are only measured on."""

    texts: tuple[str, ...]
    options: TrainOptions
    held_out: tuple[Path, ...]


def standard_library(options: TrainOptions = TrainOptions()) -> Recipe:  # noqa: B008 - frozen
    """The running Python's modules and packages, twenty modules held out. Raises DataError where it has no sources."""
    root = Path(sysconfig.get_paths()["stdlib"])
    packages = sorted(p.parent for p in root.glob("*/__init__.py") if p.parent.name not in LEFT_OUT)
    held_out = tuple(path for name in HELD_OUT if (path := root / f"{name}.py").exists())
    if len(held_out) < 10 or not packages:
        raise DataError(
            f"{root} holds no standard library in source form", "run the demo with an ordinary CPython installation"
        )
    texts = (str(root / "*.py"), *(str(p / "**" / "*.py") for p in packages))
    asked = replace(options, held_out=tuple(map(str, held_out)))
    return Recipe(texts, asked, held_out)


def compressed_bits_per_byte(files: tuple[Path, ...]) -> dict[str, float]:
    """What ``gzip -9`` and ``xz -9e`` need for these files one after the other, in bits per byte."""
    data = b"".join(path.read_bytes() for path in files)
    sizes = {
        "gzip -9": len(gzip.compress(data, 9, mtime=0)),
        "xz -9e": len(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME)),
    }
    return {name: 8 * size / len(data) for name, size in sizes.items()}
