"""All families: which one a published config is of, and which one can say what a model of ours is."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, Protocol, cast, runtime_checkable

from pellucid.errors import CheckpointError, SpecError, suggest
from pellucid.families.config import brief
from pellucid.families.table import Table
from pellucid.spec import AttentionSpec, ModelSpec
from pellucid.values import Value


@runtime_checkable  # so that tests can check it
class Family(Protocol):
    """What a module of this room offers: a config as a spec and back, and the names of the weights."""

    def to_spec(self, config: Mapping[str, Any], architecture: str | None = None) -> ModelSpec:
        """The spec of a parsed config.json. Raises CheckpointError naming what is not understood in it."""
        ...

    def to_config(self, spec: ModelSpec) -> dict[str, Any]:
        """A config, as near to the spec as the family comes. Raises CheckpointError where it has no such parts."""
        ...

    def table(self, spec: Any) -> Table:
        """The names of the weights of a model with this spec."""
        ...


# model_type -> module; where several can express a model, the one that stands first is written
FAMILIES = {
    "gpt2": "gpt2",
    "llama": "llama",
    "mistral": "mistral",
    "qwen2": "qwen",
    "qwen3": "qwen",
    "qwen3_moe": "qwen_moe",
    "mixtral": "mixtral",
    "gemma": "gemma",
    "gemma2": "gemma",
    "gemma3_text": "gemma",
    "gemma3": "gemma_images",
    "gpt_neox": "neox",
    "phi3": "phi3",
    "bert": "bert",
    "roberta": "roberta",
    "xlm-roberta": "roberta",
    "camembert": "roberta",
    "distilbert": "distilbert",
    "albert": "albert",
    "t5": "t5",
    "mt5": "t5",
    "bart": "bart",
    "marian": "marian",
    "vit": "vit",
}

SHOWN = 4  # differences in a message
FEW = 3  # families in a message


def family(model_type: str) -> Family:
    """The module of a ``model_type``. Raises CheckpointError for one that we do not have."""
    return _load(_known(model_type))


def _known(model_type: str) -> str:
    if model_type not in FAMILIES:
        raise CheckpointError(f"no family of ours has model_type = {brief(model_type)}", suggest(model_type, FAMILIES))
    return FAMILIES[model_type]


def _load(module: str) -> Family:
    return cast(Family, importlib.import_module(f"pellucid.families.{module}"))


def spec_of(config: Mapping[str, Any], architecture: str | None = None) -> tuple[ModelSpec, Table]:
    """The spec of a parsed ``config.json``, and the names that its weights have.

    architecture: the class that the weights are of (default: the one that the config names). Raises CheckpointError
    naming an attribute that is missing, unknown, or asks for what the family does not have.
    """
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        raise CheckpointError("the config names no model_type", f"add one of: {', '.join(sorted(FAMILIES))}")
    if model_type not in FAMILIES:  # no known name is close enough to suggest
        raise CheckpointError(
            f"no family of ours has model_type = {brief(model_type)}", f"known: {', '.join(sorted(FAMILIES))}"
        )
    module = _load(FAMILIES[model_type])
    try:
        spec = module.to_spec(config, architecture)
    except SpecError as error:  # each attribute is legal, but together they make no model
        raise CheckpointError(f"{model_type} config: {error.problem}", error.remedy) from error
    return spec, module.table(spec)


def config_of(spec: ModelSpec, model_type: str | None = None) -> tuple[dict[str, Any], Table]:
    """A published config that says what ``spec`` does, and the names of its weights there: the way back of ``spec_of``.

    model_type: the family to use; by default the first that can express the model. Raises CheckpointError naming, by
    the path of the field, what the closest one cannot.
    """
    near: list[tuple[str, list[str]]] = []  # families that have such parts, and where they differ
    far: dict[str, list[str]] = {}  # a part that some do not have, and which
    for name in dict.fromkeys(FAMILIES.values()) if model_type is None else [_known(model_type)]:
        module = _load(name)
        try:
            config = module.to_config(spec)
            missed = list(differences(plain(spec), plain(module.to_spec(config))))
        except (CheckpointError, SpecError) as error:
            far.setdefault(error.problem, []).append(name)
            continue
        if model_type not in (None, config["model_type"]):
            missed.append(f"a model with these parts is a {config['model_type']}")
        if not missed:
            return config, module.table(spec)
        near.append((config["model_type"], missed))
    raise _refusal(near, far, model_type)


def _refusal(near: list[tuple[str, list[str]]], far: dict[str, list[str]], model_type: str | None) -> CheckpointError:
    """The error that says what the closest family cannot; where none is close, what most of them lack."""
    closest, missed = min(near, key=lambda each: len(each[1]), default=("", []))
    if model_type is not None:
        who = f"{model_type} cannot express this model"
    else:
        who = "no published family can express this model" + (f"; {closest} comes closest" if near else "")
    if not near:
        # families of another kind of model say nothing of this one; then most have the same in the way
        alike = {problem: names for problem, names in far.items() if not problem.startswith("the model = ")} or far
        by_count = sorted(alike.items(), key=lambda each: -len(each[1]))[: 1 if model_type else 2]
        missed = [problem if model_type else f"{problem} in {_few(names)}" for problem, names in by_count]
    listed = "; ".join(missed[:SHOWN]) + (f"; and {len(missed) - SHOWN} more" if len(missed) > SHOWN else "")
    return CheckpointError(f"{who}: {listed}", "pellucid's own format keeps every model")


def _few(names: list[str]) -> str:
    return ", ".join(names) if len(names) <= FEW else f"{', '.join(names[:FEW])} and {len(names) - FEW} more"


def plain(value: Any) -> Any:
    """A spec with its usual scale of scores unsaid: what two ways to write one model have in common."""
    if isinstance(value, tuple):
        items = cast("tuple[Any, ...]", value)
        once = {id(item): plain(item) for item in items}  # most layers are one object
        return tuple(once[id(item)] for item in items)
    if not isinstance(value, Value):
        return value
    if isinstance(value, AttentionSpec) and value.scale == value.head_dim**-0.5:
        value = replace(value, scale=None)
    return replace(value, **{name: plain(getattr(value, name)) for name in _fields(value)})  # type: ignore[type-var]


def differences(a: Any, b: Any, path: str = "") -> Iterator[str]:
    """Where two values of one type differ, each by the path of its field; of layers that differ alike, the first."""
    if type(a) is not type(b):
        yield f"{path} = {_short(a)} (there: {_short(b)})"
    elif isinstance(a, Value):
        for field in _fields(a):
            yield from differences(getattr(a, field), getattr(b, field), f"{path}.{field}".lstrip("."))
    elif isinstance(a, tuple) and len(a) == len(b):
        seen: set[tuple[Any, Any]] = set()
        for i, pair in enumerate(zip(a, b, strict=True)):
            if pair not in seen:
                seen.add(pair)
                yield from differences(*pair, f"{path}[{i}]")
    elif isinstance(a, tuple):
        yield f"{path} has {len(a)} entries (there: {len(b)})"
    elif a != b:
        yield f"{path} = {a!r} (there: {b!r})"


def _fields(value: Value) -> list[str]:
    return [field.name for field in dataclasses.fields(value)]  # pyright: ignore[reportArgumentType]


def _short(value: Any) -> str:
    return type(value).__name__ if isinstance(value, Value | tuple) else repr(value)
