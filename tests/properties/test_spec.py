"""Every legal model goes to JSON and back as itself; what is not one is refused, by the name of what is wrong."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import EXAMPLE, build, masks, specs

import pellucid.spec as spec_room
from pellucid.errors import SpecError
from pellucid.spec import (
    POST_NORM,
    AttentionSpec,
    BlockSpec,
    BucketedBiasSpec,
    ByPartsScaling,
    Causal,
    DecoderSpec,
    EmbedSpec,
    FFNSpec,
    GatedFFNSpec,
    LayerNormSpec,
    LinearScaling,
    LMHeadSpec,
    Mask,
    NTKScaling,
    RotarySpec,
    SinusoidalSpec,
    StackSpec,
    Window,
    YaRNScaling,
)
from pellucid.values import encode

few = settings(max_examples=25)
anything = specs()


def written(spec: DecoderSpec) -> Any:
    """As a file holds it."""
    return json.loads(json.dumps(spec.to_json()))


def objects(value: Any, path: str = "DecoderSpec") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every JSON object that stands for a part of the model, with the path that errors name."""
    if isinstance(value, list):
        for i, item in enumerate(value):
            yield from objects(item["of"] if "times" in item else item, f"{path}[{i}]")
    elif isinstance(value, dict):
        yield path, value
        for key, item in value.items():
            yield from objects(item, f"{path}.{key}")


@st.composite
def broken(draw: st.DrawFn) -> tuple[Any, str, dict[str, Any]]:
    """A written model, and the path and the object of some part of it, for a test to spoil."""
    json_ = written(draw(anything))
    path, part = draw(st.sampled_from(list(objects(json_))))
    return json_, path, part


def refusal(json_: Any) -> str:
    with pytest.raises(SpecError) as caught:
        DecoderSpec.from_json(json_)
    return str(caught.value)


@given(anything)
@few
def test_json_and_back(spec: DecoderSpec) -> None:
    again = DecoderSpec.from_json(written(spec))
    assert again == spec and hash(again) == hash(spec) and {spec: 1}[again] == 1
    assert again.to_json() == spec.to_json()


@given(anything, anything)
@few
def test_different_models_are_written_differently(a: DecoderSpec, b: DecoderSpec) -> None:
    assert (a == b) == (written(a) == written(b))


@given(anything)
@few
def test_every_drawn_model_is_built_as_described(spec: DecoderSpec) -> None:
    model = build(spec)
    assert model.spec is spec and len(model.blocks) == spec.n_layers and model.spec.d_model == spec.stack.d_model
    assert ("head.weight" in dict(model.named_parameters())) == (not spec.head.tied)


def test_equal_layers_are_written_once() -> None:
    spec = replace(EXAMPLE, stack=replace(EXAMPLE.stack, blocks=EXAMPLE.stack.blocks[:1] * 12))
    (block,) = written(spec)["stack"]["blocks"]
    assert block["times"] == 12 and block["of"]["type"] == "BlockSpec"
    assert DecoderSpec.from_json(written(spec)) == spec


def test_a_file(tmp_path: Path) -> None:
    path = tmp_path / "spec.json"
    EXAMPLE.save(path)
    assert DecoderSpec.load(path) == EXAMPLE
    path.write_text(path.read_text().replace('"vocab_size"', '"vocab_sise"'))
    with pytest.raises(SpecError, match=r"spec\.json.*'vocab_sise'[^$]*did you mean 'vocab_size'"):
        DecoderSpec.load(path)
    path.write_text("{")
    with pytest.raises(SpecError, match=r"spec\.json"):
        DecoderSpec.load(path)
    with pytest.raises(SpecError, match=r"absent\.json"):
        DecoderSpec.load(tmp_path / "absent.json")


@given(broken())
@few
def test_an_unknown_field_is_refused_with_a_suggestion(drawn: tuple[Any, str, dict[str, Any]]) -> None:
    json_, path, part = drawn
    names = [name for name in part if name != "type"]
    wrong = (names[-1] if names else "anything") + "s"
    part[wrong] = 1
    message = refusal(json_)
    assert message.startswith(f"{path}: {part['type']} has no field {wrong!r}")
    assert not names or f"did you mean {names[-1]!r}?" in message


@given(broken())
@few
def test_an_unknown_type_is_refused_with_a_suggestion(drawn: tuple[Any, str, dict[str, Any]]) -> None:
    json_, path, part = drawn
    right = part["type"]
    part["type"] = right + "x"
    message = refusal(json_)
    assert message.startswith(f"{path}: unknown type {right + 'x'!r}") and f"did you mean {right!r}?" in message
    del part["type"]
    assert refusal(json_).startswith(f"{path}: unknown type None")


@given(broken(), st.data())
@few
def test_a_value_of_another_type_is_refused(drawn: tuple[Any, str, dict[str, Any]], data: st.DataObject) -> None:
    json_, path, part = drawn
    names = [name for name in part if name != "type"]
    if not names:
        return
    name = data.draw(st.sampled_from(names))
    right = part[name]
    part[name] = {"of": right} if isinstance(right, list) else [right]
    assert refusal(json_).startswith(f"{path}.{name}: ")
    if isinstance(right, str | bool | int) and not isinstance(right, float):
        part[name] = None
        assert refusal(json_).startswith(f"{path}.{name}: ")
    if isinstance(right, int) and not isinstance(right, bool):
        for almost in (True, right + 0.5, str(right)):
            part[name] = almost
            assert refusal(json_).startswith(f"{path}.{name}: ")


@given(broken(), st.data())
@few
def test_a_missing_field_is_refused_unless_it_has_a_default(
    drawn: tuple[Any, str, dict[str, Any]], data: st.DataObject
) -> None:
    json_, path, part = drawn
    fields = dataclasses.fields(getattr(spec_room, part["type"]))
    if not fields:
        return
    field = data.draw(st.sampled_from(fields))
    del part[field.name]
    if field.default is dataclasses.MISSING:
        assert refusal(json_).startswith(f"{path}: {part['type']} lacks the field {field.name!r}")
        return
    without = copy.deepcopy(json_)
    part[field.name] = encode(field.default)
    try:
        explicit = DecoderSpec.from_json(json_)
    except SpecError:  # the default does not go with the rest
        assert "lacks" not in refusal(without)
    else:
        assert DecoderSpec.from_json(without) == explicit


@pytest.mark.parametrize("junk", [None, 3, "DecoderSpec", [], {}, {"type": "FFNSpec", "d_ff": 4}])
def test_what_is_no_model_at_all(junk: Any) -> None:
    assert refusal(junk).startswith("DecoderSpec")


@pytest.mark.parametrize("times", [0, -1, 10_001, True, "2", 1.0])
def test_repeats_are_counted_sanely(times: Any) -> None:
    json_ = written(EXAMPLE)
    json_["stack"]["blocks"][0]["times"] = times
    assert refusal(json_).startswith("DecoderSpec.stack.blocks[0].times: ")


# --- combinations that mean nothing ----------------------------------------------------------------------------------

ATTENTION, BLOCK, STACK = EXAMPLE.stack.blocks[0].mixer, EXAMPLE.stack.blocks[0], EXAMPLE.stack
ILLEGAL: dict[str, Callable[[], object]] = {
    "n_heads = 4 is no multiple of n_kv_heads = 3": lambda: AttentionSpec(4, 3, 8),
    "n_heads, n_kv_heads, head_dim must be >= 1": lambda: AttentionSpec(0, 1, 8),
    "not 3 of 6": lambda: AttentionSpec(1, 1, 6, rotary=RotarySpec(fraction=0.5)),
    "not 0 of 4": lambda: AttentionSpec(1, 1, 4, rotary=RotarySpec(fraction=0.1)),
    "not 8 of 4": lambda: AttentionSpec(1, 1, 4, rotary=RotarySpec(fraction=2.0)),
    "soft_cap = 0.0 must be positive": lambda: replace(ATTENTION, soft_cap=0.0),
    "soft_cap = -1.0 must be positive": lambda: LMHeadSpec(soft_cap=-1.0),
    "a parallel block has no norm after each": lambda: replace(BLOCK, placement=POST_NORM, parallel=True),
    "blocks is empty": lambda: replace(STACK, blocks=()),
    r"needs one n_heads, not \[2, 4\]": lambda: replace(
        STACK, blocks=(BLOCK, replace(BLOCK, mixer=AttentionSpec(2, 2, 4))), bias=BucketedBiasSpec()
    ),
    "d_model = 0": lambda: replace(STACK, d_model=0),
    "even d_model, not 9": lambda: replace(EXAMPLE, embed=EmbedSpec(SinusoidalSpec()), stack=replace(STACK, d_model=9)),
    "vocab_size = 1": lambda: replace(EXAMPLE, vocab_size=1),
    "context = 1": lambda: replace(EXAMPLE, context=1),
    "size is 0": lambda: Window(0),
    "d_ff = 0": lambda: replace(BLOCK, ffn=FFNSpec(0)),
    "d_ff = -1": lambda: replace(BLOCK, ffn=GatedFFNSpec(-1)),
    "n_buckets = 1": lambda: BucketedBiasSpec(1),
    "n_buckets = 2": lambda: BucketedBiasSpec(2, both_directions=True),
    "max_distance = 16": lambda: BucketedBiasSpec(32, 16),
    "base = 1.0": lambda: RotarySpec(1.0),
    "factor = 0.0": lambda: RotarySpec(scaling=LinearScaling(0.0)),
    "factor = -2.0": lambda: RotarySpec(scaling=NTKScaling(-2.0)),
    "factor = 0.5": lambda: RotarySpec(scaling=YaRNScaling(0.5, 8)),
    "low_freq_factor must be below": lambda: ByPartsScaling(2.0, 8, 4.0, 4.0),
}


@pytest.mark.parametrize("message", ILLEGAL)
def test_illegal_combinations(message: str) -> None:
    with pytest.raises(SpecError, match=message):
        ILLEGAL[message]()


def test_illegal_values_in_a_file_are_refused_with_their_place() -> None:
    json_ = written(EXAMPLE)
    json_["stack"]["blocks"][0]["of"]["mixer"]["n_kv_heads"] = 3
    message = refusal(json_)
    assert message.startswith("DecoderSpec.stack.blocks[0].mixer: ") and "n_kv_heads = 3" in message
    json_ = written(EXAMPLE)
    json_["stack"]["blocks"][0]["of"]["ffn"]["activation"] = "gelu_tan"
    message = refusal(json_)
    assert message.startswith("DecoderSpec.stack.blocks[0].ffn.activation: ") and "did you mean 'gelu_tanh'?" in message


@given(masks)
@few
def test_masks_are_values_too(mask: Mask) -> None:
    assert Mask.from_json(json.loads(json.dumps(mask.to_json()))) == mask
    assert hash(mask & Causal()) == hash(mask & Causal())


def test_a_spec_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        EXAMPLE.context = 5  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]
    assert BlockSpec(ATTENTION, FFNSpec(4), LayerNormSpec()) != BlockSpec(ATTENTION, GatedFFNSpec(4), LayerNormSpec())
    assert isinstance(STACK, StackSpec)
