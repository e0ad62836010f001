"""A look in the terminal: as much of it as fits its width, with or without colour."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from pellucid.interpret.look import Head, Look

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

# Ink and paper are both set, so that the words are legible on a light and on a dark terminal.
_BLACK, _WHITE = "#111111 on ", "#ffffff on "
_SURPRISE = ("", _BLACK + "#fbedc3", _BLACK + "#f7cf7d", _BLACK + "#f0a35a", _WHITE + "#bd5238", _WHITE + "#8a2a2e")
_CERTAIN = ("", _BLACK + "#dde8f8", _BLACK + "#adc8ef", _BLACK + "#7ba4e0", _WHITE + "#3a68b8", _WHITE + "#1f3f86")
_BITS_A_STEP = 2.0  # colour steps of surprise: 0-2 bits plain, 2-4, ... 10 and more
_SPARK = "▁▂▃▄▅▆▇█"
_LABEL = 11  # columns of the first column of every table
_CELL = 10  # columns of one lens cell: a guess and its percentage
_MAX_HEADS = 24
_MAX_BARS = 32  # experts whose load is drawn


def _surprise_step(bits: float) -> int:
    return min(int(bits / _BITS_A_STEP), len(_SURPRISE) - 1)


def _certain_step(probability: float) -> int:
    return min(int(probability * len(_CERTAIN)), len(_CERTAIN) - 1)


def _percent(probability: float) -> str:
    return f"{100 * probability:.0f}%" if probability >= 0.0095 else "<1%"


def _cut(text: str, width: int) -> str:
    """At most ``width`` terminal columns of ``text`` (wide characters take two)."""
    from rich.cells import cell_len, set_cell_size

    return text if cell_len(text) <= width else set_cell_size(text, width - 1).rstrip() + "…"


def _spark(values: Sequence[float]) -> str:
    """One bar a value, from the smallest to the largest of them."""
    low, span = min(values), max(values) - min(values)
    return "".join(_SPARK[round((len(_SPARK) - 1) * (value - low) / span) if span else 0] for value in values)


def _title(text: str, note: str) -> Text:
    from rich.text import Text

    return Text.assemble(("\n" + text, "bold"), ("  " + note, "dim"))


def _table(*headings: str) -> Table:
    from rich.table import Table

    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="dim")
    for heading in headings:
        table.add_column(heading, no_wrap=True)
    return table


def _text(look: Look, colour: bool) -> Text:
    """The text, shaded by surprisal; without colour the surprising tokens stand in brackets."""
    from rich.text import Text

    shaded = Text.assemble((look.tokens[0].prose, "dim"))
    for token, bits in zip(look.tokens[1:], look.bits, strict=True):
        step = _surprise_step(float(bits))
        brackets = ("", "") if colour or step < 3 else ("[", "]") if step < 5 else ("[[", "]]")
        shaded.append(brackets[0] + token.prose + brackets[1], style=_SURPRISE[step])
    return shaded


def _scale(styles: Sequence[str], names: Sequence[str]) -> Text:
    from rich.text import Text

    return Text(" ").join(Text(f" {name} ", style=style) for name, style in zip(names, styles, strict=True))


def _next(look: Look, width: int) -> Table:
    from rich.text import Text

    table = _table("", "guess", "", "")
    room = min(max(width - _LABEL - 26, 10), 40)
    for rank, (token, probability) in enumerate(zip(look.top_ids[-1], look.top_probs[-1], strict=True), start=1):
        bar = Text("█" * max(1, round(room * float(probability / look.top_probs[-1, 0]))), "blue")
        table.add_row(f"{rank}", _cut(look.labels[int(token)], 16), f"{_percent(float(probability)):>4}", bar)
    return table


def _lens(look: Look, width: int) -> tuple[Table, int]:
    """Deep layers above; as many of the last positions as fit. Returns how many that are, too."""
    from rich.text import Text

    shown = max(1, min(len(look.tokens), (width - _LABEL - 1) // (_CELL + 1)))
    places = range(len(look.tokens) - shown, len(look.tokens))
    table = _table("", *("" for _ in places))
    table.show_header = False
    following = [look.tokens[t + 1].label if t + 1 < len(look.tokens) else "?" for t in places]
    table.add_row(Text("really next", "dim"), *(Text(_cut(label, _CELL), "bold") for label in following))
    for depth, row in reversed(list(enumerate(look.lens))):
        cells = []
        for t in places:
            probability = float(row.probs[t, 0])
            # the guess that is right has a mark of its own: colour says how sure the layer is
            mark = "✓" if t + 1 < len(look.tokens) and row.correct[t] else " "
            guess = _cut(look.labels[int(row.ids[t, 0])], _CELL - 5)
            padding = " " * (_CELL - 5 - Text(guess).cell_len)
            step = _certain_step(probability)
            cells.append(Text(f"{mark}{guess}{padding}{_percent(probability):>4}", style=_CERTAIN[step]))
        name = "embed" if depth == 0 else "output" if depth == len(look.lens) - 1 else f"layer {depth}"
        table.add_row(Text(name, "dim"), *cells)
    table.add_row(Text("token read", "dim"), *(Text(_cut(look.tokens[t].label, _CELL), "bold") for t in places))
    return table, shown


def _plainest(heads: Sequence[Head]) -> list[Head]:
    """The heads to list: all, or those with the most marked habit, in the model's order."""
    marked = sorted(heads, key=lambda head: -max(head.first, head.previous, head.itself))[:_MAX_HEADS]
    return sorted(marked, key=lambda head: (head.layer, head.head))


def _heads(look: Look, heads: Sequence[Head], width: int) -> Table:
    from rich.text import Text

    table = _table("layer.head", "first", "previous", "itself", "strongest link (query → key)")
    room = (width - 48) // 2
    for head in heads:
        shares = (head.first, head.previous, head.itself)
        cells = [Text(f"{_percent(share):>5}", style="bold" if share >= 0.5 else "") for share in shares]
        query, key = (_cut(look.tokens[place].label, room) for place in (head.query, head.key))
        link = f"{query} → {key} {_percent(head.weight)}" if head.query != head.key else ""
        table.add_row(f"{head.layer + 1}.{head.head + 1}", *cells, link)
    return table


def _experts(look: Look, width: int) -> tuple[Table, int]:
    """Deep layers above: how even the load is, and where each of the last tokens went; experts count from 1."""
    from rich.text import Text

    most = max(experts.n_experts for experts in look.experts)
    cell = max(6, (len(f"{most}") + 1) * max(experts.ids.shape[1] for experts in look.experts))
    bars = most if most <= _MAX_BARS else 0
    shown = max(1, min(len(look.tokens), (width - _LABEL - max(bars, 4) - 2) // (cell + 1)))
    places = range(len(look.tokens) - shown, len(look.tokens))
    table = _table("", "load", *(_cut(look.tokens[t].label, cell) for t in places))
    for experts in reversed(look.experts):
        load = _spark([0.0, *experts.load.tolist()])[1:] if bars else ""
        went = ("·".join(f"{expert + 1}" for expert in experts.ids[t]) for t in places)
        table.add_row(Text(f"layer {experts.layer + 1}", "dim"), Text(load, "blue"), *went)
    return table, shown


def _added(look: Look) -> dict[str, str]:
    """What layers add to the stream, and the state they keep: heading of a column -> name in ``norms``."""
    words = {"attention": "+attn", "linear attention": "+attn", "LSTM": "+lstm", "GRU": "+gru"}
    mixers = {words[layer.mixer] for layer in look.layers}
    columns = {mixers.pop() if len(mixers) == 1 else "+mixer": "mixer_out", "+ffn": "ffn_out", "state": "state"}
    return {heading: stream for heading, stream in columns.items() if stream in look.norms}


def _norms(look: Look, width: int) -> tuple[Table, int]:
    stream = np.concatenate([look.norms["resid_pre"][:1], look.norms["resid_post"]])
    columns = _added(look)
    shown = min(len(look.tokens), max(width - _LABEL - 14 - 8 * len(columns), 8))
    table = _table("", "stream, token by token", "mean", *columns)
    for depth in reversed(range(len(stream))):
        means = [] if depth == 0 else [look.norms[part][depth - 1].mean() for part in columns.values()]
        added = ["" if np.isnan(mean) else f"{mean:.3g}" for mean in means]  # the stream begins with the embedding
        name = "embed" if depth == 0 else f"layer {depth}"
        table.add_row(name, _spark(stream[depth, -shown:].tolist()), f"{stream[depth].mean():.3g}", *added)
    return table, shown


def _cut_note(shown: int, total: int) -> str:
    return "" if shown >= total else f"; the last {shown} of {total} tokens (the HTML page has all)"


def _kinds(look: Look) -> str:
    """How many layers mix tokens by what, where it is not attention everywhere."""
    mixers = [layer.mixer for layer in look.layers]
    if len(set(mixers)) == 1:
        return "" if mixers[0] == "attention" else f" · {mixers[0]}"
    return " · " + ", ".join(f"{mixers.count(mixer)} {mixer}" for mixer in dict.fromkeys(mixers))


def show(look: Look, console: Console) -> None:
    """Print the look: text by surprisal, next-token table, logit lens, attention habits, residual norms."""
    from rich.text import Text

    facts, width, time = look.model, console.width, len(look.tokens)
    colour = console.color_system is not None and not console.no_color
    heads = f" × {facts.n_heads} heads" if facts.n_heads else ""
    sizes = f"{facts.n_layers} layers{heads} × {facts.d_model} wide{_kinds(look)}"
    console.print(
        Text.assemble((facts.name, "bold"), (f"  {facts.n_parameters / 1e6:.2f} M parameters · {sizes}", "dim"))
    )

    mean = ""
    if time > 1:
        right = _percent(float((look.rank == 1).mean()))
        mean = f"mean {look.bits.mean():.2f} bits a token, first guess right {right}"
    console.print(_title("The text", mean))
    console.print(_text(look, colour))
    if colour:
        steps = ["under 2 bits", "2", "4", "6", "8", "10 and more"]
        console.print(Text.assemble(("surprise: ", "dim"), _scale(_SURPRISE, steps)))
    else:
        console.print(Text("[6 bits of surprise or more]  [[10 or more]]", "dim"))

    console.print(_title("What comes next?", f"entropy {look.entropy[-1]:.1f} bits"))
    console.print(_next(look, width))

    lens, shown = _lens(look, width)
    console.print(_title("Logit lens", f"best guess if the model stopped here; ✓ right{_cut_note(shown, time)}"))
    console.print(lens)

    heads = _plainest(look.heads)
    cut = len(heads) < len(look.heads)
    note = f"; {len(heads)} of {len(look.heads)} heads, those with the plainest habit" if cut else ""
    if heads:
        console.print(_title("Attention", f"share of each head's looking, on average{note}"))
        console.print(_heads(look, heads, width))
    else:
        console.print(_title("Attention", "none to show: every layer keeps what it read in a running state"))

    if look.experts:
        experts, shown = _experts(look, width)
        console.print(_title("Experts", f"those each token was given to, strongest first{_cut_note(shown, time)}"))
        console.print(experts)

    norms, shown = _norms(look, width)
    console.print(
        _title("Residual stream", f"length of each token's vector, each row on its own scale{_cut_note(shown, time)}")
    )
    console.print(norms)
