"""A model of ours as a folder that other tools open: config, weights and tokenizer as Hugging Face names them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from pellucid.checkpoints.safetensors_files import CONFIG, GENERATION, WEIGHTS
from pellucid.checkpoints.sentence import write_sentence_head
from pellucid.checkpoints.tensors import write_tensors
from pellucid.families.encoders import name_attributes
from pellucid.families.registry import config_of
from pellucid.families.weights import export_weights, refuse_nonfinite
from pellucid.files import write_folder, write_json
from pellucid.nn.models import AnyModel
from pellucid.nn.stored import Plain
from pellucid.spec import EncoderDecoderSpec, PoolerHeadSpec


def to_hf(model: AnyModel, folder: str | Path, family: str | None = None) -> str:
    """Write the model, in the type that its weights have, for ``transformers`` and whatever reads its files.

    family: the ``model_type`` to write (default: the first that can express the model); what was written is returned.
    The folder appears whole or not at all, in place of an older one. Raises CheckpointError naming what of the model no
    family, or not this one, can express, and a weight that is not finite.
    """
    spec, head = model.spec, getattr(model.spec, "head", None)
    pooler = head if isinstance(head, PoolerHeadSpec) and not head.dense else None  # no weights, a file of its own
    config, table = config_of(spec if pooler is None else replace(spec, head=None), family)
    special = _special_ids(model)
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")

    def fill(aside: Path) -> None:
        weights = {name: weight.cpu() for name, weight in export_weights(model, table).items()}
        for name, weight in weights.items():
            refuse_nonfinite(Plain(weight), name, weight.dtype)
        write_tensors(aside / WEIGHTS, weights, {"format": "pt"})
        said = {name: value for name, value in config.items() if value is not None}  # a family may need its own id
        names = name_attributes(model.class_names) if model.class_names else {}
        write_json(aside / CONFIG, {**config, **special, **said, **names, "torch_dtype": dtype})
        start = {name: said[name] for name in ("decoder_start_token_id",) if name in said}
        write_json(aside / GENERATION, {**model.generation, **start, **special})
        reads = spec.encoder if isinstance(spec, EncoderDecoderSpec) else spec
        sentences = {"longest": reads.context, **model.sentences}
        if pooler is not None:
            write_sentence_head(aside, pooler, spec.d_model, sentences)
        if model.tokenizer is not None:
            model.tokenizer.save_pretrained(aside, sentences["longest"])

    with torch.no_grad():
        write_folder(Path(folder), fill)
    return config["model_type"]


def _special_ids(model: AnyModel) -> dict[str, Any]:
    """The ids that begin, end and fill up a text: some tools read them from the config, not from the tokenizer."""
    tokenizer = model.tokenizer
    if tokenizer is None:
        return {}
    first = [] if tokenizer.eos_id is None else [tokenizer.eos_id]
    stops = [*first, *(number for number in tokenizer.stop_ids if number != tokenizer.eos_id)]
    ids = {
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": stops if len(stops) > 1 else next(iter(stops), None),
        "pad_token_id": tokenizer.pad_id,
    }
    return {name: value for name, value in ids.items() if value is not None}
