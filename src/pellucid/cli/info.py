"""``pellucid info``"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from pellucid.cli.parse import parse
from pellucid.errors import UsageError

if TYPE_CHECKING:
    from rich.table import Table

    from pellucid.spec import DecoderSpec

EXAMPLES = """
info runs/book
info modern --depth 12
info classic --depth 12 --vocab-size 50257 --context 1024
info runs/book/spec.json
"""


def info(
    subject: tyro.conf.Positional[str],
    depth: int = 12,
    d_model: int | None = None,
    vocab_size: int = 32768,
    context: int = 1024,
) -> None:
    """Say what a model is made of and what it must cost, from its spec alone: no weight is made.

    Args:
        subject: A model folder, a spec.json, or the name of a design (modern, classic).
        depth: Layers of a design.
        d_model: Width of a design [default: 64 for each layer above two].
        vocab_size: Vocabulary of a design.
        context: Context of a design.
    """
    from rich.console import Console

    sizes = {"depth": depth, "d_model": d_model, "vocab_size": vocab_size, "context": context}
    for name, value in sizes.items():
        if value is not None and value < 1:
            raise UsageError(f"{name} = {value} cannot be used", f"--{name.replace('_', '-')} must be at least 1")
    spec = read_spec(subject, depth, d_model, vocab_size, context)
    console = Console()
    console.print(structure(spec))
    console.print(costs(spec))


def read_spec(subject: str, depth: int, d_model: int | None, vocab_size: int, context: int) -> DecoderSpec:
    """The spec in a folder or file, or that of a design by name. Raises SpecError where there is none."""
    import math

    from pellucid.designs import design, width
    from pellucid.errors import SpecError
    from pellucid.spec import DecoderSpec

    path = Path(subject)
    if path.is_dir():
        for name in ("spec.json", "run.json"):
            if (path / name).exists():
                return DecoderSpec.load(path / name) if name == "spec.json" else _spec_of_run(path / name)
        raise SpecError(f"{path} holds no spec.json", "give a folder that `pellucid train` wrote")
    if path.is_file():
        return DecoderSpec.load(path)
    if path.suffix or len(path.parts) > 1:
        raise SpecError(f"{path} does not exist", "give a model folder, a spec.json, or a design's name")
    d_model = d_model or width(depth)
    return design(subject)(vocab_size, context, depth, d_model, math.gcd(d_model, 64))


def _spec_of_run(path: Path) -> DecoderSpec:
    from pellucid.train.config import Run

    return Run.load(path).spec


def structure(spec: DecoderSpec) -> str:
    """The model as a drawing, from the input at the top to the logits; equal neighbouring blocks are drawn once."""
    from itertools import groupby

    lines = [f"token ids → embedding {spec.vocab_size:,} × {spec.d_model}" + _plus(spec.embed.positions)]
    at = 0
    for block, group in groupby(spec.stack.blocks):
        n, a, f = len(list(group)), block.mixer, block.ffn
        place = block.placement
        norm = type(block.norm).__name__.removesuffix("Spec")
        where = ", ".join(name for name in ("pre", "post", "out") if getattr(place, name))
        gated = "gated " if type(f).__name__.startswith("Gated") else ""
        heads = f"{a.n_heads} heads of {a.head_dim}" + (
            f", {a.n_kv_heads} key/value" if a.n_kv_heads != a.n_heads else ""
        )
        extras = [
            name
            for name, on in (("rotary", a.rotary), ("q and k normalised", a.qk_norm), ("soft cap", a.soft_cap))
            if on
        ]
        name = f"blocks {at}–{at + n - 1}" if n > 1 else f"block {at}"
        lines += [
            "   │",
            f"   ├─ {name}{', parallel' if block.parallel else ''}  ({norm}: {where})",
            f"   │    ├─ attention  {heads}, {describe(a.mask)}{''.join(', ' + e for e in extras)}",
            f"   │    └─ feed-forward  {gated}{f.activation}, {spec.d_model} → {f.d_ff} → {spec.d_model}",
        ]
        at += n
    final = type(spec.stack.final_norm).__name__.removesuffix("Spec") if spec.stack.final_norm else "no norm"
    head = "the embedding's own vectors" if spec.head.tied else f"{spec.d_model} × {spec.vocab_size:,}"
    return "\n".join([*lines, "   │", f"   └─ {final} → logits by {head}"])


def _plus(positions: object) -> str:
    return "" if positions is None else f" + {type(positions).__name__.removesuffix('Spec').lower()} positions"


def describe(mask: object) -> str:
    """A mask as it is written: Causal() & Window(256)."""
    from pellucid.spec import And, Causal, Full, Not, Or

    if isinstance(mask, And | Or):
        sign = "&" if isinstance(mask, And) else "|"
        return f"{describe(mask.a)} {sign} {describe(mask.b)}"
    if isinstance(mask, Not):
        return f"~({describe(mask.a)})"
    if isinstance(mask, Causal | Full):
        return type(mask).__name__.lower()
    return repr(mask).lower()


def costs(spec: DecoderSpec) -> Table:
    """Parameters by part, FLOPs, cache and activations."""
    from rich.table import Table

    from pellucid.nn.flops import activation_bytes, cache_bytes, count_parameters, forward_flops, training_flops

    p, time = count_parameters(spec), spec.context
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_column(style="dim")
    table.add_row(
        "parameters", f"{p.total:,}", f"{p.total * 4 / 1e6:,.1f} MB in fp32, {p.total * 2 / 1e6:,.1f} MB in bf16"
    )
    for name in ("embedding", "attention", "ffn", "norms", "head"):
        table.add_row(f"  {name}", f"{getattr(p, name):,}", f"{getattr(p, name) / p.total:.1%}")
    table.add_row(
        "forward", f"{forward_flops(spec, time) / time / 1e6:,.2f} MFLOP", f"a token, mean over {time:,} of context"
    )
    table.add_row("training", f"{training_flops(spec, time) / time / 1e6:,.2f} MFLOP", "a token, forward and backward")
    table.add_row("cache", f"{cache_bytes(spec, time) / 1e6:,.2f} MB", f"fp32, one row of {time:,} tokens")
    table.add_row(
        "activations", f"{activation_bytes(spec, 1, time) / 1e6:,.1f} MB", f"fp32, one row of {time:,} tokens, training"
    )
    return table


def main(arguments: Sequence[str]) -> None:
    parse(info, arguments, EXAMPLES)
