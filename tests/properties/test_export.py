"""A model made here, written for other tools: ``transformers`` opens it and says the same; and it comes back."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

import pellucid
from pellucid.checkpoints import export
from pellucid.checkpoints.export import to_hf
from pellucid.cli.main import run
from pellucid.designs import DESIGNS, design
from pellucid.errors import CheckpointError, UsageError
from pellucid.families.registry import spec_of
from pellucid.generate.decode import generate
from pellucid.generate.sample import Sampling
from pellucid.nn.models import AnyModel
from pellucid.spec import DecoderSpec, EncoderDecoderSpec, ModelSpec
from pellucid.text.tokenizer import Tokenizer
from pellucid.text.tokenizer_roles import Roles

TOLERANCE, VISIBLE = 1e-5, 1e-3
PROMPT = "def wrap(text, width=70):\n    return TextWrapper"
GREEDY = Sampling(temperature=0.0)

# what a design of ours is to the outside, and what of the others is in the way
EXPRESSED = {"modern": "qwen3", "window": "qwen3", "classic": "gpt2", "moe": "qwen3_moe"}
IN_THE_WAY = {
    "parallel": "parallel",
    "nope": "rotary",
    "alibi": "rotary",
    "t5_bias": "rotary",
    "sparse": "mask",
    "linear": "mixer",
    "hybrid": "mixer",
    "lstm": "mixer",
}

_LLAMA = {
    **{"vocab_size": 300, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64},
}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {**_LLAMA, "tie_word_embeddings": True, "attention_bias": True},
    "mistral": {**_LLAMA, "sliding_window": 8},
    "mixtral": {**_LLAMA, "num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen2": {**_LLAMA, "tie_word_embeddings": True},
    "gemma2": {**_LLAMA, "head_dim": 8, "sliding_window": 8},
    "gemma3_text": {**_LLAMA, "head_dim": 8, "sliding_window": 8},
    "gpt_neox": {key: value for key, value in _LLAMA.items() if key != "num_key_value_heads"},
    "bert": {key: value for key, value in _LLAMA.items() if key != "num_key_value_heads"},
    "t5": {"vocab_size": 300, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4},
}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train([inspect.getsource(textwrap)], 300)


def random_model(spec: ModelSpec, tokenizer: Tokenizer | None = None) -> Any:
    """Every weight away from where it starts, so that none is 0 or 1 and none can be left out unseen."""
    model = pellucid.build(spec).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn(weight.shape, generator=generator) * 0.1)
    model.tokenizer = tokenizer
    return model


def small(name: str) -> DecoderSpec:
    spec = design(name)(300, 64, 3, 32, 16)
    assert isinstance(spec, DecoderSpec)
    return spec


def theirs(folder: Path) -> Any:
    """The class that the folder names, opened by ``transformers``, which must miss nothing and have nothing left."""
    name = json.loads((folder / "config.json").read_text())["architectures"][0]
    model, info = getattr(transformers, name).from_pretrained(folder, output_loading_info=True, dtype="auto")
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    return model.eval()


@torch.no_grad()
def both(model: Any, other: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """What each makes of the same ids."""
    ids = torch.randint(300, (2, 20), generator=torch.Generator().manual_seed(5))
    if isinstance(model.spec, EncoderDecoderSpec):
        return model(ids, ids.flip(1)), other(ids, decoder_input_ids=ids.flip(1)).logits
    out = other(ids)
    return model(ids), out.logits if "logits" in out else out.pooler_output


def same(a: AnyModel, b: AnyModel) -> bool:
    first, second = a.state_dict(), b.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def check_round_trip(model: Any, folder: Path) -> None:
    """Their logits are ours, and wrong weights are seen; the folder comes back as the same spec, bit for bit."""
    mine, others = both(model, theirs(folder))
    assert (mine - others).abs().max() <= TOLERANCE
    back = pellucid.load(folder)
    assert same(model, back)
    changed = random_model(model.spec)
    with torch.no_grad():
        for weight in changed.parameters():
            weight.mul_(1.05)
    assert (both(changed, theirs(folder))[0] - others).abs().max() > VISIBLE


# --- out and back ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EXPRESSED)
def test_a_design_opens_elsewhere(name: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Same logits, same ids for a text, same greedy continuation; and back, equal bit for bit, with its tokenizer."""
    model, folder = random_model(small(name), tokenizer), tmp_path / "out"
    assert to_hf(model, folder) == EXPRESSED[name]
    check_round_trip(model, folder)

    ids = transformers.AutoTokenizer.from_pretrained(folder)(PROMPT).input_ids
    assert ids == tokenizer.encode_prompt(PROMPT)
    other: Any = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    prompt = torch.tensor([ids])
    written = other.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=24, do_sample=False)
    ours = generate(model, PROMPT, max_new_tokens=24, sampling=GREEDY)[0]
    assert written[0, len(ids) :].tolist() == ours.ids

    back = pellucid.load(folder)
    assert back.spec == model.spec and back.tokenizer is not None
    assert back.tokenizer.encode_prompt(PROMPT) == ids and back.tokenizer.stop_ids == tokenizer.stop_ids
    assert generate(back, PROMPT, max_new_tokens=24, sampling=GREEDY)[0].ids == ours.ids


@pytest.mark.parametrize("name", CONFIGS)
def test_a_model_of_every_kind_opens_elsewhere(name: str, tmp_path: Path) -> None:
    model = random_model(spec_of({"model_type": name, **CONFIGS[name]})[0])
    assert to_hf(model, tmp_path / "out", name) == name
    check_round_trip(model, tmp_path / "out")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_type_of_the_weights_is_kept(dtype: torch.dtype, tmp_path: Path) -> None:
    model = random_model(small("modern")).to(dtype)
    to_hf(model, tmp_path / "out")
    assert {weight.dtype for weight in load_file(tmp_path / "out" / "model.safetensors").values()} == {dtype}
    assert theirs(tmp_path / "out").dtype == dtype
    assert same(model, pellucid.load(tmp_path / "out", dtype))


def test_tokens_that_end_a_text_are_in_the_config(tokenizer: Tokenizer, tmp_path: Path) -> None:
    to_hf(random_model(small("modern"), tokenizer), tmp_path / "out")
    for file in ("config.json", "generation_config.json"):
        said = json.loads((tmp_path / "out" / file).read_text())
        assert (said["bos_token_id"], said["eos_token_id"]) == (tokenizer.bos_id, tokenizer.eos_id)


def test_how_long_a_text_may_be_is_said_beside_the_tokenizer(tokenizer: Tokenizer, tmp_path: Path) -> None:
    model = random_model(small("modern"), tokenizer)
    to_hf(model, tmp_path / "out")
    theirs: Any = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert len(theirs("a b c " * 999, truncation=True)["input_ids"]) == model.spec.context


def test_token_that_ends_a_turn_alone_ends_a_text(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """A vocabulary may have no end of text, and still a token that ends generation."""
    assert tokenizer.eos_id is not None
    turns = Tokenizer(tokenizer.inner, Roles(stop_ids=(tokenizer.eos_id,)))
    to_hf(random_model(small("modern"), turns), tmp_path / "out")
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text()) == {"eos_token_id": tokenizer.eos_id}


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", IN_THE_WAY)
def test_models_that_no_family_expresses_are_refused_by_name(name: str, tmp_path: Path) -> None:
    named = rf"no published family can express this model.*\.{IN_THE_WAY[name]} = "
    with pytest.raises(CheckpointError, match=named) as refusal:
        to_hf(random_model(small(name)), tmp_path / "out")
    assert len(str(refusal.value)) < 300, "what is in the way, and not all that other kinds of models have"
    assert not list(tmp_path.iterdir())


def test_every_design_is_expressed_or_refused(tmp_path: Path) -> None:
    """The table above is complete: a design that comes later must take a side."""
    refused = set[str]()
    for name in DESIGNS.keys() - EXPRESSED.keys():
        with pytest.raises(CheckpointError):
            to_hf(pellucid.build(small(name)), tmp_path / name)
        refused.add(name)
    assert refused >= IN_THE_WAY.keys()


def test_another_family_than_asked_for_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"llama cannot express this model: .*qk_norm"):
        to_hf(random_model(small("modern")), tmp_path / "out", "llama")
    plain = small("modern")
    block = plain.stack.blocks[0]
    block = replace(block, mixer=replace(block.mixer, qk_norm=None))
    plain = replace(plain, stack=replace(plain.stack, blocks=(block,) * 3))
    assert to_hf(random_model(plain), tmp_path / "out", "llama") == "llama"


def test_a_model_that_diverged_is_refused(tmp_path: Path) -> None:
    model = random_model(small("modern"))
    with torch.no_grad():
        model.blocks[1].ffn.up.weight[0, 0] = torch.nan
    with pytest.raises(CheckpointError, match=r"model\.layers\.1\.mlp\.up_proj\.weight holds NaN"):
        to_hf(model, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_failure_leaves_the_old_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, folder = random_model(small("classic")), tmp_path / "out"
    to_hf(model, folder)

    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export, "write_tensors", fail)
    with pytest.raises(pellucid.errors.RunError, match="No space left"):
        to_hf(random_model(small("modern")), folder)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert same(model, pellucid.load(folder))


# --- convert ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def native(tokenizer: Tokenizer, tmp_path: Path) -> Path:
    pellucid.save(random_model(small("modern"), tokenizer), tmp_path / "native")
    return tmp_path / "native"


def test_convert_goes_round(native: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Ours, theirs, ours again: from a shell, equal to the bit, and each says what it wrote."""
    assert run(["convert", str(native), "--to", "hf", "--out", str(tmp_path / "hf")]) == 0
    assert "hf: qwen3; config.json" in capsys.readouterr().out
    assert run(["convert", str(tmp_path / "hf"), "--to", "native", "--out", str(tmp_path / "again")]) == 0
    first, again = pellucid.load(native), pellucid.load(tmp_path / "again")
    assert first.spec == again.spec and same(first, again)
    assert first.tokenizer is not None and again.tokenizer is not None
    assert first.tokenizer.encode(PROMPT) == again.tokenizer.encode(PROMPT)
    half = tmp_path / "half"
    assert run(["convert", str(native), "--out", str(half), "--dtype", "bfloat16"]) == 0
    assert {weight.dtype for weight in load_file(half / "model.safetensors").values()} == {torch.bfloat16}


def test_convert_replaces_a_model_only_when_told_to(native: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    pellucid.convert(native, out)
    with pytest.raises(UsageError, match=r"out is not empty\s+replace it with --force"):
        pellucid.convert(native, out)
    pellucid.convert(native, out, "native", force=True)
    assert (out / "spec.json").exists() and not (out / "config.json").exists()


@pytest.mark.parametrize("file", ["notes.txt", "run.json"])
def test_convert_never_replaces_what_is_no_model(file: str, native: Path, tmp_path: Path) -> None:
    """A folder of anything else, or of a whole training run, is not removed whatever is said."""
    out = tmp_path / "out"
    pellucid.convert(native, out, "native")
    (out / "spec.json").unlink() if file == "notes.txt" else None
    (out / file).write_text("{}")
    with pytest.raises(UsageError, match="is not empty"):
        pellucid.convert(native, out, force=True)
    assert (out / file).exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"to": "gguf", "out": "x.gguf", "dtype": torch.float16}, "dtype .* is not for gguf"),
        ({"to": "hf", "out": "x", "quantisation": "q8_0"}, "quantisation = q8_0 is not for hf"),
        ({"to": "native", "out": "x", "family": "llama"}, "family = llama is not for native"),
        ({"to": "gguf", "out": "x"}, r"no name for a GGUF\s+give a file that ends in \.gguf"),
        ({"to": "hf", "out": "native/spec.json"}, r"spec\.json is a file"),
    ],
)
def test_convert_refuses(
    options: dict[str, Any], message: str, native: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=message):
        pellucid.convert("native", **options)
    assert [path.name for path in tmp_path.iterdir()] == ["native"]


# --- loading ---------------------------------------------------------------------------------------------------------

_MEASURE = """
import sys, torch, pellucid
def peak():
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))
pellucid.load(sys.argv[1])  # all that is imported, and what torch keeps for itself
before = peak()
model = pellucid.load(sys.argv[2], getattr(torch, sys.argv[3]))
print((peak() - before) / sum(weight.nbytes for weight in model.parameters()))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
@pytest.mark.parametrize(
    ("saved", "loaded", "write"),
    [
        pytest.param(torch.float32, "float32", to_hf, id="float32", marks=pytest.mark.slow),
        pytest.param(torch.bfloat16, "float32", to_hf, id="bfloat16 to float32"),
        pytest.param(torch.float32, "bfloat16", to_hf, id="float32 to bfloat16", marks=pytest.mark.slow),
        pytest.param(torch.float32, "float32", pellucid.save, id="native"),
    ],
)
def test_loading_takes_the_memory_of_the_model(
    saved: torch.dtype, loaded: str, write: Callable[[AnyModel, Path], Any], tmp_path: Path
) -> None:
    """At its peak at most 1.2 × what the model itself takes, pages of files counted, in a process of its own."""
    spec = design("modern")(8192, 64, 4, 512, 64)  # 84 MB: far above what an allocator keeps
    model = pellucid.build(spec, init="fan_in").to(saved)
    write(pellucid.build(small("modern")), tmp_path / "small")
    write(model, tmp_path / "large")
    command = [sys.executable, "-c", _MEASURE, str(tmp_path / "small"), str(tmp_path / "large"), loaded]
    ratio = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert 0.9 < ratio <= 1.2


def test_a_model_is_made_without_drawing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What will be overwritten is not drawn first; the control: a new model draws."""
    drawn: list[str] = []
    usual = torch.Tensor.uniform_
    monkeypatch.setattr(torch.Tensor, "uniform_", lambda self, *a, **k: (drawn.append("x"), usual(self, *a, **k))[1])
    to_hf(pellucid.build(small("modern")), tmp_path / "out")
    assert drawn
    drawn.clear()
    pellucid.load(tmp_path / "out")
    assert not drawn
