"""The table of families and formats in docs/checkpoints.md, asked of the code itself: ``python docs/families.py``."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from pellucid.checkpoints.gguf import config as reading
from pellucid.checkpoints.gguf import write as writing
from pellucid.errors import CheckpointError
from pellucid.families.registry import FAMILIES, config_of, spec_of

PAGE = Path(__file__).resolve().parent / "checkpoints.md"
TABLE = re.compile(r"(?<=<!-- families -->\n).*?(?=<!-- /families -->)", re.DOTALL)
NAMES = {
    "gpt2": "GPT-2",
    "llama": "Llama 1 to 3",
    "mistral": "Mistral",
    "qwen2": "Qwen 2",
    "qwen3": "Qwen 3",
    "qwen3_moe": "Qwen 3 with experts",
    "mixtral": "Mixtral",
    "gemma": "Gemma 1",
    "gemma2": "Gemma 2",
    "gemma3_text": "Gemma 3, text",
    "gemma3": "Gemma 3, text of the models of images",
    "gpt_neox": "GPT-NeoX, Pythia",
    "phi3": "Phi-3",
    "bert": "BERT",
    "roberta": "RoBERTa",
    "xlm-roberta": "XLM-RoBERTa",
    "camembert": "CamemBERT",
    "distilbert": "DistilBERT",
    "albert": "ALBERT",
    "t5": "T5",
    "mt5": "mT5",
    "bart": "BART",
    "marian": "Marian",
    "vit": "ViT",
}
MODERN = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
GROUPED = {"vocab_size": 32, **MODERN, "num_key_value_heads": 1}
T5 = {"vocab_size": 32, "d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
PAIR = {
    **{"vocab_size": 32, "d_model": 16, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 16},
    **{"decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 16, "decoder_start_token_id": 0},
}
SIZES: dict[str, dict[str, Any]] = {  # of a small model, where they are not called as most families do
    "gpt2": {"vocab_size": 32, "n_embd": 16, "n_head": 2, "n_layer": 1},
    "gemma3": {"text_config": GROUPED},
    **dict.fromkeys(("mistral", "mixtral", "qwen2", "qwen3", "qwen3_moe", "gemma", "gemma2", "gemma3_text"), GROUPED),
    "distilbert": {"vocab_size": 32, "dim": 16, "n_heads": 2, "n_layers": 1, "hidden_dim": 16},
    **{"t5": T5, "mt5": T5, "bart": PAIR, "marian": PAIR, "vit": MODERN},
}


def _written(model_type: str) -> str:
    """The model_type that a model of this family is written as, for transformers."""
    spec, _ = spec_of({"model_type": model_type, **SIZES.get(model_type, {"vocab_size": 32, **MODERN})})
    try:
        return config_of(spec, model_type)[0]["model_type"]
    except CheckpointError:
        return config_of(spec)[0]["model_type"]


def table() -> str:
    """One row a family: what it is called, and which formats it is read from and written to."""
    rows = ["| family | `model_type` | folder in | folder out | GGUF in | GGUF out |", "|---|---|---|---|---|---|"]
    for name in FAMILIES:
        written, architecture = _written(name), writing.ARCHITECTURES.get(name, name.replace("_", ""))
        out = "yes" if written == name else f"as `{written}`"
        gguf = ["yes" if yes else "" for yes in (architecture in reading.ARCHITECTURES, name in writing.ARCHITECTURES)]
        rows.append(f"| {NAMES[name]} | `{name}` | yes | {out} | {gguf[0]} | {gguf[1]} |")
    return "\n".join(rows) + "\n"


def updated(page: str) -> str:
    """The page with the table as it is now."""
    return TABLE.sub(table(), page)


if __name__ == "__main__":
    PAGE.write_text(updated(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    sys.exit(0)
