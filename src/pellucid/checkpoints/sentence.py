"""What stands on an encoder that sentence-transformers has published: how its states become one vector a text.

``modules.json`` lists it: the Transformer, then Pooling, perhaps Normalize (Reimers & Gurevych 2019, section 3).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, cast

from pellucid.checkpoints.safetensors_files import MOST_JSON, is_plain, read_object
from pellucid.errors import CheckpointError
from pellucid.files import read_json, write_json
from pellucid.spec import PoolerHeadSpec

MODULES = "modules.json"
_TYPE = "sentence_transformers.models."
_MODES: dict[str, Literal["first", "last", "mean", "max"]] = {
    "cls_token": "first",
    "mean_tokens": "mean",
    "max_tokens": "max",
    "lasttoken": "last",
}
_REMEDY = 'pellucid.load(folder, architecture="BertModel"), or what its config names, is the encoder without it'


def sentence_head(folder: Path) -> PoolerHeadSpec | None:
    """The head that ``modules.json`` describes; None where there is no such file.

    Raises CheckpointError for a module, or a way to pool, that no head of ours is.
    """
    if not (folder / MODULES).is_file():
        return None
    modules = read_json(folder / MODULES, CheckpointError, MOST_JSON, unique=True)
    if not isinstance(modules, list) or not all(isinstance(module, dict) for module in cast("list[Any]", modules)):
        raise CheckpointError(f"{folder / MODULES} is no list of modules", "restore it")
    listed = cast("list[dict[str, Any]]", modules)
    kinds = [str(module.get("type")).rpartition(".")[2] for module in listed]
    if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        raise CheckpointError(f"{folder / MODULES} lists {', '.join(kinds)[:200]}", _REMEDY)
    place = listed[1].get("path")
    if not isinstance(place, str) or not is_plain(place):
        raise CheckpointError(f"{folder / MODULES}: the path {str(place)[:200]!r} leaves the folder", "restore it")
    return PoolerHeadSpec(_mode(folder / place / "config.json"), dense=False, normalise=len(kinds) == 3)


def _mode(path: Path) -> Literal["first", "last", "mean", "max"]:
    said = read_object(path)
    chosen = [name.removeprefix("pooling_mode_") for name, value in said.items() if value is True and "_mode_" in name]
    if len(chosen) != 1 or chosen[0] not in _MODES:
        raise CheckpointError(f"{path} pools by {' and '.join(chosen)[:200] or 'nothing'}", _REMEDY)
    return _MODES[chosen[0]]


def write_sentence_head(folder: Path, head: PoolerHeadSpec, d_model: int, context: int) -> None:
    """The files that ``sentence_head`` reads, as sentence-transformers writes them."""
    modules = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")][: 2 + head.normalise]
    listed = [{"idx": i, "name": str(i), "path": path, "type": _TYPE + kind} for i, (path, kind) in enumerate(modules)]
    write_json(folder / MODULES, listed)
    modes = {f"pooling_mode_{name}": take == head.take for name, take in _MODES.items()}
    write_json(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": d_model, **modes})
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": context, "do_lower_case": False})
