"""Small clean models that read text: ours and of transformers, with one vocabulary and a chat template."""

from __future__ import annotations

from functools import cache
from typing import Any

import tokenizers
import transformers as hf
from subjects import CONTEXT, GROUPED, LAYERS, WIDTH, noisy
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

import pellucid
from pellucid.designs import design
from pellucid.nn.models import Decoder
from pellucid.text.tokenizer import Tokenizer
from pellucid.text.tokenizer_roles import Roles
from pellucid.verify.hugging_face import HuggingFace
from pellucid.verify.trial import TEXTS

BEGIN, START, END = "<|begin|>", "<|start|>", "<|end|>"
TURNS = "{% for m in messages %}<|start|>{{ m['role'] }}\n{{ m['content'] }}<|end|>\n{% endfor %}"
TEMPLATE = "{{ bos_token }}" + TURNS + "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"


@cache
def _learned() -> str:
    inner = tokenizers.Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=[BEGIN, START, END], initial_alphabet=alphabet, show_progress=False
    )
    inner.train_from_iterator(TEXTS, trainer)
    inner.post_processor = processors.TemplateProcessing(single=f"{BEGIN} $A", special_tokens=[(BEGIN, 0)])
    return inner.to_str()


def vocabulary() -> tokenizers.Tokenizer:
    """Byte-level BPE with three special tokens; the first begins every text."""
    return tokenizers.Tokenizer.from_str(_learned())


ROLES = Roles(bos_id=0, eos_id=2, stop_ids=(2,), chat_template=TEMPLATE)


def ours(roles: Roles = ROLES) -> Decoder:
    """A decoder of ours that chats."""
    tokenizer = Tokenizer(vocabulary(), roles)
    model = noisy(pellucid.build(design("modern")(tokenizer.vocab_size, CONTEXT, LAYERS, WIDTH, 8)))
    model.tokenizer = tokenizer
    return model


def their_tokenizer(inner: tokenizers.Tokenizer | None = None, template: str = TEMPLATE) -> Any:
    """The same vocabulary, of transformers."""
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=inner or vocabulary(), bos_token=BEGIN, eos_token=END, chat_template=template,
        extra_special_tokens=[START],
    )  # fmt: skip


def theirs(tokenizer: Any = None) -> HuggingFace:
    """A Llama that chats."""
    tokenizer = tokenizer or their_tokenizer()
    sizes: dict[str, Any] = GROUPED | {"vocab_size": len(tokenizer), "bos_token_id": 0, "eos_token_id": 2}
    return HuggingFace(noisy(hf.LlamaForCausalLM(hf.LlamaConfig(**sizes))), tokenizer=tokenizer)
