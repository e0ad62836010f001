"""What stands around an encoder that sentence-transformers has published: how a text is read, and becomes one vector.

``modules.json`` lists the modules: the Transformer, in the folder itself or in one of its own; then Pooling, perhaps
Normalize (Reimers & Gurevych 2019, section 3). A list with the Transformer alone is of a model with a head of its own,
such as a reranker. How a text is read, that is its greatest length, prompts and case, stands in further files.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast

from pellucid.checkpoints.safetensors_files import CONFIG, MOST_JSON, is_plain, read_object
from pellucid.errors import CheckpointError
from pellucid.files import read_json, write_json
from pellucid.spec import PoolerHeadSpec

Pooling: TypeAlias = Literal["first", "last", "mean", "max"]

MODULES, PROMPTS = "modules.json", "config_sentence_transformers.json"
# the Transformer's own file, by the classes that the library had in its first years
READING = tuple(
    f"sentence_{kind}_config.json"
    for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
TRANSFORMERS = {"Transformer", "BERT", "RoBERTa", "DistilBERT", "CamemBERT", "ALBERT", "XLMRoBERTa"}
_CLASSES = "sentence_transformers.models."  # as all versions of the library resolve them
_MODES: dict[str, Pooling] = {"cls": "first", "mean": "mean", "max": "max", "lasttoken": "last"}
_OLD_MODES = {"cls_token": "cls", "mean_tokens": "mean", "max_tokens": "max"}  # behind "pooling_mode_"
LONGEST_PROMPT = 1 << 16  # characters


def encoder_folder(folder: Path) -> Path:
    """Where the config and the weights are: the folder itself, or the one in it that ``modules.json`` names.

    Raises CheckpointError for a path that leaves the folder.
    """
    if (folder / CONFIG).is_file() or not (listed := _modules(folder)):
        return folder
    return _inside(folder, listed[0], own=True)


def sentence_head(folder: Path) -> PoolerHeadSpec | None:
    """The head that ``modules.json`` describes; None where there is no such file, or it leaves the head to the config.

    Raises CheckpointError for a module, or a way to pool, that no head of ours is.
    """
    listed = _modules(folder)
    kinds = [str(module.get("type")).rpartition(".")[2] for module in listed]
    if not kinds or (len(kinds) == 1 and kinds[0] in TRANSFORMERS):
        return None
    if kinds[0] not in TRANSFORMERS or kinds[1:] not in (["Pooling"], ["Pooling", "Normalize"]):
        raise CheckpointError(
            f"{folder / MODULES} lists the modules {', '.join(kinds)[:200]}; known are a Transformer, Pooling, and"
            " perhaps Normalize after it",
            _without_head(folder),
        )
    return PoolerHeadSpec(_mode(folder, _inside(folder, listed[1]) / CONFIG), dense=False, normalise=len(kinds) == 3)


def reading(folder: Path, context: int) -> dict[str, Any]:
    """How a text is to be read before it becomes a vector; {} where there is no ``modules.json``.

    longest: tokens of a text, those around it included, at most the model's context. lower: whether its letters become
    small ones. prompts: by name, what can be put before a text. default_prompt: the name of the one that is, where
    nothing else is asked for. pool_prompt: False where the prompt's tokens have no part in the vector.
    Raises CheckpointError naming what is no such thing.
    """
    listed = _modules(folder)
    if not listed:
        return {}
    inner = encoder_folder(folder)
    path = next((inner / name for name in READING if (inner / name).is_file()), inner / READING[0])
    said = _object(path)
    longest = _longest(said.get("max_seq_length"), path)
    if longest is None:
        path = inner / "tokenizer_config.json"
        longest = _longest(_object(path).get("model_max_length"), path)
    found: dict[str, Any] = {"longest": context if longest is None else min(longest, context)}
    if said.get("do_lower_case") is True:
        found["lower"] = True
    found |= _prompts(folder / PROMPTS)
    if len(listed) > 1 and _object(_inside(folder, listed[1]) / CONFIG).get("include_prompt") is False:
        found["pool_prompt"] = False
    return found


_FIELDS = {"longest": int, "lower": bool, "prompts": dict, "default_prompt": str, "pool_prompt": bool}


def is_reading(value: Any) -> bool:
    """Whether this is something that ``reading`` may have given; {} is, too."""
    if not isinstance(value, dict) or not all(type(each) is _FIELDS.get(name) for name, each in value.items()):
        return False
    said = cast("dict[str, Any]", value)
    prompts = cast("dict[str, Any]", said.get("prompts", {}))
    texts = all(isinstance(prompt, str) and len(prompt) <= LONGEST_PROMPT for prompt in prompts.values())
    return texts and said.get("longest", 1) >= 1 and ("default_prompt" not in said or said["default_prompt"] in prompts)


def _modules(folder: Path) -> list[dict[str, Any]]:
    """What ``modules.json`` lists; [] where there is none. Raises CheckpointError where it is no list of modules."""
    if not (folder / MODULES).is_file():
        return []
    modules = read_json(folder / MODULES, CheckpointError, MOST_JSON, unique=True)
    listed = cast("list[Any]", modules) if isinstance(modules, list) else []
    if not listed or not all(isinstance(module, dict) for module in listed):
        raise CheckpointError(f"{folder / MODULES} is no list of modules", "restore it from where it was published")
    return cast("list[dict[str, Any]]", listed)


def _inside(folder: Path, module: Mapping[str, Any], *, own: bool = False) -> Path:
    """The folder of a module. own: whether it may be ``folder`` itself. Raises CheckpointError for any above it."""
    place = module.get("path")
    if own and place == "":
        return folder
    if not isinstance(place, str) or not is_plain(place):
        raise CheckpointError(
            f"{folder / MODULES}: {str(place)[:200]!r} is no path of a folder in it", "restore it from its publisher"
        )
    return folder / place


def _object(path: Path) -> dict[str, Any]:
    return read_object(path) if path.is_file() else {}


def _mode(folder: Path, path: Path) -> Pooling:
    """How states are pooled: one string since version 5.4 of the library, one boolean a mode before.

    Where neither is there, the library takes the mean.
    """
    said = read_object(path)
    modes: Any = said.get("pooling_mode")
    if modes is None:
        old = {name.removeprefix("pooling_mode_"): said[name] for name in said if name.startswith("pooling_mode_")}
        modes = [_OLD_MODES.get(name, name) for name, value in old.items() if value is True] if old else ["mean"]
    listed = [str(mode) for mode in cast("list[Any]", modes)] if isinstance(modes, list) else [str(modes)]
    if len(listed) != 1 or listed[0] not in _MODES:
        how = " and ".join(listed)[:200]
        raise CheckpointError(
            f"{path} pools by {how}; known: {', '.join(_MODES)}" if listed else f"{path} names no way to pool",
            _without_head(folder),
        )
    return _MODES[listed[0]]


def _without_head(folder: Path) -> str:
    """The remedy where the encoder can be opened, but not what stands on it."""
    named = _object(encoder_folder(folder) / CONFIG).get("architectures")
    kind = cast("list[Any]", named)[0] if isinstance(named, list) and named else "BertModel"
    return f"the encoder alone opens with pellucid.load({str(folder)!r}, architecture={str(kind)[:100]!r})"


def _longest(value: Any, path: Path) -> int | None:
    """A number of tokens; None where nothing is said. Tokenizers without a limit have a float or a vast number."""
    if value is None or type(value) is float:
        return None
    if type(value) is not int or value < 1:
        raise CheckpointError(f"{path}: {value!r} is no number of tokens that a text may have", "restore it")
    return value


def _prompts(path: Path) -> dict[str, Any]:
    said = _object(path)
    prompts, default = said.get("prompts") or {}, said.get("default_prompt_name")
    if not isinstance(prompts, dict) or not all(
        isinstance(prompt, str) and len(prompt) <= LONGEST_PROMPT for prompt in cast("dict[str, Any]", prompts).values()
    ):
        raise CheckpointError(f"{path}: its prompts are no texts by name", "restore it from where it was published")
    if default is not None and not (isinstance(default, str) and default in prompts):
        shown = str(default)[:200]
        raise CheckpointError(
            f"{path}: default_prompt_name = {shown!r} is none of its prompts", "restore it, or set null"
        )
    return ({"prompts": prompts} if prompts else {}) | ({} if default is None else {"default_prompt": default})


def write_sentence_head(folder: Path, head: PoolerHeadSpec, d_model: int, reading: Mapping[str, Any]) -> None:
    """The files that ``sentence_head`` and ``reading`` read, in the form that all versions of the library understand.

    reading: with ``longest``, which every such folder says.
    """
    modules = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")][: 2 + head.normalise]
    listed = [
        {"idx": i, "name": str(i), "path": path, "type": _CLASSES + kind} for i, (path, kind) in enumerate(modules)
    ]
    write_json(folder / MODULES, listed)
    old = {new: old for old, new in _OLD_MODES.items()}
    modes = {f"pooling_mode_{old.get(mode, mode)}": take == head.take for mode, take in _MODES.items()}
    without = {} if reading.get("pool_prompt", True) else {"include_prompt": False}
    write_json(folder / "1_Pooling" / CONFIG, {"word_embedding_dimension": d_model, **modes, **without})
    write_json(
        folder / READING[0], {"max_seq_length": reading["longest"], "do_lower_case": reading.get("lower", False)}
    )
    if reading.get("prompts"):
        prompts = {"prompts": reading["prompts"], "default_prompt_name": reading.get("default_prompt")}
        write_json(folder / PROMPTS, prompts)
