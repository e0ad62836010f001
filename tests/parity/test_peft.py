"""Adapters in PEFT's files: what peft wrote opens here as the same function, and what we wrote opens there."""

from __future__ import annotations

import copy
import json
import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from against_hf import VOCAB, gap, noisy, random_ids
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM

import pellucid
from pellucid.checkpoints.peft.read import open_adapter
from pellucid.checkpoints.peft.write import save_adapter
from pellucid.errors import CheckpointError, PellucidError
from pellucid.families.registry import spec_of
from pellucid.families.weights import load_weights
from pellucid.nn.models import build_model
from pellucid.surgery.holding import active, names, parameters_of, switch
from pellucid.surgery.lora import LoRA, Ranked, adapt
from pellucid.surgery.merging import merge

TOLERANCE, VISIBLE = 1e-5, 1e-3
COMMON: dict[str, Any] = {"vocab_size": VOCAB, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
LLAMA: dict[str, Any] = {
    **COMMON, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "attention_bias": True,
}  # fmt: skip
PLAIN = {name: value for name, value in LLAMA.items() if name != "attention_bias"}
SIZES: dict[str, dict[str, Any]] = {
    "llama": LLAMA,
    "gpt2": {**COMMON, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
    "gemma": {**PLAIN, "head_dim": 8},
    "bert": {**COMMON, "pad_token_id": 0, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
             "num_attention_heads": 4, "max_position_embeddings": 64},
    "t5": {"vocab_size": VOCAB, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4,
           "feed_forward_proj": "gated-gelu", "decoder_start_token_id": 0},
    "mixtral": {**PLAIN, "num_local_experts": 4, "num_experts_per_tok": 2},
}  # fmt: skip
KINDS: dict[str, Any] = {"bert": AutoModelForMaskedLM, "t5": AutoModelForSeq2SeqLM}
LINEAR: dict[str, list[str]] = {
    "llama": ["q_proj", "v_proj", "down_proj"],
    "gpt2": ["c_attn", "c_fc"],
    "gemma": ["q_proj", "o_proj", "up_proj"],
    "bert": ["query", "intermediate.dense"],
    "t5": ["q", "v", "wi_0"],
    "mixtral": ["q_proj", "o_proj"],
}
TABLE = {
    "llama": "embed_tokens",
    "gpt2": "wte",
    "gemma": "embed_tokens",
    "bert": "word_embeddings",
    "mixtral": "embed_tokens",
}
HEAD = {
    "llama": "lm_head",
    "gpt2": "lm_head",
    "gemma": "lm_head",
    "bert": "decoder",
    "t5": "lm_head",
    "mixtral": "lm_head",
}
NORM = {
    "llama": "model.norm",
    "gpt2": "ln_f",
    "gemma": "model.norm",
    "bert": "output.LayerNorm",
    "t5": "final_layer_norm",
    "mixtral": "model.norm",
}

_models: dict[str, tuple[Any, Any]] = {}


def pair(family: str) -> tuple[Any, Any]:
    """(their model, ours with its weights), copies of their own."""
    if family not in _models:
        torch.manual_seed(0)
        theirs = noisy(
            KINDS.get(family, AutoModelForCausalLM).from_config(AutoConfig.for_model(family, **SIZES[family]))
        )
        if family == "mixtral":
            theirs.set_experts_implementation("eager")
        spec, table = spec_of(json.loads(theirs.config.to_json_string(use_diff=False)), type(theirs).__name__)
        ours = build_model(spec)
        state = {name: each for name, each in theirs.state_dict().items() if name not in theirs._tied_weights_keys}
        load_weights(ours, state if family in ("gpt2", "gemma", "bert", "t5") else theirs.state_dict(), table)
        _models[family] = theirs, ours.eval()
    theirs, ours = _models[family]
    return copy.deepcopy(theirs), copy.deepcopy(ours)


@contextmanager
def quiet() -> Iterator[None]:
    """peft warns of ties, of fan_in_fan_out, and of tables that it saves."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@torch.no_grad()
def outputs(model: Any) -> Tensor:
    """Logits of theirs or ours."""
    ids = random_ids()
    kind = type(model.get_base_model() if isinstance(model, PeftModel) else model).__name__
    if kind == "EncoderDecoder":
        return model(ids, ids[:, :9])
    if kind.startswith("T5"):
        return model(input_ids=ids, decoder_input_ids=ids[:, :9]).logits
    found = model(ids)
    return found if isinstance(found, Tensor) else found.logits


@torch.no_grad()
def stir(parameters: Iterator[Tensor] | list[Tensor], seed: int = 3) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in parameters:
        parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)


def written_by_peft(family: str, folder: Path, **asked: Any) -> Tensor:
    """An adapter that peft made and saved; the logits of their model with it."""
    theirs, _ = pair(family)
    with quiet():
        adapted = get_peft_model(theirs, LoraConfig(lora_dropout=0.0, **asked)).eval()
        stir([each for each in adapted.parameters() if each.requires_grad])
        adapted.save_pretrained(str(folder))
    return outputs(adapted)


def opened_by_peft(family: str, folder: Path) -> Tensor:
    theirs, _ = pair(family)
    with quiet():
        return outputs(PeftModel.from_pretrained(theirs, str(folder)).eval())


def close(a: Tensor, b: Tensor) -> bool:
    return gap(a, b) <= TOLERANCE * max(1.0, float(b.abs().max()))


OPTIONS: dict[str, Callable[[str], dict[str, Any]]] = {
    "plain": lambda f: {"r": 4, "lora_alpha": 6, "target_modules": LINEAR[f]},
    "rslora": lambda f: {"r": 4, "lora_alpha": 6, "target_modules": LINEAR[f], "use_rslora": True},
    "dora": lambda f: {"r": 4, "lora_alpha": 6, "target_modules": LINEAR[f], "use_dora": True},
    "patterns": lambda f: {
        "r": 4, "lora_alpha": 6, "target_modules": LINEAR[f], "rank_pattern": {LINEAR[f][0]: 2},
        "alpha_pattern": {rf".*1.*\.{LINEAR[f][1]}": 3, LINEAR[f][0]: 5},
    },
    "rslora and patterns": lambda f: {
        "r": 4, "lora_alpha": 6, "target_modules": LINEAR[f], "rank_pattern": {LINEAR[f][0]: 2}, "use_rslora": True,
    },
    "bias of all": lambda f: {"r": 4, "lora_alpha": 6, "target_modules": LINEAR[f], "bias": "all"},
    "bias of adapted": lambda f: {"r": 4, "lora_alpha": 6, "target_modules": LINEAR[f], "bias": "lora_only"},
    "whole norm": lambda f: {"r": 4, "lora_alpha": 6, "target_modules": LINEAR[f], "modules_to_save": [NORM[f]]},
    "whole head": lambda f: {"r": 4, "lora_alpha": 6, "target_modules": LINEAR[f], "modules_to_save": [HEAD[f]]},
    "table": lambda f: {"r": 4, "lora_alpha": 6, "target_modules": [*LINEAR[f], TABLE[f]]},
    "dora of table": lambda f: {"r": 4, "lora_alpha": 6, "target_modules": [*LINEAR[f], TABLE[f]], "use_dora": True},
    "head": lambda f: {"r": 4, "lora_alpha": 6, "target_modules": [*LINEAR[f], HEAD[f]]},
    "dora of head": lambda f: {"r": 4, "lora_alpha": 6, "target_modules": [HEAD[f]], "use_dora": True},
}  # fmt: skip
EXPERTS: dict[str, dict[str, Any]] = {
    "both": {"target_parameters": ["experts.gate_up_proj", "experts.down_proj"]},
    "one": {"target_parameters": ["experts.gate_up_proj"]},
    "the other": {"target_parameters": ["experts.down_proj"]},
    "beside linear": {"target_parameters": ["experts.down_proj", "experts.gate_up_proj"], "target_modules": ["q_proj"]},
    "ranks": {"target_parameters": ["experts.gate_up_proj", "experts.down_proj"],
              "rank_pattern": {"experts.down_proj": 2}, "use_rslora": True},
}  # fmt: skip
QUICK = {
    ("llama", "patterns"), ("gpt2", "plain"), ("gpt2", "dora of table"), ("gemma", "head"), ("bert", "bias of adapted"),
    ("t5", "rslora"), ("mixtral", "whole head"), ("llama", "one of fused"), ("gpt2", "dora of one of fused"),
    ("gemma", "everything, tied"), ("bert", "whole"), ("t5", "all linear"), ("mixtral", "all linear"),
}  # fmt: skip


def cases(options: Iterable[str]) -> list[Any]:
    """(family, option); most of them run in `make test-all`. Of T5's table, peft adapts a name that nothing calls."""
    pairs = [(family, option) for family in SIZES for option in options]
    kept = [each for each in pairs if not (each[0] == "t5" and ("table" in each[1] or "tied" in each[1]))]
    return [pytest.param(*each, marks=[] if each in QUICK else [pytest.mark.slow]) for each in kept]


@pytest.mark.parametrize(("family", "option"), cases(OPTIONS))
def test_adapter_by_peft_gives_the_same_logits_here_and_goes_back(family: str, option: str, tmp_path: Path) -> None:
    wanted = written_by_peft(family, tmp_path / "theirs", **OPTIONS[option](family))
    model = pair(family)[1]
    plain = outputs(model)
    open_adapter(model, tmp_path / "theirs")
    assert close(outputs(model), wanted)
    assert gap(wanted, plain) > VISIBLE, "the adapter changes something"
    save_adapter(model, tmp_path / "ours")
    assert close(opened_by_peft(family, tmp_path / "ours"), wanted)
    switch(model, None)
    assert torch.equal(outputs(model), plain) or gap(outputs(model), plain) < 1e-6, "an untied head is a copy"


@pytest.mark.parametrize("case", EXPERTS)
def test_adapter_of_experts_gives_the_same_logits_here_and_goes_back(case: str, tmp_path: Path) -> None:
    asked = {"target_modules": [], **EXPERTS[case]}
    wanted = written_by_peft("mixtral", tmp_path / "theirs", r=3, lora_alpha=6, **asked)
    model = pair("mixtral")[1]
    plain = outputs(model)
    open_adapter(model, tmp_path / "theirs")
    assert close(outputs(model), wanted) and gap(wanted, plain) > VISIBLE
    save_adapter(model, tmp_path / "ours")
    assert close(opened_by_peft("mixtral", tmp_path / "ours"), wanted)


Q_A = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
OURS: dict[str, LoRA] = {
    "all linear": LoRA(rank=3, alpha=5.0),
    "patterns": LoRA(rank=3, ranked=(Ranked(pattern="*.q", rank=2), Ranked(pattern="*.ffn.*", alpha=1.0)), rslora=True),
    "dora": LoRA(targets=("*.attn.*",), rank=3, dora=True),
    "one of fused": LoRA(targets=("*.attn.q", "*.ffn.up"), rank=3),
    "dora of one of fused": LoRA(targets=("*.attn.v", "*.attn.k"), rank=3, dora=True),
    "everything, tied": LoRA(targets=("*.attn.*", "*embed.tokens"), rank=3),
    "cut, head": LoRA(targets=("*.attn.*", "*head"), rank=3, ties="cut"),
    "whole": LoRA(targets=("*.attn.q",), rank=3, also=("*norms.*.weight", "*final_norm.weight")),
}


@pytest.mark.parametrize(("family", "option"), cases(OURS))
def test_adapter_of_ours_gives_the_same_logits_in_peft(family: str, option: str, tmp_path: Path) -> None:
    asked = OURS[option]
    if family == "bert" and asked.also:
        asked = LoRA(targets=asked.targets, rank=3, also=("*norms.*.weight",))
    theirs, model = pair(family)
    adapt(model, asked)
    stir(list(parameters_of(model, "adapter").values()))
    wanted = outputs(model)
    assert gap(wanted, outputs(theirs)) > VISIBLE
    save_adapter(model, tmp_path, base="someone/model")
    assert close(opened_by_peft(family, tmp_path), wanted)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["base_model_name_or_path"] == "someone/model"
    again = open_adapter(pair(family)[1], tmp_path)
    assert close(outputs(again), wanted)


def test_adapter_by_peft_is_merged_and_switched_here(tmp_path: Path) -> None:
    wanted = written_by_peft("gpt2", tmp_path / "a", r=4, target_modules=["c_attn"], use_dora=True)
    other = written_by_peft("gpt2", tmp_path / "b", r=2, target_modules=["c_fc", "c_proj"])
    model = pair("gpt2")[1]
    open_adapter(model, tmp_path / "a", name="a")
    open_adapter(model, tmp_path / "b", name="b")
    assert names(model) == ["a", "b"] and active(model) == "b"
    assert close(outputs(model), other)
    switch(model, "a")
    assert close(outputs(model), wanted)
    merge(model)
    assert close(outputs(model), wanted)


def test_folder_of_an_adapter_opens_by_its_name_with_its_base(tmp_path: Path) -> None:
    model = pair("llama")[1]
    pellucid.convert(model, tmp_path / "base")
    stir(list(parameters_of(adapt(model), "adapter").values()))
    wanted = outputs(model)
    pellucid.save_adapter(model, tmp_path / "adapter", base=str(tmp_path / "base"))
    loaded = pellucid.load(tmp_path / "adapter")
    assert close(outputs(loaded), wanted) and names(loaded) == ["adapter"]
    pellucid.convert(loaded, tmp_path / "merged")
    assert close(outputs(pellucid.load(tmp_path / "merged")), wanted)
    pellucid.convert(loaded, tmp_path / "merged.gguf", to="gguf", quantisation="f32")
    assert close(outputs(pellucid.load(tmp_path / "merged.gguf")), wanted)
    assert names(loaded) == ["adapter"] and torch.equal(outputs(loaded), outputs(pellucid.load(tmp_path / "adapter")))
    pellucid.save_adapter(model, tmp_path / "nameless")
    with pytest.raises(CheckpointError, match="does not say for which model"):
        pellucid.load(tmp_path / "nameless")


# --- controls: what is read wrongly gives other logits ---------------------------------------------------------------


def spoiled(folder: Path, change: Callable[[dict[str, Tensor]], None] = lambda _: None, **config: Any) -> Path:
    """The same folder with tensors or options changed."""
    tensors = load_file(folder / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, folder / "adapter_model.safetensors")
    said = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**said, **config}))
    return folder


def swap_experts(tensors: dict[str, Tensor]) -> None:
    for key, each in tensors.items():
        if key.endswith("lora_B.weight"):  # as if B were expert-major, too
            tensors[key] = each.unflatten(1, (4, -1)).transpose(1, 2).flatten(1).contiguous()


@pytest.mark.parametrize(
    ("family", "asked", "wrong"),
    [
        ("llama", OPTIONS["plain"]("llama"), {"lora_alpha": 7}),
        ("llama", OPTIONS["plain"]("llama"), {"use_rslora": True}),
        ("llama", OPTIONS["patterns"]("llama"), {"alpha_pattern": {}}),
        ("mixtral", {"r": 3, "target_modules": [], **EXPERTS["both"]}, {"change": swap_experts}),
    ],
)
def test_wrong_reading_is_visible(family: str, asked: Any, wrong: dict[str, Any], tmp_path: Path) -> None:
    wanted = written_by_peft(family, tmp_path, **asked)
    model = open_adapter(pair(family)[1], spoiled(tmp_path, **wrong))
    assert gap(outputs(model), wanted) > VISIBLE


# --- refused ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plain_adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("peft")
    written_by_peft("llama", folder, **OPTIONS["plain"]("llama"))
    return folder


def drop(part: str) -> Callable[[dict[str, Tensor]], None]:
    def change(tensors: dict[str, Tensor]) -> None:
        for key in [key for key in tensors if part in key]:
            del tensors[key]

    return change


def add(key: str, value: Tensor) -> Callable[[dict[str, Tensor]], None]:
    return lambda tensors: tensors.update({key: value})


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"peft_type": "LOHA"}, "peft_type = 'LOHA'"),
        ({"some_new_option": 3}, "some_new_option = 3 is not known"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"layer_replication": [[0, 1]]}, "layer_replication"),
        ({"lora_bias": True}, "lora_bias"),
        ({"use_qalora": True}, "use_qalora"),
        ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens"),
        ({"ensure_weight_tying": True}, "ensure_weight_tying"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights"),
        ({"r": 0}, "r = 0"),
        ({"r": 5}, "A and B"),
        ({"r": None}, "lacks r"),
        ({"lora_alpha": "a"}, "lora_alpha"),
        ({"bias": "some"}, "bias = 'some'"),
        ({"use_dora": True}, "use_dora"),
        ({"rank_pattern": {"(a+)+b": 2}}, "too involved"),
        ({"rank_pattern": 3}, "rank_pattern"),
        ({"modules_to_save": [3]}, "modules_to_save"),
        ({"change": drop("lora_B")}, "is missing"),
        ({"change": drop("layers.1.self_attn.q_proj")}, "lacks the factors"),
        ({"change": add("base_model.model.model.norm.weight", torch.ones(32))}, "a weight of the base"),
        ({"change": add("base_model.model.x.lora_A.weight", torch.ones(4, 32))}, "does not have"),
        ({"change": add("base_model.model.what", torch.ones(4))}, "no module of this model"),
        ({"change": add("base_model.model.lm_head.weight", torch.ones(70, 32))}, "(70, 32)"),
        ({"change": add(Q_A, torch.ones(9, 32))}, "A and B"),
        ({"change": add(Q_A, torch.full((4, 32), torch.nan))},
         "NaN"),
    ],
)  # fmt: skip
def test_unreadable_adapter_is_refused_and_leaves_the_model_alone(
    changes: dict[str, Any], says: str, plain_adapter: Path, tmp_path: Path
) -> None:
    shutil.copytree(plain_adapter, tmp_path, dirs_exist_ok=True)
    spoiled(tmp_path, **changes)
    model = pair("llama")[1]
    with pytest.raises(PellucidError) as error:
        open_adapter(model, tmp_path)
    assert says in error.value.problem
    assert names(model) == []


def test_adapter_of_another_base_is_refused(tmp_path: Path) -> None:
    written_by_peft("gpt2", tmp_path, **OPTIONS["plain"]("gpt2"))
    with pytest.raises(CheckpointError, match="does not have"):
        open_adapter(pair("llama")[1], tmp_path)


def test_weights_of_the_base_that_a_file_carries_are_taken_only_when_asked(tmp_path: Path) -> None:
    written_by_peft("llama", tmp_path, **OPTIONS["plain"]("llama"))
    spoiled(tmp_path, add("base_model.model.model.norm.weight", torch.full((32,), 0.5)))
    model = pair("llama")[1]
    plain = outputs(model)
    open_adapter(model, tmp_path, base_weights=True)
    assert bool((model.final_norm.weight == 0.5).all())
    switch(model, None)
    assert torch.equal(outputs(model), plain)
