"""The part of Gemma 3 that reads text, out of the models that read images too."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pellucid.families import gemma
from pellucid.families.config import Config
from pellucid.families.table import Table
from pellucid.spec import DecoderSpec, ModelSpec

IGNORED = "vision_config mm_tokens_per_image boi_token_index eoi_token_index image_token_index"
SILENT = {  # defaults of absent attributes of the text part
    "model_type": "gemma3_text",
    "vocab_size": 262_208,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
}
IMAGES = ("vision_tower.**", "multi_modal_projector.**")


def _within(prefix: str, head: str) -> Table:
    """Gemma's table, where the model of text is a part of another."""

    def named(name: str) -> str:
        return head if name == "lm_head.weight" else prefix + name.removeprefix("model.")

    rows = tuple(replace(row, theirs=named(row.theirs)) for row in gemma.TABLE.rows)
    ignored = (*map(named, gemma.TABLE.ignored), *IMAGES, *(f"model.{name}" for name in IMAGES))
    copies = tuple((named(copy), named(original)) for copy, original in gemma.TABLE.copies)
    return replace(gemma.TABLE, rows=rows, ignored=ignored, copies=copies, base="")


TABLE = replace(
    _within("language_model.model.", "language_model.lm_head.weight"),
    versions=(_within("model.language_model.", "lm_head.weight"),),
)


def table(spec: DecoderSpec) -> Table:
    """All have one table; it ignores the weights that read images by name."""
    return TABLE


def to_spec(config: Mapping[str, Any], architecture: str | None = None) -> DecoderSpec:
    """The spec of the text's part of a Gemma 3 config (a parsed ``config.json``).

    Raises CheckpointError naming an attribute that is missing, unknown, or asks for what this family does not have.
    """
    read = Config(config, "gemma3 config", IGNORED)
    read.expect("model_type", "gemma3")
    outer = {"tie_word_embeddings": read.take("tie_word_embeddings", bool, True)}
    if "transformers_version" in config:  # it is said once, and decides how unknown names are read
        outer["transformers_version"] = config["transformers_version"]
    text = {**SILENT, **outer, **read.nested("text_config")}
    read.done()
    return gemma.to_spec(text)


def to_config(spec: ModelSpec) -> dict[str, Any]:
    """The config of the text's part alone: there are no images to go with it."""
    return gemma.to_config(spec)
