"""Real GGUF files with their weights left quantised: the same logits, in little more memory than the file takes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest
import torch
from checkpoints import gemma, smollm2
from native import kernels

import pellucid

BOTH = pytest.mark.parametrize("path", [smollm2, pytest.param(gemma, marks=pytest.mark.slow)])
TEXT = "The capital of France is Paris. The capital of Germany is"


@BOTH
def test_logits_equal_those_of_the_opened_model(path: Callable[[], Path]) -> None:
    """Most of them bit for bit; in products that come in several parts, sums may be made in another order."""
    opened, quantised = pellucid.load(path()), pellucid.load(path(), quantised=True)
    ids = torch.tensor([opened.tokenizer.encode_prompt(TEXT)])
    with torch.inference_mode():
        wanted, found = opened(ids), quantised(ids)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5 * float(wanted.abs().max()))


@BOTH
def test_native_steps_write_what_the_opened_model_writes(path: Callable[[], Path]) -> None:
    opened = pellucid.load(path())
    ids = torch.tensor([opened.tokenizer.encode_prompt(TEXT)])
    with torch.inference_mode():
        wanted = opened(ids)
        with kernels():
            quantised = pellucid.load(path(), quantised=True)
            assert isinstance(quantised, pellucid.Decoder)
            close_to(wanted, quantised, ids, 1e-3)  # tiles read numbers in sixteen bits
            with mock.patch.dict(os.environ, {"PELLUCID_TILES": "0"}):
                close_to(wanted, quantised, ids, 1e-5)


def close_to(wanted: torch.Tensor, model: pellucid.Decoder, ids: torch.Tensor, tolerance: float) -> None:
    assert wanted.shape[1] >= 12
    cache = model.new_cache(1)
    found = [model(ids[:, :4], cache=cache), *(model(ids[:, i : i + 1], cache=cache) for i in range(4, 12))]
    assert model.why_no_step(torch.zeros(1, 1, model.spec.d_model), cache) is None
    least = tolerance * float(wanted.abs().max())
    torch.testing.assert_close(torch.cat(found, 1), wanted[:, :12], rtol=tolerance, atol=least)


MEASURE = """
import re, sys, torch
from pathlib import Path
def most():
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
before = most()
import pellucid
model = pellucid.load(sys.argv[1], quantised=True, tokenizer=False)
print((most() - before) / Path(sys.argv[1]).stat().st_size)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux says a process's largest memory")
@BOTH
def test_model_takes_at_most_1_3_times_its_file(path: Callable[[], Path]) -> None:
    """In a process of its own, above what ``import torch`` takes; a vocabulary, which takes its own, is left out.

    The least of three: torch's own code, paged in when it is first run, counts too, and varies by some 5 MB.
    """
    seen: list[float] = []
    while len(seen) < 3 and not (seen and seen[-1] <= 1.3):
        run = subprocess.run([sys.executable, "-c", MEASURE, str(path())], check=True, capture_output=True, text=True)
        seen.append(float(run.stdout))
    assert 0.9 <= min(seen) <= 1.3
