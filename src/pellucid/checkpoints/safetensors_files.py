"""A published model folder: ``config.json`` beside one safetensors file, or beside several and their index."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Size, Tensor

from pellucid.errors import CheckpointError
from pellucid.families.source import Checkpoint
from pellucid.files import parse_json, read_json
from pellucid.nn.stored import Plain

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
GENERATION = "generation_config.json"
MOST_JSON = 16 << 20  # bytes of a config, an index or a header; the largest published are below 2 MB
PIECE = 8 << 20  # bytes of a file that are mapped and converted at a time
FLOATS = ("F64", "F32", "F16", "BF16")
PICKLED = (
    "pytorch_model*.bin",
    "*.bin",
    "*.pt",
    "*.pth",
    "*.pkl",
    "*.ckpt",
    "*.msgpack",
    "*.h5",
)  # what older libraries wrote instead


def open_folder(folder: Path) -> Checkpoint:
    """The config and the tensors of a published folder; headers are read and checked, weights are not.

    Raises CheckpointError naming the file that is missing or damaged, or that only code could open.
    """
    if not (folder / CONFIG).is_file():
        raise CheckpointError(f"{folder} holds no {CONFIG}", "give a folder with config.json and model.safetensors")
    config = read_object(folder / CONFIG)
    if (folder / WEIGHTS).is_file():
        return Checkpoint(config, SafetensorsFiles(folder, [folder / WEIGHTS]), folder)
    if (folder / INDEX).is_file():
        return Checkpoint(config, _sharded(folder), folder)
    raise _no_weights(folder)


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises CheckpointError where it is none, says a key twice, or is absurdly long."""
    value = read_json(path, CheckpointError, MOST_JSON, unique=True)
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} is no JSON object, but a {type(value).__name__}", "restore it")
    return cast("dict[str, Any]", value)


# --- tensors ---------------------------------------------------------------------------------------------------------


class SafetensorsFiles:
    """The tensors of one file or several, by name: a ``Source``."""

    def __init__(self, where: Path, files: Iterable[Path]):
        """Read the headers. Raises CheckpointError naming the file whose header is damaged, or the repeated tensor."""
        self.where = where
        shapes: dict[str, Size] = {}
        self._types: dict[str, str] = {}
        self._homes: dict[str, Path] = {}
        for path in files:
            for name, kind, shape in _header(path):
                if name in self._homes:
                    raise CheckpointError(f"{path} and {self._homes[name].name} both hold {name}", "keep one of them")
                shapes[name], self._types[name], self._homes[name] = Size(shape), kind, path
        self.shapes: Mapping[str, Size] = shapes
        self.kinds: Mapping[str, str] = {}

    def names_in(self, path: Path) -> set[str]:
        """The tensors that one of the files holds."""
        return {name for name, home in self._homes.items() if home == path}

    def read(self, name: str, dtype: torch.dtype | None = None) -> Plain:
        """One tensor, converted piece by piece. Raises CheckpointError for one that is not of floating point."""
        path, kind = self._homes[name], self._types[name]
        if kind not in FLOATS:
            raise CheckpointError(f"{path}: {name} is {kind}, not floating point", "load an unquantised checkpoint")
        try:
            return Plain(read_tensor(path, name, dtype))
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path} has changed while it was read: {error}", "load it again") from error


def read_tensor(path: Path, name: str, dtype: torch.dtype | None = None) -> Tensor:
    """One tensor of a file in memory of its own, in this type (default: the file's).

    It is mapped anew for each piece: what a mapping has touched counts as this process's memory until it ends. Raises
    what the library does.
    """
    with safe_open(path, "pt") as file:
        mapped = file.get_tensor(name)
        result = torch.empty(mapped.shape, dtype=dtype or mapped.dtype)
        if mapped.nbytes <= PIECE:
            return result.copy_(mapped)
        rows = max(1, PIECE * len(mapped) // mapped.nbytes)
        del mapped
    for start in range(0, len(result), rows):
        with safe_open(path, "pt") as file:
            result[start : start + rows] = file.get_slice(name)[start : start + rows]
    return result


def _header(path: Path) -> Iterator[tuple[str, str, list[int]]]:
    """Name, type and shape of each tensor. The library checks types, sizes, gaps, overlaps and the file's length."""
    try:
        if not path.is_file():  # a pipe would be waited for
            raise CheckpointError(f"{path} does not exist, or is no file", "fetch the model again: a part is missing")
        with path.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if length > MOST_JSON:
                raise CheckpointError(f"{path}: its header claims {length:,} bytes", "the file is damaged")
            header = stream.read(length).decode()
        with safe_open(path, "pt") as file:  # first: it says more exactly what is wrong
            parse_json(header, f"the header of {path}", CheckpointError, unique=True)
            for name in file.keys():  # noqa: SIM118  (not a dict)
                part = file.get_slice(name)
                yield name, part.get_dtype(), part.get_shape()
    except (SafetensorError, OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is damaged: {error}", "fetch the model again") from error


def _sharded(folder: Path) -> SafetensorsFiles:
    """The files that an index names, each with the tensors that the index says and no others.

    A name that no file has is let through here: some indices list a tied head. Where the model needs it, the plan for
    its weights says that it is missing.
    """
    path = folder / INDEX
    listed = read_object(path).get("weight_map")
    if not isinstance(listed, dict) or not listed:
        raise CheckpointError(f"{path} has no weight_map", "restore it from where the model was published")
    shards: dict[str, set[str]] = {}
    for name, file in cast("dict[str, Any]", listed).items():
        if not isinstance(file, str) or not file.endswith(".safetensors") or not is_plain(file):
            raise CheckpointError(
                f"{path} places {name} in {str(file)[:200]!r}", "only safetensors files beside it are read"
            )
        shards.setdefault(file, set()).add(name)
    source = SafetensorsFiles(folder, [folder / file for file in sorted(shards)])
    for file, names in shards.items():
        held = source.names_in(folder / file)
        if misplaced := (held - names) | ((names - held) & source.shapes.keys()):
            name = min(misplaced)
            problem = "lacks" if name in names else "holds"
            raise CheckpointError(f"{folder / file} {problem} {name}, but {INDEX} says otherwise", "fetch both again")
    return source


def is_plain(file: str) -> bool:
    """Whether this names something in a folder, and nothing above it or elsewhere."""
    return file not in ("", ".", "..") and not set(file) & set("/\\:\0")


# --- refusals --------------------------------------------------------------------------------------------------------


def _no_weights(folder: Path) -> CheckpointError:
    """Why a folder with a config cannot be opened, and what to do about it."""
    adapter = folder / "adapter_model.safetensors"
    if adapter.is_file():
        return CheckpointError(f"{folder} holds an adapter, {adapter.name}, but no model", "merge it into its model")
    parts = sorted(path.name for path in folder.glob("*.safetensors"))
    if parts:
        return CheckpointError(f"{folder} holds {parts[0]}, but neither {WEIGHTS} nor {INDEX}", f"restore the {INDEX}")
    pickled = [path.name for pattern in PICKLED for path in sorted(folder.glob(pattern))]
    if pickled:
        return pickle_refusal(folder, pickled)
    ggufs = sorted(path.name for path in folder.glob("*.gguf"))
    if ggufs:
        return CheckpointError(f"{folder} holds no {WEIGHTS}, but {', '.join(ggufs)}", "name that file instead")
    return CheckpointError(f"{folder} holds no {WEIGHTS}", "fetch the model again: its weights are missing")


def pickle_refusal(folder: Path, files: Iterable[str]) -> CheckpointError:
    """The error for weights in a format that can run code, with the command that turns them into safetensors."""
    first = next(iter(files))
    if first.endswith((".msgpack", ".h5")):
        return CheckpointError(f"{folder} holds {first}, of another library", "fetch its safetensors")
    problem = f"{folder} holds {first}, a pickle, which can run code when it is opened, and no {WEIGHTS}"
    if re.search(r"[^\w./ -]", f"{folder}/{first}"):  # nothing that a shell or Python reads goes into a command
        return CheckpointError(problem, "fetch its safetensors")
    parts = "pytorch_model-*.bin" if first.startswith("pytorch_model-") else first
    convert = (
        "import glob, torch; from safetensors.torch import save_file; "
        f"save_file({{k: w.clone().contiguous() for f in glob.glob('{folder / parts}') "
        "for k, w in torch.load(f, map_location='cpu', weights_only=True).items()}, "
        f"'{folder / WEIGHTS}', {{'format': 'pt'}})"
    )
    return CheckpointError(
        problem,
        f'fetch its safetensors, or, if you trust whoever made it, convert it once: python -c "{convert}"',
    )
