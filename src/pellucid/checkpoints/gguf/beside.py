"""Small GGUFs that llama.cpp reads beside a model: all of their tensors in float32 and in memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from pellucid.files import write_file

if TYPE_CHECKING:
    from gguf import GGUFWriter


def write_beside(
    path: Path, architecture: str, describe: Callable[[GGUFWriter], None], tensors: Mapping[str, Tensor]
) -> None:
    """Write a file whole or not at all. describe: adds what it says beside its architecture."""

    def write(aside: Path) -> None:
        from gguf import GGUFWriter

        writer = GGUFWriter(aside, architecture)
        try:
            describe(writer)
            for name, tensor in tensors.items():
                writer.add_tensor(name, tensor.float().cpu().contiguous().numpy())
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
        finally:
            writer.close()

    write_file(path, write)
