"""Models of the literature in their published sizes: from the first attention to today's."""

from __future__ import annotations

from dataclasses import replace

from pellucid.designs.language_models import classic
from pellucid.designs.readers import transformer_2017
from pellucid.errors import SpecError, suggest
from pellucid.spec import (
    NO_NORM,
    POST_NORM,
    AlignmentSpec,
    AttentionSpec,
    AttentiveRecurrentSpec,
    BlockSpec,
    BucketedBiasSpec,
    ByPartsScaling,
    DecoderSpec,
    EmbedSpec,
    EncoderDecoderSpec,
    EncoderSpec,
    FFNSpec,
    Full,
    GatedFFNSpec,
    LayerNormSpec,
    LearnedSpec,
    LMHeadSpec,
    MaskedLMHeadSpec,
    RecurrentSpec,
    ResidualSpec,
    RMSNormSpec,
    RotarySpec,
    StackSpec,
)

_TABLE_3: dict[str, tuple[int, int, int]] = {"base": (6, 512, 64), "big": (6, 1024, 64)}  # N, d_model, d_k
_NO_RESIDUAL = ResidualSpec(skip=0.0)


def attention_is_all_you_need(size: str = "base", vocab_size: int = 37_000, context: int = 512) -> EncoderDecoderSpec:
    """The Transformer of Vaswani et al. 2017, figure 1 and table 3: post-norm, sines, one table of vectors.

    size: "base" or "big". One table serves both sides and the head; embeddings are multiplied by √d_model (section
    3.4). The vocabulary is theirs for English and German, of "about 37000 tokens" (section 5.1); positions are sines,
    so ``context`` limits nothing. Raises SpecError for another size.
    """
    if size not in _TABLE_3:
        raise SpecError(f"attention_is_all_you_need has no size {size!r}", suggest(size, _TABLE_3))
    return transformer_2017(vocab_size, context, *_TABLE_3[size])


def attention_is_all_you_need_big() -> EncoderDecoderSpec:
    """The larger Transformer of Vaswani et al. 2017, table 3: twice as wide, 16 heads."""
    return attention_is_all_you_need("big")


def bert_base() -> EncoderSpec:
    """BERT-base, uncased (Devlin et al. 2018): an encoder that fills in masked tokens; learned positions, two types."""
    norm = LayerNormSpec(eps=1e-12)
    full = AttentionSpec(12, 12, 64, Full(), bias=True, out_bias=True)
    block = BlockSpec(full, FFNSpec(3072, "gelu"), norm, POST_NORM)
    return EncoderSpec(
        vocab_size=30_522,
        context=512,
        embed=EmbedSpec(LearnedSpec(), norm=norm, n_types=2),
        stack=StackSpec(768, (block,) * 12, None),
        head=MaskedLMHeadSpec("gelu", norm),
    )


def gpt2() -> DecoderSpec:
    """GPT-2, the smallest of four (Radford et al. 2019): the classic design with 12 layers of 768."""
    return classic(50_257, 1024, 12, 768, 64)


def t5_base() -> EncoderDecoderSpec:
    """T5-base (Raffel et al. 2019): RMSNorm first, distance buckets, no scale on scores, no biases in layers."""
    norm, d_model = RMSNormSpec(), 768
    causal = AttentionSpec(12, 12, 64, scale=1.0)
    full = replace(causal, mask=Full())
    reads = BlockSpec(full, FFNSpec(3072, "relu", bias=False), norm)
    writes = replace(reads, mixer=causal, cross=full)
    near_and_far = BucketedBiasSpec(both_directions=True)
    return EncoderDecoderSpec(
        encoder=EncoderSpec(32_128, 512, EmbedSpec(), StackSpec(d_model, (reads,) * 12, norm, near_and_far)),
        decoder=DecoderSpec(
            32_128,
            512,
            EmbedSpec(),
            StackSpec(d_model, (writes,) * 12, norm, BucketedBiasSpec()),
            LMHeadSpec(scale=d_model**-0.5),
        ),
        start_id=0,
    )


def llama3_8b() -> DecoderSpec:
    """Llama 3.1 8B (Grattafiori et al. 2024): 8 key/value heads for 32, rotary positions stretched to 128k tokens."""
    norm = RMSNormSpec(eps=1e-5)
    rotary = RotarySpec(base=500_000.0, scaling=ByPartsScaling(8.0, 8192))
    block = BlockSpec(AttentionSpec(32, 8, 128, rotary=rotary), GatedFFNSpec(14_336), norm)
    return DecoderSpec(128_256, 131_072, EmbedSpec(), StackSpec(4096, (block,) * 32, norm), LMHeadSpec(tied=False))


def seq2seq() -> EncoderDecoderSpec:
    """The first attention (Bahdanau et al. 2015): a GRU reads both ways, another looks back before each word it writes.

    Of the sizes in their appendix A, embeddings have 1000 values instead of 620, and the 2000 of the two directions are
    projected to 1000, because here a stream has one width; the maxout layer before their softmax is left out, and the
    writer begins with zeros instead of tanh(W h), where h has read backwards to the first word.
    """
    n, norm = 1000, LayerNormSpec()
    reads = BlockSpec(RecurrentSpec("gru", n, both_directions=True), None, norm, NO_NORM, residual=_NO_RESIDUAL)
    looks = AttentiveRecurrentSpec("gru", n, AlignmentSpec("additive", n))
    writes = replace(reads, mixer=looks)
    return EncoderDecoderSpec(
        encoder=EncoderSpec(30_000, 50, EmbedSpec(), StackSpec(n, (reads,), None)),
        decoder=DecoderSpec(30_000, 50, EmbedSpec(), StackSpec(n, (writes,), None), LMHeadSpec(tied=False)),
        start_id=0,
        shared_embedding=False,
    )


def seq2seq_luong() -> EncoderDecoderSpec:
    """Four LSTMs read and four write, the last of which attends to what was read (Luong et al. 2015), general scores.

    Left out are their input feeding, the last h̃ beside the next word, and the encoder's last states as the decoder's
    first: it begins with zeros.
    """
    n, norm = 1000, LayerNormSpec()
    cell = BlockSpec(RecurrentSpec("lstm", n, project=False), None, norm, NO_NORM, residual=_NO_RESIDUAL)
    attends = replace(cell, cross=AlignmentSpec("general"))
    return EncoderDecoderSpec(
        encoder=EncoderSpec(50_000, 50, EmbedSpec(), StackSpec(n, (cell,) * 4, None)),
        decoder=DecoderSpec(
            50_000, 50, EmbedSpec(), StackSpec(n, (cell, cell, cell, attends), None), LMHeadSpec(tied=False)
        ),
        start_id=0,
        shared_embedding=False,
    )
