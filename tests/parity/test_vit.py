"""ViT: ours is Hugging Face's, on random weights and images; and deliberately wrong models are not."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from against_encoders import reopened, with_head
from against_hf import (
    BATCH,
    TOLERANCE,
    VISIBLE,
    config_json,
    every_block,
    forced,
    gap,
    ours,
    relative,
    without,
)
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F
from transformers import ViTConfig, ViTForImageClassification, ViTModel

from pellucid.batch import Tokens
from pellucid.errors import CheckpointError, DataError
from pellucid.families import vit
from pellucid.families.weights import export_weights, load_weights, to_theirs
from pellucid.nn.models import Encoder, build_model
from pellucid.spec import POST_NORM, ClassifierHeadSpec, FFNSpec, LayerNormSpec, LearnedSpec, PoolerHeadSpec

TINY: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "image_size": [8, 12],
    "patch_size": 4,
    "num_channels": 2,
    "layer_norm_eps": 1e-3,  # far from the usual, so that one who forgets it is seen
    "num_labels": 5,
}
HEADS: dict[str, Any] = {"classifier": ViTForImageClassification, "pooler": ViTModel}
VARIANTS: dict[str, dict[str, Any]] = {
    "square, three channels": {"image_size": 12, "num_channels": 3},
    "patches of a pixel": {"image_size": 3, "patch_size": 1},
    "one patch": {"image_size": 4},
    "no bias of q, k, v": {"qkv_bias": False},
    "published eps, tanh gelu": {"layer_norm_eps": 1e-12, "hidden_act": "gelu_pytorch_tanh"},
}


def theirs(kind: Any = ViTForImageClassification, **changes: Any) -> Any:
    return with_head(kind, ViTConfig(**{**TINY, **changes}))


def images(model: Encoder) -> Tensor:
    patches = model.spec.embed.patches
    assert patches is not None
    shape = BATCH, patches.channels, patches.height, patches.width
    return torch.randn(shape, generator=torch.Generator().manual_seed(4))


def answer(reference: Any, seen: Tensor) -> Tensor:
    out = reference(seen)
    return out.logits[:, None] if "logits" in out else out.pooler_output


@torch.no_grad()
def image_gap(model: Encoder, reference: Any) -> float:
    return gap(model(images(model)), answer(reference, images(model)))


@pytest.fixture(scope="module")
def hf() -> Any:
    return theirs()


@pytest.fixture
def model(hf: Any) -> Encoder:
    return ours(vit, hf)


@pytest.mark.parametrize("kind", HEADS.values(), ids=HEADS.keys())
def test_every_head_agrees_both_ways(kind: Any, tmp_path: Path) -> None:
    reference = theirs(kind)
    model = ours(vit, reference)
    assert image_gap(model, reference) <= TOLERANCE
    assert image_gap(model, reopened(model, tmp_path)) <= TOLERANCE


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS.keys())
def test_sizes_agree_both_ways(changes: dict[str, Any], tmp_path: Path) -> None:
    reference = theirs(**changes)
    model = ours(vit, reference)
    assert image_gap(model, reference) <= TOLERANCE
    assert image_gap(model, reopened(model, tmp_path)) <= TOLERANCE


@pytest.mark.parametrize("kind", HEADS.values(), ids=HEADS.keys())
def test_gradients_agree(kind: Any) -> None:
    reference = theirs(kind)
    model, labels = ours(vit, reference).double(), torch.tensor([4, 0, 2])  # rounding alone is 1.1e-5 in fp32
    for out in (model(images(model).double()), answer(reference.double(), images(model).double())):
        loss = F.cross_entropy(out[:, 0], labels) if out.ndim == 3 else out.square().mean()
        loss.backward()
    grads = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    given = to_theirs(grads, vit.table(model.spec).versions[0])  # names as in memory
    base = "vit." if kind is ViTModel else ""
    expected = {base + name: weight.grad for name, weight in reference.named_parameters()}
    assert given.keys() == expected.keys()
    assert max(relative(given[name], want) for name, want in expected.items()) <= TOLERANCE


@torch.no_grad()
def test_activation_points_are_where_they_say() -> None:
    reference = theirs(ViTModel)
    model = ours(vit, reference)
    with model.taps(read=["embed", "blocks.*.attn.pattern", "blocks.*.resid_post", "final_norm"]) as acts:
        model(images(model))
    reference.set_attn_implementation("eager")
    out = reference(images(model), output_attentions=True, output_hidden_states=True)
    assert gap(acts["embed"], out.hidden_states[0]) <= TOLERANCE
    assert gap(acts["final_norm"], out.last_hidden_state) <= TOLERANCE
    for i, (pattern, resid) in enumerate(zip(out.attentions, out.hidden_states[1:], strict=True)):
        assert gap(acts[f"blocks.{i}.attn.pattern"], pattern) <= TOLERANCE
        assert gap(acts[f"blocks.{i}.resid_post"], resid) <= TOLERANCE
    assert acts["embed"].shape == (BATCH, 1 + 2 * 3, 32)


@torch.no_grad()
def test_a_patch_that_is_not_there_is_not_seen(model: Encoder) -> None:
    """Which patches there are is said as for tokens: position -1 means none."""
    seen, places = images(model), Tokens.plain(BATCH, 7).pos.clone()
    places[:, 3] = -1
    other = seen.clone()
    other[:, :, :4, 8:] += 1.0  # the third patch, place 3
    assert gap(model(seen, Tokens(places)), model(other, Tokens(places))) <= TOLERANCE
    assert gap(model(seen), model(other)) > VISIBLE


# --- controls: each is a mistake that somebody has made ---------------------------------------------------------------


def embed(spec: Any, **changes: Any) -> Any:
    return replace(spec, embed=replace(spec.embed, **changes))


def pooled(spec: Any, take: Any) -> Any:
    return replace(spec, head=ClassifierHeadSpec(5, PoolerHeadSpec(take, dense=False)))


CLOSE, USUAL = 5 * TOLERANCE, LayerNormSpec(1e-12)
WRONG: dict[str, tuple[Callable[[Any], Any], float]] = {
    "tanh GELU for exact GELU": (lambda s: every_block(s, ffn=FFNSpec(48, "gelu_tanh")), CLOSE),
    "norm after": (lambda s: every_block(s, placement=POST_NORM), VISIBLE),
    "default eps": (lambda s: every_block(s, norm=USUAL), CLOSE),
    "default eps at the end": (lambda s: replace(s, stack=replace(s.stack, final_norm=USUAL)), CLOSE),
    "scores not scaled": (lambda s: every_block(s, mixer={"scale": 1.0}), VISIBLE),
    "mean of all for the first": (lambda s: pooled(s, "mean"), VISIBLE),
    "the last for the first": (lambda s: pooled(s, "last"), VISIBLE),
}


@pytest.mark.parametrize(("change", "floor"), WRONG.values(), ids=WRONG.keys())
def test_a_wrong_model_is_seen(model: Encoder, hf: Any, change: Callable[[Any], Any], floor: float) -> None:
    assert image_gap(forced(change(model.spec), model), hf) > floor


LEFT_OUT: dict[str, Callable[[Any], Any]] = {
    "no positions": lambda s: embed(s, positions=None),
    "no norm at the end": lambda s: replace(s, stack=replace(s.stack, final_norm=None)),
}


@pytest.mark.parametrize("change", LEFT_OUT.values(), ids=LEFT_OUT.keys())
def test_control_left_out_part_is_seen(model: Encoder, hf: Any, change: Callable[[Any], Any]) -> None:
    assert image_gap(without(change(model.spec), model), hf) > VISIBLE


REORDERED: dict[str, Callable[[Tensor], Tensor]] = {
    "rows and columns of a patch": lambda w: w.unflatten(1, (2, 4, 4)).mT.flatten(1),
    "channels last": lambda w: w.unflatten(1, (2, 16)).mT.flatten(1),
}


@pytest.mark.parametrize("reorder", REORDERED.values(), ids=REORDERED.keys())
def test_pixels_in_another_order_are_seen(model: Encoder, hf: Any, reorder: Callable[[Tensor], Tensor]) -> None:
    wrong = forced(model.spec, model)
    with torch.no_grad():
        weight = wrong.embed.patches.project.weight
        weight.copy_(reorder(weight.clone()))
    assert image_gap(wrong, hf) > VISIBLE


def test_patches_by_columns_are_seen(model: Encoder, hf: Any) -> None:
    wrong = forced(model.spec, model)
    with torch.no_grad():
        table = wrong.embed.positions.weight
        table[1:] = table[1:].unflatten(0, (2, 3)).transpose(0, 1).flatten(0, 1).clone()
    assert image_gap(wrong, hf) > VISIBLE


# --- what is no image of this model -----------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 2, 12, 8), (1, 3, 8, 12), (1, 2, 8, 16)])
def test_images_of_another_shape_are_refused(model: Encoder, shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match=r"but the model reads \(2, 8, 12\)"):
        model(torch.zeros(shape))


def test_ids_are_no_image(model: Encoder) -> None:
    with pytest.raises(DataError, match="reads images, not ids"):
        model(torch.zeros(1, 7, dtype=torch.long))


# --- the table is strict ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", HEADS.values(), ids=HEADS.keys())
def test_weights_come_back_exactly_under_the_names_of_files(kind: Any, tmp_path: Path) -> None:
    """Their newest release names weights otherwise in memory; its files have kept their names."""
    reference = theirs(kind)
    reference.save_pretrained(tmp_path)
    base = "vit." if kind is ViTModel else ""
    weights = {base + name: weight for name, weight in load_file(tmp_path / "model.safetensors").items()}
    model = ours(vit, reference)
    exported = export_weights(model, vit.table(model.spec))
    assert weights.keys() == exported.keys()
    assert all(torch.equal(exported[name], weights[name]) for name in exported)
    fresh: Any = build_model(model.spec)
    load_weights(fresh, weights, vit.table(model.spec))
    assert image_gap(fresh.eval(), reference) <= TOLERANCE


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("vit.embeddings.cls_token"), "lacks vit.embeddings.cls_token"),
        (
            lambda w: w.update({"vit.embeddings.position_embeddings": torch.ones(1, 6, 32)}),
            r"position_embeddings has the shape \(1, 6, 32\), but the config makes it \(1, 7, 32\)",
        ),
        (
            lambda w: w.update({"vit.embeddings.patch_embeddings.projection.weight": torch.ones(32, 2, 2, 8)}),
            r"has the shape \(32, 2, 2, 8\), but the config makes it \(32, 2, 4, 4\)",
        ),
        (lambda w: w.update({"decoder.0.weight": torch.ones(8, 32, 1, 1)}), "no place for decoder.0.weight"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused_by_name(
    model: Encoder, hf: Any, change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    weights = dict(hf.state_dict())
    change(weights)
    with pytest.raises(CheckpointError, match=message):
        load_weights(model, weights, vit.table(model.spec))


# --- the config is understood, or refused by name ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pooler_act": "relu"}, 'pooler_act = "relu"'),
        ({"pooler_output_size": 16}, "pooler_output_size = 16"),
        ({"image_size": 10}, "patch_size = 4 is no square that fills 10 × 10 pixels"),
        ({"patch_size": [4, 2]}, r"patch_size = \[4, 2\] is no square"),
        ({"image_size": [8, 12, 16]}, r"image_size = \[8, 12, 16\] is no number of pixels, or two"),
        ({"image_size": "8"}, 'image_size = "8"'),
        ({"num_channels": 0}, "num_channels = 0"),
        ({"num_attention_heads": 5}, "num_attention_heads = 5 does not divide"),
        ({"architectures": ["ViTForMaskedImageModeling"]}, "ViTForMaskedImageModeling"),
        ({"model_type": "deit"}, 'model_type = "deit"'),
        ({"num_register_tokens": 4}, "num_register_tokens = 4"),
    ],
)
def test_a_config_that_is_not_understood_is_refused(hf: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        vit.to_spec({**config_json(hf), **changes})


PUBLISHED = """{"architectures": ["ViTModel"], "attention_probs_dropout_prob": 0.0, "hidden_act": "gelu",
    "hidden_dropout_prob": 0.0, "hidden_size": 768, "image_size": 224, "initializer_range": 0.02,
    "intermediate_size": 3072, "layer_norm_eps": 1e-12, "model_type": "vit", "num_attention_heads": 12,
    "num_channels": 3, "num_hidden_layers": 12, "patch_size": 16, "qkv_bias": true}"""


def test_a_published_config_is_understood() -> None:
    spec = vit.to_spec(json.loads(PUBLISHED))
    assert (spec.n_layers, spec.d_model, spec.context, spec.vocab_size) == (12, 768, 197, 0)
    assert spec.embed.positions == LearnedSpec() and spec.head == PoolerHeadSpec()
