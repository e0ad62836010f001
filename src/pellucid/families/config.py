"""Reading a published config: every attribute is read, ignored by name, or refused by name.

An attribute that the family does not know is refused if it may mean something: if some architecture of the reference
library has one of that name (``names.txt``), or if the config was written by a release of that library which may have
names that the list lacks. No code reads any other, so it is ignored, with one warning.
"""

from __future__ import annotations

import json
import math
import re
import warnings
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast

from pellucid.errors import CheckpointError, suggest
from pellucid.spec import Activation

T = TypeVar("T")

LARGEST = 2**31 - 1  # no size in a config is larger
SHOWN = 8  # unknown attributes in a message
DEEPEST = 4096  # layers: each is made, so a damaged number must not get far

ACTIVATIONS: dict[str, Activation] = {  # where several names mean one function, the first is written
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "relu": "relu",
    "relu2": "relu2",
    "silu": "silu",
    "swish": "silu",
}
ACTIVATION_NAMES = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}

# attributes that change nothing of what a model computes, sorted by their subject
FILE = """_name_or_path architectures auto_map dtype torch_dtype transformers_version _attn_implementation_autoset
    _commit_hash _attn_implementation attn_implementation transformers.js_config unsloth_fixed unsloth_version
    custom_pipelines sentence_transformers name language"""
CALL = """return_dict return_tuple output_hidden_states output_attentions output_scores output_past use_cache
    torchscript chunk_size_feed_forward xla_device"""
TASK = """id2label label2id num_labels _num_labels problem_type task_specific_params finetuning_task tokenizer_class
    prefix padding is_decoder"""
TOKENS = """bos_token_id eos_token_id pad_token_id unk_token_id cls_token_id sep_token_id mask_token_id
    decoder_start_token_id"""
TRAINING = "initializer_range gradient_checkpointing"
SAMPLING = """max_length min_length do_sample early_stopping num_beams num_beam_groups diversity_penalty temperature
    top_k top_p typical_p repetition_penalty length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size
    bad_words_ids num_return_sequences return_dict_in_generate forced_bos_token_id forced_eos_token_id
    remove_invalid_values exponential_decay_length_penalty suppress_tokens begin_suppress_tokens renormalize_logits
    max_new_tokens"""
IGNORED = frozenset(" ".join((FILE, CALL, TASK, TOKENS, TRAINING, SAMPLING)).split())

# attributes that change the model, each with the only values that are accepted unless the family reads it itself
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


def brief(value: Any) -> str:
    """The value as JSON has it, cut where it would fill the screen."""
    text = json.dumps(value, ensure_ascii=False, default=repr)
    return text if len(text) <= 200 else f"{text[:200]}…"


@cache
def _published() -> tuple[str, frozenset[str]]:
    """The release of transformers that ``names.txt`` was made from, and the names of all attributes of its configs."""
    release, *names = Path(__file__).with_name("names.txt").read_text(encoding="utf-8").split()
    return release, frozenset(names)


def _numbers(release: object) -> tuple[int, ...]:
    """A release as numbers, so that a later one is greater; () where it is no release."""
    found = re.match(r"\d+(\.\d+)*", release) if isinstance(release, str) and len(release) < 100 else None
    return tuple(int(number) for number in found[0].split(".")) if found else ()


def need(value: Any, kind: type[T], path: str) -> T:
    """A part of a spec, of the one kind that a family has there. Raises CheckpointError naming its path."""
    if not isinstance(value, kind):
        found = None if value is None else type(value).__name__
        raise CheckpointError(f"{path} = {found} (there: {kind.__name__})")
    return value


class Config:
    """A config being read: ``take`` what the model needs, ``expect`` what must be so, then ``done``.

    ignored: names, with spaces between, that the family does not need. strict: refuse every attribute that nobody has
    read, as an object of few attributes does, each of which changes the model.
    """

    def __init__(self, values: Mapping[str, Any], where: str, ignored: str = "", *, strict: bool = False):
        self.values, self.where, self.strict = values, where, strict
        self.known = set(ignored.split())

    def refuse(self, name: str, why: str, remedy: str = "") -> CheckpointError:
        """The error that names an attribute and its value; the caller raises it."""
        return CheckpointError(f"{self.where}: {name} = {brief(self.values.get(name))} {why}", remedy)

    def take(self, name: str, kind: type[T], default: T | None = None) -> T:
        """The attribute, or the default where it is absent or None. Raises CheckpointError for another type."""
        self.known.add(name)
        value = self.values.get(name)
        if value is None and default is not None:
            return default
        if kind is float and type(value) is int and abs(value) <= 2**53:
            value = float(value)
        if type(value) is not kind or (type(value) is float and not math.isfinite(value)):
            raise self.refuse(name, f"is not {kind.__name__}", "the config is incomplete or damaged")
        return value

    def count(self, name: str, default: int | None = None, most: int = LARGEST) -> int:
        """The attribute, a number of things: at least 1, and not absurd. Raises CheckpointError for another."""
        value = self.take(name, int, default)
        if not 1 <= value <= most:
            raise self.refuse(name, f"is not from 1 to {most}", "the config is damaged")
        return value

    def layers(self, name: str) -> int:
        """The attribute, a number of layers. Raises CheckpointError for an absurd one, before they are described."""
        return self.count(name, most=DEEPEST)

    def positive(self, name: str, default: float | None = None) -> float:
        """The attribute, a number above 0. Raises CheckpointError for another."""
        value = self.take(name, float, default)
        if value <= 0:
            raise self.refuse(name, "is not above 0", "the config is damaged")
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
            raise self.refuse(name, f"is not supported; only {' or '.join(map(brief, allowed))} is")

    def done(self) -> None:
        """Raise CheckpointError naming every attribute that nobody has read and that may mean something.

        The others are ignored, with one warning that names them.
        """
        for name, allowed in NEUTRAL.items():
            if name not in self.known:  # else the family has read it: to some, it means something
                self.expect(name, *allowed)
        unknown = self.values.keys() - self.known - IGNORED
        if not unknown:
            return
        release, names = _published()
        newer = _numbers(self.values.get("transformers_version")) > _numbers(release)
        if refused := unknown if self.strict or newer else unknown & names:
            raise self._not_understood(sorted(refused), release if newer else None)
        warnings.warn(
            f"{self.where}: ignored {self._listed(sorted(unknown))}: no published architecture reads it", stacklevel=2
        )

    def _listed(self, names: list[str]) -> str:
        """Attributes with their values, as far as a message holds them."""
        listed = ", ".join(f"{name} = {brief(self.values[name])}" for name in names[:SHOWN])
        return listed + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")

    def _not_understood(self, names: list[str], release: str | None) -> CheckpointError:
        """The error for attributes that may mean something. release: where the config is of a later one than this."""
        version = self.values.get("transformers_version")
        why = "" if release is None else f" (written by transformers {version}; known are the names up to {release})"
        remedy = "it may change what the model computes"
        if not self.strict:
            shown = names[:SHOWN]
            remedy += (
                f"; where the code that it was published with does not read it, add --ignore-key {' '.join(shown)}"
                f" to the command, or ignore={json.dumps(shown)} to pellucid.load"
            )
        return CheckpointError(f"{self.where}: not understood: {self._listed(names)}{why}", remedy)


def named_class(read: Config, architecture: str | None, known: Iterable[str]) -> str:
    """The library's class that the weights are of, by default the one that the config names, else the first known.

    Raises CheckpointError for a class that is not known.
    """
    listed = read.take("architectures", list, [])
    name = str(architecture or (listed[0] if listed else next(iter(known))))
    if name not in known:
        raise CheckpointError(f"{read.where}: no head of ours is that of {brief(name)}", f"known: {', '.join(known)}")
    return name
