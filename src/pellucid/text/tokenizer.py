"""Text to integers and back: one class for every vocabulary."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from functools import cached_property
from operator import index
from pathlib import Path
from typing import TYPE_CHECKING, Any, SupportsIndex

from pellucid.errors import CheckpointError, DataError
from pellucid.files import read_json, read_text, write_json, write_text
from pellucid.text.byte_level import Progress, byte_level
from pellucid.text.encoder import Encoder
from pellucid.text.sentence_normal import SYMBOLS, Normal, opened, with_steps
from pellucid.text.token_bytes import is_byte_level, reader_of, strange_letter
from pellucid.text.tokenizer_json import around, decoder_of, explained
from pellucid.text.tokenizer_roles import EXTRA, NAMES, NEVER, STOPS, Roles, roles_of

if TYPE_CHECKING:
    import tokenizers

END_OF_TEXT, MASK = "<|endoftext|>", "[MASK]"
FILE, CONFIG = "tokenizer.json", "tokenizer_config.json"


class Tokenizer:
    """A vocabulary: BPE, WordPiece or Unigram, with special tokens that text never becomes, even where it spells them.

    The one that ``train`` makes is a byte-level BPE (Sennrich et al. 2016, on bytes) with one special token,
    ``<|endoftext|>``, which begins every document and ends it: ``bos_id`` and ``eos_id`` are one id.
    Published ones come from ``pellucid.text.tokenizer_files`` and ``pellucid.text.tokenizer_gguf``.

    special: written form -> id of the special tokens. roles: what they are for; ``bos_id`` … ``chat_template`` are
        its fields. is_plain: one of our own, which has no other roles.
    """

    def __init__(self, inner: tokenizers.Tokenizer, roles: Roles | None = None, normal: Normal | None = None):
        """``roles`` None: those of our own byte-level vocabularies. Raises CheckpointError where it is not one.

        normal: what SentencePiece does to a text before ``inner`` sees it.
        """
        inner.no_padding()
        inner.no_truncation()
        inner.encode_special_tokens = True  # "<|endoftext|>" inside a text is text (this is not kept by its JSON)
        self.inner, self.is_plain = inner, roles is None
        if roles is None:
            end = inner.token_to_id(END_OF_TEXT)
            if end is None:
                raise CheckpointError(
                    f"the tokenizer has no token {END_OF_TEXT!r}", "only such vocabularies can be used"
                )
            known = inner.get_added_tokens_decoder()
            masks = [number for number, token in known.items() if token.content == MASK and token.special]
            roles = Roles(bos_id=end, eos_id=end, stop_ids=(end,), mask_id=masks[0] if masks else None)
        self.roles = roles
        self.bos_id, self.eos_id, self.pad_id, self.unk_id = roles.bos_id, roles.eos_id, roles.pad_id, roles.unk_id
        self.mask_id, self.cls_id, self.sep_id = roles.mask_id, roles.cls_id, roles.sep_id
        self.stop_ids, self.never_ids = roles.stop_ids, roles.never_ids
        self.chat_template, self.names = roles.chat_template, roles.names
        added = inner.get_added_tokens_decoder()
        self.special: dict[str, int] = {token.content: n for n, token in sorted(added.items()) if token.special}
        self.normal, self._encoder = normal, Encoder(inner, self.unk_id, normal)
        self._bytes = self._table()
        self._before, self._after = self._around()
        self.read_as()

    def _table(self) -> list[bytes]:
        decoder = decoder_of(self.inner)
        added = {token.content for token in self.inner.get_added_tokens_decoder().values()}
        vocabulary = self.inner.get_vocab(with_added_tokens=True)
        self._is_byte_level = is_byte_level(decoder)
        if self.is_plain and sorted(vocabulary.values()) != list(range(len(vocabulary))):
            raise CheckpointError("the tokenizer's ids are not 0, 1, 2, …", "only such vocabularies can be used")
        read, special = reader_of(decoder), set(self.special.values())
        table = [b""] * (1 + max(vocabulary.values(), default=-1))
        for written, number in vocabulary.items():
            if self.is_plain and self._is_byte_level and written not in added and (strange := strange_letter(written)):
                raise CheckpointError(
                    f"the tokenizer is not byte-level: a token has {strange!r}", "restore it from a copy"
                )
            table[number] = b"" if number in special else read(written)
        if self.is_plain and not self._is_byte_level:
            raise CheckpointError("the tokenizer is not byte-level", "only such vocabularies are trained here")
        return table

    def _around(self) -> tuple[list[int], list[int]]:
        """The tokens that are put before and after a text."""
        if self.is_plain:
            return [self.roles.bos_id or 0], []
        with explained():
            encoding = self.inner.encode("a")
        kept = [place for place, added in enumerate(encoding.special_tokens_mask) if not added]
        first, last = (kept[0], kept[-1] + 1) if kept else (len(encoding.ids), len(encoding.ids))
        return encoding.ids[:first], encoding.ids[last:]

    @staticmethod
    def train(
        texts: Iterable[str],
        vocab_size: int,
        progress: Progress | None = None,
        *,
        mask: bool = False,
        special: Sequence[str] = (),
    ) -> Tokenizer:
        """Learn merges from ``texts``; the same texts give the same vocabulary, of at most ``vocab_size`` tokens.

        A short text has fewer pairs to merge: ``vocab_size`` of the result says how many there are.
        mask: with a second special token, ``[MASK]``, for models that fill in what it hides. special: more of them,
        such as an objective's ``text.markers``.
        Raises UsageError where not even 256 bytes and the special tokens fit.
        """
        return Tokenizer(byte_level(texts, vocab_size, [END_OF_TEXT, *([MASK] if mask else []), *special], progress))

    @property
    def vocab_size(self) -> int:
        """One more than the largest id, special ones included."""
        return len(self._bytes)

    @property
    def around(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The tokens that ``encode_prompt`` puts before and after a text."""
        return tuple(self._before), tuple(self._after)

    @property
    def adds_bos(self) -> bool:
        """Whether ``encode_prompt`` puts a token before the text: the begin-of-text token, or ``[CLS]``."""
        return bool(self._before)

    @property
    def adds_eos(self) -> bool:
        """Whether ``encode_prompt`` puts a token after the text: the end-of-text token, or ``[SEP]``."""
        return bool(self._after)

    def as_json(self) -> dict[str, Any]:
        """The vocabulary as a tokenizer.json: what SentencePiece does first in the words that this format has."""
        config = json.loads(self.inner.to_str())
        return config if self.normal is None else with_steps(config, self.normal)

    @cached_property
    def hash(self) -> str:
        """sha256 of the canonical JSON: equal exactly when two tokenizers are the same."""
        content: Any = self.as_json()
        if not self.is_plain:
            roles = asdict(self.roles)
            content = [content, roles if roles["names"] else {k: v for k, v in roles.items() if k != "names"}]
        if self.normal is not None:
            content.append(self.normal.symbols)
        canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    def encode(self, text: str, bos: bool = False) -> list[int]:
        """Token ids of the text alone, with ``bos_id`` before them if ``bos`` (and there is one)."""
        ids = self.encode_batch([text])[0]
        return [self.bos_id, *ids] if bos and self.bos_id is not None else ids

    def read_as(self, *, longest: int | None = None, prompt: str = "", lower: bool = False) -> None:
        """How ``encode_prompt`` reads a text from now on, where the model's publisher says more than the vocabulary.

        longest: tokens in all, to which a text is cut at its end. prompt: what is put before a text, unless the caller
        gives another. lower: whether letters become small ones first.
        """
        self.longest, self.prompt, self.lower = longest, prompt, lower

    def encode_prompt(self, text: str, prompt: str | None = None) -> list[int]:
        """Token ids of a text as the model expects one: behind its begin-of-text token, or in ``[CLS]`` … ``[SEP]``.

        prompt: a text to put before it, in place of the one that the model has.
        """
        whole = (self.prompt if prompt is None else prompt) + text
        if self.lower:
            from tokenizers.normalizers import Lowercase

            whole = Lowercase().normalize_str(whole)
        ids = self.encode(whole)
        if self.longest is not None:
            ids = ids[: max(0, self.longest - len(self._before) - len(self._after))]
        return [*self._before, *ids, *self._after]

    def encode_pair(self, text: str, pair: str) -> tuple[list[int], list[int]]:
        """Ids of two texts as the model expects a pair of them, and for each id which of the two it belongs to."""
        return self._encoder.pair(text, pair)

    def encode_marked(self, text: str) -> list[int]:
        """Token ids of a text in which special tokens are written out: they become their ids. Nothing is put around."""
        return self._encoder.marked(text)

    def encode_between(self, texts: Sequence[str], special: Sequence[str]) -> list[int]:
        """Token ids of texts with special tokens between them: texts[0], special[0], texts[1], …, one text more.

        As ``encode_marked`` of all in one, but that special tokens written out in the texts stay text.
        """
        return self._encoder.between(texts, special)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """``encode`` of several texts at once, on all cores."""
        return self._encoder.texts(texts)

    def bytes_of(self, number: int) -> bytes:
        """The bytes one token stands for, b"" for a special one; raises DataError for an id out of range."""
        if not 0 <= number < len(self._bytes):
            raise DataError(
                f"token id {number} is not in 0…{self.vocab_size - 1}", f"this tokenizer has {self.vocab_size} tokens"
            )
        return self._bytes[number]

    def decode(self, ids: Iterable[SupportsIndex]) -> str:
        """The text of ``ids`` (a list, array or 1-D tensor); special tokens are left out.

        Bytes that are not UTF-8 show as U+FFFD. Raises DataError for an id out of range.
        """
        numbers = [index(number) for number in ids]
        joined = b"".join(map(self.bytes_of, numbers))
        if self._is_byte_level:
            return joined.decode("utf-8", errors="replace")
        with explained():
            return self.inner.decode(numbers, skip_special_tokens=True)

    def tokens_as_text(self, ids: Iterable[SupportsIndex]) -> list[str]:
        r"""Each token by itself, to be shown: a part of a character as ``\xNN``, a special token by its name."""
        return [self._shown(index(number)) for number in ids]

    def _shown(self, number: int) -> str:
        raw = self.bytes_of(number)
        return raw.decode("utf-8", errors="backslashreplace") if raw else str(self.inner.id_to_token(number))

    def save(self, path: str | Path) -> None:
        """Write ``tokenizer.json`` (the format of the ``tokenizers`` library), whole or not at all.

        path: the file, or its folder. What our own vocabularies do not need, the roles of tokens and the chat template,
        goes to ``tokenizer_config.json`` beside it, under the names that ``transformers`` reads.
        """
        file = path / FILE if (path := Path(path)).suffix != ".json" else path
        write_text(file, self.inner.to_str() if self.normal is None else json.dumps(self.as_json(), ensure_ascii=False))
        if self.is_plain:
            file.with_name(CONFIG).unlink(missing_ok=True)
        else:
            write_json(file.with_name(CONFIG), self._config())

    def save_pretrained(self, folder: str | Path, longest: int) -> None:
        """Write both files so that ``transformers`` encodes as ``encode_prompt`` does, for our own vocabularies too.

        longest: how many tokens a text may have, to which that library cuts texts where it is asked to.
        """
        self.save(folder)
        if self.is_plain:
            config = json.loads(self.inner.to_str())
            config["post_processor"] = around([(END_OF_TEXT, self.roles.bos_id or 0)], [])
            write_text(Path(folder) / FILE, json.dumps(config, ensure_ascii=False))
        write_json(Path(folder) / CONFIG, self._config() | {"model_max_length": longest})

    def _config(self) -> dict[str, Any]:
        config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
        for name in NAMES:
            if (number := getattr(self.roles, f"{name}_id")) is not None:
                config[f"{name}_token"] = self.inner.id_to_token(number)
        if self._before in ([], [self.bos_id]) and self._after in ([], [self.eos_id]):
            config |= {"add_bos_token": self.adds_bos, "add_eos_token": self.adds_eos}
        config[STOPS] = [self.inner.id_to_token(number) for number in self.stop_ids]
        config |= {NEVER: [[number] for number in self.never_ids]} if self.never_ids else {}
        config |= {SYMBOLS: list(self.normal.symbols)} if self.normal is not None else {}
        config |= {EXTRA: dict(self.names)} if self.names else {}
        return config | ({"chat_template": self.chat_template} if self.chat_template else {})

    @staticmethod
    def load(path: str | Path) -> Tokenizer:
        """Read what ``save`` wrote; raises CheckpointError when missing, damaged or not a tokenizer."""
        path = Path(path)
        text, config = read_text(path, CheckpointError), path.with_name(CONFIG)
        said = read_json(config, CheckpointError) if config.is_file() else None
        if not isinstance(said, dict | None):
            raise CheckpointError(f"{path}: {CONFIG} beside it is not a JSON object", "restore it from a copy")
        inner, normal = opened(text, str(path), said or {})
        try:
            return Tokenizer(inner) if said is None else Tokenizer(inner, roles_of(inner, said, {}, {}, CONFIG), normal)
        except CheckpointError as error:
            raise CheckpointError(f"{path}: {error.problem}", error.remedy) from error

    def __repr__(self) -> str:
        return f"Tokenizer(vocab_size={self.vocab_size}, hash={self.hash[:12]!r})"

    def __rich_repr__(self) -> Iterator[tuple[str, Any]]:
        yield "vocab_size", self.vocab_size
        yield "hash", self.hash[:12]
