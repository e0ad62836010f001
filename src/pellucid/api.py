"""The few names met first that belong to no single room: ``pellucid.build``, ``pellucid.load``, ``pellucid.save``."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast, overload

import torch

from pellucid.arguments import checked
from pellucid.checkpoints.by_name import is_ours as is_ours
from pellucid.checkpoints.by_name import load as load
from pellucid.checkpoints.by_name import locate as locate
from pellucid.checkpoints.native import RUN, SPEC, save_model
from pellucid.checkpoints.peft.config import CONFIG as ADAPTER
from pellucid.checkpoints.safetensors_files import CONFIG
from pellucid.data.feed import Feed
from pellucid.doctor.report import Report
from pellucid.engine.memory import require
from pellucid.errors import CheckpointError, UsageError
from pellucid.files import read_json, write_folder
from pellucid.nn.base import Model
from pellucid.nn.flops import count_parameters
from pellucid.nn.init import initialise
from pellucid.nn.models import AnyModel, Decoder, Encoder, EncoderDecoder, build_model
from pellucid.spec import DecoderSpec, EncoderDecoderSpec, EncoderSpec, InitRule, ModelSpec
from pellucid.surgery.merging import plain

Format: TypeAlias = Literal["hf", "gguf", "native", "peft", "gguf-adapter"]
Quantisation: TypeAlias = Literal["f32", "f16", "q8_0"]


@overload
def build(spec: DecoderSpec, *, init: InitRule = ..., seed: int = ...) -> Decoder: ...
@overload
def build(spec: EncoderSpec, *, init: InitRule = ..., seed: int = ...) -> Encoder: ...
@overload
def build(spec: EncoderDecoderSpec, *, init: InitRule = ..., seed: int = ...) -> EncoderDecoder: ...
@checked(spec="describe the model: pellucid.designs.modern(vocab_size, context, n_layers, d_model, head_dim)")
def build(spec: ModelSpec, *, init: InitRule = "normal", seed: int = 0) -> AnyModel:
    """A new model of this spec, its weights drawn reproducibly (the rules are in ``pellucid.nn.init``).

    Raises TooLargeError where its weights do not fit into the memory that is free.
    """
    needed = 4 * count_parameters(spec).total
    require(needed, "this model", lambda free: f"choose sizes of up to {free // 4 / 1e6:,.0f} M parameters")
    return initialise(build_model(spec), init, seed)


@checked()
def save(model: AnyModel, folder: str | Path) -> None:
    """Write the model and its tokenizer into a folder, in our own format, which keeps every model exactly."""
    save_model(model, Path(folder))


@checked(model="give a model, or the name of one")
def convert(
    model: AnyModel | str | Path,
    out: str | Path,
    to: Format = "hf",
    *,
    dtype: torch.dtype | None = None,
    quantisation: Quantisation | None = None,
    family: str | None = None,
    force: bool = False,
    ignore: Collection[str] = (),
) -> str:
    """Write a model, or what ``load`` finds under a name, for other tools; returns the family or format written.

    to: "hf" for a folder that transformers opens, "gguf" for a file that llama.cpp runs, "native" for a folder of ours,
    "peft" and "gguf-adapter" for the active adapter alone: a folder for peft, a file for llama.cpp's --lora. In what
    the first two write, that adapter is merged.
    dtype: of the weights in a folder, where ``model`` is a name (default: float32). quantisation: of the matrices in a
    GGUF (default: f16). family: the ``model_type`` for transformers (default: the first that can express the model).
    force: replace a model at ``out``. ignore: as ``load`` has it, where ``model`` is a name. Raises CheckpointError
    naming what of the model the target cannot express, UsageError where ``out`` is taken or an option is not for this
    format. ::

        pellucid.convert("runs/book", "book-hf")  # transformers.AutoModelForCausalLM.from_pretrained("book-hf")
        pellucid.convert(model, "book.gguf", to="gguf", quantisation="q8_0")
        pellucid.convert(tuned, "tuned.gguf", to="gguf-adapter")  # llama-cli -m base.gguf --lora tuned.gguf
    """
    out = Path(out)
    for name, value, formats in (
        ("dtype", dtype, "hf native"),
        ("quantisation", quantisation, "gguf"),
        ("family", family, "hf peft"),
    ):
        if value is not None and to not in formats.split():
            raise UsageError(f"{name} = {value} is not for {to}", "leave it out")
    _refuse_taken(out, to, force)
    base = _base_of(Path(model)) if isinstance(model, str | Path) else None
    if isinstance(model, str | Path):
        model = load(model, dtype or torch.float32, ignore=ignore)
    elif ignore:
        raise UsageError(f"ignore = {list(ignore)}, but the model is loaded already", "give it to load")
    elif dtype is not None:
        raise UsageError(f"dtype = {dtype}, but the model is loaded already", "model.to(dtype) first")
    return _written(model, out, to, quantisation, family, base)


def _written(
    model: AnyModel, out: Path, to: Format, quantisation: Quantisation | None, family: str | None, base: str | None
) -> str:
    """``convert`` of a model that is loaded, to a place that is free."""
    if to == "gguf":
        from pellucid.checkpoints.gguf.write import to_gguf

        with plain(model):
            to_gguf(model, out, quantisation or "f16")
        return to
    if to == "hf":
        from pellucid.checkpoints.export import to_hf

        with plain(model):
            return to_hf(model, out, family)
    if to == "gguf-adapter":
        from pellucid.checkpoints.gguf.adapter import save_gguf_adapter

        save_gguf_adapter(model, out)
        return to
    if to == "peft":
        from pellucid.checkpoints.peft.write import save_adapter

        save_adapter(model, out, family=family, base=base)
        return to
    write_folder(out, lambda aside: save_model(model, aside))
    return to


@checked(data="name texts, conversations or the folder of a run; or give a dataset, with its model and collator")
def doctor(
    data: Any,
    model: Any = None,
    collator: Callable[[list[Any]], Mapping[str, Any]] | None = None,
    tokenizer: Any = None,
    *,
    only: Sequence[str] = (),
    **how: Any,
) -> Report:
    """Would a training on ``data`` learn what is meant? Looks, and says what with its numbers; changes nothing.

    data: files of texts, or of conversations for ``model``, or the folder of a run (how: options of ``train``); a feed
    for a model of ours; or a dataset for a model of transformers, with its collator and tokenizer (how:
    ``doctor.hugging_face.subject_of`` explains it). only: names of checks. The report's ``require()`` raises DataError
    for what nobody should train with. Raises UsageError for what cannot be looked at. ::

        pellucid.doctor("chats.jsonl", "SmolLM2-135M-Instruct.Q4_1.gguf")
        pellucid.doctor(dataset, model, DataCollatorForLanguageModeling(tokenizer, mlm=False), tokenizer)
    """
    from pellucid.doctor import hugging_face, ours
    from pellucid.doctor.examine import examine
    from pellucid.train.dry import of_files

    if isinstance(data, Feed):
        if not isinstance(model, Model):
            raise UsageError("a feed is looked at together with its model", "give a model of pellucid's")
        spec: Any = model.spec
        known = ours.subject_of(data, spec, tokenizer or model.tokenizer)
        return examine(replace(known, trial=ours.Trial(cast("AnyModel", model))), only)
    if isinstance(data, str | Path) or (data and all(isinstance(each, str | Path) for each in data)):
        names = [str(data)] if isinstance(data, str | Path) else [str(each) for each in data]
        return of_files(names, None if model is None else str(model), only=only, **how)
    if collator is None or model is None:
        raise UsageError("a dataset is looked at as its model reads it", "give model, collator and tokenizer, too")
    return examine(hugging_face.subject_of(model, data, collator, tokenizer, **how), only)


def _base_of(folder: Path) -> str | None:
    """The model that the run in a folder went on from; None where there is none."""
    if not (folder / RUN).is_file():
        return None
    start = read_json(folder / RUN, CheckpointError).get("start", {})
    return start.get("init_from")


def _refuse_taken(out: Path, to: Format, force: bool) -> None:
    """Raise UsageError where something stands that would be lost; only a model may ever be replaced."""
    if to in ("gguf", "gguf-adapter"):
        if out.is_dir() or out.suffix != ".gguf":
            raise UsageError(f"{out} is no name for a GGUF", "give a file that ends in .gguf")
        if out.exists() and not force:
            raise UsageError(f"{out} exists", "choose another file, or replace it with --force")
        return
    if not out.is_dir():
        if out.exists():
            raise UsageError(f"{out} is a file", "give the name of a new folder")
        return
    if any(out.iterdir()):
        is_model = (any((out / file).is_file() for file in (SPEC, CONFIG, ADAPTER))) and not (out / RUN).exists()
        if not (force and is_model):
            remedy = "replace it with --force" if is_model else "choose another"
            raise UsageError(f"the folder {out} is not empty", remedy)
