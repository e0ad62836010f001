"""``pellucid train``"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import tyro

from pellucid.cli.parse import parse
from pellucid.train.config import TrainOptions

EXAMPLES = """
train book.txt --minutes 5
train notes/ articles.jsonl --out runs/notes --depth 6 --minutes 30
train - --out runs/corpus --steps 2000 < corpus.txt
train book.txt --out runs/again --run runs/book/run.json
train more.txt --out runs/more --from runs/book
train more.txt --out runs/adapter --from runs/book --lora '*blocks.*' --lora-rank 4
train articles.jsonl --field body --design mine.py:model
train notes/ --out runs/reader --objective mlm --show-batch
train books/ code/ letters.txt --out runs/mixed --mix 6 3 1 --mix-epochs 4
train book.txt --out runs/filler --objective spans
train --pairs en-de.tsv --out runs/translator --minutes 8
train book.txt --out runs/calm --ema 0.999 --average 5
train --pairs en.txt de.txt --recipe attention_is_all_you_need --depth 2 --batch-tokens 4000 --warmup 400 --minutes 30
"""


def train(
    texts: tyro.conf.Positional[tuple[str, ...]],
    options: TrainOptions = TrainOptions(),  # noqa: B008 - frozen
    out: Path | None = None,
    run: Path | None = None,
    spec: Path | None = None,
    pairs: tuple[str, ...] = (),
    recipe: str | None = None,
    show_batch: bool = False,
    doctor: bool = True,
) -> None:
    """Train a Transformer on your text. Every number you do not give is derived, and its reason printed.

    The same command again goes on where the folder stands; Ctrl-C saves first.

    Args:
        texts: Files (.txt, .gz, .jsonl, ...), folders, globs, "-" for standard input, hf://org/dataset; for the
            objective seq2seq: files of tab-separated pairs.
        out: Folder of the run [default: runs/NAME of the first text].
        run: A run.json whose numbers are repeated exactly, instead of options.
        spec: A spec.json of the model, instead of a design and its sizes.
        pairs: Instead of texts: pairs of them, for an encoder-decoder. Files that are tab-separated (source, target) or
            .jsonl (fields source and target), or two files, line by line.
        recipe: Options of the literature, where none are given: attention_is_all_you_need (Vaswani et al. 2017).
        show_batch: Show three rows of the first step: what it reads, and in colour what it must say.
        doctor: Look at the first rows before it starts, and refuse what cannot be meant (pellucid doctor --help).
    """
    from pellucid.cli.display import display, write_sample
    from pellucid.errors import UsageError
    from pellucid.spec import load_spec
    from pellucid.train.pace import load_run
    from pellucid.train.run import train as train_texts

    if pairs:
        texts, options = of_pairs(texts, pairs, options)
    if not texts:
        raise UsageError("no text was named", "pellucid train book.txt, or pellucid train --help")
    if recipe is not None:
        options = cooked(recipe, options)
    folder = out or default_folder(texts[0])
    resolved = None if run is None else load_run(run)
    model = None if spec is None else load_spec(spec)
    with display(show_batch) as shown:
        result = train_texts(
            texts, folder, resolved, options=options, model=model, reporter=shown, sampler=write_sample, doctor=doctor
        )
        shown.finished(result, folder)


def of_pairs(
    texts: tuple[str, ...], pairs: tuple[str, ...], options: TrainOptions
) -> tuple[tuple[str, ...], TrainOptions]:
    """What is read, and the options that say it is pairs. Raises UsageError where something else is asked for, too."""
    from pellucid.errors import UsageError

    if texts:
        raise UsageError(f"both texts ({texts[0]}) and --pairs are given", "name one of the two")
    if options.objective not in (None, "seq2seq"):
        raise UsageError(f"--pairs does not go with --objective {options.objective}", "leave one of the two out")
    return pairs, replace(options, objective="seq2seq")


def cooked(recipe: str, options: TrainOptions) -> TrainOptions:
    """The options, and those of a recipe where they are open. Raises UsageError for a recipe that there is not."""
    from pellucid.errors import UsageError, suggest
    from pellucid.recipes.attention_is_all_you_need import RECIPES, cook

    names = {"attention_is_all_you_need": "base", "attention_is_all_you_need_big": "big"}
    if recipe not in names:
        raise UsageError(f"there is no recipe {recipe!r}", suggest(recipe, names))
    return cook(RECIPES[names[recipe]], options)


def default_folder(text: str) -> Path:
    """runs/NAME, from the first text's own name."""
    stem = Path(text.removeprefix("hf://")).name.split(".")[0]
    return Path("runs") / (stem if stem and stem.strip("-*?[]") else "text")


def main(arguments: Sequence[str]) -> None:
    """Parse a command line and run it."""
    parse(train, arguments, EXAMPLES)
