"""The tokenizer of a published folder, in whichever of the field's files it comes."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pellucid.errors import CheckpointError
from pellucid.files import read_json, read_text
from pellucid.text.sentence_normal import Normal, opened
from pellucid.text.tokenizer import CONFIG, FILE, Tokenizer
from pellucid.text.tokenizer_build import BYTE_LEVEL, Config, byte_bpe, word_piece
from pellucid.text.tokenizer_flags import obey
from pellucid.text.tokenizer_json import around, build, set_post_processor
from pellucid.text.tokenizer_limits import guarded
from pellucid.text.tokenizer_roles import make_special, roles_of, written_form

if TYPE_CHECKING:
    import tokenizers

_SENTENCES = ("tokenizer.model", "spiece.model", "sentencepiece.model", "spm.model")
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
_KNOWN = "tokenizer.json, tokenizer.model, spiece.model, source.spm, vocab.txt, vocab.json with merges.txt"


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """The tokenizer in a model's folder: ``tokenizer.json``, or else the file of an older kind.

    tokenizer_config.json, special_tokens_map.json, generation_config.json, config.json and chat_template.jinja say what
    its tokens are for. Raises CheckpointError where there is none, one is damaged, or is of a kind not known here.
    """
    folder = Path(folder)
    config, model = _said(folder, CONFIG), _said(folder, "config.json")
    named = _said(folder, "special_tokens_map.json")  # it counts more, but for files that say all of their added tokens
    config = named | config if "added_tokens_decoder" in config else config | named
    if (template := folder / "chat_template.jinja").is_file():
        config["chat_template"] = read_text(template, CheckpointError)
    elif "chat_template" in (written := _said(folder, "chat_template.json")):
        config["chat_template"] = written["chat_template"]
    inner, normal = _inner(folder, config, model)
    _add(inner, _added(folder, config), folder)
    roles = roles_of(inner, config, _said(folder, "generation_config.json"), model, str(folder))
    _set_ends(inner, config, {name: getattr(roles, f"{name}_id") for name in ("bos", "eos")}, folder)
    try:
        return Tokenizer(inner, roles, normal)
    except CheckpointError as error:
        raise CheckpointError(f"{folder}: {error.problem}", error.remedy) from error


def _said(folder: Path, name: str) -> dict[str, Any]:
    """The JSON object in a file of the folder; an empty one where there is no such file."""
    if not (path := folder / name).is_file():
        return {}
    if not isinstance(said := read_json(path, CheckpointError), dict):
        raise CheckpointError(f"{path} is a JSON {type(said).__name__}", "it must be an object")
    return said


def _inner(
    folder: Path, config: Mapping[str, Any], model: Mapping[str, Any]
) -> tuple[tokenizers.Tokenizer, Normal | None]:
    """The vocabulary of whichever file there is, and what is done to texts before it sees them."""
    has = {path.name for path in folder.iterdir()} if folder.is_dir() else set[str]()
    if FILE in has:
        inner, normal = opened(read_text(folder / FILE, CheckpointError), str(folder / FILE), config)
        obey(inner, config, model, str(folder / CONFIG))
        return inner, normal
    if {"source.spm", "target.spm", "vocab.json"} <= has:
        from pellucid.text.tokenizer_sentencepiece import marian

        return marian(folder, config)
    if name := next((name for name in _SENTENCES if name in has), None):
        from pellucid.text.tokenizer_sentencepiece import sentencepiece

        return sentencepiece(folder / name, config, model)
    if "vocab.txt" in has:
        return build(_words(folder / "vocab.txt", config), str(folder / "vocab.txt")), None
    if {"vocab.json", "merges.txt"} <= has:
        return build(_merged(folder, config, model), str(folder / "vocab.json")), None
    raise CheckpointError(
        f"{folder} holds no tokenizer that can be read",
        f"known: {_KNOWN}; `AutoTokenizer.from_pretrained(...).save_pretrained(...)` of transformers writes {FILE}",
    )


def _words(path: Path, config: Mapping[str, Any]) -> Config:
    """BERT's vocab.txt: a token a line."""
    lines = read_text(path, CheckpointError).split("\n")
    tokens = lines[:-1] if lines[-1] == "" else lines
    vocab = {token.rstrip("\r"): number for number, token in enumerate(tokens)}
    if len(vocab) < len(tokens):
        raise CheckpointError(f"{path} has {len(tokens)} lines, of which some are equal", "restore it from a copy")
    given = {name: config[key] for name, key in (("strip_accents", "strip_accents"),
             ("handle_chinese_chars", "tokenize_chinese_chars")) if isinstance(config.get(key), bool)}  # fmt: skip
    lowercase = config.get("do_lower_case", True)
    if not isinstance(lowercase, bool):
        raise CheckpointError(f"{path.with_name(CONFIG)}: do_lower_case is {lowercase!r}", "true or false")
    words = word_piece(vocab, [], lowercase, **given)
    ends = [[(token, vocab[token])] if token in vocab else [] for token in ("[CLS]", "[SEP]")]
    words["post_processor"] = around(ends[0], ends[1])
    if ends[0]:  # of two texts, only the first begins with a token
        words["post_processor"]["pair"].remove({"SpecialToken": {"id": "[CLS]", "type_id": 1}})
    return words


def _merged(folder: Path, config: Mapping[str, Any], model: Mapping[str, Any]) -> Config:
    """GPT-2's vocab.json and merges.txt, which RoBERTa and BART have, too."""
    vocab = read_json(folder / "vocab.json", CheckpointError)
    lines = read_text(folder / "merges.txt", CheckpointError).splitlines()
    merges = [line.split(" ") for line in lines if line and not line.startswith("#version")]
    prefix = config.get("add_prefix_space", False)
    words = byte_bpe({}, merges, [], [BYTE_LEVEL | {"use_regex": True, "add_prefix_space": prefix is True}])
    words["model"]["vocab"] = vocab
    if model.get("model_type") in ("roberta", "bart", "longformer") and isinstance(vocab, dict):
        ends = [[(token, vocab[token])] if token in vocab else [] for token in ("<s>", "</s>")]
        words["post_processor"] = around(ends[0], ends[1])
    return words


def _added(folder: Path, config: Mapping[str, Any]) -> dict[int, dict[str, Any]]:
    """id -> token, of those that were added to a vocabulary after it was made."""
    written = config.get("added_tokens_decoder", {})
    plain = _said(folder, "added_tokens.json")
    try:
        found = {int(number): {"content": content, "special": False} for content, number in plain.items()}
        found |= {int(number): dict(token) for number, token in written.items()}
    except (AttributeError, OverflowError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{folder}: its added tokens are not id and token: {error}", "restore the file"
        ) from error
    for number, token in found.items():
        if not written_form(token, f"{folder}: added token {number}"):
            raise CheckpointError(f"{folder}: added token {number} has no content", "restore the file")
    return found


def _add(inner: tokenizers.Tokenizer, added: dict[int, dict[str, Any]], folder: Path) -> None:
    from tokenizers import AddedToken

    known, special = inner.get_added_tokens_decoder(), set[int]()
    for number, token in sorted(added.items()):
        content = token["content"]
        if number not in known:
            flags = {
                name: token.get(name) is True for name in ("single_word", "lstrip", "rstrip", "normalized", "special")
            }
            guarded(inner.add_tokens, [AddedToken(content, **flags)])
        elif token.get("special") is True:
            special.add(number)
        if inner.token_to_id(content) != number:
            raise CheckpointError(
                f"{folder}: the added token {content[:80]!r} has the id {number}",
                f"{inner.token_to_id(content)} is the number that it can have",
            )
    make_special(inner, special)


def _set_ends(
    inner: tokenizers.Tokenizer, config: Mapping[str, Any], ids: Mapping[str, int | None], folder: Path
) -> None:
    """Do as ``add_bos_token`` and ``add_eos_token`` say, where the vocabulary's file says nothing of them.

    A tokenizer.json does: there ``transformers`` 5 reads neither flag, whatever the class (4 did, for some classes).
    Where the two disagree, the file counts, and a warning says so.
    """
    asked = {"bos": config.get("add_bos_token"), "eos": config.get("add_eos_token")}
    if all(value is None for value in asked.values()):
        return
    for name, value in asked.items():
        if not isinstance(value, bool | None):
            raise CheckpointError(f"{CONFIG}: add_{name}_token is {value!r}", "true or false")
    around_nothing = inner.encode("").ids
    if set(around_nothing) - set(ids.values()):
        return  # other tokens are put around a text: [CLS], a language
    begun = around_nothing[:1] == [ids["bos"]]  # one token may be both
    now = {"bos": begun, "eos": around_nothing[begun:][-1:] == [ids["eos"]]}
    wanted = {name: now[name] if value is None else value for name, value in asked.items()}
    if (folder / FILE).is_file():
        if unlike := [name for name, number in ids.items() if number is not None and wanted[name] != now[name]]:
            flags = ", ".join(f"add_{name}_token is {str(wanted[name]).lower()}" for name in unlike)
            followed = f"{FILE} says otherwise and is followed, as transformers 5 does"
            warnings.warn(f"in {folder / CONFIG} {flags}, but {followed}", stacklevel=2)
        return
    ends = [
        [(written, number)]
        if wanted[name] and (number := ids[name]) is not None and (written := inner.id_to_token(number))
        else []
        for name in ("bos", "eos")
    ]
    set_post_processor(inner, around(ends[0], ends[1]))
