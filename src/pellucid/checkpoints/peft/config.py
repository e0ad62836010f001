"""PEFT's adapter_config.json: what it says of an adapter, with every option known, refused by name, or harmless."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from pellucid.checkpoints.safetensors_files import read_object
from pellucid.errors import CheckpointError

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
NEEDED = ("peft_type", "r", "lora_alpha")

READ = """peft_type r lora_alpha use_rslora use_dora lora_dropout rank_pattern alpha_pattern bias modules_to_save
    target_modules target_parameters base_model_name_or_path""".split()
# these say how an adapter was made or is to be trained; its tensors are what they are
HARMLESS = """task_type auto_mapping peft_version revision inference_mode fan_in_fan_out exclude_modules
    layers_to_transform layers_pattern megatron_core runtime_config qalora_group_size eva_config loftq_config
    corda_config lora_ga_config""".split()
# with these, the base's own weights are others than the checkpoint's, unless the adapter was converted
CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
MOST_PATTERN = 1000  # characters of a pattern
LARGEST_RANK = 1 << 16


@dataclass(frozen=True)
class PeftConfig:
    """What is needed beside the tensors. Patterns are in the order of the file, as the first that matches decides."""

    rank: int
    alpha: float
    rslora: bool = False
    dora: bool = False
    dropout: float = 0.0
    ranks: Mapping[str, int] = field(default_factory=dict[str, int])
    alphas: Mapping[str, float] = field(default_factory=dict[str, float])
    bias: str = "none"
    whole: tuple[str, ...] = ()
    parameters: tuple[str, ...] = ()
    base: str | None = None

    def rank_of(self, module: str) -> int:
        """The rank of the module of this name, which is PEFT's."""
        return next((rank for key, rank in self.ranks.items() if _matches(key, module)), self.rank)

    def scaling_of(self, module: str) -> float:
        """What its update is multiplied by."""
        alpha = next((alpha for key, alpha in self.alphas.items() if _matches(key, module)), self.alpha)
        rank = self.rank_of(module)
        return alpha / (math.sqrt(rank) if self.rslora else rank)


def _matches(pattern: str, module: str) -> bool:
    return re.match(rf"(.*\.)?({pattern})$", module) is not None


def read_config(folder: Path) -> PeftConfig:
    """The config of an adapter's folder. Raises CheckpointError naming what is missing, damaged, or not known here."""
    path = folder / CONFIG
    said = read_object(path)
    for name in NEEDED:
        if said.get(name) is None:
            raise CheckpointError(f"{path} lacks {name}", "fetch the adapter again")
    if said["peft_type"] != "LORA":
        raise CheckpointError(f"{path}: peft_type = {said['peft_type']!r:.40} is not read", "LORA is")
    for name, value in said.items():
        if name == "init_lora_weights":
            if isinstance(value, str) and value.lower().startswith(CHANGES_BASE):
                raise CheckpointError(
                    f"{path}: init_lora_weights = {value!r:.40} changes the base's weights, too",
                    "save it with path_initial_model_for_weight_conversion",
                )
        elif name not in (*READ, *HARMLESS) and value not in (None, False, {}, []):
            raise CheckpointError(f"{path}: {name} = {json.dumps(value):.60} is not known here", "merge it with peft")
    return PeftConfig(
        rank=_number(path, said, "r", int, 1, LARGEST_RANK),
        alpha=_number(path, said, "lora_alpha", float, 0, math.inf),
        rslora=_flag(path, said, "use_rslora"),
        dora=_flag(path, said, "use_dora"),
        dropout=_number(path, said, "lora_dropout", float, 0, 1) if said.get("lora_dropout") else 0.0,
        ranks={key: _whole(path, key, value) for key, value in _patterns(path, said, "rank_pattern").items()},
        alphas={key: _finite(path, key, value) for key, value in _patterns(path, said, "alpha_pattern").items()},
        bias=_bias(path, said),
        whole=_names(path, said, "modules_to_save"),
        parameters=_names(path, said, "target_parameters"),
        base=said.get("base_model_name_or_path") or None,
    )


def _number(path: Path, said: Mapping[str, Any], name: str, kind: type, least: int | float, most: int | float) -> Any:
    value = said[name]
    good = isinstance(value, int | float) and not isinstance(value, bool)
    if not (good and least <= value <= most and math.isfinite(value) and (kind is float or value == int(value))):
        raise CheckpointError(f"{path}: {name} = {json.dumps(value):.60} cannot be", "fetch the adapter again")
    return kind(value)


def _whole(path: Path, key: str, value: Any) -> int:
    return _number(path, {key: value}, key, int, 1, LARGEST_RANK)


def _finite(path: Path, key: str, value: Any) -> float:
    return _number(path, {key: value}, key, float, 0, math.inf)


def _flag(path: Path, said: Mapping[str, Any], name: str) -> bool:
    value = said.get(name) or False
    if not isinstance(value, bool):
        raise CheckpointError(f"{path}: {name} = {json.dumps(value):.60} is neither true nor false", "restore it")
    return value


def _bias(path: Path, said: Mapping[str, Any]) -> str:
    value = said.get("bias") or "none"
    if value not in ("none", "all", "lora_only"):
        raise CheckpointError(f"{path}: bias = {value!r:.40} is not known here", "it is none, all or lora_only")
    return value


def _patterns(path: Path, said: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Patterns are regular expressions. A stranger's can take forever, so only those that cannot are run: names, with
    a choice among some, and marks for the beginning or any text."""
    given: Any = said.get(name) or {}
    if not isinstance(given, dict):
        raise CheckpointError(f"{path}: {name} is no object", "restore it")
    found = cast("dict[str, Any]", given)
    for key in found:
        plain = re.fullmatch(r"\^?(?:[\w$-]|\\?\.|\.\*|\\d\+|\[\d-\d\]|\((?:\?:)?[\w|.-]+\))*\$?", key)
        if len(key) > MOST_PATTERN or plain is None or key.count("*") + key.count("+") > 3:
            raise CheckpointError(f"{path}: the pattern {key!r:.80} of {name} is too involved", "write modules' names")
    return found


def _names(path: Path, said: Mapping[str, Any], name: str) -> tuple[str, ...]:
    found: Any = said.get(name) or []
    found = [found] if isinstance(found, str) else found
    if not isinstance(found, list) or not all(isinstance(each, str) for each in cast("list[Any]", found)):
        raise CheckpointError(f"{path}: {name} is no list of names", "restore it")
    return tuple(cast("list[str]", found))
