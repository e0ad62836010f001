"""What does looking inside cost? One random GPT-2 of base size, times as ratios to a plain forward of transformers.

    python benchmarks/inside.py                            # minutes: pellucid beside transformers
    python benchmarks/inside.py --peers PEERS/bin/python   # also TransformerLens and nnsight, of that interpreter

Everything reads one prompt of 20 tokens, in float32 with one thread. The residual patching grid has 12 layers × 20
positions; its cost depends on how many tokens both prompts begin with, so it is measured for none and for half.
TransformerLens and nnsight are measured against the plain forward of their own process, and a part of the grid stands
for all of it: each cell costs them a forward. Whether a target is met is printed, never asserted.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

TIME, CELLS = 20, 240


def ratio_of(run: Callable[[], object], forward: Callable[[], object], rounds: int) -> float:
    """How many forwards a run takes: the median over rounds, in each of which both take their turns."""
    run()
    ratios: list[float] = []
    for _ in range(rounds):
        before, took, after = (_seconds(each) for each in (forward, run, forward))
        ratios.append(2 * took / (before + after))
    return statistics.median(ratios)


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def prompts(same: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Two prompts of ``TIME`` random tokens that begin with the same ``same`` ones."""
    generator = torch.Generator().manual_seed(0)
    clean, corrupt = (torch.randint(50_000, (1, TIME), generator=generator) for _ in range(2))
    corrupt[:, :same] = clean[:, :same]
    return clean, corrupt


def ours(folder: Path, rounds: int) -> list[tuple[str, float, str]]:
    """(what, ratio to the plain forward, remark) of each measure."""
    from transformers import AutoModelForCausalLM

    import pellucid
    from pellucid.interpret.patching import pair, patch
    from pellucid.interpret.record import capture

    plain, model = AutoModelForCausalLM.from_pretrained(folder), pellucid.load(folder)
    assert isinstance(model, pellucid.Decoder)
    clean, _ = prompts(0)
    points = [name for name in model.point_names() if not name.endswith(("scores", "pattern"))]
    found: list[tuple[str, float, str]] = []

    @torch.inference_mode()
    def forward() -> object:
        return plain(clean)

    @torch.inference_mode()
    def our_forward() -> object:
        return model(clean)

    found.append(("pellucid: forward", ratio_of(our_forward, forward, rounds), ""))
    everything = ratio_of(lambda: capture(model, clean, points), forward, rounds)
    found.append(("pellucid: capture everything", everything, f"{len(points)} points; target 1.05"))
    own = ratio_of(lambda: capture(model, clean, points), our_forward, rounds)
    found.append(("pellucid: capture everything", own, "in forwards of pellucid"))
    for same in (0, TIME // 2):
        both = pair(model, *prompts(same))
        took = ratio_of(lambda both=both: patch(model, both, 3, 5), forward, 3)
        remark = f"{patch(model, both, 3, 5).forwards:.1f} forwards by FLOPs; target 25"
        found.append((f"pellucid: residual grid, {same} tokens shared", took, remark))
    return found


def peers(folder: Path, rounds: int) -> list[tuple[str, float, str]]:
    """The same of TransformerLens and nnsight, in their own interpreter."""
    import pandas
    from nnsight import LanguageModel  # pyright: ignore[reportMissingImports]
    from transformer_lens.model_bridge import TransformerBridge  # pyright: ignore[reportMissingImports]
    from transformer_lens.patching import (  # pyright: ignore[reportMissingImports]
        generic_activation_patch,
        layer_pos_patch_setter,
    )
    from transformers import AutoModelForCausalLM

    plain, tokenizer = AutoModelForCausalLM.from_pretrained(folder), _tokenizer()
    clean, corrupt = prompts(0)
    found: list[tuple[str, float, str]] = []

    @torch.inference_mode()
    def forward() -> object:
        return plain(clean)

    traced: Any = LanguageModel(AutoModelForCausalLM.from_pretrained(folder), tokenizer=tokenizer)

    @torch.no_grad()
    def streams() -> None:
        with traced.trace(clean):
            for block in traced.transformer.h:
                block.output.save()

    found.append(("nnsight: residual streams", ratio_of(streams, forward, rounds), "12 points"))
    bridge: Any = TransformerBridge.boot_transformers(
        "gpt2", hf_model=AutoModelForCausalLM.from_pretrained(folder), tokenizer=tokenizer
    )

    @torch.inference_mode()
    def everything() -> Any:
        return bridge.run_with_cache(clean)

    found.append(("TransformerLens: run_with_cache", ratio_of(everything, forward, rounds), ""))
    cells = pandas.DataFrame([(layer, 10) for layer in range(0, 12, 3)], columns=["layer", "pos"])
    cache = everything()[1]

    def logit(logits: torch.Tensor) -> torch.Tensor:
        return logits[0, -1, 3]

    @torch.inference_mode()
    def grid() -> object:
        return generic_activation_patch(
            bridge, corrupt, cache, logit, layer_pos_patch_setter, "resid_pre", index_df=cells
        )

    took = ratio_of(grid, forward, 3) * CELLS / len(cells)
    found.append(("TransformerLens: residual grid", took, f"from {len(cells)} of {CELLS} cells"))
    return found


def _tokenizer() -> Any:
    """A tokenizer that the peers ask for and nothing reads.

    It has no beginning of a text: TransformerLens would load it again, with one, by a name that this one lacks.
    """
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(WordLevel({"<|endoftext|>": 0, "a": 1}, unk_token="a"))
    end = "<|endoftext|>"
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token=end, pad_token=end, unk_token="a")


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--peers", metavar="PYTHON", help="an interpreter that has transformer_lens and nnsight")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    if chosen.worker is not None:
        print("\n" + json.dumps(peers(chosen.worker, chosen.rounds)))
        return
    from _harness import processor
    from transformers import GPT2Config, GPT2LMHeadModel

    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        GPT2LMHeadModel(GPT2Config()).save_pretrained(folder)
        rows = ours(Path(folder), chosen.rounds)
        if chosen.peers:
            command = [chosen.peers, __file__, "--worker", folder, "--rounds", str(chosen.rounds)]
            told = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            rows += [tuple(row) for row in json.loads(told.splitlines()[-1])]
    print(f"{processor()}, one thread; GPT-2 of base size, {TIME} tokens; a plain forward of transformers is 1")
    for name, ratio, remark in rows:
        print(f"{name:<46}{ratio:>8.2f}  {remark}")


if __name__ == "__main__":
    sys.exit(main())
