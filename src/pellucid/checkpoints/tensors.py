"""Safetensors files of our own: written whole or not at all, with a digest of their contents inside."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Size, Tensor

from pellucid.checkpoints.safetensors_files import read_tensor
from pellucid.errors import CheckpointError
from pellucid.files import parse_json, write_file


class Digest:
    """sha256 over names, types, shapes and bytes of tensors that come one after the other, in the order of names."""

    def __init__(self) -> None:
        self._running = hashlib.sha256()

    def update(self, name: str, tensor: Tensor) -> None:
        tensor = tensor.detach().cpu().contiguous()
        self._running.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        self._running.update(tensor.view(-1).view(torch.uint8).numpy().data if tensor.numel() else b"")

    def hex(self) -> str:
        return self._running.hexdigest()


def digest(tensors: Mapping[str, Tensor]) -> str:
    """The ``Digest`` of all of these."""
    running = Digest()
    for name in sorted(tensors):
        running.update(name, tensors[name])
    return running.hex()


def save_tensors(path: Path, tensors: Mapping[str, Tensor], **metadata: Any) -> None:
    """Write a safetensors file, whole or not at all, with its own digest inside; equal contents give equal files.

    The metadata is one entry, since the format keeps several in no fixed order.
    """
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    inside = json.dumps({"sha256": digest(plain), **metadata}, sort_keys=True)

    write_file(path, lambda aside: write_tensors(aside, plain, {"pellucid": inside}))


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """The library's ``save_file``; a failure of the disk, which it reports in words only, is raised as an OSError."""
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


class TensorFile:
    """A file that ``save_tensors`` wrote, opened: ``shapes`` and ``metadata`` are there, tensors come one at a time.

    Raises CheckpointError when it is missing, truncated, or not written by ``save_tensors``.
    """

    def __init__(self, path: Path):
        self.path = path
        if not path.is_file():
            raise CheckpointError(f"{path} does not exist", "give a folder that training or `save_model` wrote")
        with self._explained(), safe_open(path, "pt") as file:
            written = (file.metadata() or {}).get("pellucid", "{}")
            self.shapes = {name: Size(file.get_slice(name).get_shape()) for name in sorted(file.keys())}
        metadata = parse_json(written, f"the metadata of {path}", CheckpointError)
        if not isinstance(metadata, dict) or "sha256" not in metadata:
            raise CheckpointError(f"{path} carries no sha256, so it was not written by pellucid", "convert it first")
        self.metadata: dict[str, Any] = metadata

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor by its name, each in memory of its own.

        Raises CheckpointError, after the last one at the latest, where any byte differs from what was saved: until it
        has ended, nothing that it gave is to be believed.
        """
        running = Digest()
        for name in self.shapes:
            with self._explained():
                tensor = read_tensor(self.path, name)
            running.update(name, tensor)
            yield name, tensor
        if running.hex() != self.metadata["sha256"]:
            raise CheckpointError(
                f"{self.path} is damaged: its contents do not match the hash inside",
                "use another copy, or an earlier checkpoint",
            )

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            remedy = "use another copy, or an earlier checkpoint"
            raise CheckpointError(f"{self.path} is damaged: {error}", remedy) from error


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and metadata of a file that ``save_tensors`` wrote.

    Raises CheckpointError when it is missing or truncated, or any byte differs from what was saved.
    """
    file = TensorFile(path)
    return dict(file), file.metadata
