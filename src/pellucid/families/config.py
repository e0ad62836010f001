"""Reading a published config: every attribute is read, ignored by name, or refused by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar, cast

from pellucid.errors import CheckpointError, suggest
from pellucid.spec import Activation

T = TypeVar("T")

ACTIVATIONS: dict[str, Activation] = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "relu2": "relu2",
    "silu": "silu",
    "swish": "silu",
}

# attributes of any config that say nothing about what the model computes, by what they are about
FILE = "_name_or_path architectures auto_map dtype torch_dtype transformers_version _attn_implementation_autoset"
CALL = "return_dict output_hidden_states output_attentions output_scores use_cache torchscript chunk_size_feed_forward"
TASK = (
    "id2label label2id num_labels problem_type task_specific_params finetuning_task tokenizer_class prefix is_decoder"
)
TOKENS = "bos_token_id eos_token_id pad_token_id sep_token_id decoder_start_token_id"
TRAINING = "initializer_range gradient_checkpointing"
SAMPLING = """max_length min_length do_sample early_stopping num_beams num_beam_groups diversity_penalty temperature
    top_k top_p typical_p repetition_penalty length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size
    bad_words_ids num_return_sequences return_dict_in_generate forced_bos_token_id forced_eos_token_id
    remove_invalid_values exponential_decay_length_penalty suppress_tokens begin_suppress_tokens"""
IGNORED = frozenset(" ".join((FILE, CALL, TASK, TOKENS, TRAINING, SAMPLING)).split())

# attributes that do change the model, and the only values that a family has that does not read them itself
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "is_encoder_decoder": (False,),
    "add_cross_attention": (False,),
    "cross_attention_hidden_size": (None,),
    "tie_encoder_decoder": (False,),
    "pruned_heads": ({}, None),
    "use_bfloat16": (False,),
    "tf_legacy_loss": (False,),
    "quantization_config": (None,),
}


class Config:
    """A config being read: ``take`` what the model needs, ``expect`` what must be so, then ``done``."""

    def __init__(self, values: Mapping[str, Any], where: str, ignored: str = ""):
        self.values, self.where = values, where
        self.known = set(ignored.split())

    def refuse(self, name: str, why: str, remedy: str = "") -> CheckpointError:
        """The error that names an attribute and its value; the caller raises it."""
        return CheckpointError(f"{self.where}: {name} = {self.values.get(name)!r} {why}", remedy)

    def take(self, name: str, kind: type[T], default: T | None = None) -> T:
        """The attribute, or the default where it is absent or None. Raises CheckpointError for another type."""
        self.known.add(name)
        value = self.values.get(name)
        if value is None and default is not None:
            return default
        if kind is float and type(value) is int:
            return kind(value)
        if type(value) is not kind:
            raise self.refuse(name, f"is not {kind.__name__}", "the config is incomplete or damaged")
        return value

    def nested(self, name: str) -> dict[str, Any]:
        """The attribute, an object of its own; empty where it is absent or None."""
        return cast("dict[str, Any]", self.take(name, dict, {}))

    def activation(self, name: str, default: str) -> Activation:
        """The activation that an attribute names. Raises CheckpointError for one that we do not have."""
        value = self.take(name, str, default)
        if value not in ACTIVATIONS:
            raise self.refuse(name, "is no activation of ours", suggest(value, ACTIVATIONS))
        return ACTIVATIONS[value]

    def expect(self, name: str, *allowed: Any) -> None:
        """Raise CheckpointError where the attribute is there with none of the allowed values."""
        self.known.add(name)
        if name in self.values and self.values[name] not in allowed:
            raise self.refuse(name, f"is not supported; only {' or '.join(map(repr, allowed))} is")

    def done(self) -> None:
        """Raise CheckpointError naming every attribute that nobody has read."""
        for name, allowed in NEUTRAL.items():
            if name not in self.known:  # else the family has read it: to some, it means something
                self.expect(name, *allowed)
        unknown = sorted(self.values.keys() - self.known - IGNORED)
        if unknown:
            listed = ", ".join(f"{name} = {self.values[name]!r}" for name in unknown)
            raise CheckpointError(f"{self.where}: not understood: {listed}", "it may change what the model computes")
