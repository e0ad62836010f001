"""A model drawn in a terminal: from the ids at the top to the logits, every sublayer with its residual formula."""

from __future__ import annotations

import textwrap

from pellucid.cli.words import embed_words, fold, head_words, input_words, shared_words, table_words
from pellucid.spec import BlockSpec, DecoderSpec, EncoderDecoderSpec, EncoderSpec, ModelSpec
from pellucid.spec.words import norm_name, times

LABEL = 20  # columns of what stands on the left


def outline(spec: ModelSpec, width: int = 80) -> str:
    """The drawing; equal blocks are drawn once, with how many there are."""
    if not isinstance(spec, EncoderDecoderSpec):
        return "\n".join(_side(spec, width))
    table = "one table of token vectors for both" if spec.shared_embedding else "each with its own table"
    head = f"the encoder reads, the decoder writes, from token {spec.start_id} on; {table}"
    encoder = [f"ENCODER  {'─' * (width - 9)}", *_side(spec.encoder, width), "    └──▶ the decoder"]
    decoder = [f"DECODER  {'─' * (width - 9)}", *_side(spec.decoder, width)]
    return "\n".join([*textwrap.wrap(head, width), *encoder, *decoder])


def branch(block: BlockSpec, *, memory: bool = False) -> str:
    """What a sublayer adds to the stream: f(RMSNorm(x))."""
    place, joins, norm = block.placement, block.residual, norm_name(block.norm)
    inner = f"f({f'{norm}(x)' if place.pre else 'x'}{', encoder' if memory else ''})"
    inner = f"{norm}({inner})" if place.post else inner
    inner = f"gain · {inner}" if joins.layer_scale is not None else inner
    return f"{times(joins.branch)} · {inner}" if joins.branch != 1 else inner


def formula(block: BlockSpec, *, memory: bool = False) -> str:
    """How a sublayer joins the stream, with the norms where they stand: x + f(RMSNorm(x))."""
    skip, out = block.residual.skip, norm_name(block.norm)
    stream = {0.0: "", 1.0: "x + "}.get(skip, f"{times(skip)} · x + ") + branch(block, memory=memory)
    return f"{out}({stream})" if block.placement.out else stream


def _line(label: str, text: str, width: int, edge: str = "    ") -> list[str]:
    """A label and what is said of it, which goes on below itself where it is long."""
    first, *more = textwrap.wrap(text, max(24, width - len(edge) - LABEL)) or [""]
    return [f"{edge}{label:<{LABEL}}{first}".rstrip(), *(f"{edge}{'':<{LABEL}}{line}" for line in more)]


def _block(block: BlockSpec, spec: DecoderSpec | EncoderSpec, width: int, edge: str) -> list[str]:
    parts, lines = block.parts(spec.d_model, spec.stack.bias), list[str]()
    for i, part in enumerate(parts):
        reads = block.reads_memory and (block.cross is None or i == 1)
        if block.parallel and i:
            joined = f"beside it, added to the same sum: {branch(block)}"
        else:
            joined = formula(block, memory=reads)
        lines += _line(part.title, joined, width, edge)
        lines += _line("", ", ".join(part.details), width, edge)
    return lines


def _side(spec: DecoderSpec | EncoderSpec, width: int) -> list[str]:
    """One stack, from what goes in to what comes out."""
    embedding, shared = [table_words(spec), *embed_words(spec)], shared_words(spec.stack)
    lines = [f"  {input_words(spec)}", "    │", *_line("embedding", ", ".join(embedding), width, "  ")]
    lines += _line("shared", shared, width, "  ") if shared else []
    for group in fold(spec.stack.blocks):
        nested = group.times > 1 and len(group.runs) > 1
        lines.append("    │")
        lines += [f"  ┌ {group.times} ×"] if nested else []
        outer = "│ " if nested else ""
        for n, block in group.runs:
            shown = f"{n} ×" if nested or n > 1 else "1 ×"
            lines.append(f"  {outer}┌ {shown}")
            lines += _block(block, spec, width, f"  {outer}│ ")
            lines.append(f"  {outer}└")
        lines += ["  └"] if nested else []
    lines.append("    │")
    lines += _line(norm_name(spec.stack.final_norm), "", width, "  ") if spec.stack.final_norm else []
    name, how = head_words(spec)
    return lines + _line(name, ", ".join(how), width, "  ")
