"""Which flags of tokenizer_config.json does a tokenizer class of transformers obey beside a tokenizer.json?

``make peers`` compares what the installed generation of the library does with the table that we follow, which is
src/pellucid/text/tokenizer_flags.json: generation -> kind of vocabulary -> class -> flag -> what happens; and which
class a model has whose folder names none. To measure a generation anew, run this with the Python of an environment that
has it: PYTHON tests/peers/tokenizer_flags.py --write

    "file"          the flag is not obeyed: tokenizer.json alone counts
    "said"          the flag counts, and tokenizer.json where it says nothing
    "said or true"  the flag counts, and where it says nothing, true ("said or false" likewise; "said or null" of
                    strip_accents: accents go where letters are made small)

For each class every flag is tried as true, false and not said, beside files that do it and files that do not; what
happened is read off the ids. A class that gives other ids than its tokenizer.json for "the cat" with no flag at all
builds its vocabulary anew, in ways of its own; it has no row. Nor has one that obeys no flag.
"""

from __future__ import annotations

import itertools
import json
import logging
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import transformers as hf
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES

TABLE = Path(__file__).parents[2] / "src" / "pellucid" / "text" / "tokenizer_flags.json"
WORDS = ["the", "The", "cat", "café", "cafe", "漢", "字", "漢字"]
NAMED = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "[UNK]", "pad_token": "[PAD]",
         "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}  # fmt: skip
SPECIAL = list(NAMED.values())
Encode = Callable[[str], list[int]]


def ends(bos: bool, eos: bool) -> Any:
    known = [("<s>", SPECIAL.index("<s>")), ("</s>", SPECIAL.index("</s>"))]
    single = " ".join([*(["<s>"] if bos else []), "$A", *(["</s>"] if eos else [])])
    return processors.TemplateProcessing(single=single, special_tokens=known)


def word_piece(flag: str, on: bool) -> Tokenizer:
    made = Tokenizer(models.WordPiece({word: i for i, word in enumerate([*SPECIAL, *WORDS])}, unk_token="[UNK]"))
    does = {"do_lower_case": False, "strip_accents": False, "tokenize_chinese_chars": True} | {flag: on}
    made.normalizer = normalizers.BertNormalizer(
        lowercase=does["do_lower_case"],
        strip_accents=does["strip_accents"],
        handle_chinese_chars=does["tokenize_chinese_chars"],
    )
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    return made


def byte_bpe(flag: str, on: bool) -> Tokenizer:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("t", "h"), ("th", "e"), ("Ġ", "the"), ("c", "a"), ("ca", "t"), ("Ġ", "cat")]
    vocab = {word: i for i, word in enumerate([*SPECIAL, *letters, *("".join(pair) for pair in merges)])}
    made = Tokenizer(models.BPE(vocab, merges))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=on and flag == "add_prefix_space")
    made.decoder = decoders.ByteLevel()
    made.post_processor = ends(on and flag == "add_bos_token", on and flag == "add_eos_token")
    return made


def sentence(made: Tokenizer, flag: str, on: bool) -> Tokenizer:
    steps: list[Any] = [normalizers.Replace(" ", "▁")]
    steps = [normalizers.Lowercase(), *steps] if on and flag == "do_lower_case" else steps
    made.normalizer = normalizers.Sequence(steps)
    scheme = "always" if on and flag == "add_prefix_space" else "never"
    made.pre_tokenizer = pre_tokenizers.Metaspace("▁", scheme, split=False)
    made.decoder = decoders.Metaspace("▁", scheme, split=False)
    made.post_processor = ends(on and flag == "add_bos_token", on and flag == "add_eos_token")
    return made


def unigram(flag: str, on: bool) -> Tokenizer:
    words = [*"thecaTé▁", *WORDS, "▁the", "▁cat"]
    vocab = [(word, 0.0) for word in SPECIAL] + [(word, -9.0 + len(word)) for word in dict.fromkeys(words)]
    return sentence(Tokenizer(models.Unigram(vocab, unk_id=SPECIAL.index("[UNK]"))), flag, on)


def sentence_bpe(flag: str, on: bool) -> Tokenizer:
    merges = [("t", "h"), ("th", "e"), ("▁", "the"), ("c", "a"), ("ca", "t"), ("▁", "cat")]
    words = [*SPECIAL, *"thecaTé▁", *("".join(pair) for pair in merges)]
    vocab = {word: i for i, word in enumerate(dict.fromkeys(words))}
    return sentence(Tokenizer(models.BPE(vocab, merges, unk_token="[UNK]", fuse_unk=True)), flag, on)


ENDS = ["add_bos_token", "add_eos_token"]
KINDS: dict[str, tuple[Callable[[str, bool], Tokenizer], list[str]]] = {
    "WordPiece": (word_piece, ["do_lower_case", "strip_accents", "tokenize_chinese_chars"]),
    "byte-level BPE": (byte_bpe, ["add_prefix_space", *ENDS]),
    "Unigram": (unigram, ["do_lower_case", "add_prefix_space", *ENDS]),
    "SentencePiece BPE": (sentence_bpe, ["add_prefix_space", *ENDS]),
}


def does(flag: str, encode: Encode) -> bool:
    """Whether the tokenizer does what the flag is about."""
    ids = encode("the")
    if flag == "do_lower_case":
        return encode("The") == ids
    if flag == "strip_accents":
        return encode("café") == encode("cafe")
    if flag == "tokenize_chinese_chars":
        return len(encode("漢字")) - len(encode("漢")) == 1
    if flag == "add_prefix_space":
        return encode(" the") == ids
    return SPECIAL.index("<s>" if flag == "add_bos_token" else "</s>") in ids


def opened(name: str, inner: Tokenizer, said: dict[str, Any]) -> Encode:
    """What the class makes of a folder."""
    inner.add_special_tokens(SPECIAL)
    with tempfile.TemporaryDirectory() as folder:
        inner.save(f"{folder}/tokenizer.json")
        config = {"tokenizer_class": name, **NAMED, **said}
        Path(folder, "tokenizer_config.json").write_text(json.dumps(config))
        read = getattr(hf, name).from_pretrained(folder)
    if not getattr(read, "is_fast", False):
        raise ValueError("not of the tokenizers library")
    return lambda text: read(text)["input_ids"]


def cell(name: str, make: Callable[[str, bool], Tokenizer], flag: str) -> str:
    """What the class does with the flag; a value that it cannot take, it does not obey."""
    more = {"do_lower_case": False} if flag == "strip_accents" else {}
    found: dict[tuple[bool | None, bool], bool] = {}
    for said, on in itertools.product((None, True, False), (True, False)):
        given = more if said is None else {**more, flag: said}
        try:
            found[said, on] = does(flag, opened(name, make(flag, on), given))
        except Exception:
            return "file"
    if any(found[said, on] != said for said in (True, False) for on in (True, False)):
        return "file"
    silent = {found[None, True], found[None, False]}
    if flag == "strip_accents" and silent == {False}:
        small = does(flag, opened(name, make("do_lower_case", False), {"do_lower_case": True}))
        return "said or null" if small else "said or false"
    return "said" if len(silent) == 2 else f"said or {json.dumps(silent.pop())}"


def rows() -> Iterator[tuple[str, str, dict[str, str]]]:
    entries = TOKENIZER_MAPPING_NAMES.values()  # a name; in older generations a slow class's and a fast one's
    listed = {name for entry in entries for name in (entry if isinstance(entry, tuple) else [entry]) if name}
    table = json.loads(TABLE.read_text()) if TABLE.is_file() else {}
    listed |= {
        name for column in table.values() for row in column["kinds"].values() for name in row if hasattr(hf, name)
    }
    for name in sorted({*listed, "PreTrainedTokenizerFast"}):
        for kind, (make, flags) in KINDS.items():
            try:
                expected = make("", False)
                expected.add_special_tokens(SPECIAL)
                encode = opened(name, make("", False), {})
                plain = [n for n in encode("cat the") if n >= len(SPECIAL)]
                if plain != expected.encode("cat the", add_special_tokens=False).ids:
                    continue
                row = {flag: cell(name, make, flag) for flag in flags}
                if set(row.values()) != {"file"}:
                    yield name.removesuffix("Fast"), kind, row
            except Exception as error:  # whatever a class raises, it has no row
                logging.debug("%s of %s: %s", name, kind, error)


def main() -> int:
    hf.logging.set_verbosity_error()
    table = json.loads(TABLE.read_text()) if TABLE.is_file() else {}
    found: dict[str, dict[str, dict[str, str]]] = {}
    for name, kind, row in rows():
        found.setdefault(kind, {})[name] = row
    generation = hf.__version__.split(".")[0]
    if "--write" in sys.argv:
        known = {name for row in found.values() for name in row}
        named = {model: str(of) for model, of in TOKENIZER_MAPPING_NAMES.items() if of in known}
        table[generation] = {"version": hf.__version__, "kinds": found, "classes": named}
        TABLE.write_text(json.dumps(table, indent=1, sort_keys=True) + "\n")
        return 0
    known = table[generation]["kinds"]
    pairs = [(kind, name) for kind in KINDS for name in {**known.get(kind, {}), **found.get(kind, {})}]
    other = [pair for pair in pairs if known.get(pair[0], {}).get(pair[1]) != found.get(pair[0], {}).get(pair[1])]
    print(f"{hf.__version__}: {len(pairs)} classes, {len(other)} otherwise than in the table", *other)
    return int(bool(other))


if __name__ == "__main__":
    raise SystemExit(main())
