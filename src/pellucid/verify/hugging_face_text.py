"""A tokenizer of the transformers library, asked the questions of ``text.Speller``."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pellucid.errors import CheckpointError
from pellucid.text.chat import ChatTemplate
from pellucid.text.tokenizer_limits import is_panic
from pellucid.verify.subject import NotApplicable
from pellucid.verify.text import Messages, folds, keeps_start, keeps_text


class TheirSpeller:
    """``tokenizer``: a fast or slow tokenizer of transformers. stop_ids: of the model's generation config.

    Only they end a text: the library's ``generate`` does not know of the tokenizer's own end-of-text token.
    """

    def __init__(self, tokenizer: Any, stop_ids: Sequence[int]):
        self.inner = tokenizer
        self.vocab_size: int = len(tokenizer)
        self.bos_id: int | None = tokenizer.bos_token_id
        self.eos_id: int | None = tokenizer.eos_token_id
        self.unk_id: int | None = tokenizer.unk_token_id
        self.stop_ids = set(stop_ids)
        named = zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True)
        added = tokenizer.added_tokens_decoder.items()
        self.special: Mapping[str, int] = {**dict(named), **{t.content: n for n, t in added if t.special}}
        self.chat_template: str | None = _template(tokenizer.chat_template)
        backend = getattr(tokenizer, "backend_tokenizer", None)
        description = None if backend is None else backend.to_str()
        self.keeps_text = description is not None and keeps_text(description)
        self.keeps_start = description is not None and keeps_start(description)
        self.folds = description is not None and folds(description)

    def encode(self, text: str) -> list[int]:
        return self.inner.encode(text, add_special_tokens=False, split_special_tokens=True)

    def encode_prompt(self, text: str) -> list[int]:
        return self.inner.encode(text, split_special_tokens=True)

    def encode_marked(self, text: str) -> list[int]:
        return self.inner.encode(text, add_special_tokens=False)

    def decode(self, ids: Sequence[int]) -> str:
        return self.inner.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def _within_bounds(self, messages: Messages, add_generation_prompt: bool) -> None:
        """Their code renders in this process, without a time limit, so it gets only what ours has rendered before."""
        names = {name: text for name, text in self.inner.special_tokens_map.items() if isinstance(text, str)}
        ChatTemplate(self.chat_template or "", names).render(messages, add_generation_prompt)

    def render(self, messages: Messages, add_generation_prompt: bool) -> str:
        self._within_bounds(messages, add_generation_prompt)
        return self.inner.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=add_generation_prompt
        )

    def conversation(self, messages: Messages, add_generation_prompt: bool) -> list[int]:
        if "sanitize_control_tokens" not in inspect.signature(self.inner.apply_chat_template).parameters:
            raise NotApplicable("this transformers cannot keep what users type apart from what a template writes")
        self._within_bounds(messages, add_generation_prompt)
        return self.inner.apply_chat_template(
            list(messages),
            tokenize=True,
            return_dict=False,
            add_generation_prompt=add_generation_prompt,
            sanitize_control_tokens=True,
        )


def _template(found: Any) -> str | None:
    """The chat template; of several, the one named default."""
    return found.get("default") if isinstance(found, dict) else found


def stop_ids_of(model: Any) -> list[int]:
    """What ends a text, as the model's own generation config says."""
    config = getattr(model, "generation_config", None)
    stops = getattr(config, "eos_token_id", None)
    return [] if stops is None else [stops] if isinstance(stops, int) else list(stops)


def load_speller(folder: Path, stop_ids: Sequence[int]) -> TheirSpeller | None:
    """The tokenizer of a folder; None where it has none. Raises CheckpointError where it cannot be loaded."""
    import transformers

    if not any(any(folder.glob(pattern)) for pattern in ("token*", "vocab.*", "*.spm", "spiece*", "*.model")):
        return None
    try:
        return TheirSpeller(transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=False), stop_ids)
    except BaseException as error:  # bare ones, and where the compiled code gave up, not even those
        if not isinstance(error, Exception) and not is_panic(error):
            raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"transformers cannot load the tokenizer of {folder}: {reason}", "try --through pellucid"
        ) from error
