"""Models on the Hugging Face hub, through its own client: its cache, its login, its offline mode."""

from __future__ import annotations

import re
import socket
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies

from pellucid.checkpoints.sentence import encoder_folder
from pellucid.errors import CheckpointError

# ORG/NAME, perhaps @REVISION, perhaps :FILE.gguf; hf:// before it says that it is no path
_NAME = re.compile(r"(hf://)?(?P<repo>[\w][\w.-]*/[\w][\w.-]*)(@(?P<revision>[\w./-]+))?(:(?P<file>[\w./-]+\.gguf))?")

WANTED = """config.json generation_config.json model.safetensors model-*-of-*.safetensors model.safetensors.index.json
    tokenizer.json tokenizer_config.json special_tokens_map.json added_tokens.json vocab.json merges.txt vocab.txt
    tokenizer.model spiece.model sentencepiece.model sentencepiece.bpe.model spm.model source.spm target.spm
    chat_template.jinja chat_template.json modules.json 1_Pooling/config.json sentence_*_config.json
    config_sentence_transformers.json preprocessor_config.json"""
WEIGHTS = ("model.safetensors", "model.safetensors.index.json")


def is_name(name: str) -> bool:
    """Whether this reads as a model on the hub: ORG/NAME, ORG/NAME@REVISION, ORG/NAME:FILE.gguf.

    Where there is a folder ORG here, it is a path that does not exist, unless hf:// stands before it.
    """
    return _NAME.fullmatch(name) is not None and (name.startswith("hf://") or not Path(name).parent.is_dir())


def fetch(name: str) -> Path:
    """The local folder of a model on the hub, or the one file of it that ``name`` asks for; downloaded where needed.

    Only safetensors and what belongs to the tokenizer are downloaded. ``HF_HUB_OFFLINE``, ``HF_HOME``, ``HF_TOKEN`` and
    the like mean what they mean to other programs. Raises CheckpointError for a model that is not there, may not be
    seen, or cannot be reached; and for one that has nothing we can open, saying what it has.
    """
    import huggingface_hub

    asked = _NAME.fullmatch(name)
    if asked is None:
        raise CheckpointError(f"{name!r} is no name on the hub", "give ORG/NAME, or ORG/NAME:FILE.gguf")
    repo, revision, file = asked["repo"], asked["revision"], asked["file"]
    wanted, alone = list[str](WANTED.split()), _alone()
    wanted += [f"0_*/{name}" for name in wanted]  # where an encoder of sentence-transformers has a folder of its own
    try:
        if file is not None:
            return Path(huggingface_hub.hf_hub_download(repo, file, revision=revision, local_files_only=alone))
        folder = Path(
            huggingface_hub.snapshot_download(repo, revision=revision, allow_patterns=wanted, local_files_only=alone)
        )
        if any((encoder_folder(folder) / weights).is_file() for weights in WEIGHTS):
            return folder
        files = _files(repo, revision, folder, alone)
    except CheckpointError:
        raise
    except Exception as error:  # the client's errors, and those of the library below it, have no root in common
        raise _explained(repo, error) from error
    raise _nothing_to_open(repo, files)


def fetch_config(name: str) -> Path:
    """The ``config.json`` of a model on the hub, without its weights; raises as ``fetch`` does."""
    import huggingface_hub

    repo, _, revision = name.removeprefix("hf://").partition("@")
    try:
        alone = _alone()
        return Path(
            huggingface_hub.hf_hub_download(repo, "config.json", revision=revision or None, local_files_only=alone)
        )
    except Exception as error:
        raise _explained(repo, error) from error


def _alone() -> bool:
    """Whether only the cache can be asked: the client would try for half a minute before it says so.

    Where a proxy stands between, it and not this machine looks for the hub's address.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return True
    if {"http", "https", "all"} & getproxies().keys():
        return False
    try:
        socket.getaddrinfo(urlsplit(constants.ENDPOINT).hostname, None)
    except OSError:
        return True
    return False


def _files(repo: str, revision: str | None, folder: Path, alone: bool) -> list[str]:
    """What the model has, as the hub lists it, or as the cache does where the hub cannot be asked."""
    import huggingface_hub

    if alone:
        return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    return sorted(huggingface_hub.list_repo_files(repo, revision=revision))


def _nothing_to_open(repo: str, files: list[str]) -> CheckpointError:
    ggufs = [file for file in files if file.endswith(".gguf")]
    if ggufs:
        shown = ", ".join(ggufs[:8]) + (f" and {len(ggufs) - 8} more" if len(ggufs) > 8 else "")
        return CheckpointError(f"{repo} has no {WEIGHTS[0]}, but {shown}", f"name one: {repo}:{ggufs[0]}")
    pickled = [file for file in files if file.endswith((".bin", ".pt", ".pth", ".ckpt"))]
    if pickled:
        return CheckpointError(
            f"{repo} has no {WEIGHTS[0]}, but {pickled[0]}, a pickle, which can run code when it is opened",
            "look for a safetensors version among its revisions, or, if you trust whoever made it, download it and "
            "convert it once",
        )
    return CheckpointError(f"{repo} has no {WEIGHTS[0]}", f"it has: {', '.join(files[:8]) or 'nothing'}")


def _explained(repo: str, error: Exception) -> CheckpointError:
    """What went wrong, in words of what to do.

    A gated model is a kind of model that is not found, and a file that the cache lacks is a kind of file that is not
    found: each comes first.
    """
    from huggingface_hub import errors

    page = f"https://huggingface.co/{repo}"
    if isinstance(error, errors.GatedRepoError):
        return CheckpointError(
            f"{repo} is gated", f"ask for access at {page}, then run `hf auth login` or set HF_TOKEN"
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return CheckpointError(
            f"there is no folder {repo} here, and no such model on the hub that you may see",
            "check the name; for a private one run `hf auth login` or set HF_TOKEN",
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return CheckpointError(f"{repo} has no such revision", f"see {page}/tree/main for those it has")
    if isinstance(error, errors.LocalEntryNotFoundError | errors.OfflineModeIsEnabled):
        return CheckpointError(
            f"there is no folder {repo} here, the hub's cache has no such model, and the hub cannot be asked",
            "check the name and the network; is HF_HUB_OFFLINE set?",
        )
    if isinstance(error, errors.EntryNotFoundError):
        return CheckpointError(f"{repo} has no such file", f"see {page}/tree/main for those it has")
    first = next(iter(str(error).splitlines()), type(error).__name__)
    return CheckpointError(f"{repo} could not be fetched: {first}", "check the network and try again")
