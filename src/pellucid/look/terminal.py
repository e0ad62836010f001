"""A look in the terminal: as much of it as fits its width, with or without colour."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING

import numpy as np

from pellucid.look.ink import (
    CELL,
    CERTAIN,
    FAR_OFF,
    LABEL,
    SURPRISE,
    Section,
    add_row,
    certain_step,
    fit,
    heading,
    layer_name,
    new_table,
    percent,
    spark,
    surprise_step,
)
from pellucid.look.seen import Guesses, Look
from pellucid.look.terminal_attention import show_attention
from pellucid.look.terminal_encoding import show_encoding
from pellucid.look.terminal_panels import show_panels

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

_MAX_BARS = 32  # the load of so many experts is drawn, not of more
_FAR = 4  # a vector so many times as long as the median one leaves the scale on which the others are drawn


def _text(look: Look, colour: bool) -> Text:
    """The text, shaded by surprisal; without colour the surprising tokens stand in brackets."""
    from rich.text import Text

    if look.guesses is None or look.both_ways:  # a text that is seen whole surprises nobody
        return Text.assemble(*((token.prose, "dim" if token.special else "") for token in look.tokens))
    shaded = Text.assemble((look.tokens[0].prose, "dim"))
    for token, bits in zip(look.tokens[1:], look.guesses.bits, strict=True):
        step = surprise_step(float(bits))
        brackets = ("", "") if colour or step < 3 else ("[", "]") if step < 5 else ("[[", "]]")
        shaded.append(brackets[0] + token.prose + brackets[1], style=SURPRISE[step])
    return shaded


def _scale(styles: Sequence[str], names: Sequence[str]) -> Text:
    from rich.text import Text

    return Text(" ").join(Text(f" {name} ", style=style) for name, style in zip(names, styles, strict=True))


def _next(look: Look, guesses: Guesses, width: int) -> Table:
    from rich.text import Text

    table = new_table("", "guess", "", "")
    room = min(max(width - LABEL - 26, 10), 40)
    for rank, (token, probability) in enumerate(zip(guesses.top_ids[-1], guesses.top_probs[-1], strict=True), start=1):
        bar = Text("█" * max(1, round(room * float(probability / guesses.top_probs[-1, 0]))), "blue")
        add_row(table, f"{rank}", fit(look.labels[int(token)], 16), f"{percent(float(probability)):>4}", bar)
    return table


def _lens(look: Look, guesses: Guesses, width: int) -> tuple[Table, int]:
    """Deep layers above; as many of the last positions as fit. Returns how many that are, too."""
    from rich.text import Text

    shown = max(1, min(len(look.tokens), (width - LABEL - 1) // (CELL + 1)))
    places = range(len(look.tokens) - shown, len(look.tokens))
    table = new_table("", *("" for _ in places))
    table.show_header = False
    if guesses.ahead:
        following = [look.tokens[t + 1].label if t + 1 < len(look.tokens) else "?" for t in places]
        add_row(table, Text("really next", "dim"), *(Text(fit(label, CELL), "bold") for label in following))
    for depth, row in reversed(list(enumerate(guesses.lens))):
        cells = []
        for t in places:
            probability = float(row.probs[t, 0])
            # the guess that is right has a mark of its own: colour says how sure the layer is
            mark = "✓" if t < len(row.correct) and row.correct[t] else " "
            guess = fit(look.labels[int(row.ids[t, 0])], CELL - 5)
            padding = " " * (CELL - 5 - Text(guess).cell_len)
            step = certain_step(probability)
            cells.append(Text(f"{mark}{guess}{padding}{percent(probability):>4}", style=CERTAIN[step]))
        name = "output" if depth == len(guesses.lens) - 1 else layer_name(depth - 1)
        add_row(table, Text(name, "dim"), *cells)
    add_row(table, Text("token read", "dim"), *(Text(fit(look.tokens[t].label, CELL), "bold") for t in places))
    return table, shown


def _experts(look: Look, width: int) -> tuple[Table, int]:
    """Deep layers above: how even the load is, and where each of the last tokens went."""
    from rich.text import Text

    most = max(experts.n_experts for experts in look.experts)
    cell = max(6, (len(f"{most}") + 1) * max(experts.ids.shape[1] for experts in look.experts))
    bars = most if most <= _MAX_BARS else 0
    shown = max(1, min(len(look.tokens), (width - LABEL - max(bars, 4) - 2) // (cell + 1)))
    places = range(len(look.tokens) - shown, len(look.tokens))
    table = new_table("", "load", *(fit(look.tokens[t].label, cell) for t in places))
    for experts in reversed(look.experts):
        load = spark([0.0, *experts.load.tolist()])[1:] if bars else ""
        went = ("·".join(f"{expert}" for expert in experts.ids[t]) for t in places)
        add_row(table, Text(layer_name(experts.layer), "dim"), Text(load, "blue"), *went)
    return table, shown


def _added(look: Look) -> dict[str, str]:
    """What layers add to the stream, and the state they keep: heading of a column -> name in ``norms``."""
    words = {"attention": "+attn", "linear attention": "+attn", "LSTM": "+lstm", "GRU": "+gru"}
    mixers = {words[layer.mixer] for layer in look.layers}
    mixer = mixers.pop() if len(mixers) == 1 else "+mixer"
    columns = {mixer: "mixer_out", "+cross": "cross_out", "+ffn": "ffn_out", "state": "state"}
    return {heading: stream for heading, stream in columns.items() if stream in look.norms}


def _norms(look: Look, width: int) -> tuple[Table, int]:
    stream = np.concatenate([look.norms["resid_pre"][:1], look.norms["resid_post"]])
    columns = _added(look)
    shown = min(len(look.tokens), max(width - LABEL - 14 - 8 * len(columns), 8))
    table = new_table("", "stream, token by token", "median", *columns)
    for depth in reversed(range(len(stream))):
        middles = [] if depth == 0 else [np.median(look.norms[part][depth - 1]) for part in columns.values()]
        added = ["" if np.isnan(middle) else f"{middle:.3g}" for middle in middles]  # at first nothing is added
        middle = float(np.median(stream[depth]))
        bars = spark(stream[depth, -shown:].tolist(), most=_FAR * middle)
        add_row(table, layer_name(depth - 1), bars, f"{middle:.3g}", *added)
    return table, shown


def _cut_note(shown: int, total: int) -> str:
    return "" if shown >= total else f"; the last {shown} of {total} tokens (the HTML page has all)"


def _kinds(look: Look) -> str:
    """How many layers mix tokens by what, where it is not attention everywhere."""
    mixers = [layer.mixer for layer in look.layers]
    if len(set(mixers)) == 1:
        return "" if mixers[0] == "attention" else f" · {mixers[0]}"
    return " · " + ", ".join(f"{mixers.count(mixer)} {mixer}" for mixer in dict.fromkeys(mixers))


def _show_text(look: Look, console: Console) -> None:
    from rich.text import Text

    facts, colour = look.model, console.color_system is not None and not console.no_color
    heads = f" × {facts.n_heads} heads" if facts.n_heads else ""
    sizes = f"{facts.n_layers} layers{heads} × {facts.d_model} wide{_kinds(look)}"
    console.print(
        Text.assemble((facts.name, "bold"), (f"  {facts.n_parameters / 1e6:.2f} M parameters · {sizes}", "dim"))
    )
    surprising = look.guesses is not None and not look.both_ways
    mean = f"{len(look.tokens)} tokens, all seen at once"
    if look.guesses is not None and surprising:
        bits, rank = look.guesses.bits, look.guesses.rank
        right = percent(float((rank == 1).mean())) if len(rank) else ""
        mean = f"mean {bits.mean():.2f} bits a token, first guess right {right}" if right else ""
    console.print(heading("The text", mean))
    console.print(_text(look, colour))
    if surprising and colour:
        steps = ["under 2 bits", "2", "4", "6", "8", "10 and more"]
        console.print(Text.assemble(("surprise: ", "dim"), _scale(SURPRISE, steps)))
    elif surprising:
        console.print(Text("[6 bits of surprise or more]  [[10 or more]]", "dim"))


def _show_next(look: Look, console: Console) -> None:
    if look.guesses is not None and look.guesses.ahead:
        console.print(heading("What comes next?", f"entropy {look.guesses.entropy[-1]:.1f} bits"))
        console.print(_next(look, look.guesses, console.width))


def _show_lens(look: Look, console: Console) -> None:
    if look.guesses is not None:
        lens, shown = _lens(look, look.guesses, console.width)
        cut = _cut_note(shown, len(look.tokens))
        console.print(heading("Logit lens", f"best guess if the model stopped here; ✓ right{cut}"))
        console.print(lens)


def _show_experts(look: Look, console: Console) -> None:
    if look.experts:
        experts, shown = _experts(look, console.width)
        cut = _cut_note(shown, len(look.tokens))
        console.print(heading("Experts", f"those each token was given to, strongest first{cut}"))
        console.print(experts)


def _show_stream(look: Look, console: Console) -> None:
    norms, shown = _norms(look, console.width)
    far = f"; {FAR_OFF} over {_FAR} times the median"
    cut = _cut_note(shown, len(look.tokens))
    console.print(heading("Residual stream", f"length of each token's vector, each row on its own scale{far}{cut}"))
    console.print(norms)


SECTIONS: dict[Section, Callable[[Look, Console], None]] = {
    "text": _show_text,
    "next": _show_next,
    "lens": _show_lens,
    "attention": show_attention,
    "encoding": show_encoding,
    "experts": _show_experts,
    "stream": _show_stream,
    "inside": show_panels,
}


def show(look: Look, console: Console, only: Collection[Section] = ()) -> None:
    """Print the look, or ``only`` some of its sections; of an encoder–decoder both sides. A section without anything to
    show is left out."""
    if look.across is not None:
        show(look.across.source, console, only)
        console.print()
    for name, section in SECTIONS.items():
        if not only or name in only:
            section(look, console)
