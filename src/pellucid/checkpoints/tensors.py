"""Safetensors files of our own: written whole or not at all, with a digest of their contents inside."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pellucid.checkpoints.safetensors_files import read_tensor
from pellucid.errors import CheckpointError
from pellucid.files import parse_json, write_file


def digest(tensors: Mapping[str, Tensor]) -> str:
    """sha256 over names, types, shapes and bytes, in the order of names."""
    running = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        running.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        running.update(tensor.view(-1).view(torch.uint8).numpy().data if tensor.numel() else b"")
    return running.hexdigest()


def save_tensors(path: Path, tensors: Mapping[str, Tensor], **metadata: Any) -> None:
    """Write a safetensors file, whole or not at all, with its own digest inside; equal contents give equal files.

    The metadata is one entry, since the format keeps several in no fixed order.
    """
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    inside = json.dumps({"sha256": digest(plain), **metadata}, sort_keys=True)

    write_file(path, lambda aside: write_tensors(aside, plain, {"pellucid": inside}))


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """The library's ``save_file``, which says only in a text what the disk has answered; here it is an OSError."""
    try:
        path.touch()
        mode = path.stat().st_mode
        save_file(tensors, path, metadata)
        path.chmod(mode)  # the library leaves a file that only its owner may read
    except SafetensorError as error:
        number = re.search(r"\(os error (\d+)\)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1]))) from error


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and metadata of a file that ``save_tensors`` wrote.

    Raises CheckpointError when it is missing, truncated, or not one byte is as it was saved.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist", "give a folder that training or `save_model` wrote")
    try:
        with safe_open(path, "pt") as file:
            written, names = (file.metadata() or {}).get("pellucid", "{}"), list(file.keys())
        tensors = {name: read_tensor(path, name) for name in names}
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged: {error}", "use another copy, or an earlier checkpoint") from error
    metadata = parse_json(written, f"the metadata of {path}", CheckpointError)
    if not isinstance(metadata, dict) or "sha256" not in metadata:
        raise CheckpointError(f"{path} carries no sha256, so it was not written by pellucid", "convert it first")
    if digest(tensors) != metadata["sha256"]:
        raise CheckpointError(
            f"{path} is damaged: its contents do not match the hash inside",
            "use another copy, or an earlier checkpoint",
        )
    return tensors, metadata
