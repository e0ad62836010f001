"""Real GGUFs: what transformers makes of the same file is what we make of it, to the last bit."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from against_hf import every_block, gap
from checkpoints import gemma, smollm2
from some import some_of
from torch import Tensor
from torch.nn import functional as F

from pellucid.checkpoints.gguf import read as gguf_read
from pellucid.checkpoints.gguf.file import GGUFFile
from pellucid.checkpoints.gguf.names import Place, places
from pellucid.checkpoints.gguf.read import open_gguf
from pellucid.checkpoints.load import load_checkpoint
from pellucid.families.registry import spec_of
from pellucid.nn.init import build_undrawn
from pellucid.spec import Causal, DecoderSpec


@dataclass(frozen=True)
class Known:
    """What transformers 5.23 says of a file, loaded by its own reader; ``slow`` below is where that comes from.

    question: "The capital of France is". next_ones: its likeliest continuations and their logits. text: "Water boils at
    a lower temperature on a mountain, because the air presses on it with less force there.", of nll nats a token.
    """

    question: list[int]
    next_ones: dict[int, float]
    text: list[int]
    nll: float


def ids(written: str) -> list[int]:
    return [int(number) for number in written.split()]


SMOLLM2 = Known(
    question=[504, 3575, 282, 4649, 314],
    next_ones={7042: 17.3713, 260: 14.8886, 4528: 13.2450, 2250: 13.0095, 1315: 12.9515},
    text=ids("12615 36411 418 253 2208 2779 335 253 6740 28 975 260 1512 32422 335 357 351 1181 3075 665 30"),
    nll=4.489730,
)
GEMMA = Known(
    question=[2, 818, 5279, 529, 7001, 563],
    next_ones={506: 19.0915, 496: 18.5476, 9079: 18.2686, 886: 18.1130, 3224: 17.7839},
    text=ids(
        "2 17390 104264 657 496 3718 4022 580 496 10565 236764 1547 506 2634 63581 580 625 607 2344 4912 993 236761"
    ),
    nll=4.416317,
)
KNOWN: dict[Callable[[], Path], Known] = {smollm2: SMOLLM2, gemma: GEMMA}
BOTH = pytest.mark.parametrize("path", [smollm2, gemma])


@cache
def loaded(path: Callable[[], Path]) -> Any:
    return load_checkpoint(open_gguf(path()))


def changed(path: Callable[[], Path], spec: DecoderSpec) -> Any:
    """The same weights, and not copied, in a model of another spec."""
    model = build_undrawn(spec)
    for weight, right in zip(model.parameters(), loaded(path).parameters(), strict=True):
        weight.data = right.data
    return model.eval()


@torch.no_grad()
def nll(model: Any, ids: list[int]) -> float:
    tokens = torch.tensor([ids])
    return float(F.cross_entropy(model(tokens)[0, :-1], tokens[0, 1:]))


@torch.no_grad()
def last_logits(model: Any, ids: list[int]) -> Tensor:
    return model(torch.tensor([ids]))[0, -1]


@BOTH
def test_logits_and_likelihoods_are_those_of_transformers(path: Callable[[], Path]) -> None:
    known, logits = KNOWN[path], last_logits(loaded(path), KNOWN[path].question)
    assert logits.topk(5).indices.tolist() == list(known.next_ones)
    assert logits.topk(5).values.tolist() == pytest.approx(list(known.next_ones.values()), abs=1e-3)
    assert nll(loaded(path), known.text) == pytest.approx(known.nll, abs=1e-4)


def test_smollm2_knows_the_capital_of_france() -> None:
    tokens = GGUFFile(smollm2()).metadata["tokenizer.ggml.tokens"]
    assert tokens[int(last_logits(loaded(smollm2), SMOLLM2.question).argmax())] == "ĠParis"


@pytest.mark.slow
@pytest.mark.timeout(900)
@BOTH
def test_nothing_differs_from_what_transformers_loads(path: Callable[[], Path]) -> None:
    """All logits, of more tokens than a window of Gemma has."""
    from transformers import AutoModelForCausalLM

    file, model = path(), loaded(path)
    theirs: Any = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32).eval()
    weights = theirs.state_dict()
    assert torch.equal(weights["model.embed_tokens.weight"], model.embed.tokens.weight)
    random = torch.randint(model.spec.vocab_size, (1, 640), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for tokens in (random, torch.tensor([KNOWN[path].text])):
            assert gap(model(tokens), theirs(tokens).logits) <= 1e-4
        assert gap(model(random[:, :40]), theirs(random[:, :40]).logits) == 0


# --- controls: what goes wrong where a layout or a fact is forgotten --------------------------------------------------


def test_rows_that_stay_as_llama_cpp_has_them_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    right = last_logits(loaded(smollm2), SMOLLM2.question)  # before the fault is planted: what is loaded is kept

    def as_kept(*given: Any) -> dict[str, Place | None]:
        return {name: place and replace(place, layout=None) for name, place in places(*given).items()}

    monkeypatch.setattr(gguf_read, "places", as_kept)
    wrong = load_checkpoint(open_gguf(smollm2()))
    assert gap(last_logits(wrong, SMOLLM2.question), right) > 1


OMITTED: dict[str, Any] = {
    "rope_local_base_freq": 1e6,
    "rope_theta": 1e4,
    "layer_types": ["sliding_attention"] * 18,
    "query_pre_attn_scalar": 640 / 4,
    "hidden_activation": "silu",
}


@pytest.mark.parametrize("key", some_of(OMITTED, ["rope_local_base_freq", "hidden_activation"]))
def test_a_fact_that_the_file_of_gemma_omits_is_needed(key: str) -> None:
    """The pattern of layers matters in a short text through the rotary base that comes with it."""
    spec: Any = spec_of({**open_gguf(gemma()).config, key: OMITTED[key]})[0]
    wrong = changed(gemma, spec)
    assert abs(nll(wrong, GEMMA.text) - GEMMA.nll) > 1e-2
    assert gap(last_logits(wrong, GEMMA.text), last_logits(loaded(gemma), GEMMA.text)) > 1e-2


def test_gains_that_stay_one_more_are_seen() -> None:
    right = loaded(gemma).spec
    spec = every_block(right, norm=replace(right.stack.final_norm, offset=2.0))
    assert nll(changed(gemma, spec), GEMMA.text) > GEMMA.nll + 1


def test_gemma_has_five_windows_to_one_global_layer() -> None:
    for i, block in enumerate(loaded(gemma).spec.stack.blocks):
        is_global = (i + 1) % 6 == 0
        assert (block.mixer.mask == Causal()) == is_global
        assert block.mixer.mask.reach() == (None if is_global else 512)
        assert block.mixer.rotary.base == (1e6 if is_global else 1e4)


MEASURE = """
import re, sys, torch
from pathlib import Path
from gguf.quants import dequantize
from pellucid.checkpoints.gguf.read import open_gguf
from pellucid.checkpoints.load import load_checkpoint
def most():
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
checkpoint = open_gguf(Path(sys.argv[1]))
name = min(checkpoint.source.kinds, key=lambda name: checkpoint.source.shapes[name].numel())
checkpoint.source.read(name, torch.float32)  # the code that opens blocks is in memory before anything is measured
before = most()
model = load_checkpoint(checkpoint, getattr(torch, sys.argv[2]))
print((most() - before) / sum(weight.nbytes for weight in model.parameters()))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux says a process's largest memory")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.slow
@pytest.mark.parametrize("path", [smollm2, gemma])
def test_loading_takes_little_more_memory_than_the_model(path: Callable[[], Path], dtype: str) -> None:
    """In a process of its own."""
    run = subprocess.run([sys.executable, "-c", MEASURE, str(path()), dtype], check=True, capture_output=True)
    assert 0.9 <= float(run.stdout) <= 1.2
