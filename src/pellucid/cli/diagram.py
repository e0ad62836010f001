"""A model as a picture, like figure 1 of Vaswani et al. 2017: blocks, norms where they stand, the residual stream."""

from __future__ import annotations

import textwrap

from pellucid.cli.pen import LINE, Pen, fits, lines_height
from pellucid.cli.words import fold, head_words, input_words, shared_words, table_words, wider_words
from pellucid.predicates import Span
from pellucid.spec import (
    BlockSpec,
    DecoderSpec,
    EncoderDecoderSpec,
    EncoderSpec,
    LMHeadSpec,
    Mask,
    MaskedLMHeadSpec,
    ModelSpec,
    MoESpec,
    SinusoidalSpec,
)
from pellucid.spec.words import Part, norm_name, times

WIDTH = 216.0  # of a box
THIN = 22.0  # height of a norm
GAP = 15.0  # an arrow between two boxes
ASIDE = 20.0  # how far the residual stream passes beside a box
PAD = 40.0  # from a box to the frame around its block
CELLS, CELL = 9, 4.0  # of the little square that shows a mask


def draw(spec: ModelSpec, name: str) -> str:
    """The picture as SVG text, light or dark as its reader's page."""
    from pellucid.nn.flops import count_parameters

    pen = Pen()
    if isinstance(spec, EncoderDecoderSpec):
        reads, writes = Column(pen, spec.encoder, 0.0, -1), Column(pen, spec.decoder, 0.0, 1)
        writes.x = reads.half + writes.half + 2 * PAD + 56
        between = reads.half + PAD + 28
        top = reads.draw("source ids")
        writes.draw("target ids, shifted right")
        turn = top + 16
        pen.wire((0.0, top), (0.0, turn), (between, turn), tip=False)
        for x, y in writes.readers:
            pen.wire((between, turn), (between, y), (x, y))
        pen.text(between - 6, turn + 6, "what was read", "small faint", "end")
        masks, layers = reads.masks | writes.masks, f"{spec.encoder.n_layers} + {spec.decoder.n_layers}"
    else:
        column = Column(pen, spec, 0.0, 1)
        column.draw(input_words(spec))
        masks, layers = column.masks, f"{spec.n_layers}"
    total = count_parameters(spec).total
    counted = f"{total / 1e9:.2f} G" if total >= 1e9 else f"{total / 1e6:.1f} M" if total >= 1e5 else f"{total:,}"
    vocabulary = f"vocabulary {spec.vocab_size:,} · " if spec.vocab_size else ""
    sizes = f"{layers} layers × {spec.d_model} · {vocabulary}{counted} parameters"
    left, top = pen.left, pen.top
    pen.text(left, top + 44, name, "title text strong", "start")
    pen.text(left, top + 26, sizes, "small faint", "start")
    if masks:
        pen.text(
            left, pen.bottom - 22, "small squares: who sees whom; queries down, keys across", "small faint", "start"
        )
    return pen.svg(f"{name}: {sizes}")


class Column:
    """One stack, drawn upwards from the ids; ``side`` is where the residual stream passes: -1 left, 1 right."""

    def __init__(self, pen: Pen, spec: DecoderSpec | EncoderSpec, x: float, side: int):
        self.pen, self.spec, self.x, self.side = pen, spec, x, side
        self.half = WIDTH + 10 if any(block.parallel for block in spec.stack.blocks) else WIDTH / 2
        self.readers: list[tuple[float, float]] = []  # where what an encoder has read comes in
        self.masks: set[Mask] = set()

    def draw(self, ids: str) -> float:
        """The whole stack; returns the height at which its result leaves."""
        shared = shared_words(self.spec.stack)
        self.pen.text(self.x, -14.0, f"{ids}; {shared}" if shared else ids, "small faint")
        y = self._embedding(0.0)
        for group in fold(self.spec.stack.blocks):
            nested = group.times > 1 and len(group.runs) > 1
            base, first = y + GAP, len(self.pen.shapes)
            self.pen.wire((self.x, y), (self.x, base), tip=False)
            y = base + 14 if nested else base
            if nested:
                self.pen.wire((self.x, base), (self.x, y), tip=False)
            for i, (n, block) in enumerate(group.runs):
                if i:
                    self.pen.wire((self.x, y), (self.x, y + 12), tip=False)
                    y += 12
                y = self._frame(block, y, "1×" if nested and n == 1 else f"{n}×" if n > 1 else "")
            if nested:
                self.pen.wire((self.x, y), (self.x, y + 14), tip=False)
                y += 14
                self._rim(base, y, f"{group.times}×", PAD + 34, first)
        if self.spec.stack.final_norm is not None:
            y = self._thin(y, norm_name(self.spec.stack.final_norm))
        return self._head(y)

    # --- blocks -------------------------------------------------------------------------------------------------------

    def _rim(self, base: float, top: float, label: str, pad: float, at: int) -> None:
        """A frame around what was drawn from number ``at`` on, and how often it repeats."""
        edge = self.half + pad
        self.pen.rect("frame", self.x - edge, base, 2 * edge, top - base, 12.0, at)
        if label:
            x = self.x + self.side * (edge + 7)
            self.pen.text(x, (base + top) / 2 - 5, label, "text strong", "end" if self.side < 0 else "start")

    def _frame(self, block: BlockSpec, y: float, label: str) -> float:
        base, first = y, len(self.pen.shapes)
        parts = block.parts(self.spec.d_model, self.spec.stack.bias)
        y = base + 8
        self.pen.wire((self.x, base), (self.x, y), tip=False)
        if block.parallel:
            y = self._parallel(y, block, parts)
        else:
            for part in parts:
                y = self._sublayer(y, block, part)
        self.pen.wire((self.x, y), (self.x, y + 10), tip=False)
        self._rim(base, y + 10, label, PAD, first)
        return y + 10

    def _sublayer(self, y: float, block: BlockSpec, part: Part) -> float:
        """out(skip · x + branch · gain · post(f(pre(x)))), from the height where x is to that of the result."""
        x, joins = self.x, block.residual
        start = y + 4
        self.pen.wire((x, y), (x, start), tip=False)
        y = self._branch(x, start, block, part)
        if joins.skip:
            y += GAP + 8
            self.pen.wire((x, y - GAP - 8), (x, y - 8))
            aside = x + self.side * (WIDTH / 2 + ASIDE)
            self.pen.wire((x, start), (aside, start), (aside, y), (x + self.side * 8, y))
            if joins.skip != 1:
                self.pen.text(aside - self.side * 26, y + 5, f"× {times(joins.skip)}", "small faint")
            self.pen.plus(x, y)
            y += 8
        return self._thin(y, norm_name(block.norm)) if block.placement.out else y

    def _parallel(self, y: float, block: BlockSpec, parts: list[Part]) -> float:
        start, away = y + 4, WIDTH / 2 + 10
        self.pen.wire((self.x, y), (self.x, start + 8), tip=False)
        sides = [(self.x + sign * away, part) for sign, part in zip((-1, 1), parts, strict=True)]
        for x, _ in sides:
            self.pen.wire((self.x, start + 8), (x, start + 8), tip=False)
        tops = [self._branch(x, start + 8, block, part) for x, part in sides]
        top = max(tops) + GAP
        for (x, _), end in zip(sides, tops, strict=True):
            self.pen.wire((x, end), (x, top), (self.x + (8 if x > self.x else -8), top))
        self.pen.wire((self.x, start + 8), (self.x, top - 8))
        self.pen.plus(self.x, top)
        return top + 8

    def _branch(self, x: float, y: float, block: BlockSpec, part: Part) -> float:
        place, joins, norm = block.placement, block.residual, norm_name(block.norm)
        if place.pre:
            y = self._thin(y, norm, x)
        y = self._part(x, y, block, part)
        if place.post:
            y = self._thin(y, norm, x)
        if joins.layer_scale is not None:
            y = self._thin(y, f"gain a channel, from {joins.layer_scale:g}", x, "gain")
        return self._thin(y, f"× {times(joins.branch)}", x, "gain") if joins.branch != 1 else y

    # --- boxes --------------------------------------------------------------------------------------------------------

    def _thin(self, y: float, words: str, x: float | None = None, kind: str = "norm") -> float:
        x = self.x if x is None else x
        self.pen.wire((x, y), (x, y + GAP))
        self.pen.rect(kind, x - WIDTH / 2, y + GAP, WIDTH, THIN)
        self.pen.text(x, y + GAP + 7, words, "small text")
        return y + GAP + THIN

    def _box(
        self, kind: str, x: float, y: float, title: str, lines: list[str], more: float = 0.0, room: float = 0.0
    ) -> float:
        """A box whose bottom is at y, with ``more`` height below its text and ``room`` width right of it."""
        height = lines_height(lines) + more
        self.pen.rect(kind, x - WIDTH / 2, y, WIDTH, height)
        middle, line = x - room / 2, y + height - 18
        self.pen.text(middle, line, title, "text strong")
        for words in lines:
            line -= LINE - 1 if line < y + height - 18 else LINE + 1
            self.pen.text(middle, line, words, "small text")
        return y + height

    def _part(self, x: float, y: float, block: BlockSpec, part: Part) -> float:
        """A sublayer's own box: three arrows for q, k and v; a loop for a state; experts; who sees whom."""
        room = CELLS * CELL + 10 if part.mask is not None else 0.0
        lines = textwrap.wrap(", ".join(part.details), fits(WIDTH - room - 16))
        base = y + GAP
        if part.mask is not None and not part.reads_encoder:
            base += 4
            self.pen.wire((x, y), (x, base - 12), tip=False)
            self.pen.wire((x - 34, base - 12), (x + 34, base - 12), tip=False)
            for dx in (-34.0, 0.0, 34.0):
                self.pen.wire((x + dx, base - 12), (x + dx, base))
        else:
            self.pen.wire((x, y), (x, base))
        experts = block.ffn if part.kind == "ffn" and isinstance(block.ffn, MoESpec) else None
        top = self._box(part.kind, x, base, part.title, lines, 22.0 if experts else 0.0, room)
        height = top - base
        if part.mask is not None:
            self._mask(part.mask, x + WIDTH / 2 - room, base + (height - CELLS * CELL) / 2)
        if experts:
            self._experts(experts, x, base + 8)
        if part.kind in ("linear", "recurrent"):
            side = -self.side if block.residual.skip else self.side
            self.pen.curve(x + side * WIDTH / 2, base + 0.5 * height, side * 17.0, 0.34 * height)
        if part.reads_encoder:
            self.readers.append((x - WIDTH / 2, base + 0.28 * height))
        return top

    def _mask(self, mask: Mask, x: float, y: float) -> None:
        """Which blocks of pairs hold a visible one: all, some or none; for the model's context."""
        self.masks.add(mask)
        step = max(1, self.spec.context // CELLS)
        for i in range(CELLS):
            for j in range(CELLS):
                queries, keys = (Span(n * step, (n + 1) * step - 1) for n in (i, j))
                some, every = mask.bounds(queries, keys)
                shade = "every" if every else "some" if some else "none"
                self.pen.rect(shade, x + j * CELL, y + (CELLS - 1 - i) * CELL, CELL - 0.6, CELL - 0.6, 0.6)

    def _experts(self, spec: MoESpec, x: float, y: float) -> None:
        """A few little boxes for the experts, those that one token is given filled."""
        shown = min(spec.n_experts, 10)
        chosen = {round((i + 0.5) * shown / spec.top_k - 0.5) for i in range(min(spec.top_k, shown))}
        left = x - shown * 16 / 2 + 2
        for i in range(shown):
            self.pen.rect("ffn on" if i in chosen else "ffn", left + 16 * i, y, 12.0, 12.0, 2.5)
        if shown < spec.n_experts:
            self.pen.text(left + 16 * shown + 4, y + 3, "…", "small text")

    # --- both ends ----------------------------------------------------------------------------------------------------

    def _embedding(self, y: float) -> float:
        embed = self.spec.embed
        self.pen.wire((self.x, y), (self.x, y + GAP))
        scaled = f", × {times(embed.scale)}" if embed.scale != 1 else ""
        y = self._box("embedding", self.x, y + GAP, "embedding", [table_words(self.spec) + scaled])
        if embed.positions is not None:
            y = self._added(y, "positions", isinstance(embed.positions, SinusoidalSpec))
        if embed.n_types:
            y = self._added(y, f"{embed.n_types} types", False)
        y = self._thin(y, norm_name(embed.norm)) if embed.norm is not None else y
        return self._thin(y, wider_words(self.spec)[0], kind="embedding") if embed.d_embed else y

    def _added(self, y: float, words: str, sines: bool) -> float:
        """Something that is added to the embedding: sines, or a small box for a table that is learned."""
        y += GAP + 8
        self.pen.wire((self.x, y - GAP - 8), (self.x, y - 8))
        edge = self.x + self.side * 52
        if sines:
            self.pen.sine(edge + self.side * 11, y)
            self.pen.text(edge + self.side * 27, y - 4, words, "small text", "end" if self.side < 0 else "start")
        else:
            self.pen.rect("embedding", min(edge, edge + self.side * 74), y - 10, 74.0, 20.0)
            self.pen.text(edge + self.side * 37, y - 4, words, "small text")
        self.pen.wire((edge, y), (self.x + self.side * 8, y))
        self.pen.plus(self.x, y)
        return y + 8

    def _head(self, y: float) -> float:
        head = self.spec.head
        if head is None:
            return y
        name, how = head_words(self.spec)
        if isinstance(head, LMHeadSpec | MaskedLMHeadSpec):
            name = "linear"
        if isinstance(head, MaskedLMHeadSpec):
            y = self._thin(y, how.pop(0), kind="head")
        self.pen.wire((self.x, y), (self.x, y + GAP))
        lines = [line for words in how for line in textwrap.wrap(words, fits(WIDTH - 16))]
        y = self._box("head", self.x, y + GAP, name, lines)
        if isinstance(head, LMHeadSpec | MaskedLMHeadSpec):
            y = self._thin(y, "softmax", kind="head")
        self.pen.wire((self.x, y), (self.x, y + GAP))
        return y + GAP
