"""What a model of transformers can be told: the library says it in no one place, so configs and code are read."""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Collection, Mapping
from typing import Any

from torch import nn

from pellucid.verify.subject import Kind

WINDOWS = ("sliding_window", "window_size", "attention_window", "local_attention", "attention_chunk_size")
DISTANCES = ("relative_attention_num_buckets", "relative_attention")
ONE_A_ROW = ("ForSequenceClassification", "ForNextSentencePrediction")
CACHES = ("cache", "past_key_values")  # what the library calls a cache since 5.24, and what it called one before


def kind_of(model: Any) -> Kind:
    """The kind of a model, by the library's own lists of what a class is for; without a head, that of its family."""
    from transformers.models.auto import modeling_auto as lists

    if model.config.is_encoder_decoder:
        return "encoder-decoder"
    if getattr(model.config, "use_bidirectional_attention", False) or getattr(model.config, "attn_type", "") == "bi":
        return "encoder"
    causal, masked = lists.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, lists.MODEL_FOR_MASKED_LM_MAPPING_NAMES
    family, name = model.config.model_type, type(model).__name__
    if name in causal.values() and name not in masked.values():
        return "decoder"
    return "decoder" if family in causal and family not in masked else "encoder"


def arguments(model: Any) -> set[str]:
    """What its forward takes by name. Many models with a cache take ``use_cache`` among the rest, and hand it on."""
    parameters = inspect.signature(model.forward).parameters
    rest = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    return {*parameters, *(("use_cache",) if rest and not parameters.keys().isdisjoint(CACHES) else ())}


def cache_name(names: Collection[str]) -> str | None:
    """The argument, of those that a forward takes, by which it is given a cache; None where it keeps none."""
    return next((name for name in CACHES if name in names and "use_cache" in names), None)


def cache_of(out: Mapping[str, Any]) -> Any:
    """The cache that a forward gives back, under either name."""
    return next((out[name] for name in CACHES if out.get(name) is not None), None)


def counts_positions(model: nn.Module) -> bool:
    """Whether the model counts positions itself, from the padding's id on and not from 0; it is then given none."""
    counter = "create_position_ids_from_input_ids"
    return any(hasattr(part, counter) for part in (*model.modules(), *_modules(model)))


def relative(config: Any) -> bool:
    """Whether it knows how far apart two columns are, and nothing else of where tokens stand."""
    return any(getattr(config, name, None) for name in DISTANCES)


def windowed(config: Any, time: int) -> bool:
    """Whether a layer sees fewer columns than ``time``: they are counted, not positions."""
    if not getattr(config, "use_sliding_window", True):
        return False
    found = [getattr(config, name, None) for name in WINDOWS]
    sizes = [size for each in found for size in (each if isinstance(each, list) else [each])]
    return any(isinstance(size, int) and size < time for size in sizes)


def tells_documents(model: nn.Module) -> bool:
    """Whether its code also makes masks from positions: by these the library tells documents of a row apart."""
    wanted = {"config", "attention_mask", "position_ids"}  # of a function that makes a mask, or of several in a dict

    def names(node: ast.AST) -> set[Any]:
        if isinstance(node, ast.Call):
            return {keyword.arg for keyword in node.keywords}
        return {getattr(key, "value", None) for key in node.keys} if isinstance(node, ast.Dict) else set()

    trees = (ast.parse(inspect.getsource(module)) for module in _modules(model))
    return any(wanted <= names(node) for tree in trees for node in ast.walk(tree))


def _modules(model: nn.Module) -> list[Any]:
    """The library's files that its parts are written in."""
    names = {kind.__module__ for part in model.modules() for kind in type(part).__mro__}
    return [sys.modules[name] for name in sorted(names) if name.startswith("transformers.models.")]
