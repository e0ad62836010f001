"""Files of llama.cpp, out of the source distribution of llama-cpp-python, which ``make peers`` downloads.

None of it is kept in this repository.
"""

from __future__ import annotations

import os
import tarfile
from pathlib import Path

FOLDER = "LLAMA_CPP_PYTHON"  # an environment variable: the folder that the archive lies in


def unpacked(beginning: str, folder: Path) -> list[Path]:
    """The files of llama.cpp whose path begins so ("models/ggml-vocab-"), written to ``folder``."""
    archives = sorted(Path(os.environ.get(FOLDER, ".venv/.peers")).glob("llama_cpp_python-*.tar.gz"))
    if not archives:
        raise SystemExit(f"no archive of llama-cpp-python in {FOLDER}; `make peers` downloads it")
    written: list[Path] = []
    with tarfile.open(archives[-1]) as tar:
        for member in tar:
            _, _, path = member.name.partition("/vendor/llama.cpp/")
            if path.startswith(beginning) and (stream := tar.extractfile(member)) is not None:
                written.append(folder / Path(path).name)
                written[-1].write_bytes(stream.read())
    return sorted(written)
