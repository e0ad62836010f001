"""A model by any name for it: our folder, a published one, a ``.gguf`` file, or ORG/NAME on the hub."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from pellucid.arguments import checked
from pellucid.checkpoints.hub import fetch, is_name
from pellucid.checkpoints.load import load_checkpoint, open_checkpoint, without
from pellucid.checkpoints.native import SPEC, TOKENIZER, load_model
from pellucid.checkpoints.peft.config import CONFIG as ADAPTER
from pellucid.checkpoints.peft.config import read_config
from pellucid.checkpoints.peft.read import open_adapter
from pellucid.checkpoints.safetensors_files import CONFIG, WEIGHTS
from pellucid.checkpoints.sentence import MODULES
from pellucid.errors import CheckpointError, UsageError
from pellucid.families.source import Checkpoint
from pellucid.files import nearest
from pellucid.nn.models import AnyModel, Model
from pellucid.nn.native.library import build
from pellucid.text.tokenizer import Tokenizer

M = TypeVar("M", bound=Model)

# where one of these is, there is a tokenizer, whether it can be read or not
TOKENIZER_FILES = """tokenizer.json tokenizer.model spiece.model sentencepiece.model sentencepiece.bpe.model spm.model
    source.spm vocab.txt vocab.json""".split()


def locate(name: str | Path) -> Path:
    """The folder or file that a name means: a path that exists, or else a model on the hub, fetched where needed.

    Raises CheckpointError where there is neither.
    """
    path = Path(name)
    try:
        if path.exists():
            if path.is_dir():
                next(path.iterdir(), None)  # so that a folder that may not be read is one, not an empty one
            return path
    except OSError as error:
        raise CheckpointError(
            f"{name} cannot be read: {error.strerror}", "check the path and who may read it"
        ) from error
    if is_name(str(name)):
        return fetch(str(name))
    near = nearest(path)
    raise CheckpointError(
        f"{name} does not exist",
        ("" if near is None else f"did you mean {str(near)!r}? Else ")
        + "give the folder that `pellucid train --out` wrote, a published model's folder or .gguf file, or ORG/NAME on"
        " the Hugging Face hub",
    )


def is_ours(path: Path) -> bool:
    """Whether a folder is in our own format; one that is in none is to be called a broken one of ours."""
    published = any((path / file).is_file() for file in (CONFIG, MODULES))
    return path.is_dir() and ((path / SPEC).is_file() or not published)


@checked(name="give the name of a folder or file, or ORG/NAME")
def load(
    name: str | Path,
    dtype: torch.dtype = torch.float32,
    *,
    architecture: str | None = None,
    tokenizer: bool = True,
    quantised: bool = False,
    ignore: Collection[str] = (),
) -> AnyModel:
    """A model with its tokenizer, in eval mode: ours, a published folder, a ``.gguf`` file, or ORG/NAME on the hub; or
    an adapter's folder, with the model that it names.

    name: a path that exists wins over a name on the hub; ORG/NAME:FILE.gguf is one file of many. architecture: the
    class of a published model's head, where it is not the one that its config names. tokenizer: False leaves it out.
    quantised: the weights of a ``.gguf`` file stay quantised in memory, and each is opened while it is multiplied; they
    have no gradients. The first such load compiles the kernels that do so, where there is a compiler (``nn.native``);
    without them torch does, slowly. (A folder that such a model was saved in opens so by itself.) ignore: the
    names of attributes that are to be taken out of a published config before it is read. Raises CheckpointError when
    something is missing, damaged, or does not belong together, UsageError for ``quantised`` of what is no GGUF file,
    and for a name in ``ignore`` that the config does not have. ::

        model = pellucid.load("runs/book")
        model = pellucid.load("HuggingFaceTB/SmolLM2-135M-Instruct", torch.bfloat16)
        model = pellucid.load("SmolLM2-135M-Instruct.Q4_1.gguf", quantised=True)
        logits = model(torch.tensor([model.tokenizer.encode("Once upon a time", bos=True)]))  # (batch, time, vocab)
    """
    path = locate(name)
    if (path / ADAPTER).is_file() and not any((path / file).is_file() for file in (SPEC, CONFIG)):
        return _adapted(path, dtype, architecture, tokenizer, quantised, ignore)
    if path.name == WEIGHTS and is_ours(path.parent):
        path = path.parent
    if quantised:
        from pellucid.checkpoints.gguf.read import GGUFSource

        checkpoint = _ignoring(open_quantised(path), ignore)
        own = _tokenizer_of(path, checkpoint) if tokenizer else None  # first: what it needs on the way is then free
        if isinstance(checkpoint.source, GGUFSource):
            checkpoint.source.release_vocabulary()
        build()
        model = load_checkpoint(checkpoint, dtype, architecture, quantised=True)
        model.tokenizer = own
    elif is_ours(path):
        if ignore:
            raise UsageError(f"ignore = {list(ignore)}, but {path} has no config.json", "leave ignore out")
        model = load_model(path, dtype)
        if tokenizer and (path / TOKENIZER).exists():
            model.tokenizer = Tokenizer.load(path / TOKENIZER)
    else:
        checkpoint = _ignoring(open_checkpoint(path), ignore)
        model = load_checkpoint(checkpoint, dtype, architecture)
        if tokenizer:
            model.tokenizer = _tokenizer_of(path, checkpoint)
    if model.tokenizer is not None:
        _refuse_foreign(model.tokenizer, model.spec.vocab_size, path)
        said = model.sentences
        prompt = said.get("prompts", {}).get(said.get("default_prompt"), "")
        model.tokenizer.read_as(longest=said.get("longest"), prompt=prompt, lower=said.get("lower", False))
    return model


def _adapted(
    path: Path, dtype: torch.dtype, architecture: str | None, tokenizer: bool, quantised: bool, ignore: Collection[str]
) -> AnyModel:
    """The model that an adapter of PEFT's names as its base, with the adapter in it."""
    base = read_config(path).base
    if base is None or Path(base).resolve() == path.resolve():
        raise CheckpointError(
            f"{path} holds an adapter that does not say for which model it is", "pellucid.open_adapter(model, folder)"
        )
    model = load(base, dtype, architecture=architecture, tokenizer=tokenizer, quantised=quantised, ignore=ignore)
    return open_adapter(model, path)


def _ignoring(checkpoint: Checkpoint, names: Collection[str]) -> Checkpoint:
    return replace(checkpoint, config=without(checkpoint.config, names, checkpoint.where)) if names else checkpoint


def opened(model: M | str | Path) -> M | AnyModel:
    """The model itself, or what ``load`` finds under a name."""
    return load(model) if isinstance(model, str | Path) else model


def open_quantised(path: Path) -> Checkpoint:
    """A GGUF file, opened. Raises UsageError for anything else: other files hold no quantised weights."""
    if path.suffix.lower() != ".gguf":
        raise UsageError(f"quantised = True, but {path} is no GGUF file", "leave quantised out: nothing in it is")
    return open_checkpoint(path)


def _tokenizer_of(path: Path, checkpoint: Checkpoint) -> Tokenizer | None:
    """The tokenizer of a published model; None where it has none, as one that reads images."""
    metadata: Mapping[str, Any] | None = getattr(checkpoint.source, "metadata", None)
    if metadata is not None:
        from pellucid.text.tokenizer_gguf import from_metadata

        if metadata.get("tokenizer.ggml.model") in ("no_vocab", "none"):  # llama.cpp's words for a model of ids alone
            return None
        return from_metadata(metadata, str(path))
    from pellucid.text.tokenizer_files import load_tokenizer

    folder = checkpoint.source.where
    return load_tokenizer(folder) if any((folder / file).is_file() for file in TOKENIZER_FILES) else None


def _refuse_foreign(tokenizer: Tokenizer, vocab_size: int, where: Path) -> None:
    """Raise CheckpointError where text may become ids that the model does not have.

    Special tokens beyond the model's vocabulary are let through: some published tokenizers have been given a token for
    padding that the model was never given, and text does not become it.
    """
    beyond = sum(number >= vocab_size for number in tokenizer.special.values())
    if tokenizer.vocab_size - beyond > vocab_size:
        raise CheckpointError(
            f"{where}: its tokenizer has {tokenizer.vocab_size} tokens, the model {vocab_size}",
            "restore the tokenizer that belongs to this model",
        )
