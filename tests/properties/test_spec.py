"""Every legal model goes to JSON and back as itself; what is not one is refused, by the name of what is wrong."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, get_args, get_type_hints

import pytest
from drawn import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import (
    EXAMPLE,
    build,
    classifiers,
    encoder_decoder_specs,
    encoder_specs,
    image_specs,
    masked_heads,
    masks,
    poolers,
    specs,
    taggers,
)

import pellucid.spec as spec_room
from pellucid.errors import SpecError
from pellucid.nn.models import EncoderDecoder
from pellucid.spec import (
    AttentionSpec,
    BlockSpec,
    Causal,
    DecoderSpec,
    FFNSpec,
    GatedFFNSpec,
    LayerNormSpec,
    LMHeadSpec,
    Mask,
    MaskedLMHeadSpec,
    ModelSpec,
    load_spec,
)
from pellucid.values import encode

few = settings(max_examples=examples(25))
any_head = st.one_of(masked_heads, poolers, classifiers, taggers, st.none())
no_words = st.one_of(poolers, classifiers, taggers, st.none())
anything = st.one_of(specs(), encoder_specs(masks, any_head), image_specs(no_words), encoder_decoder_specs())


def written(spec: ModelSpec) -> Any:
    """As a file holds it."""
    return json.loads(json.dumps(spec.to_json()))


def objects(value: Any, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every JSON object that stands for a part of the model, with the path that errors name."""
    if isinstance(value, list):
        for i, item in enumerate(value):
            folded = isinstance(item, dict) and "times" in item
            yield from objects(item["of"] if folded else item, f"{path}[{i}]")
    elif isinstance(value, dict):
        yield path, value
        for key, item in value.items():
            yield from objects(item, f"{path}.{key}")


@st.composite
def broken(draw: st.DrawFn) -> tuple[Any, str, dict[str, Any]]:
    """A written model, and the path and the object of some part of it, for a test to spoil."""
    json_ = written(draw(anything))
    path, part = draw(st.sampled_from(list(objects(json_, json_["type"]))))
    return json_, path, part


def kind_of(path: str) -> type[ModelSpec]:
    """The kind of model that a path leads into."""
    return getattr(spec_room, path.split(".")[0])


def refusal(json_: Any, path: str = "DecoderSpec") -> str:
    with pytest.raises(SpecError) as caught:
        kind_of(path).from_json(json_)
    return str(caught.value)


@given(anything)
@few
def test_json_and_back(spec: ModelSpec) -> None:
    again = type(spec).from_json(written(spec))
    assert again == spec and hash(again) == hash(spec) and {spec: 1}[again] == 1
    assert again.to_json() == spec.to_json()


@given(anything, anything)
@few
def test_different_models_are_written_differently(a: ModelSpec, b: ModelSpec) -> None:
    assert (a == b) == (written(a) == written(b))


@given(anything)
@few
def test_every_drawn_model_is_built_as_described(spec: ModelSpec) -> None:
    model = build(spec)
    assert model.spec is spec and model.spec.d_model == 8
    sides = [model.encoder, model.decoder] if isinstance(model, EncoderDecoder) else [model]
    assert sum(len(side.blocks) for side in sides) == spec.n_layers
    names = {name for name, _ in model.named_parameters()}
    for side in sides:
        head = side.spec.head
        own = not head.tied if isinstance(head, LMHeadSpec | MaskedLMHeadSpec) else False
        assert ("decoder." * (len(sides) > 1) + "head.weight" in names) == own or head is None


def test_equal_layers_are_written_once() -> None:
    spec = replace(EXAMPLE, stack=replace(EXAMPLE.stack, blocks=EXAMPLE.stack.blocks[:1] * 12))
    (block,) = written(spec)["stack"]["blocks"]
    assert block["times"] == 12 and block["of"]["type"] == "BlockSpec"
    assert DecoderSpec.from_json(written(spec)) == spec


@given(anything)
@few
def test_any_kind_of_model_is_found_in_its_file(spec: ModelSpec) -> None:
    with TemporaryDirectory() as folder:
        spec.save(Path(folder) / "spec.json")
        assert load_spec(Path(folder) / "spec.json") == spec


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
    message = refusal(json_, path)
    assert message.startswith(f"{path}: {part['type']} has no field {wrong!r}")
    assert not names or f"did you mean {names[-1]!r}?" in message


@given(broken())
@few
def test_an_unknown_type_is_refused_with_a_suggestion(drawn: tuple[Any, str, dict[str, Any]]) -> None:
    json_, path, part = drawn
    right = part["type"]
    part["type"] = right + "x"
    message = refusal(json_, path)
    assert message.startswith(f"{path}: unknown type {right + 'x'!r}") and f"did you mean {right!r}?" in message
    del part["type"]
    assert refusal(json_, path).startswith(f"{path}: unknown type None")


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
    assert refusal(json_, path).startswith(f"{path}.{name}: ")
    optional = type(None) in get_args(get_type_hints(getattr(spec_room, part["type"]))[name])  # None is then legal
    if isinstance(right, str | bool | int) and not isinstance(right, float) and not optional:
        part[name] = None
        assert refusal(json_, path).startswith(f"{path}.{name}: ")
    if isinstance(right, int) and not isinstance(right, bool):
        for almost in (True, right + 0.5, str(right)):
            part[name] = almost
            assert refusal(json_, path).startswith(f"{path}.{name}: ")


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
        assert refusal(json_, path).startswith(f"{path}: {part['type']} lacks the field {field.name!r}")
        return
    without = copy.deepcopy(json_)
    part[field.name] = encode(field.default)
    try:
        explicit = kind_of(path).from_json(json_)
    except SpecError:  # the default does not go with the rest
        assert "lacks" not in refusal(without, path)
    else:
        assert kind_of(path).from_json(without) == explicit


@pytest.mark.parametrize("junk", [None, 3, "DecoderSpec", [], {}, {"type": "FFNSpec", "d_ff": 4}])
def test_json_that_is_no_model_is_refused(junk: Any) -> None:
    assert refusal(junk).startswith("DecoderSpec")


@pytest.mark.parametrize("times", [0, -1, 10_001, True, "2", 1.0])
def test_repeats_are_counted_sanely(times: Any) -> None:
    json_ = written(EXAMPLE)
    json_["stack"]["blocks"][0]["times"] = times
    assert refusal(json_).startswith("DecoderSpec.stack.blocks[0].times: ")


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
    attention = AttentionSpec(4, 2, 4)
    with pytest.raises(AttributeError):
        EXAMPLE.context = 5  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]
    assert BlockSpec(attention, FFNSpec(4), LayerNormSpec()) != BlockSpec(attention, GatedFFNSpec(4), LayerNormSpec())
