"""The ways on which a model of transformers is left and entered again: training's loss, files, a graph."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pellucid.verify.graph import Graph
from pellucid.verify.hugging_face_text import TheirSpeller, load_speller, stop_ids_of
from pellucid.verify.reading import Reading
from pellucid.verify.subject import Pairs, Subject


@contextmanager
def quietly() -> Iterator[None]:
    """Without the library's progress bars and warnings."""
    from transformers.utils import logging

    bars, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def in_dtype(model: Any, dtype: torch.dtype) -> Any:
    """A copy as ``from_pretrained(dtype=…)`` would make it: buffers, as of rotary rates, are as their maker says."""
    model = copy.deepcopy(model)
    for weight in model.parameters():
        weight.data = weight.data.to(dtype)
    with torch.device("meta"), quietly():
        made = dict(type(model)._from_config(copy.deepcopy(model.config), dtype=dtype).named_buffers())
    for name, buffer in model.named_buffers():
        if name in made:
            buffer.data = buffer.data.to(made[name].dtype)
    return model


def saved(model: Any, name: str, speller: TheirSpeller | None, folder: Path) -> tuple[Any, str, TheirSpeller | None]:
    """Through ``save_pretrained`` and ``from_pretrained``, with the tokenizer if there is one."""
    with quietly():
        model.save_pretrained(folder)
        if speller is not None:
            speller.inner.save_pretrained(folder)
        how = {"attn_implementation": attention} if (attention := model.config._attn_implementation) else {}
        again = type(model).from_pretrained(folder, dtype=model.dtype, **how)
        spelled = None if speller is None else load_speller(folder, stop_ids_of(again))
    for weight in again.parameters():
        weight.data = weight.data.clone()  # out of the file's pages, which are aligned otherwise than memory is
    return again.to(model.device), name, spelled


def tied(model: Any) -> Pairs:
    """What the class and its config say."""
    declared = getattr(model, "all_tied_weights_keys", None)
    if isinstance(declared, dict):
        pairs = list(declared.items())
    elif getattr(model.config, "tie_word_embeddings", False) and model.get_output_embeddings() is not None:
        name_of = {module: name for name, module in model.named_modules()}
        ends = model.get_output_embeddings(), model.get_input_embeddings()
        pairs = [(f"{name_of[ends[0]]}.weight", f"{name_of[ends[1]]}.weight")]
    else:
        pairs = []
    return [(a, model.get_parameter(a), b, model.get_parameter(b)) for a, b in pairs]


def graph(
    subject: Subject,
    model: nn.Module,
    arguments: Callable[[Reading], dict[str, Any]],
    outputs: Callable[[Any], Tensor],
) -> Graph:
    """The forward without a cache."""
    return Graph(subject, model, lambda reading: ((), arguments(reading)), outputs)
