"""What we write, llama.cpp runs: the same tokens, the same logits to the precision of its arithmetic, the same text."""

from __future__ import annotations

import gc
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import gemma, smollm2
from gguf_files import MODELS, model_of, written

import pellucid
from pellucid.checkpoints.gguf.file import GGUFFile
from pellucid.checkpoints.gguf.write import to_gguf
from pellucid.designs import modern
from pellucid.text.tokenizer import Tokenizer
from pellucid.text.tokenizer_gguf import from_metadata

llama_cpp: Any = pytest.importorskip("llama_cpp", reason="it takes 20 minutes to build: `make test-llama-cpp` does it")

# Of logits around 1. Its GELU is a table of float16 numbers; nothing else in it rounds more than we do.
EXACT, TABLE, HALF = 5e-6, 5e-3, 2e-3
GELU = ("gemma", "gpt2", "neox")

TEXT = """It was a cold day in 1842, and the ships' crews hadn't eaten since Friday's 3rd watch.
    "We'll sail," said the captain; "they've no choice!" And so they sailed...\n\n\tNaïve? Perhaps: 12345 miles of sea.
Ein Boot trägt fünf Männer, 五人の男, и ни одной кошки 😀. def f(x): return x ** 2  # -> f(3) == 9\r\n"""


@contextmanager
def opened(path: Path, **options: Any) -> Iterator[Any]:
    """The file in llama.cpp, with a cache of float32 and no sampling tricks; closed before Python ends."""
    usual = {"n_ctx": 256, "logits_all": True, "type_k": 0, "type_v": 0, "n_threads": 1, "verbose": False}
    theirs = llama_cpp.Llama(str(path), **{**usual, **options})
    try:
        yield theirs
    finally:
        theirs.close()
        gc.collect()


@pytest.mark.parametrize("quantisation", ["f32", "f16"])
@pytest.mark.parametrize("name", MODELS)
def test_logits_agree(name: str, quantisation: str, tmp_path: Path) -> None:
    model, numbers = model_of(MODELS[name]), random.Random(0).choices(range(61), k=24)
    with torch.no_grad():
        ours = model(torch.tensor([numbers]))[0].numpy()
    with opened(written(model, tmp_path, quantisation)) as theirs:
        theirs.eval(numbers)
        off = float(np.abs(ours - np.array(theirs.scores[:24])).max())
    scale = float(ours.std())
    assert off <= scale * ((TABLE if name.startswith(GELU) else EXACT) + (HALF * 4 if quantisation == "f16" else 0))
    assert scale > 0.1


@pytest.fixture(scope="module")
def trained() -> Any:
    """A model of the usual design, its vocabulary learned and its weights random."""
    tokenizer = Tokenizer.train([TEXT * 3], 500)
    model = pellucid.build(modern(tokenizer.vocab_size, 256, 2, 128), seed=1).eval()
    model.tokenizer = tokenizer
    return model


def texts() -> list[str]:
    letters = "abc XYZ 's 'T 're 12 3\n\r\t.,;!?-_()é中😀ñ\u00a0\u2003<|endoftext|>▁"
    draw = random.Random(0)
    return [TEXT, *("".join(draw.choices(letters, k=draw.randint(1, 40))) for _ in range(300))]


def test_our_vocabulary_gives_the_same_tokens(trained: Any, tmp_path: Path) -> None:
    """Up to runs of 64 letters, signs or spaces, where ours cuts and llama.cpp does not."""
    to_gguf(trained, tmp_path / "model.gguf")
    with opened(tmp_path / "model.gguf", vocab_only=True) as theirs:
        for text in texts():
            assert theirs.tokenize(text.encode(), add_bos=True, special=False) == trained.tokenizer.encode_prompt(text)
        assert theirs.token_bos() == theirs.token_eos() == trained.tokenizer.eos_id


@pytest.mark.parametrize("quantisation", ["f32", "f16", "q8_0"])
def test_a_model_of_ours_writes_the_same_text(trained: Any, quantisation: str, tmp_path: Path) -> None:
    """Greedily, token for token, for as long as the best of all continuations stands out from rounding."""
    to_gguf(trained, tmp_path / "model.gguf", quantisation)
    margin = {"f32": 1e-4, "f16": 1e-2, "q8_0": 0.1}[quantisation]
    ids = trained.tokenizer.encode_prompt("It was a cold day")
    with opened(tmp_path / "model.gguf") as theirs, torch.no_grad():
        for _ in range(40):
            logits = trained(torch.tensor([ids]))[0, -1]
            best, second = logits.topk(2).values.tolist()
            theirs.reset()
            theirs.eval(ids)
            given = np.array(theirs.scores[len(ids) - 1])
            assert float(np.abs(given - logits.numpy()).max()) <= margin
            assert int(given.argmax()) == int(logits.argmax()) or best - second < 2 * margin
            ids.append(int(logits.argmax()))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("path", [smollm2, gemma])
def test_published_vocabularies_keep_their_tokens(path: Callable[[], Path], tmp_path: Path) -> None:
    """Read from a GGUF, written to another with a small model, and there the same as in the first."""
    metadata = GGUFFile(path()).metadata
    tokenizer = from_metadata(metadata, str(path()))
    model = pellucid.build(modern(tokenizer.vocab_size, 64, 1, 32, 16))
    model.tokenizer = tokenizer
    to_gguf(model, tmp_path / "model.gguf")
    with opened(path(), vocab_only=True) as first, opened(tmp_path / "model.gguf", vocab_only=True) as second:
        for text in texts():
            wanted = first.tokenize(text.encode(), add_bos=True, special=False)
            assert tokenizer.encode_prompt(text) == wanted
            assert second.tokenize(text.encode(), add_bos=True, special=False) == wanted
        for text in ("<bos><start_of_turn>user\nhi", "<|im_start|>user\nhi<|im_end|>"):
            wanted = first.tokenize(text.encode(), add_bos=False, special=True)
            assert second.tokenize(text.encode(), add_bos=False, special=True) == wanted
    assert GGUFFile(tmp_path / "model.gguf").metadata.get("tokenizer.chat_template") == metadata.get(
        "tokenizer.chat_template"
    )


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("path", [smollm2, gemma])
def test_a_published_model_that_we_write_again_gives_our_logits(path: Callable[[], Path], tmp_path: Path) -> None:
    """In float32, where llama.cpp has nothing to round; the quantised original it multiplies in 8 bits."""
    from pellucid.checkpoints.gguf.read import open_gguf
    from pellucid.checkpoints.load import load_checkpoint

    model: Any = load_checkpoint(open_gguf(path()))
    to_gguf(model, tmp_path / "model.gguf", "f32")
    numbers = random.Random(0).choices(range(1000, 5000), k=24)
    with torch.no_grad():
        ours = model(torch.tensor([numbers]))[0].numpy()
    with opened(tmp_path / "model.gguf") as theirs:
        theirs.eval(numbers)
        given = np.array(theirs.scores[:24])
    with opened(path()) as theirs:
        theirs.eval(numbers)
        original = np.array(theirs.scores[:24])
    assert float(np.abs(ours - given).max()) <= 2e-2 * float(ours.std())
    assert float(np.abs(ours - original).mean()) <= 0.15 * float(ours.std())
