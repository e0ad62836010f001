"""GGUF: what is written is read back, by us and by others; layouts are undone; what cannot be said is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import torch
from against_hf import TOLERANCE, VISIBLE, every_block, forced, gap, random_ids
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFReader, GGUFWriter
from gguf.quants import dequantize
from gguf_files import MODELS, model_of, rewrite, written
from transformers import AutoModelForCausalLM

from pellucid.checkpoints.gguf.file import CHUNK, GGUFFile
from pellucid.checkpoints.gguf.names import layouts
from pellucid.checkpoints.gguf.read import open_gguf
from pellucid.checkpoints.gguf.write import to_gguf
from pellucid.checkpoints.load import load_checkpoint
from pellucid.designs import language_models
from pellucid.errors import CheckpointError, UsageError
from pellucid.families.registry import spec_of
from pellucid.nn.formats import FORMATS
from pellucid.nn.models import build_model
from pellucid.spec import CAUSAL, GatedFFNSpec, RMSNormSpec, RotarySpec, Window, YaRNScaling
from pellucid.text.gguf_splits import BY_NAME, SPLITS
from pellucid.text.tokenizer import Tokenizer
from pellucid.text.tokenizer_gguf import from_metadata
from pellucid.text.tokenizer_roles import Roles


def is_gain_from_one(name: str, model: Any) -> bool:
    """Such gains are kept as 1 + weight, which float32 rounds."""
    norm = model.spec.stack.final_norm
    return isinstance(norm, RMSNormSpec) and norm.offset == 1.0 and "norm" in name


# --- round trips -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", MODELS.values(), ids=MODELS.keys())
def test_float32_is_read_back_bit_for_bit(config: dict[str, Any], tmp_path: Path) -> None:
    model = model_of(config)
    checkpoint = open_gguf(written(model, tmp_path))
    assert spec_of(checkpoint.config)[0] == model.spec
    weights = load_checkpoint(checkpoint).state_dict()
    for name, weight in model.state_dict().items():
        if is_gain_from_one(name, model):
            assert gap(weight, weights[name]) <= 1.2e-7, name
        else:
            assert torch.equal(weight, weights[name]), name


@pytest.mark.parametrize("kind", ["llama", "mixtral", "gemma3", "gpt2"])
def test_float16_rounds_matrices_once(kind: str, tmp_path: Path) -> None:
    model = model_of(MODELS[kind])
    weights = load_checkpoint(open_gguf(written(model, tmp_path, "f16"))).state_dict()
    for name, weight in model.state_dict().items():
        exact = weight.ndim == 1 or "positions" in name or "router" in name
        wanted = weight if exact else weight.half().float()
        assert gap(wanted, weights[name]) <= (1.2e-7 if is_gain_from_one(name, model) else 0), name


@pytest.mark.parametrize("kind", ["llama", "qwen3", "neox"])
def test_q8_0_stays_within_half_a_step(kind: str, tmp_path: Path) -> None:
    model = model_of(MODELS[kind])
    path = written(model, tmp_path, "q8_0")
    kinds = {name: info.kind for name, info in GGUFFile(path).tensors.items()}
    assert kinds["blk.0.ffn_up.weight"] == "Q8_0" and kinds["blk.0.attn_norm.weight"] == "F32"
    weights = load_checkpoint(open_gguf(path)).state_dict()
    for name, weight in model.state_dict().items():
        if weight.ndim == 2:  # 32 numbers share a step: the largest of them, over 127; the step is a float16
            off = (weight - weights[name]).abs()
            assert float(off.max()) <= float(weight.abs().max()) * (0.5 / 127 + 2**-11), name
            assert float(off.max()) > 0, name


def test_rows_that_are_no_multiple_of_a_block_stay_float16(tmp_path: Path) -> None:
    config = {**MODELS["llama"], "intermediate_size": 40}
    kinds = {name: info.kind for name, info in GGUFFile(written(model_of(config), tmp_path, "q8_0")).tensors.items()}
    assert kinds["blk.0.ffn_down.weight"] == "F16" and kinds["blk.0.ffn_up.weight"] == "Q8_0"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_file_is_read_into_another_type(dtype: torch.dtype, tmp_path: Path) -> None:
    model = model_of(MODELS["gemma3"])
    again = load_checkpoint(open_gguf(written(model, tmp_path)), dtype)
    for name, weight in again.named_parameters():
        wanted = dict(model.named_parameters())[name].detach()
        assert weight.dtype == dtype
        assert gap(weight.detach().float(), wanted.to(dtype).float()) <= 2**-8 * float(wanted.abs().max()), name


# --- others read it --------------------------------------------------------------------------------------------------


def test_the_gguf_package_reads_the_same(tmp_path: Path) -> None:
    path = written(model_of(MODELS["mixtral"]), tmp_path, "q8_0")
    ours, theirs = GGUFFile(path), GGUFReader(path)
    said = {key: field.contents() for key, field in theirs.fields.items() if not key.startswith("GGUF.")}
    assert ours.metadata.keys() == said.keys()
    for key, value in said.items():
        assert ours.metadata[key] == pytest.approx(value, rel=1e-7) if isinstance(value, float) else value
    assert [t.name for t in theirs.tensors] == list(ours.tensors)
    for tensor in theirs.tensors:
        assert np.array_equal(
            ours.read(tensor.name).opened(torch.float32).numpy(), dequantize(tensor.data, tensor.tensor_type)
        )
    stacked = ours.read("blk.1.ffn_up_exps.weight").opened(torch.float32)
    assert all(
        torch.equal(ours.read("blk.1.ffn_up_exps.weight", part=i).opened(torch.float32), stacked[i]) for i in range(3)
    )


# What transformers' reader leaves at its defaults, whatever the file says.
GEMMA_USUAL = {"head_dim": 256, "query_pre_attn_scalar": 256}
USUAL = {"gemma2": GEMMA_USUAL, "gemma3": GEMMA_USUAL, "gpt2": {"vocab_size": 50257, "n_positions": 1024}}


@pytest.mark.parametrize("kind", ["llama, tied", "llama, wide heads", "qwen2", "gemma2", "gemma3", "gpt2"])
def test_transformers_loads_it_and_gives_our_logits(kind: str, tmp_path: Path) -> None:
    """Its reader is another implementation of names and layouts (and knows fewer keys: hence not all kinds)."""
    model = model_of({**MODELS[kind], **USUAL.get(kind, {})})
    written(model, tmp_path)
    theirs: Any = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf", dtype=torch.float32).eval()
    with torch.no_grad():
        assert gap(model(random_ids()), theirs(random_ids()).logits) <= TOLERANCE


# --- traps of layout, each as a control ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "changed"),
    [
        ("llama", "blk.0.attn_q.weight"),
        ("llama, biases", "blk.0.attn_k.bias"),
        ("gemma3", "blk.0.attn_norm.weight"),
        ("gemma3", "blk.0.attn_q_norm.weight"),
        ("gpt2", "blk.0.attn_output.weight"),
        ("neox", "blk.0.attn_qkv.weight"),
        ("neox", "blk.0.attn_qkv.bias"),
    ],
)
def test_a_layout_that_is_not_undone_is_seen(kind: str, changed: str, tmp_path: Path) -> None:
    model = model_of(MODELS[kind])
    architecture = GGUFFile(written(model, tmp_path)).metadata["general.architecture"]
    layout = next(
        layout
        for pattern, layout in layouts(architecture, model.spec.stack.blocks[0].mixer.head_dim).items()
        if re.fullmatch(pattern, changed)
    )

    def keep_published(_: dict[str, Any], tensors: dict[str, Any]) -> None:
        tensors[changed] = layout.undo(torch.from_numpy(tensors[changed])).contiguous().numpy()

    wrong = load_checkpoint(open_gguf(rewrite(tmp_path / "model.gguf", keep_published)))
    with torch.no_grad():
        assert gap(model(random_ids()), wrong(random_ids())) > VISIBLE


def test_rows_of_q_that_turn_together_lie_side_by_side(tmp_path: Path) -> None:
    model = model_of(MODELS["llama"])  # 4 heads of 16
    q, kept = (
        model.blocks[0].attn.q.weight,
        GGUFFile(written(model, tmp_path)).read("blk.0.attn_q.weight").opened(torch.float32),
    )
    for theirs, ours in {0: 0, 1: 8, 2: 1, 15: 15, 16: 16, 17: 24}.items():
        assert torch.equal(kept[theirs], q[ours])


def test_experts_of_older_files_are_tensors_of_their_own(tmp_path: Path) -> None:
    model = model_of(MODELS["mixtral"])

    def split(_: dict[str, Any], tensors: dict[str, Any]) -> None:
        for name in [name for name in tensors if "_exps" in name]:
            for i, expert in enumerate(tensors.pop(name)):
                tensors[name.replace("_exps.", f".{i}.")] = expert

    path = rewrite(written(model, tmp_path), split)
    weights = load_checkpoint(open_gguf(path)).state_dict()
    assert all(torch.equal(weight, weights[name]) for name, weight in model.state_dict().items())


# --- types -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FORMATS)
def test_every_type_is_read_as_the_gguf_package_reads_it(name: str, tmp_path: Path) -> None:
    """Of any bytes, more than a chunk of them, and whatever the scales are."""
    kind = GGMLQuantizationType[name]
    block, block_bytes = GGML_QUANT_SIZES[kind]
    rows = 3 + CHUNK // 1024
    raw = np.random.default_rng(0).integers(0, 256, (rows, 1024 // block * block_bytes), np.uint8)
    writer = GGUFWriter(tmp_path / "raw.gguf", "llama")
    writer.add_tensor("any", raw, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with np.errstate(all="ignore"):
        wanted = dequantize(raw, kind)
    read = GGUFFile(tmp_path / "raw.gguf").read("any").opened(torch.float32)
    assert read.shape == (rows, 1024)
    assert np.array_equal(read.numpy(), wanted, equal_nan=True)


# --- what the metadata say -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("llama.unheard_of", 1, "unheard_of"),
        ("llama.attention.scale", 0.5, "attention.scale"),
        ("llama.attention.value_length", 8, "value_length"),
        ("llama.rope.dimension_count", 8, "rope.dimension_count"),
        ("llama.rope.scaling.type", "longrope", "rope.scaling.type"),
        ("llama.attention.causal", False, "attention.causal"),
        ("llama.block_count", 3, "block_count"),
        ("llama.block_count", 1 << 31, "block_count"),
        ("llama.embedding_length", 32, "embedding_length"),
        ("llama.feed_forward_length", 64, "ffn_"),
        ("llama.attention.head_count", 8, "attn_q.weight"),
        ("llama.attention.head_count", 0, "head_count"),
        ("llama.attention.head_count", "4", "head_count"),
        ("llama.attention.head_count", [4, 4], "head_count"),
        ("llama.attention.head_count_kv", 3, "heads = 3"),
        ("llama.vocab_size", 60, "vocab_size"),
        ("llama.expert_count", 2, "num_experts_per_tok"),
        ("llama.rope.freq_base", float("nan"), "rope.freq_base"),
        ("general.architecture", "rwkv6", "rwkv6"),
        ("general.type", "adapter", "adapter"),
        ("split.count", 3, "parts"),
        ("tokenizer.ggml.tokens", ["a"] * 62, "tokenizer.ggml.tokens"),
    ],
)
def test_a_key_that_does_not_fit_is_named(key: str, value: Any, named: str, tmp_path: Path) -> None:
    def change(metadata: dict[str, Any], _: dict[str, Any]) -> None:
        metadata[key] = value
        if key != "llama.rope.scaling.type":
            return
        metadata["llama.rope.scaling.factor"] = 2.0

    path = rewrite(written(model_of(MODELS["llama"]), tmp_path), change)
    with pytest.raises(CheckpointError, match=re.escape(named)) as caught:
        open_gguf(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("key", ["block_count", "embedding_length", "attention.head_count", "context_length"])
def test_a_key_that_is_missing_is_named(key: str, tmp_path: Path) -> None:
    path = rewrite(written(model_of(MODELS["llama"]), tmp_path), lambda said, _: said.pop(f"llama.{key}"))
    with pytest.raises(CheckpointError, match=re.escape(key)):
        open_gguf(path)


def test_llama_3_1_is_recognised_by_its_factors(tmp_path: Path) -> None:
    """Published files say neither the original context nor the two limits."""
    rule = {"factor": 8.0, "original_max_position_embeddings": 8192, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    config = {**MODELS["llama"], "head_dim": 64, "rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", **rule}}
    model = model_of(config)
    path = rewrite(written(model, tmp_path), lambda said, _: said.pop("llama.rope.scaling.original_context_length"))
    assert spec_of(open_gguf(path).config)[0] == model.spec


def test_factors_of_another_rule_are_refused(tmp_path: Path) -> None:
    path = written(model_of(MODELS["llama, by parts"]), tmp_path)

    def change(_: dict[str, Any], tensors: dict[str, Any]) -> None:
        tensors["rope_freqs.weight"] = np.geomspace(1, 4, 8, dtype=np.float32)

    with pytest.raises(CheckpointError, match="rope_freqs"):
        open_gguf(rewrite(path, change))


def test_factors_of_one_scale_nothing(tmp_path: Path) -> None:
    model = model_of(MODELS["llama"])

    def change(_: dict[str, Any], tensors: dict[str, Any]) -> None:
        tensors["rope_freqs.weight"] = np.ones(8, np.float32)

    assert spec_of(open_gguf(rewrite(written(model, tmp_path), change)).config)[0] == model.spec


@pytest.mark.parametrize("change", ["missing", "left over", "of another shape"])
def test_a_tensor_that_does_not_fit_is_named(change: str, tmp_path: Path) -> None:
    def spoil(_: dict[str, Any], tensors: dict[str, Any]) -> None:
        if change == "missing":
            del tensors["blk.1.ffn_up.weight"]
        elif change == "left over":
            tensors["blk.1.ffn_up.bias"] = np.zeros(96, np.float32)
        else:
            tensors["blk.1.ffn_up.weight"] = tensors["blk.1.ffn_up.weight"][:-1]

    path = rewrite(written(model_of(MODELS["llama"]), tmp_path), spoil)
    with pytest.raises(CheckpointError, match=r"blk\.1\.ffn_up\.(weight|bias)"):
        open_gguf(path)


# --- what cannot be written ------------------------------------------------------------------------------------------


def windowed(model: Any) -> Any:
    return every_block(model.spec, mixer={"mask": CAUSAL & Window(8)})


def gelu(model: Any) -> Any:
    return every_block(model.spec, ffn=GatedFFNSpec(96, "gelu"))


def other_scale(model: Any) -> Any:
    return every_block(model.spec, mixer={"scale": 0.3})


def other_limits(model: Any) -> Any:
    return every_block(model.spec, mixer={"rotary": RotarySpec(500.0, scaling=YaRNScaling(4.0, 16, 8.0, 0.5))})


def scaled_embedding(model: Any) -> Any:
    return replace(model.spec, embed=replace(model.spec.embed, scale=2.0))


@pytest.mark.parametrize(
    ("kind", "change", "named"),
    [
        ("llama", windowed, "mistral"),
        ("llama", gelu, "activation"),
        ("llama", other_scale, "scale"),
        ("llama", other_limits, "beta_fast"),
        ("llama", scaled_embedding, "embed.scale"),
        ("gemma2", gelu, "activation"),
        ("gemma3", other_scale, "scale"),
    ],
)
def test_a_model_that_llama_cpp_cannot_run_is_refused(kind: str, change: Any, named: str, tmp_path: Path) -> None:
    model = model_of(MODELS[kind])
    with pytest.raises(CheckpointError, match=re.escape(named)):
        to_gguf(forced(change(model), model), tmp_path / "model.gguf")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("design", ["alibi", "retention", "lstm", "nope", "t5_bias"])
def test_designs_without_a_published_family_are_refused(design: str, tmp_path: Path) -> None:
    model = build_model(getattr(language_models, design)(300, 64, 2, 128))
    with pytest.raises(CheckpointError):
        to_gguf(model, tmp_path / "model.gguf")


def test_the_usual_design_is_written(tmp_path: Path) -> None:
    model = build_model(language_models.modern(300, 64, 2, 128)).eval()
    path = written(model, tmp_path)
    assert GGUFFile(path).metadata["general.architecture"] == "qwen3"
    with torch.no_grad():
        assert gap(model(random_ids()), load_checkpoint(open_gguf(path))(random_ids())) == 0


@pytest.mark.parametrize(("value", "quantisation"), [(float("nan"), "f32"), (float("inf"), "f16"), (1e5, "f16")])
def test_weights_that_a_type_cannot_hold_are_refused(value: float, quantisation: Any, tmp_path: Path) -> None:
    model = model_of(MODELS["llama"])
    with torch.no_grad():
        model.blocks[1].ffn.up.weight[3, 3] = value
    with pytest.raises(CheckpointError, match=r"blk\.1\.ffn_up\.weight"):
        to_gguf(model, tmp_path / "model.gguf", quantisation)
    assert not list(tmp_path.iterdir())


def test_an_unknown_quantisation_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="q8_0"):
        to_gguf(model_of(MODELS["llama"]), tmp_path / "model.gguf", "q4_k")


# --- vocabularies ----------------------------------------------------------------------------------------------------


def with_vocabulary(change: Callable[[dict[str, Any]], None], rows: int = 300) -> Any:
    """A small model whose tokenizer, a byte-level BPE with a few merges, is changed on purpose."""
    config = json.loads(Tokenizer.train(["the cat and the hat and that"], 280).inner.to_str())
    change(config)
    model = build_model(language_models.modern(rows, 64, 1, 64, 32))
    model.tokenizer = Tokenizer(tokenizers.Tokenizer.from_str(json.dumps(config)), Roles(bos_id=0, stop_ids=(0, 3)))
    return model


def said_of(model: Any, folder: Path) -> dict[str, Any]:
    metadata = GGUFFile(written(model, folder)).metadata
    return {key.removeprefix("tokenizer.ggml."): value for key, value in metadata.items() if "ggml" in key}


def split_by(pattern: str) -> Callable[[dict[str, Any]], None]:
    def change(config: dict[str, Any]) -> None:
        config["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = pattern

    return change


def split_by_gpt2(config: dict[str, Any]) -> None:
    config["pre_tokenizer"] = {**config["pre_tokenizer"]["pretokenizers"][1], "use_regex": True}


def whole_words(config: dict[str, Any]) -> None:
    llama3 = BY_NAME["llama-bpe"].steps[0]["pattern"]["Regex"]
    split_by(llama3)(config)
    config["model"]["ignore_merges"] = True


@pytest.mark.parametrize(
    ("change", "name"), [(lambda _: None, "dbrx"), (split_by_gpt2, "gpt-2"), (whole_words, "llama-bpe")]
)
def test_a_way_of_splitting_has_llama_cpps_name(change: Any, name: str, tmp_path: Path) -> None:
    said = said_of(with_vocabulary(change), tmp_path)
    assert said["pre"] == name and said["model"] == "gpt2"
    assert said["tokens"][0] == "<|endoftext|>" and said["token_type"][0] == 3
    assert len(said["tokens"]) == len(set(said["tokens"])) == 300 and said["token_type"][-1] == 5
    assert said["bos_token_id"] == 0 and said["eot_token_id"] == 0 and "eos_token_id" not in said


@pytest.mark.parametrize("name", [split.names[0] for split in SPLITS])
def test_a_name_is_read_as_what_it_is_written_for(name: str, tmp_path: Path) -> None:
    """What the reader of vocabularies makes of llama.cpp's name, the writer calls by a name of the same splitting."""
    said = GGUFFile(written(with_vocabulary(lambda _: None), tmp_path)).metadata
    model = build_model(language_models.modern(300, 64, 1, 64, 32))
    model.tokenizer = from_metadata({**said, "tokenizer.ggml.pre": name}, "here")
    again = BY_NAME[said_of(model, tmp_path)["pre"]]
    assert (again.steps, again.whole) == (BY_NAME[name].steps, BY_NAME[name].whole)


def lower_case(config: dict[str, Any]) -> None:
    config["normalizer"] = {"type": "Lowercase"}


def space_first(config: dict[str, Any]) -> None:
    config["pre_tokenizer"]["pretokenizers"][1]["add_prefix_space"] = True


@pytest.mark.parametrize(
    ("change", "named"), [(split_by(r"\w+"), "splitting"), (lower_case, "Lowercase"), (space_first, "space")]
)
def test_a_vocabulary_that_llama_cpp_reads_otherwise_is_refused(change: Any, named: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=named):
        written(with_vocabulary(change), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_vocabulary_larger_than_the_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="258 rows"):
        written(with_vocabulary(lambda _: None, rows=258), tmp_path)


def test_words_in_pieces_are_refused(tmp_path: Path) -> None:
    model = with_vocabulary(lambda _: None)
    vocab = {"[UNK]": 0, "the": 1, "##at": 2}
    inner = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocab, unk_token="[UNK]"))
    model.tokenizer = Tokenizer(inner, Roles(unk_id=0))
    with pytest.raises(CheckpointError, match="WordPiece"):
        written(model, tmp_path)
