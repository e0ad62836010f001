"""Faults of the ways out of a model and back in: types, files, exports, the loss, weights that are one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from faults_base import Fault, called_with, of, through
from faults_forward import instead, other_code
from speakers import ours, their_tokenizer, theirs, vocabulary
from subjects import VOCAB, bert, decoder, encoder, gpt2, llama, noisy, pair, t5
from torch import Tensor, nn
from torch.nn import functional as F

import pellucid
import pellucid.api as api
from pellucid.batch import IGNORE, Batch
from pellucid.checkpoints import export, native
from pellucid.checkpoints.gguf import read as gguf_read
from pellucid.checkpoints.gguf import write as gguf_write
from pellucid.data.packing import Packed
from pellucid.families.registry import spec_of
from pellucid.nn.embed import Embedding
from pellucid.nn.models import Decoder, Encoder, EncoderDecoder
from pellucid.text.tokenizer import Tokenizer
from pellucid.train.objectives import NegativeLogLikelihood
from pellucid.verify.function import Function
from pellucid.verify.hugging_face import HuggingFace
from pellucid.verify.trial import TEXTS

Patch = pytest.MonkeyPatch

# --- types of fewer bits ---------------------------------------------------------------------------------------------

cancelled = through(lambda x: (x + 1000.0) - 1000.0)  # small differences of large numbers, as in E[x²] - E[x]²


def our_llama() -> Decoder:
    """A model whose q and k lie in another order in a GGUF."""
    config = llama().config.to_dict() | {"architectures": ["LlamaForCausalLM"]}
    model = pellucid.build(spec_of(config)[0])
    assert isinstance(model, Decoder)
    return noisy(model)


def still_turned(model: Any, monkeypatch: Patch) -> None:
    """The pairs of q and k stay in llama.cpp's order."""

    def read(self: Any, name: str, dtype: torch.dtype = torch.float32) -> Tensor:
        place = self._kept[name]
        return self._file.read(place.name, dtype, place.part)

    monkeypatch.setattr(gguf_read.GGUFSource, "read", read)


def scale_off(model: Any, monkeypatch: Patch) -> None:
    """One matrix of each layer is a quarter too large."""
    joined = gguf_write._joined
    longer = lambda entries, theirs: joined(entries, theirs) * (1.25 if "ffn_down" in entries[0][1].name else 1.0)  # noqa: E731
    monkeypatch.setattr(gguf_write, "_joined", longer)


LOW = [
    *of(
        "bf16",
        ("small differences of large numbers", decoder, cancelled),
        ("small differences of large numbers", encoder, cancelled),
        ("theirs, small differences of large numbers", gpt2, cancelled),
        ("theirs, small differences of large numbers", t5, cancelled),
    ),
    *of(
        "quantised exported-gguf",
        ("q and k stay turned", our_llama, still_turned),
        ("a scale is off", our_llama, scale_off),
        ("a scale is off", ours, scale_off),
    ),
]

# --- files -----------------------------------------------------------------------------------------------------------


def halved(model: Any, monkeypatch: Patch) -> None:
    """What is written has half the bits."""
    save = native.save_tensors

    def shortened(path: Any, tensors: Any, **metadata: str) -> None:
        save(path, {name: tensor.bfloat16().float() for name, tensor in tensors.items()}, **metadata)

    monkeypatch.setattr(native, "save_tensors", shortened)


def on_loading(change: Callable[[Any], None]) -> Callable[[Any, Patch], None]:
    def plant(model: Any, monkeypatch: Patch) -> None:
        load = api.load

        def changed(*args: Any, **given: Any) -> Any:
            loaded = load(*args, **given)
            with torch.no_grad():
                change(loaded)
            return loaded

        monkeypatch.setattr(api, "load", changed)

    return plant


def gain_forgotten(model: Any) -> None:
    """A norm is as it was built."""
    next(weight for name, weight in model.named_parameters() if "norm" in name).fill_(1.0)


def other_vocabulary(model: Any) -> None:
    model.tokenizer = Tokenizer.train(["other texts make other merges"], 300)


def bias_left_out(model: Any, monkeypatch: Patch) -> None:
    """The state that is saved lacks a bias; the library draws it anew."""
    save = model.save_pretrained

    def saved(folder: Any) -> None:
        state = model.state_dict()
        save(folder, state_dict={name: tensor for name, tensor in state.items() if "ln_1.bias" not in name})

    monkeypatch.setattr(model, "save_pretrained", saved)


FILES = [
    *of(
        "saved",
        ("half of the bits are written", decoder, halved),
        ("half of the bits are written, of an encoder–decoder", pair, halved),
        ("a gain is forgotten", decoder, on_loading(gain_forgotten)),
        ("another vocabulary is loaded", ours, on_loading(other_vocabulary)),
        ("theirs, a bias is not saved", gpt2, bias_left_out),
        ("theirs, something is not in the weights", bert, through(lambda x: x * 1.1)),
        ("theirs, something is not in the weights", t5, through(lambda x: x * 1.1)),
    ),
]

# --- exports ---------------------------------------------------------------------------------------------------------


def exchanged(model: Any, monkeypatch: Patch) -> None:
    """k is written where v belongs."""
    weights = export.export_weights
    other = {"k_proj": "v_proj", "v_proj": "k_proj"}

    def named(name: str) -> str:
        return next((name.replace(a, b) for a, b in other.items() if a in name), name)

    monkeypatch.setattr(export, "export_weights", lambda *given: {named(k): v for k, v in weights(*given).items()})


def base_lost(model: Any, monkeypatch: Patch) -> None:
    """The config says nothing about positions."""
    config_of = export.config_of

    def forgotten(*given: Any) -> Any:
        config, table = config_of(*given)
        kept = {key: value for key, value in config.items() if not key.startswith("rope")}
        return kept | {"rope_theta": 123.0}, table

    monkeypatch.setattr(export, "config_of", forgotten)


EXPORTS = [
    *of("exported-transformers", ("k and v exchanged", ours, exchanged), ("the rotary base is lost", ours, base_lost)),
    *of(
        "exported-graph",
        ("another branch for the exporter", decoder, other_code),
        ("theirs, another branch for the exporter", gpt2, other_code),
    ),
]

# --- the loss --------------------------------------------------------------------------------------------------------


def batches(change: Callable[[Batch], Tensor]) -> Callable[[Any, Patch], None]:
    """Training is given other labels."""

    def plant(model: Any, monkeypatch: Patch) -> None:
        samples = Packed.samples

        def changed(self: Packed, first: int, count: int) -> Batch:
            batch = samples(self, first, count)
            return replace(batch, labels=change(batch))

        monkeypatch.setattr(Packed, "samples", changed)

    return plant


def later(labels: Tensor) -> Tensor:
    """Shifted once more."""
    return F.pad(labels[:, 1:], (0, 1), value=IGNORE)


def shifted_again(given: dict[str, Any]) -> dict[str, Any]:
    return given | {"labels": later(given["labels"])} if given.get("labels") is not None else given


def shifts_itself(kind: Any) -> Callable[[Any, Patch], None]:
    """The model shifts what is shifted."""

    def plant(model: Any, monkeypatch: Patch) -> None:
        nll_sum = kind.nll_sum
        shifted = lambda self, batch, *rest: nll_sum(self, replace(batch, labels=later(batch.labels)), *rest)  # noqa: E731
        monkeypatch.setattr(kind, "nll_sum", shifted)

    return plant


def of_all_places(model: Any, monkeypatch: Patch) -> None:
    """A mean over places that are not scored, too."""
    monkeypatch.setattr(NegativeLogLikelihood, "count", lambda self, batch: batch.labels.numel())


def unshifted(model: Any, monkeypatch: Patch) -> None:
    """The library's loss for masked tokens, for the next one."""
    from transformers.loss.loss_utils import ForMaskedLMLoss

    monkeypatch.setattr(type(model), "loss_function", property(lambda self: ForMaskedLMLoss))


def reads_the_answer(model: Any, monkeypatch: Patch) -> None:
    monkeypatch.setattr(model, "_shift_right", lambda labels: labels.masked_fill(labels == IGNORE, 0))


LABELS = of(
    "labels",
    ("labels are not shifted", decoder, batches(lambda batch: batch.ids)),
    ("labels are shifted twice", decoder, batches(lambda batch: later(batch.labels))),
    ("the model shifts, too", decoder, shifts_itself(Decoder)),
    ("an encoder shifts", encoder, shifts_itself(Encoder)),
    ("an encoder–decoder shifts", pair, shifts_itself(EncoderDecoder)),
    ("a mean over what is not scored", decoder, of_all_places),
    ("theirs, labels are shifted twice", gpt2, called_with(shifted_again)),
    ("theirs, labels are not shifted", llama, unshifted),
    ("theirs, an encoder's labels are shifted", bert, called_with(shifted_again)),
    ("theirs, the decoder reads the answer", t5, reads_the_answer),
)

# --- weights that are one --------------------------------------------------------------------------------------------


def untied(name: str, original: str) -> Callable[[Any, Patch], None]:
    """A copy of a weight in the place of the weight."""

    def plant(model: Any, monkeypatch: Patch) -> None:
        part, _, attribute = name.rpartition(".")
        copied = nn.Parameter(model.get_parameter(original).detach().clone())
        setattr(model.get_submodule(part), attribute, copied)

    return plant


apart_once_loaded = on_loading(lambda model: untied("head.weight", "embed.tokens.weight")(model, pytest.MonkeyPatch()))

BERT_TABLE = "bert.embeddings.word_embeddings.weight"
TIED = of(
    "tied",
    ("an untied head", encoder, untied("head.weight", "embed.tokens.weight")),
    ("a head that is loaded apart", encoder, apart_once_loaded),
    ("theirs, an untied head", gpt2, untied("lm_head.weight", "transformer.wte.weight")),
    (
        "theirs, an untied head",
        bert,
        untied("cls.predictions.decoder.weight", BERT_TABLE),
    ),
    ("theirs, an untied encoder", t5, untied("encoder.embed_tokens.weight", "shared.weight")),
)

# --- ids that do not exist -------------------------------------------------------------------------------------------


def too_many_tokens(model: Any, monkeypatch: Patch) -> None:
    model.tokenizer = Tokenizer.train([text for text in TEXTS for _ in range(3)], 500)


def their_table_too_small(subject: HuggingFace, monkeypatch: Patch) -> HuggingFace:
    return HuggingFace(llama(), tokenizer=their_tokenizer(vocabulary()))


def clamps(table: str) -> Callable[[Any, Patch], None]:
    """Ids beyond the table get its last vector."""

    def plant(model: Any, monkeypatch: Patch) -> None:
        module = model.get_submodule(table)
        monkeypatch.setattr(Embedding, "refuse_unknown", lambda self, ids: None)
        module.forward = lambda ids: F.embedding(ids.clamp(0, len(module.weight) - 1), module.weight)

    return plant


def reads_anything(ids: Tensor) -> Tensor:
    return F.one_hot(ids % VOCAB, VOCAB).float()


def function_of_ids() -> Function:
    """A clean one that says how many ids it knows."""
    return Function(lambda ids: F.one_hot(ids, VOCAB).float(), vocab=VOCAB)


IDS = [
    *of(
        "vocabulary",
        ("a tokenizer with more tokens", ours, too_many_tokens),
        ("theirs, a tokenizer with more tokens", theirs, their_table_too_small),
    ),
    *of(
        "unknown-ids",
        ("ids are clamped", decoder, clamps("embed.tokens")),
        ("ids of the source are clamped", pair, clamps("encoder.embed.tokens")),
        ("theirs, ids are clamped", gpt2, clamps("transformer.wte")),
        ("theirs, ids are clamped", bert, clamps(BERT_TABLE.removesuffix(".weight"))),
        ("a function that takes any id", function_of_ids, instead(Function(reads_anything, vocab=VOCAB))),
    ),
]

FAULTS: list[Fault] = [*LOW, *FILES, *EXPORTS, *LABELS, *TIED, *IDS]
