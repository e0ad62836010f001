"""What a model costs, as tables: every part with its matrices, parameters, FLOPs and memory; totals; kernels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pellucid.cli.words import table_words, wider_words
from pellucid.spec import AttentionSpec, BlockSpec, DecoderSpec, EncoderDecoderSpec, EncoderSpec, ModelSpec, StackSpec
from pellucid.spec.costs import Cost
from pellucid.spec.words import Part, bias_words, describe

if TYPE_CHECKING:
    from rich.table import Table

LONGEST_CHOICE = 4096  # tokens up to which a kernel is chosen beside a bias: the mask is then looked at pair by pair


@dataclass(frozen=True)
class Row:
    """All of one part of a model: its parameters, FLOPs of one forward, and bytes kept of what was read."""

    name: str
    matrices: str = ""
    parameters: int = 0
    flops: int = 0
    kept: int = 0
    side: str = ""


def rows(spec: ModelSpec, time: int) -> list[Row]:
    """Every part of a model reading ``time`` tokens (on both sides); the sums are its parameters, FLOPs and cache."""
    if not isinstance(spec, EncoderDecoderSpec):
        return _side(spec, time)
    encoder = [replace(row, side="encoder") for row in _side(spec.encoder, time)]
    states = Row("its states", f"{time:,} × {spec.d_model}", kept=4 * spec.d_model * time, side="encoder")
    first, *others = (replace(row, side="decoder") for row in _side(spec.decoder, time))
    if spec.shared_embedding:
        own = first.parameters - spec.vocab_size * spec.decoder.d_embed
        first = replace(first, matrices="the encoder's", parameters=own)
    return [*encoder, states, first, *others]


def _side(spec: DecoderSpec | EncoderSpec, time: int) -> list[Row]:
    from pellucid.nn.flops import count_parameters, forward_flops

    stack = spec.stack
    found: dict[tuple[Part, Cost], tuple[int, int, int]] = {}  # how many, with weights of their own; bytes each keeps
    for block, n in Counter(stack.blocks).items():
        own = sum(stack.blocks[i] == block for i in set(stack.owners))
        parts = block.parts(spec.d_model, stack.bias)
        for part, layer, kept in zip(parts, block.costs(spec.d_model), _kept(spec, block, time), strict=True):
            before = found.get((part, layer), (0, 0, 0))
            found[part, layer] = before[0] + n, before[1] + own, kept
    inner = [_row(part, layer, *counts, spec, time) for (part, layer), counts in found.items()]
    counted = count_parameters(spec)
    bias = [Row(" ".join(bias_words(stack.bias)), "one table for all layers", size)] if (size := _table(stack)) else []
    vectors = "\n".join([table_words(spec), *wider_words(spec)])
    tables = Row("embedding", vectors, counted.embedding, spec.embed.flops(time, spec.d_model))
    norms = [Row("norms", parameters=counted.norms)] if counted.norms else []
    flops = forward_flops(spec, time) - tables.flops - sum(row.flops for row in inner)
    head = [] if spec.head is None else [Row("head", "" if counted.head else "the embedding's", counted.head, flops)]
    return [tables, *bias, *inner, *norms, *head]


def _table(stack: StackSpec) -> int:
    """Numbers in the table of score terms that all attention layers share."""
    return stack.bias.parameters(stack.score_heads) if stack.bias else 0


def _kept(spec: DecoderSpec | EncoderSpec, block: BlockSpec, time: int) -> list[int]:
    """Bytes that each sublayer of a block keeps of ``time`` tokens."""
    if isinstance(spec, EncoderSpec):
        return [0] * len(block.costs(spec.d_model))
    d, size = spec.d_model, 4
    mixer = block.mixer.kept_bytes(d, time, time, size)
    cross = [block.cross.kept_bytes_across(d, time, size)] if block.cross else []
    return [mixer, *cross, *([0] if block.ffn else [])]


def _row(part: Part, layer: Cost, n: int, own: int, kept: int, spec: DecoderSpec | EncoderSpec, time: int) -> Row:
    from pellucid.nn.flops import visible_pairs

    hides = part.mask is not None and not part.reads_encoder
    pairs = visible_pairs(part.mask, time) if hides and part.mask else time * time
    name = part.title if n == 1 else f"{n} × {part.title}"
    name += f", {own} with weights" if own != n else ""
    return Row(name, "\n".join(part.matrices), own * layer.parameters, n * layer.flops(time, pairs, time), n * kept)


# --- tables ----------------------------------------------------------------------------------------------------------


def parts_table(spec: ModelSpec, time: int) -> Table:
    """Every part of the model, one a row."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 2, 0, 0), title_justify="left", header_style="dim")
    table.add_column("part")
    table.add_column("matrices", style="dim")
    for name in ("parameters", "MFLOP a token", "kept, KB"):
        table.add_column(name, justify="right")
    side = ""
    for row in rows(spec, time):
        if row.side != side:
            side = row.side
            table.add_row(Text(side, "bold"))
        cells = (f"{row.parameters:,}", f"{row.flops / time / 1e6:,.2f}", f"{row.kept / 1e3:,.1f}")
        empty = (not row.parameters, not row.flops, not row.kept)
        shown = ("" if none else cell for cell, none in zip(cells, empty, strict=True))
        table.add_row(Text(row.name), Text(row.matrices), *shown)  # Text: brackets in it are no markup
    return table


def totals_table(spec: ModelSpec, time: int) -> Table:
    """Parameters, FLOPs, cache and activations of the whole."""
    from rich.table import Table

    from pellucid.nn.flops import activation_bytes, cache_bytes, count_parameters, forward_flops, training_flops

    p, both = count_parameters(spec), " and as many read" if isinstance(spec, EncoderDecoderSpec) else ""
    reads = f"{time:,} tokens{both}"
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_column(style="dim")
    table.add_row(
        "parameters", f"{p.total:,}", f"{p.total * 4 / 1e6:,.1f} MB in fp32, {p.total * 2 / 1e6:,.1f} in bf16"
    )
    for name in ("embedding", "mixers", "ffn", "norms", "head"):
        if part := getattr(p, name):
            table.add_row(f"  {name}", f"{part:,}", f"{part / p.total:.1%}")
    table.add_row("forward", f"{forward_flops(spec, time) / time / 1e6:,.2f} MFLOP", f"a token, mean over {reads}")
    table.add_row("training", f"{training_flops(spec, time) / time / 1e6:,.2f} MFLOP", "a token, forward and backward")
    kept = cache_bytes(spec, time)
    grows = "" if kept != cache_bytes(spec, 2 * time) else "; it grows no more"
    if kept:
        table.add_row("cache", f"{kept / 1e6:,.2f} MB", f"fp32, one row of {reads}{grows}")
    table.add_row("activations", f"{activation_bytes(spec, 1, time) / 1e6:,.1f} MB", "fp32, the same row in training")
    return table


def stored_table(formats: Mapping[str, int]) -> Table:
    """What the weights of a checkpoint take where those that can stay quantised do. formats: numbers in each."""
    import torch
    from rich.table import Table

    from pellucid.nn.formats import FORMATS
    from pellucid.nn.products import choose_product
    from pellucid.nn.stored import Plain, Quantised

    table = Table("stored as", "numbers", "MB", "multiplied by", box=None, padding=(0, 2, 0, 0), header_style="dim")
    for kind, numbers in formats.items():
        x, form = torch.empty(1, 1), FORMATS.get(kind)
        stored = Plain(x) if form is None else Quantised(torch.empty(1, form.n_bytes, dtype=torch.uint8), kind)
        size = 4 * numbers if form is None else numbers // form.numbers * form.n_bytes
        table.add_row(kind, f"{numbers:,}", f"{size / 1e6:,.1f}", str(choose_product(x, stored)))
    return table


# --- kernels ---------------------------------------------------------------------------------------------------------


def kernels(spec: ModelSpec, time: int) -> dict[str, str]:
    """What computes each kind of mixer over ``time`` tokens without a cache, and why: name -> kernel and reason."""
    sides = (spec.encoder, spec.decoder) if isinstance(spec, EncoderDecoderSpec) else (spec,)
    found: dict[str, str] = {}
    for side in sides:
        for block in side.stack.blocks:
            for name, words in _of_block(block, side, time):
                found.setdefault(name, words)
    return found


def _of_block(block: BlockSpec, spec: DecoderSpec | EncoderSpec, time: int) -> list[tuple[str, str]]:
    mixer, cross, bias = block.mixer, block.cross, spec.stack.bias
    found: list[tuple[str, str]] = []
    if isinstance(mixer, AttentionSpec):
        named = ", ".join([f"attention, {describe(mixer.mask)}", *bias_words(bias)])
        found.append((named, _attention(mixer, time, biased=bias is not None)))
    else:
        part = mixer.part(spec.d_model)
        found.append((part.title, part.computed))
    if cross is not None:
        part = cross.part_across(spec.d_model)
        computed = _attention(cross, time, biased=False) if isinstance(cross, AttentionSpec) else part.computed
        found.append((part.title, computed))
    return found


def _attention(spec: AttentionSpec, time: int, *, biased: bool) -> str:
    from pellucid.nn.kernels import kernel_for

    return str(kernel_for(spec, min(time, LONGEST_CHOICE) if biased else time, biased=biased))
