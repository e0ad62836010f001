"""The parts of a spec in words: what the table, the drawing in a terminal and the diagram say alike."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import groupby
from typing import Literal

from pellucid.spec import (
    ALiBiSpec,
    AlignmentSpec,
    And,
    AttentionSpec,
    AttentiveRecurrentSpec,
    BiasSpec,
    BlockSpec,
    ByPartsScaling,
    ClassifierHeadSpec,
    CrossSpec,
    DecayRule,
    DecoderSpec,
    DeltaRule,
    EncoderSpec,
    FeedForwardSpec,
    FFNSpec,
    Full,
    GatedDecayRule,
    GatedFFNSpec,
    KernelRule,
    LinearAttentionSpec,
    LinearScaling,
    LMHeadSpec,
    Mask,
    MaskedLMHeadSpec,
    MixerSpec,
    MoESpec,
    NormSpec,
    Not,
    NTKScaling,
    Or,
    PoolerHeadSpec,
    RMSNormSpec,
    RotarySpec,
    SinusoidalSpec,
    StackSpec,
    YaRNScaling,
)

PLAIN = {"relu": "ReLU", "relu2": "ReLU²", "gelu": "GELU", "gelu_tanh": "GELU (tanh)", "silu": "SiLU"}
STRETCHED = {LinearScaling: "linear", NTKScaling: "NTK", YaRNScaling: "YaRN", ByPartsScaling: "by parts"}
GATED = {"relu": "ReGLU", "gelu": "GeGLU", "gelu_tanh": "GeGLU (tanh)", "silu": "SwiGLU"}


@dataclass(frozen=True)
class Part:
    """One sublayer: what it is, what is particular about it, its matrices; who sees whom, where it attends."""

    kind: Literal["attention", "linear", "recurrent", "ffn"]
    title: str
    details: tuple[str, ...]
    matrices: tuple[str, ...]
    mask: Mask | None = None
    reads_encoder: bool = False


def norm_name(spec: NormSpec | None) -> str:
    if spec is None:
        return "no norm"
    return "RMSNorm" if isinstance(spec, RMSNormSpec) else "LayerNorm"


def describe(mask: Mask) -> str:
    """A mask as it is combined: causal & window(256)."""
    if isinstance(mask, And | Or):
        sides = (mask.a, mask.b)
        mixed = [isinstance(side, And | Or) and type(side) is not type(mask) for side in sides]
        a, b = (f"({describe(side)})" if odd else describe(side) for side, odd in zip(sides, mixed, strict=True))
        return f"{a} {'&' if isinstance(mask, And) else '|'} {b}"
    if isinstance(mask, Not):
        return f"~({describe(mask.a)})"
    if isinstance(mask, Full):
        return "sees all"
    name = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", type(mask).__name__).lower()
    values = [getattr(mask, field.name) for field in fields(mask) if getattr(mask, field.name) != field.default]
    return f"{name}({', '.join(map(str, values))})" if values else name


def times(x: float) -> str:
    """A factor; a root of a whole number, or one over it, where that says more than its digits."""
    if not x or float(f"{x:.3g}") == x:
        return f"{x:g}"
    square = x * x if x * x > 1 else 1 / (x * x)
    if x < 0 or abs(square - round(square)) > 1e-9 * square:
        return f"{x:.4g}"
    return f"√{round(square)}" if x > 1 else f"1/√{round(square)}"


def _rotary(spec: RotarySpec | None) -> list[str]:
    if spec is None:
        return []
    more = [f"base {spec.base:,.0f}"] if spec.base != 10_000 else []
    more += [f"{spec.fraction:.0%} of a head"] if spec.fraction != 1 else []
    more += [f"stretched {spec.scaling.factor:g} times, {STRETCHED[type(spec.scaling)]}"] if spec.scaling else []
    return [f"rotary ({', '.join(more)})" if more else "rotary"]


def _biases(inner: bool, out: bool) -> list[str]:
    """Which projections of a mixer have biases; nothing for none."""
    if not inner:
        return ["bias on o"] * out
    return ["biases"] if out else ["biases on q, k, v"]


def bias_words(bias: BiasSpec | None) -> list[str]:
    """A score term in words; nothing for none."""
    if bias is None:
        return []
    return ["ALiBi" if isinstance(bias, ALiBiSpec) else f"{bias.n_buckets} distance buckets"]


# --- mixers ----------------------------------------------------------------------------------------------------------


def _attention(a: AttentionSpec, d: int, bias: BiasSpec | None = None, *, cross: bool = False) -> Part:
    width, kv = a.n_heads * a.head_dim, a.n_kv_heads * a.head_dim
    details = [f"{a.n_heads} head{'s' * (a.n_heads > 1)} of {a.head_dim}"]
    if a.n_kv_heads != a.n_heads:
        details.append(f"{a.n_kv_heads} for keys and values")
    details += [describe(a.mask), *_rotary(a.rotary), *bias_words(bias)]
    details += ["q and k normalised"] if a.qk_norm else []
    if a.scale is not None and abs(a.scale - a.head_dim**-0.5) > 1e-12:
        details.append("scores not scaled" if a.scale == 1 else f"scores × {times(a.scale)}")
    details += [f"scores capped at {a.soft_cap:g}"] if a.soft_cap else []
    details += _biases(a.bias, a.out_bias)
    matrices = [f"q {d}→{width}", f"k, v {d}→{kv}"] if kv != width else [f"q, k, v {d}→{width}"]
    title = "cross-attention" if cross else "attention"
    return Part("attention", title, tuple(details), (*matrices, f"o {width}→{d}"), a.mask, cross)


def _linear(a: LinearAttentionSpec, d: int) -> Part:
    width, rule, more = a.n_heads * a.head_dim, a.rule, list[str]()
    if isinstance(rule, KernelRule):
        name = "kernel elu + 1" if rule.causal else "kernel elu + 1, sees all"
    elif isinstance(rule, DecayRule):
        name = "fixed decay a head"
    elif isinstance(rule, GatedDecayRule):
        name, more = "gated decay", [f"α {d}→{rule.rank}→{width}"]
    else:
        assert isinstance(rule, DeltaRule)
        name, more = "delta rule", [f"β {d}→{a.n_heads}"]
    more += [f"gate {d}→{width}"] if a.out_gate else []
    state = f"state {a.n_heads} × {a.head_dim} × {a.head_dim}"
    details = [name, state, *_rotary(a.rotary)]
    details += [f"{norm_name(a.out_norm)} a head"] if a.out_norm else []
    details += ["output gate"] if a.out_gate else []
    details += _biases(a.bias, a.out_bias)
    return Part("linear", "linear attention", tuple(details), (f"q, k, v {d}→{width}", *more, f"o {width}→{d}"))


def _scores(a: AlignmentSpec) -> str:
    return f"additive scores of {a.d_align}" if a.score == "additive" else f"{a.score} scores"


def mixer_part(spec: MixerSpec, d: int, bias: BiasSpec | None = None) -> Part:
    """What mixes tokens in a block."""
    if isinstance(spec, AttentionSpec):
        return _attention(spec, d, bias)
    if isinstance(spec, LinearAttentionSpec):
        return _linear(spec, d)
    gates, name = 4 if spec.cell == "lstm" else 3, spec.cell.upper()
    if isinstance(spec, AttentiveRecurrentSpec):
        look, h = spec.alignment, spec.d_hidden
        matrices = (f"[x; c] {2 * d}→{gates}·{h}", f"h {h}→{gates}·{h}", *_score_matrices(look, h, d), f"o {h}→{d}")
        details = (f"state of {h}", "looks before each step", _scores(look))
        return Part("recurrent", f"attentive {name}", details, matrices, reads_encoder=True)
    h, ways = spec.d_hidden, ("both directions",) if spec.both_directions else ()
    copies = "2 × " if spec.both_directions else ""
    matrices = [f"{copies}x {d}→{gates}·{h}", f"{copies}h {h}→{gates}·{h}"]
    matrices += [f"o {spec.d_out}→{d}"] if spec.project else []
    return Part("recurrent", name, (f"state of {h}", *ways), tuple(matrices))


def _score_matrices(a: AlignmentSpec, query: int, memory: int) -> tuple[str, ...]:
    if a.score == "additive":
        return f"W {query}→{a.d_align}", f"U {memory}→{a.d_align}", f"v {a.d_align}→1"
    return (f"W {query}→{memory}",) if a.score == "general" else ()


def cross_part(spec: CrossSpec, d: int) -> Part:
    """What attends to an encoder's states."""
    if isinstance(spec, AttentionSpec):
        return _attention(spec, d, cross=True)
    matrices = (*_score_matrices(spec, d, d), f"o {2 * d}→{d}")
    return Part("attention", "alignment", (_scores(spec), "tanh of both"), matrices, reads_encoder=True)


# --- feed-forward ----------------------------------------------------------------------------------------------------


def _layer(spec: FFNSpec | GatedFFNSpec, d: int) -> tuple[list[str], tuple[str, ...]]:
    gated = isinstance(spec, GatedFFNSpec)
    name = GATED.get(spec.activation, f"gated {PLAIN[spec.activation]}") if gated else PLAIN[spec.activation]
    ups = "up, gate" if gated else "up"
    return [f"{name} of {spec.d_ff}", *["biases"] * spec.bias], (f"{ups} {d}→{spec.d_ff}", f"down {spec.d_ff}→{d}")


def ffn_part(spec: FeedForwardSpec, d: int) -> Part:
    """A feed-forward layer, or several with a router."""
    if isinstance(spec, MoESpec):
        words, matrices = _layer(spec.expert, d)
        weighed = [] if spec.renormalise else ["weights not renormalised"]
        details = (f"{spec.n_experts} experts, {spec.top_k} a token", *words, *weighed)
        each = (f"{spec.n_experts} × {matrix}" for matrix in matrices)
        return Part("ffn", "mixture of experts", details, (f"router {d}→{spec.n_experts}", *each))
    words, matrices = _layer(spec, d)
    return Part("ffn", "feed-forward", tuple(words), matrices)


def block_parts(block: BlockSpec, d: int, bias: BiasSpec | None = None) -> list[Part]:
    """The sublayers of a block in their order, the same as that of ``nn.flops.layers``."""
    parts = [mixer_part(block.mixer, d, bias)]
    parts += [cross_part(block.cross, d)] if block.cross else []
    return [*parts, ffn_part(block.ffn, d)] if block.ffn else parts


# --- before and after the stack --------------------------------------------------------------------------------------


def table_words(spec: DecoderSpec | EncoderSpec) -> str:
    """Where vectors come from: a table of tokens, or a matrix for patches."""
    patches = spec.embed.patches
    return f"{spec.vocab_size:,} × {spec.d_embed}" if patches is None else f"patches {patches.n_values}→{spec.d_embed}"


def wider_words(spec: DecoderSpec | EncoderSpec) -> list[str]:
    """The matrix from a width of its own to the stream's."""
    return [] if spec.embed.d_embed is None else [f"linear {spec.d_embed}→{spec.d_model}"]


def embed_words(spec: DecoderSpec | EncoderSpec) -> list[str]:
    """What happens to token vectors before the first block."""
    embed = spec.embed
    words = [f"× {times(embed.scale)}"] if embed.scale != 1 else []
    if embed.positions is not None:
        words.append("+ sines of positions" if isinstance(embed.positions, SinusoidalSpec) else "+ learned positions")
    words += [f"+ {embed.n_types} token types"] if embed.n_types else []
    return words + ([norm_name(embed.norm)] if embed.norm else []) + wider_words(spec)


def input_words(spec: DecoderSpec | EncoderSpec) -> str:
    """What goes in."""
    patches = spec.embed.patches
    return "token ids" if patches is None else f"image, {patches.channels} × {patches.height} × {patches.width}"


def shared_words(spec: StackSpec) -> str:
    """Which blocks have whose weights; nothing where each has its own."""
    n = len(set(spec.owners))
    if n == len(spec.blocks):
        return ""
    if n == 1:
        return "all layers have the same weights"
    return f"{n} sets of weights, of layers {', '.join(map(str, spec.owners))}"


def head_words(spec: DecoderSpec | EncoderSpec) -> tuple[str, list[str]]:
    """What a model gives, and how."""
    head = spec.head
    if head is None:
        return "states", ["one vector a token"]
    if isinstance(head, LMHeadSpec | MaskedLMHeadSpec):
        width = spec.d_embed if isinstance(head, MaskedLMHeadSpec) else spec.d_model
        own = ["by a matrix of its own", f"{width} × {spec.vocab_size:,}"]
        how = ["by the embedding's vectors"] if head.tied else own
        if isinstance(head, MaskedLMHeadSpec):
            return "logits", [f"dense, {PLAIN[head.activation]}, {norm_name(head.norm)}", *how]
        how += [f"× {times(head.scale)}"] if head.scale != 1 else []
        return "logits", how + ([f"capped at {head.soft_cap:g}"] if head.soft_cap else [])
    if isinstance(head, PoolerHeadSpec | ClassifierHeadSpec):
        pooler = head if isinstance(head, PoolerHeadSpec) else head.pooler
        taken = {"first": "first token", "last": "last token", "mean": "mean of all", "max": "maximum of all"}
        how = [
            taken[pooler.take],
            *([f"dense, {pooler.activation}"] if pooler.dense else []),
            *(["length 1"] * pooler.normalise),
        ]
        if isinstance(head, PoolerHeadSpec):
            return "one vector a row", how
        return f"{head.n_classes} classes a row" if head.n_classes > 1 else "one score a row", how
    return f"{head.n_classes} classes a token", ["a matrix and a bias"]


# --- equal blocks ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Group:
    """``runs`` of equal blocks (how many, which), and how many times all of them come; ``at``: number of the first."""

    at: int
    times: int
    runs: tuple[tuple[int, BlockSpec], ...]


def fold(blocks: Sequence[BlockSpec]) -> list[Group]:
    """Blocks as what repeats: twelve equal ones as 12 × one, a pattern of four as 3 × (3 × one, another)."""
    runs = [(len(list(same)), block) for block, same in groupby(blocks)]
    groups: list[Group] = []
    i = at = 0
    while i < len(runs):
        period, best = 1, 1
        for p in range(2, (len(runs) - i) // 2 + 1):
            k = 1
            while runs[i + k * p : i + (k + 1) * p] == runs[i : i + p]:
                k += 1
            if k > 1 and k * p > period * best:
                period, best = p, k
        found = tuple(runs[i : i + period])
        groups.append(Group(at, best, found))
        at += best * sum(n for n, _ in found)
        i += best * period
    return groups
