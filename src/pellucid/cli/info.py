"""``pellucid info``: what a model is made of and what it costs, from its spec alone."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from pellucid.cli.parse import parse
from pellucid.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from pellucid.spec import ModelSpec

EXAMPLES = """
info
info runs/book
info modern --depth 12
info --params 1B
info hybrid --depth 8 --context 4096 --svg hybrid.svg
info attention_is_all_you_need
info runs/book/spec.json --tokens 8192
info SmolLM2-135M-Instruct.Q4_1.gguf
info HuggingFaceTB/SmolLM2-135M
"""
DEPTH, VOCAB_SIZE, CONTEXT = 12, 32768, 1024  # of a design, where nothing else is asked for


def info(
    subject: tyro.conf.Positional[str | None] = None,
    depth: int | None = None,
    d_model: int | None = None,
    vocab_size: int | None = None,
    context: int | None = None,
    tokens: int | None = None,
    params: str | None = None,
    svg: Path | None = None,
    quantised: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    ignore_key: tuple[str, ...] = (),
    list_: Annotated[bool, tyro.conf.arg(name="list"), tyro.conf.FlagCreatePairsOff] = False,
) -> None:
    """Say what a model is made of and what it must cost, from its spec alone: no weight is made.

    Args:
        subject: A model folder (ours or a published one), a spec.json, a .gguf file, ORG/NAME on the hub, a design or a
            published model by name; nothing: list those there are.
        depth: Layers of a design [default: 12].
        d_model: Width of a design [default: 64 for each layer above two].
        vocab_size: Vocabulary of a design [default: 32768].
        context: Context of a design [default: 1024].
        tokens: Length at which costs are counted [default: the model's context].
        params: Parameters of a design, e.g. 125M or 1B, in place of its depth; also says what training it would take.
        svg: Draw the model into this file.
        quantised: Say also which weights of a .gguf file can stay quantised in memory, and what they take.
        ignore_key: Attributes of a published config.json to leave out, which no code reads.
        list_: List all designs and published models.
    """
    from rich.console import Console

    from pellucid.cli.training import number_of, of_parameters, training_table

    sizes = {"depth": depth, "d_model": d_model, "vocab_size": vocab_size, "context": context}
    asked = {name: value for name, value in sizes.items() if value is not None}
    for name, value in [*asked.items(), ("tokens", tokens)]:
        if value is not None and value < 1:
            raise UsageError(f"{name} = {value} cannot be used", f"{_flag(name)} must be at least 1")
    console = Console()
    subject = "modern" if subject is None and params is not None else subject
    if subject is None or list_:
        extra = [_flag(name) for name in asked] + ["--tokens"] * bool(tokens) + ["--svg"] * bool(svg)
        if extra or subject is not None:
            wrong = subject if subject is not None else extra[0]
            raise UsageError(f"{wrong} does not go with a list of all designs", "name one, without --list")
        show_list(console)
        return
    wanted = None if params is None else number_of(params)
    spec = read_spec(subject, asked, ignore_key) if wanted is None else of_parameters(subject, asked, wanted)
    if svg is not None:
        _draw(svg, spec, subject)
    explain(console, subject, spec, tokens or spec.context)
    if wanted is not None:
        console.print()
        console.print(training_table(spec))
    show_run(console, Path(subject))
    show_weights(console, Path(subject))
    if quantised:
        _stored(console, subject)
    if svg is not None:
        console.print(f"\ndrawn in {svg}", highlight=False, markup=False, soft_wrap=True)


def _draw(svg: Path, spec: ModelSpec, subject: str) -> None:
    """Draw the model into a file."""
    from pellucid.cli.diagram import draw
    from pellucid.files import write_text

    write_text(svg, draw(spec, subject))


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def main(arguments: Sequence[str]) -> None:
    """Parse a command line and run it."""
    parse(info, arguments, EXAMPLES)


# --- which model -----------------------------------------------------------------------------------------------------


def read_spec(subject: str, sizes: dict[str, int], ignore: Collection[str] = ()) -> ModelSpec:
    """The spec in a folder or file, on the hub, of a published model, or of a design in these sizes.

    Raises SpecError or CheckpointError where there is none, UsageError for sizes of what has its own.
    """
    import math

    from pellucid.checkpoints.hub import fetch, fetch_config, is_name
    from pellucid.checkpoints.load import without
    from pellucid.checkpoints.safetensors_files import read_object
    from pellucid.designs import PUBLISHED, design, is_own, sized, width
    from pellucid.errors import SpecError, suggest
    from pellucid.families.registry import spec_of

    path = Path(subject)
    if (subject in sized() or is_own(subject)) and not path.exists():
        depth = sizes.get("depth", DEPTH)
        d_model = sizes.get("d_model", width(depth))
        vocab_size, context = sizes.get("vocab_size", VOCAB_SIZE), sizes.get("context", CONTEXT)
        return design(subject)(vocab_size, context, depth, d_model, math.gcd(d_model, 64))
    if sizes and (path.exists() or subject in PUBLISHED):
        raise UsageError(f"{_flag(next(iter(sizes)))} is for a design, and {subject} has its own", "leave it out")
    if path.exists():
        return _saved(path, ignore)
    if subject in PUBLISHED:
        return PUBLISHED[subject]()
    if is_name(subject):
        if subject.endswith(".gguf"):
            return _saved(fetch(subject))
        return spec_of(without(read_object(fetch_config(subject)), ignore, subject))[0]
    if path.suffix or len(path.parts) > 1:
        raise SpecError(f"{path} does not exist", "give a model folder, a spec.json, or a design's name")
    raise SpecError(f"there is no design {subject!r}", suggest(subject, [*sized(), *PUBLISHED]))


def _saved(path: Path, ignore: Collection[str] = ()) -> ModelSpec:
    from pellucid.checkpoints.load import open_checkpoint, without
    from pellucid.checkpoints.native import RUN, SPEC
    from pellucid.checkpoints.safetensors_files import CONFIG, read_object
    from pellucid.checkpoints.sentence import encoder_folder
    from pellucid.errors import SpecError
    from pellucid.families.registry import spec_of
    from pellucid.spec import load_spec

    def published(file: Path) -> ModelSpec:
        return spec_of(without(read_object(file), ignore, file))[0]

    if path.suffix == ".json":
        return published(path) if path.name == CONFIG else load_spec(path)
    if not path.is_dir():
        return spec_of(open_checkpoint(path).config)[0]
    if (path / SPEC).exists():
        return load_spec(path / SPEC)
    if (path / RUN).exists():
        from pellucid.train.config import Run

        return Run.load(path / RUN).model
    if (encoder_folder(path) / CONFIG).is_file():
        return published(encoder_folder(path) / CONFIG)
    raise SpecError(f"{path} holds no {SPEC}", "give a folder that `pellucid train` wrote, or a published model's")


# --- what is shown ---------------------------------------------------------------------------------------------------


def show_list(console: Console) -> None:
    """All designs and published models, one a line."""
    from rich.table import Table

    from pellucid.designs import PUBLISHED, sized, summary

    for title, names in (
        ("designs, of any size: pellucid train --design NAME", sized()),
        ("published models, in their own sizes", PUBLISHED),
    ):
        table = Table(box=None, padding=(0, 2, 0, 0), show_header=False, title=title, title_justify="left")
        table.add_column(style="bold", no_wrap=True)
        table.add_column()
        for name in names:
            table.add_row(name, summary(name))
        console.print(table)
        console.print()


def explain(console: Console, name: str, spec: ModelSpec, time: int) -> None:
    """The drawing of a model and its costs over ``time`` tokens."""
    from rich.table import Table
    from rich.text import Text

    from pellucid.cli.costs import kernels, parts_table, totals_table
    from pellucid.cli.outline import outline
    from pellucid.designs import PUBLISHED, sized, summary

    if name in sized() or name in PUBLISHED:
        console.print(summary(name), style="bold", highlight=False, markup=False)
        console.print()
    console.print(outline(spec, min(console.width, 100)), highlight=False, markup=False)
    console.print()
    console.print(parts_table(spec, time))
    console.print()
    console.print(totals_table(spec, time))
    console.print()
    chosen = Table("computed by", "", box=None, padding=(0, 2, 0, 0), header_style="dim")
    for what, why in kernels(spec, time).items():
        chosen.add_row(Text(what), Text(why))
    console.print(chosen)
    if name.startswith("attention_is_all_you_need") and name in PUBLISHED:
        _beside_the_paper(console)


def _stored(console: Console, subject: str) -> None:
    from pellucid.checkpoints.by_name import locate, open_quantised
    from pellucid.checkpoints.load import formats
    from pellucid.cli.costs import stored_table

    console.print()
    console.print(stored_table(formats(open_quantised(locate(subject)))))


def show_run(console: Console, folder: Path) -> None:
    """The parts of the run that a folder holds, each with its settings; nothing where it holds none of today's form."""
    from dataclasses import fields

    from pellucid.checkpoints.native import RUN
    from pellucid.errors import SpecError
    from pellucid.train.config import Run

    if not (folder / RUN).is_file():
        return
    try:
        run = Run.load(folder / RUN)
    except SpecError as error:  # the model beside it is whole, whatever the run is
        console.print(f"\n{error.problem}", style="dim", highlight=False, markup=False)
        return
    console.print("\nrun", style="dim")
    for name in ("feed", "objective", "start", "optimiser", "schedule", "runtime", "keeping"):
        part = getattr(run, name)
        settings = ((field.name, getattr(part, field.name)) for field in fields(part))
        shown = [f"{key} {_shown(value)}" for key, value in settings if value not in (None, ())]
        console.print(f"  {name:10} {', '.join(shown)}", highlight=False, markup=False, soft_wrap=True)


def show_weights(console: Console, folder: Path) -> None:
    """Which weights of a run a folder holds, where they are not its last ones."""
    from pellucid.checkpoints.native import SPEC, which_weights
    from pellucid.errors import CheckpointError

    try:
        said = which_weights(folder) if (folder / SPEC).is_file() else ""
    except CheckpointError:  # no weight is needed here
        return
    if said:
        console.print(f"\nweights: {said}", highlight=False, markup=False, soft_wrap=True)


def _shown(value: object) -> str:
    """A setting in words: hashes short, several names with spaces."""
    if isinstance(value, tuple):
        return " ".join(map(str, value))  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text[:12] if len(text) == 64 else text


def _beside_the_paper(console: Console) -> None:
    from rich.table import Table

    from pellucid.recipes.attention_is_all_you_need import NOTES, RECIPES, compare

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for heading in ("beside the paper", "parameters", "paper", "training FLOPs", "paper", "used of 9.5 TFLOP/s"):
        table.add_column(heading, justify="left" if heading == "beside the paper" else "right")
    for size, recipe in RECIPES.items():
        c = compare(recipe)
        reported = f"{c.said_parameters / 1e6:.0f} M", f"{c.said_flops:.1e}"
        table.add_row(size, f"{c.parameters / 1e6:.1f} M", reported[0], f"{c.flops:.1e}", reported[1], f"{c.used:.0%}")
    console.print()
    console.print(table)
    for note in NOTES:
        console.print()
        console.print(note, style="dim", highlight=False, markup=False)
