"""Every figure of docs/ideas, drawn by running the package: a number in a picture is a number that the code gave.

``python docs/figures.py`` draws all into docs/pictures, ``python docs/figures.py masks caches`` these two. Seeds are
fixed and no date is written, so that on one machine the same code draws the same files.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import looks
import numpy as np
import torch
from drawing import COLOURS, name_axes, panels, save, squares
from torch import Tensor
from torch.nn import functional as F

import pellucid
from pellucid.batch import Batch, Tokens
from pellucid.cli.diagram import draw
from pellucid.data.denoise import Denoising, span_lengths
from pellucid.data.groups import Groups
from pellucid.data.mixture import Deal, Mixture
from pellucid.data.spans import random_spans
from pellucid.data.ul2 import MIXTURE
from pellucid.designs import DESIGNS
from pellucid.generate.sample import temperature, top_p
from pellucid.generate.speculate import accept
from pellucid.look.seen import Head
from pellucid.nn import loss
from pellucid.nn.biases import ALiBi, BucketedBias
from pellucid.nn.feed_forward import ACTIVATIONS
from pellucid.nn.flops import cache_bytes, count_parameters, forward_flops, visible_pairs
from pellucid.nn.kernels import attend, reference
from pellucid.nn.layout import make_layout
from pellucid.nn.masks import Visible, dense
from pellucid.nn.rope import frequencies
from pellucid.nn.running_sum import by_steps
from pellucid.nn.slots import Contiguous, Ring
from pellucid.predicates import big_bird, longformer, sparse_transformer
from pellucid.recipes.attention_is_all_you_need import RECIPES
from pellucid.spec import (
    NO_NORM,
    POST_NORM,
    PRE_NORM,
    REORDERED_NORM,
    SANDWICH_NORM,
    AttentionSpec,
    BlockSpec,
    BucketedBiasSpec,
    ByPartsScaling,
    Causal,
    DecoderSpec,
    EmbedSpec,
    EncoderDecoderSpec,
    EncoderSpec,
    FFNSpec,
    Full,
    GatedFFNSpec,
    LayerNormSpec,
    LinearScaling,
    MixerSpec,
    MoESpec,
    NTKScaling,
    Placement,
    Prefix,
    RecurrentSpec,
    ResidualSpec,
    RMSNormSpec,
    RotarySpec,
    SinusoidalSpec,
    StackSpec,
    Window,
    YaRNScaling,
)

PICTURES = Path(__file__).resolve().parent / "pictures"
NORM = LayerNormSpec()
BLOCK = BlockSpec(AttentionSpec(2, 2, 32), FFNSpec(256), NORM)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# --- attention, masks, positions -------------------------------------------------------------------------------------


def attention() -> Any:
    sizes = [4, 8, 16, 32, 64, 128, 256, 512]
    figure, (left, right) = panels(2)
    for colour, name, power in ((COLOURS[1], "q·k", 0.0), (COLOURS[0], "q·k / √head_dim", -0.5)):
        largest, slopes = [], []
        for d in sizes:
            q, k, v = (normal(1, 1, 64, d, seed=i).requires_grad_() for i in range(3))
            heard: dict[str, Tensor] = {}
            attend(q, k, v, Visible("full"), scale=d**power, listen=lambda name, x, h=heard: h.setdefault(name, x))
            pattern = heard["pattern"]
            largest.append(float(pattern.detach().amax(-1).mean()))
            jacobian = torch.diag_embed(pattern) - pattern[..., :, None] * pattern[..., None, :]
            slopes.append(float(jacobian.detach().norm(dim=(-2, -1)).mean()))
        left.plot(sizes, largest, "o-", color=colour, label=name)
        right.plot(sizes, slopes, "o-", color=colour, label=name)
    name_axes(left, "largest of 64 weights, mean over queries", "head_dim", "weight", log="x")
    name_axes(right, "slope of the softmax: norm of its Jacobian", "head_dim", "‖∂ pattern / ∂ scores‖", log="x")
    left.legend(frameon=False)
    return figure


def attention_heads() -> Any:
    """Of a trained model, the plainest head of each of four kinds, over one sentence."""
    seen = looks.seen(
        "SmolLM2-135M-Instruct.Q4_1.gguf", "The old sailor met a young sailor. The old sailor told a story."
    )
    tokens = [token.id for token in seen.tokens]
    # (query, key): the key follows an earlier token that is the query's own
    repeats = [(q, k) for q in range(len(tokens)) for k in range(2, q) if tokens[k - 1] == tokens[q]]

    def after_same(head: Head) -> float:
        return sum(float(seen.attention.patterns[head.layer][head.head][pair]) for pair in repeats)

    kinds: dict[str, Callable[[Head], float]] = {
        "the first token": lambda head: head.first,
        "the token before": lambda head: head.previous,
        "the token itself": lambda head: head.itself,
        "what came after the same word": after_same,
    }
    figure, axes = panels(4, 12.0, 3.7)
    for place, (kind, measure) in zip(axes, kinds.items(), strict=True):
        head = max(seen.attention.heads, key=measure)
        pattern = torch.from_numpy(seen.attention.patterns[head.layer][head.head])
        squares(place, pattern, f"{head.layer}.{head.head}: {kind}")
        labels = [token.label.replace("␣", " ") for token in seen.tokens]
        place.set_xticks(range(len(labels)), labels, rotation=90, fontsize=6)
        place.set_yticks(range(len(labels)), labels, fontsize=6)
    return figure


def masks() -> Any:
    plain, n = Tokens.plain(1, 16), 16
    packed = Tokens.packed(torch.tensor([[0] * 6 + [1] * 7 + [-1] * 3]))
    padded = Tokens.padded(torch.arange(n)[None] >= 5)
    shown = {
        "Causal()": (Causal(), plain),
        "Causal() & Window(4)": (Causal() & Window(4), plain),
        "Causal() | Prefix(5)": (Causal() | Prefix(5), plain),
        "Causal(), 5 of padding": (Causal(), padded),
        "Causal(), 2 documents": (Causal(), packed),
    }
    figure, axes = panels(5, 10.0, 2.5)
    for place, (name, (mask, tokens)) in zip(axes, shown.items(), strict=True):
        squares(place, dense(mask, tokens, tokens)[0, 0].float(), name)
    return figure


def positions() -> Any:
    figure, (sines, turns, slopes, buckets) = panels(4, 12.0, 2.9)
    spec = DecoderSpec(2, 64, EmbedSpec(SinusoidalSpec()), StackSpec(64, (BLOCK,), None))
    table = pellucid.build(spec).embed.positions(Tokens.plain(1, 64))[0].detach()
    sines.imshow(table, aspect="auto", cmap="RdBu")
    name_axes(sines, "sinusoidal: what is added", "dimension", "position")
    scalings = {
        "none": None,
        "linear": LinearScaling(8.0),
        "NTK": NTKScaling(8.0),
        "YaRN": YaRNScaling(8.0, 4096),
        "by parts": ByPartsScaling(8.0, 4096),
    }
    base = frequencies(RotarySpec(), 64)[0]
    for colour, (name, scaling) in zip(COLOURS, scalings.items(), strict=True):
        turns.plot(base / frequencies(RotarySpec(scaling=scaling), 64)[0], color=colour, label=name)
    name_axes(turns, "rotary: slowed down how many times", "pair of dimensions", "times")
    turns.legend(frameon=False, fontsize=8)
    here, keys = Tokens.plain(1, 1, 127), Tokens.plain(1, 128)
    for head, line in enumerate(ALiBi(4)(here, keys)[0, :, 0].flip(-1)):
        slopes.plot(line, color=COLOURS[head], label=f"head {head}")
    name_axes(slopes, "ALiBi: added to the score", "distance", "score")
    slopes.legend(frameon=False, fontsize=8)
    buckets.plot(BucketedBias(BucketedBiasSpec(), 1).buckets(-torch.arange(160)), color=COLOURS[0])
    name_axes(buckets, "buckets of distance", "distance", "bucket")
    return figure


# --- the block -------------------------------------------------------------------------------------------------------


def residual_and_norms() -> Any:
    kinds: dict[str, tuple[Placement, float]] = {
        "pre-norm": (PRE_NORM, 1.0),
        "sandwich": (SANDWICH_NORM, 1.0),
        "reordered": (REORDERED_NORM, 1.0),
        "post-norm": (POST_NORM, 1.0),
        "no residual, no norm": (NO_NORM, 0.0),
    }
    depth, (figure, (axes,)) = 24, panels(1, 6.0, 3.6)
    ids = torch.randint(64, (4, 33), generator=torch.Generator().manual_seed(0))
    for colour, (name, (placement, skip)) in zip(COLOURS, kinds.items(), strict=True):
        block = replace(BLOCK, placement=placement, residual=ResidualSpec(skip=skip))
        spec = DecoderSpec(64, 32, EmbedSpec(), StackSpec(64, (block,) * depth, NORM if placement.pre else None))
        model = pellucid.build(spec, init="xavier")
        batch = Batch(ids[:, :-1], Tokens.plain(4, 32), ids[:, 1:])
        with model.taps(read="blocks.*.resid_pre") as acts:
            loss = model.nll_sum(batch)
        slopes = torch.autograd.grad(loss, [acts[f"blocks.{i}.resid_pre"] for i in range(depth)])
        axes.plot([float(slope.norm() / slopes[-1].norm()) for slope in slopes], color=colour, label=name)
    name_axes(axes, "gradient at the input of a block, beside that of the last", "block", "ratio of norms", log="y")
    axes.legend(frameon=False, fontsize=8)
    return figure


def feed_forward() -> Any:
    x, (figure, (left, right)) = torch.linspace(-4, 3, 281), panels(2)
    for colour, (name, act) in zip(COLOURS, ACTIVATIONS.items(), strict=True):
        left.plot(x, act(x), color=colour, label=name, linestyle=":" if name == "gelu_tanh" else "-")
    left.set_ylim(-0.5, 3)
    name_axes(left, "activations", "x", "act(x)")
    left.legend(frameon=False, fontsize=8)
    right.plot(x, 1e4 * (ACTIVATIONS["gelu_tanh"](x) - ACTIVATIONS["gelu"](x)), color=COLOURS[0])
    name_axes(right, "tanh-GELU minus exact GELU", "x", "difference × 10⁴")
    return figure


def mixture_of_experts() -> Any:
    counts, (figure, (left, right)) = [1, 2, 4, 8, 16, 32, 64], panels(2)
    mixer = AttentionSpec(8, 8, 64)
    for colour, top_k in ((COLOURS[0], 1), (COLOURS[1], 2)):
        sizes, work = [], []
        for n in (n for n in counts if n >= top_k):
            block = BlockSpec(mixer, MoESpec(GatedFFNSpec(1344), n, top_k), RMSNormSpec())
            spec = DecoderSpec(32_768, 1024, EmbedSpec(), StackSpec(512, (block,) * 8, RMSNormSpec()))
            sizes.append(count_parameters(spec).total / 1e6)
            work.append(forward_flops(spec, 1024) / 1024 / 1e6)
        line = "o-" if top_k == 1 else "o--"  # both are to be seen where they are one
        left.plot(counts[-len(sizes) :], sizes, line, color=colour, label=f"top_k = {top_k}")
        right.plot(counts[-len(work) :], work, "o-", color=colour)
    name_axes(left, "parameters", "experts", "millions", log="x")
    name_axes(right, "FLOPs of a token, forward", "experts", "millions", log="x")
    right.set_ylim(0, 140)
    left.legend(frameon=False)
    return figure


# --- encoders, decoders, recurrences ---------------------------------------------------------------------------------


def influence(model: Any, time: int = 16) -> Tensor:
    """‖∂ state_i / ∂ embedding_j‖ for every pair, each row divided by its largest."""
    heard: list[Tensor] = []
    with model.taps(edit={"embed": lambda x: heard.append(x.detach().requires_grad_()) or heard[-1]}):
        states = model.states(torch.arange(time)[None])
    rows = [torch.autograd.grad((s * normal(len(s), seed=1)).sum(), heard[0], retain_graph=True)[0] for s in states[0]]
    seen = torch.cat(rows).norm(dim=-1)
    return seen / seen.amax(-1, keepdim=True)


def encoder() -> Any:
    figure, (left, right) = panels(2, 6.5, 3.1)
    embed = EmbedSpec(SinusoidalSpec())
    reads = replace(BLOCK, mixer=AttentionSpec(2, 2, 32, Full()))
    both = pellucid.build(EncoderSpec(16, 16, embed, StackSpec(64, (reads,) * 4, NORM)), init="xavier")
    back = pellucid.build(DecoderSpec(16, 16, embed, StackSpec(64, (BLOCK,) * 4, NORM)), init="xavier")
    squares(left, influence(both).sqrt(), "encoder: Full()", "token", "state")
    squares(right, influence(back).sqrt(), "decoder: Causal()", "token", "state")
    return figure


def encoder_decoder() -> Any:
    """Trained for some seconds to write ten symbols backwards."""
    n, vocab, heads = 10, 16, AttentionSpec(1, 1, 32)
    reads = BlockSpec(replace(heads, mask=Full()), FFNSpec(64), NORM)
    writes = replace(reads, mixer=heads, cross=replace(heads, mask=Full()))
    embed = EmbedSpec(SinusoidalSpec(), scale=math.sqrt(32))
    sides = [StackSpec(32, (block,), NORM) for block in (reads, writes)]
    spec = EncoderDecoderSpec(EncoderSpec(vocab, n, embed, sides[0]), DecoderSpec(vocab, n, embed, sides[1]), 0)
    model, generator = pellucid.build(spec, init="xavier"), torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(400):
        source = torch.randint(1, vocab, (32, n), generator=generator)
        target = source.flip(1)
        loss = F.cross_entropy(model(source, F.pad(target[:, :-1], (1, 0))).mT, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    source = torch.randint(1, vocab, (256, n), generator=generator)
    with torch.no_grad(), model.taps(read="decoder.blocks.0.cross.pattern") as acts:
        said = model(source, F.pad(source.flip(1)[:, :-1], (1, 0))).argmax(-1)
    figure, (axes,) = panels(1, 3.8, 3.6)
    right = float((said == source.flip(1)).float().mean())
    squares(axes, acts["decoder.blocks.0.cross.pattern"].mean((0, 1)), f"{right:.1%} right", "source", "written")
    return figure


def recurrence() -> Any:
    """How much the state of the last token owes to each token before it."""
    time, (figure, (axes,)) = 64, panels(1, 5.5, 3.2)
    mixers: dict[str, MixerSpec] = {
        "LSTM": RecurrentSpec("lstm", 64),
        "GRU": RecurrentSpec("gru", 64),
        "attention": AttentionSpec(2, 2, 32),
    }
    for colour, (name, mixer) in zip(COLOURS, mixers.items(), strict=False):
        block = BlockSpec(mixer, None, NORM, NO_NORM, residual=ResidualSpec(skip=0.0))
        seen = []
        for seed in range(8):
            spec = DecoderSpec(time, time, EmbedSpec(), StackSpec(64, (block,), None))
            seen.append(influence(pellucid.build(spec, init="xavier", seed=seed), time)[-1].flip(0))
        axes.plot(torch.stack(seen).mean(0), color=colour, label=name)
    name_axes(axes, "gradient of the last state, untrained, one layer", "tokens back", "beside the largest", log="y")
    axes.legend(frameon=False)
    return figure


# --- what it costs ---------------------------------------------------------------------------------------------------


def the_quadratic_cost() -> Any:
    lengths, (figure, (left, right)) = [2**i for i in range(8, 18)], panels(2)
    for colour, name in zip(COLOURS, ("modern", "window", "hybrid", "delta", "lstm"), strict=True):
        spec = DESIGNS[name](32_768, 131_072, 8, 512, 64)
        left.plot(lengths, [forward_flops(spec, n) / n / 1e6 for n in lengths], color=colour, label=name)
        right.plot(lengths, [cache_bytes(spec, n) / 2**20 for n in lengths], color=colour)
    name_axes(left, "forward, for each token", "tokens", "MFLOP", log="xy")
    name_axes(right, "kept while generating", "tokens", "MiB", log="xy")
    left.legend(frameon=False, fontsize=8)
    return figure


def sparse_attention() -> Any:
    n, tokens, block = 1024, Tokens.plain(1, 1024), 32
    shown = {
        "sparse_transformer(128)": sparse_transformer(128),
        "longformer(65, 32)": longformer(65, 32),
        "big_bird(32)": big_bird(block, length=n),
        "Causal() & big_bird(32)": Causal() & big_bird(block),
    }
    figure, axes = panels(4, 10.0, 3.0)
    for place, (name, mask) in zip(axes, shown.items(), strict=True):
        layout = make_layout(mask, tokens, tokens, block)
        blocks = layout.grid(lambda kind: kind != 1)[0].float()
        share = f"{layout.density:.0%} of blocks, {visible_pairs(mask, n) / n**2:.1%} of pairs"
        squares(place, blocks, f"{name}\n{share}", "key blocks", "query blocks")
    return figure


def linear_attention() -> Any:
    """Random keys of length 1 and values are stored; then each key asks for its value."""
    d, counts, rows = 32, [1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128], 32
    figure, (axes,) = panels(1, 5.5, 3.2)
    errors: dict[str, list[float]] = {"sum": [], "delta rule, β = 1": [], "softmax attention, scale 16": []}
    for n in counts:
        k, v = F.normalize(normal(rows, 1, n, d, seed=n), dim=-1), normal(rows, 1, n, d, seed=n + 1)
        empty, one = torch.zeros(rows, 1, d, d), torch.ones(rows, 1, n)
        read = [k @ by_steps(k, k, v, None, beta, empty)[1] for beta in (None, one)]
        read.append(reference(k, k, v, Visible("full"), scale=16.0))
        for name, z in zip(errors, read, strict=True):
            errors[name].append(float((z - v).square().mean() / v.square().mean()))
    for colour, (name, line) in zip(COLOURS, errors.items(), strict=False):
        axes.plot(counts, line, "o-", color=colour, label=name)
    axes.axvline(d, color="#bbbbbb", linestyle="--")
    name_axes(axes, f"values read back, head_dim = {d}", "pairs stored", "relative squared error", log="x")
    axes.set_ylim(-0.05, 1.5)
    axes.legend(frameon=False, fontsize=8)
    return figure


def hybrids() -> str:
    return draw(DESIGNS["hybrid"](32_768, 1024, 8, 512, 64), "hybrid")


def caches() -> Any:
    """Which token stands in which place, after each token."""
    steps, window, (figure, axes) = 24, 8, panels(2, 8.0, 3.2)
    for place, cache in zip(axes, (Contiguous(1, steps), Ring(1, window)), strict=True):
        held = torch.full((steps, cache.capacity), -1)
        for step in range(steps):
            tokens = Tokens.plain(1, 1, step)
            cache.take(tokens)
            cache.commit(tokens)
            held[step] = cache.pos[0, : cache.capacity]
        image = place.imshow(held.masked_fill(held < 0, 0) + (held >= 0), cmap="Blues", aspect="auto", vmin=0)
        for (row, column), pos in zip(torch.nonzero(held >= 0).tolist(), held[held >= 0].tolist(), strict=True):
            dark = image.norm(pos + 1) > 0.6
            place.text(column, row, pos, ha="center", va="center", fontsize=5, color="white" if dark else "black")
        place.set(xticks=[], yticks=[])
        name_axes(place, cache.name, "place", "after each token, downwards")
    return figure


def decoding() -> Any:
    """What the order of filters leaves, and how many tokens a step of speculation writes."""
    figure, (left, right) = panels(2)
    logits, heats = normal(1, 1000) * 2, [0.5 + 0.1 * i for i in range(26)]
    orders: dict[str, Callable[[float], Tensor]] = {
        "temperature, then top-p": lambda t: top_p(temperature(logits, t), 0.9),
        "top-p, then temperature": lambda t: temperature(top_p(logits, 0.9), t),
    }
    for name, order in orders.items():
        left.plot(heats, [int(order(t).isfinite().sum()) for t in heats], label=name)
    left.legend(fontsize=7)
    name_axes(left, "top-p 0.9 of 1,000 tokens", "temperature", "candidates left")
    shares, n_steps, generator = [0.1 * i for i in range(1, 10)], 400, torch.Generator().manual_seed(0)
    for guesses in (2, 4):
        drawn = torch.zeros(len(shares))
        for i, share in enumerate(shares):
            p, q = torch.tensor([share, 1 - share]), torch.tensor([1.0, 0.0])  # token 0 is always guessed
            for _ in range(n_steps):
                accepted = 0
                while accepted < guesses and accept(0, p, q, generator) == 0:
                    accepted += 1
                drawn[i] += accepted + 1
        (line,) = right.plot(
            shares, [sum(a**n for n in range(guesses + 1)) for a in shares], label=f"{guesses} guesses"
        )
        right.plot(shares, drawn / n_steps, "o", color=line.get_color(), markersize=3)
    right.legend(fontsize=7)
    name_axes(right, "tokens a step", "share of guesses accepted", "tokens")
    return figure


def losses() -> Any:
    figure, (left, right) = panels(2)
    tokens = torch.tensor([2**n for n in range(8, 18)])
    for colour, vocab in zip(COLOURS, (8192, 50_257, 256_000), strict=False):
        every = 4.0 * tokens * vocab
        left.plot(tokens, every / 2**30, ":", color=colour)
        left.plot(tokens, every.clamp(max=loss.CHUNK_BYTES) / 2**30, color=colour, label=f"vocabulary {vocab:,}")
    name_axes(left, "logits in memory: all (dotted), in chunks", "tokens", "GiB", log="both")
    left.legend(frameon=False, fontsize=8)
    logit, label = torch.linspace(-2, 12, 141), torch.zeros(141, dtype=torch.long)
    for colour, smoothing in zip(COLOURS, (0.0, 0.1, 0.3), strict=False):
        table = torch.zeros(10, 1)
        table[0] = 1.0  # one of ten entries has this logit, the others 0
        value = loss.nll(logit[:, None], table, label, smoothing=smoothing, reduction="tokens")
        right.plot(logit, value, color=colour, label=f"smoothing {smoothing:g}")
    name_axes(right, "loss of one token among ten", "its logit, the others' being 0", "nats")
    right.legend(frameon=False, fontsize=8)
    return figure


def denoising() -> Any:
    """What each objective hides of one row, and how long the hidden spans are."""
    figure, (left, right) = panels(2, 8.0, 2.6)
    n, ids = 96, np.arange(1, 97)
    rows = {"mlm": np.random.default_rng(0).random(n) < 0.15, "spans": random_spans(n, 0.15, 3.0, numbers(1))}
    noisy = Denoising(mask=0, end=0, separator=-1)(ids, numbers(2))
    rows["denoise"] = noisy.hidden[:-1]
    for name, which in (("ul2: R", 1), ("ul2: S", 2), ("ul2: X", 3), ("ul2: X, long", 6)):
        how = MIXTURE[which]
        rows[name] = np.arange(n) >= 0.75 * n if how.span is None else random_spans(n, how.masked, how.span, numbers(3))
    squares(left, torch.tensor(np.stack(list(rows.values()))).float(), "what is hidden", "token", "")
    left.set(yticks=range(len(rows)), yticklabels=list(rows), aspect="auto")
    lengths = {"denoise": np.concatenate([span_lengths(512, 0.3, 3.0, numbers(i)) for i in range(200)])}
    hidden = np.concatenate([random_spans(512, 0.15, 3.0, numbers(i)) for i in range(200)])
    edges = np.flatnonzero(np.diff(hidden.astype(int), prepend=0, append=0))
    lengths["spans"] = edges[1::2] - edges[::2]
    for colour, (name, found) in zip(COLOURS, lengths.items(), strict=False):
        share = np.bincount(found, minlength=13)[:13] / len(found)
        right.plot(range(13), share, ".-", color=colour, label=f"{name}: mean {found.mean():.2f}")
    name_axes(right, "lengths of hidden spans", "tokens", "share")
    right.legend(frameon=False, fontsize=8)
    return figure


def mixtures() -> Any:
    """Shares by temperature, and rows read of three texts, one of which may be read so often and no more."""
    figure, (left, right) = panels(2, 8.0, 2.6)
    names, temperatures = ("900 MB", "90 MB", "10 MB"), np.geomspace(1, 10, 40)
    shares = [Mixture(names, (), (900.0, 90.0, 10.0), float(t)).shares for t in temperatures]
    deal = Deal((0.5, 0.3, 0.2), most=(900, 120, 900))
    rows = range(0, 800, 5)
    counts = [deal.counts(n) for n in rows]
    for i, (colour, name) in enumerate(zip(COLOURS, names, strict=False)):
        left.plot(temperatures, [share[i] for share in shares], color=colour, label=name)
        label = f"share {deal.shares[i]:.0%}" + (", at most 120 rows" if i == 1 else "")
        right.plot(rows, [count[i] for count in counts], color=colour, label=label)
    left.set(ylim=(0, 1))
    name_axes(left, "shares of three texts", "temperature", "share")
    name_axes(right, "rows dealt out", "rows of all", "rows of each")
    for axes in (left, right):
        axes.legend(frameon=False, fontsize=8)
    return figure


def translation() -> Any:
    """Padding by the tokens of a step, and the rate of the 2017 schedule."""
    figure, (left, right) = panels(2, 8.0, 2.6)
    rng = numbers(0)
    said = 1 + rng.geometric(1 / 14, 5000)
    lengths = np.stack((np.maximum(1, said + rng.integers(-3, 4, 5000)), said), 1)
    tokens = [128 * 2**i for i in range(6)]
    groups = [Groups(lengths, size, seed=0) for size in tokens]
    like = [[each.rows(step) for step in range(each.count)] for each in groups]
    random = [np.array_split(rng.permutation(5000), each.count) for each in groups]
    for colour, label, found in zip(COLOURS, ("of like length", "as they come"), (like, random), strict=False):
        places = [sum(len(rows) * int(lengths[rows].max(0).sum()) for rows in steps) for steps in found]
        left.plot(tokens, [1 - int(lengths.sum()) / count for count in places], ".-", color=colour, label=label)
    left.set(ylim=(0, 1))
    name_axes(left, "padding", "tokens of targets in a step", "share of places", log="x")
    recipe, steps = RECIPES["base"], range(1, 8000, 20)
    for colour, warmup in zip(COLOURS, (4000, 1000, 100), strict=False):
        rate = replace(recipe, warmup=warmup).learning_rate
        right.plot(steps, [rate(step) for step in steps], color=colour, label=f"warm-up {warmup:,}")
    name_axes(right, "the rate of 2017, width 512", "step", "learning rate")
    for axes in (left, right):
        axes.legend(frameon=False, fontsize=8)
    return figure


def numbers(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


FIGURES: dict[str, Callable[[], Any]] = {
    each.__name__.replace("_", "-"): each
    for each in (
        *(attention, attention_heads, masks, positions, residual_and_norms, feed_forward, mixture_of_experts),
        *(encoder, encoder_decoder, recurrence, the_quadratic_cost, sparse_attention, linear_attention),
        *(hybrids, caches, decoding, losses, denoising, mixtures, translation),
    )
}


def main(names: list[str]) -> int:
    unknown = sorted(set(names) - set(FIGURES))
    if unknown:
        print(f"no figure {unknown[0]}; there are {', '.join(FIGURES)}", file=sys.stderr)
        return 2
    torch.set_num_threads(1)  # sums in one order
    for name in names or list(FIGURES):
        save(FIGURES[name](), PICTURES / f"{name}.svg")
        print(f"docs/pictures/{name}.svg")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
