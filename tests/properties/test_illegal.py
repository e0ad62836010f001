"""What means nothing is refused when the spec is built, by the name and value of the field, wherever it stands."""

from __future__ import annotations

import ast
import json
import math
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from drawn import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import (
    EXAMPLE,
    VOCAB,
    as_encoder,
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

import pellucid.spec
from pellucid.errors import SpecError
from pellucid.spec import (
    POST_NORM,
    ALiBiSpec,
    AlignmentSpec,
    AttentionSpec,
    AttentiveRecurrentSpec,
    BlockSpec,
    BucketedBiasSpec,
    ByPartsScaling,
    Causal,
    ClassifierHeadSpec,
    EmbedSpec,
    EncoderDecoderSpec,
    FFNSpec,
    Full,
    GatedDecayRule,
    GatedFFNSpec,
    KernelRule,
    LayerNormSpec,
    LearnedSpec,
    LinearAttentionSpec,
    LinearScaling,
    LMHeadSpec,
    MaskedLMHeadSpec,
    ModelSpec,
    MoESpec,
    NTKScaling,
    PatchSpec,
    PoolerHeadSpec,
    RecurrentSpec,
    RMSNormSpec,
    RotarySpec,
    SinusoidalSpec,
    TaggerHeadSpec,
    Window,
    YaRNScaling,
)

STACK, BLOCK = EXAMPLE.stack, EXAMPLE.stack.blocks[0]
ATTENTION, CROSS = AttentionSpec(4, 2, 4), AttentionSpec(2, 2, 4, Full())
LUONG, BAHDANAU = AlignmentSpec("general"), AttentiveRecurrentSpec("gru", 5, AlignmentSpec("additive", 3))
READS = replace(as_encoder(EXAMPLE), head=None)
SEES = replace(READS, vocab_size=0, context=5, embed=EmbedSpec(patches=PatchSpec(4, 4, 2)))
WRITES = replace(EXAMPLE, stack=replace(STACK, blocks=(replace(BLOCK, cross=CROSS),)))


def stacked(spec: Any, *mixers: Any, **changed: Any) -> Any:
    """The model with blocks of these mixers."""
    blocks = tuple(replace(BLOCK, mixer=mixer) for mixer in mixers)
    return replace(spec, stack=replace(STACK, blocks=blocks, **changed))


# what the message says -> what is built
ILLEGAL: dict[str, Callable[[], object]] = {
    # parts
    "LearnedSpec: offset = -1": lambda: LearnedSpec(-1),
    "LayerNormSpec: eps = -1.0 must not be negative": lambda: LayerNormSpec(eps=-1.0),
    "RMSNormSpec: eps = -1e-06 must not be negative": lambda: RMSNormSpec(eps=-1e-6),
    "YaRNScaling: original_context = 0 must be >= 1": lambda: YaRNScaling(2.0, 0),
    "YaRNScaling: attention_factor = 0.0 must be above 0": lambda: YaRNScaling(2.0, 8, attention_factor=0.0),
    "YaRNScaling: beta_slow = 4.0, beta_fast = 4.0": lambda: YaRNScaling(2.0, 8, 4.0, 4.0),
    "ByPartsScaling: original_context = 0 must be >= 1": lambda: ByPartsScaling(2.0, 0),
    "low_freq_factor = 4.0 must be below high_freq_factor = 4.0": lambda: ByPartsScaling(2.0, 8, 4.0, 4.0),
    "base = 1.0": lambda: RotarySpec(1.0),
    "factor = 0.0": lambda: RotarySpec(scaling=LinearScaling(0.0)),
    "factor = -2.0": lambda: RotarySpec(scaling=NTKScaling(-2.0)),
    "factor = 0.5": lambda: RotarySpec(scaling=YaRNScaling(0.5, 8)),
    "n_buckets = 1": lambda: BucketedBiasSpec(1),
    "n_buckets = 2": lambda: BucketedBiasSpec(2, both_directions=True),
    "max_distance = 16": lambda: BucketedBiasSpec(32, 16),
    # mixers
    "n_heads = 4 is no multiple of n_kv_heads = 3": lambda: AttentionSpec(4, 3, 8),
    "AttentionSpec: n_heads = 0, n_kv_heads = 1, head_dim = 8": lambda: AttentionSpec(0, 1, 8),
    "AttentionSpec: .* head_dim = 0": lambda: AttentionSpec(1, 1, 0),
    "not 3 of 6": lambda: AttentionSpec(1, 1, 6, rotary=RotarySpec(fraction=0.5)),
    "not 0 of 4": lambda: AttentionSpec(1, 1, 4, rotary=RotarySpec(fraction=0.1)),
    "not 8 of 4": lambda: AttentionSpec(1, 1, 4, rotary=RotarySpec(fraction=2.0)),
    "not 5 of 5": lambda: LinearAttentionSpec(1, 5, KernelRule(), RotarySpec()),
    "AttentionSpec: soft_cap = 0.0 must be positive": lambda: replace(ATTENTION, soft_cap=0.0),
    "rank = 0": lambda: GatedDecayRule(rank=0),
    "temperature = 0.0": lambda: GatedDecayRule(temperature=0.0),
    "LinearAttentionSpec: n_heads = 2, head_dim = 0": lambda: LinearAttentionSpec(2, 0),
    "rotary makes features negative": lambda: LinearAttentionSpec(2, 4, KernelRule(), RotarySpec()),
    "RecurrentSpec: d_hidden = 0": lambda: RecurrentSpec("lstm", 0),
    "AttentiveRecurrentSpec: d_hidden = -1": lambda: AttentiveRecurrentSpec("gru", -1, LUONG),
    "d_align = 0 with additive": lambda: AlignmentSpec("additive"),
    "d_align = 3 with dot": lambda: AlignmentSpec("dot", 3),
    # blocks
    "FFNSpec: d_ff = 0": lambda: FFNSpec(0),
    "GatedFFNSpec: d_ff = -1": lambda: GatedFFNSpec(-1),
    "top_k = 3 of n_experts = 2": lambda: MoESpec(FFNSpec(4), 2, 3),
    "top_k = 0 of n_experts = 2": lambda: MoESpec(FFNSpec(4), 2, 0),
    "a parallel block has no norm after each": lambda: replace(BLOCK, placement=POST_NORM, parallel=True),
    "a parallel block has a feed-forward layer": lambda: replace(BLOCK, ffn=None, parallel=True),
    "a parallel block has no place for cross": lambda: replace(BLOCK, cross=LUONG, parallel=True),
    "cross-attention has no rotary": lambda: replace(BLOCK, cross=replace(CROSS, rotary=RotarySpec())),
    r"cross has Causal\(\), but an encoder's": lambda: replace(BLOCK, cross=ATTENTION),
    r"cross has Window\(size=3\)": lambda: replace(BLOCK, cross=replace(CROSS, mask=Window(3))),
    "an attentive recurrence already reads": lambda: replace(BLOCK, mixer=BAHDANAU, cross=CROSS),
    "d_model = 0": lambda: replace(STACK, d_model=0),
    "blocks is empty": lambda: replace(STACK, blocks=()),
    r"needs one n_heads, not \[2, 4\]": lambda: stacked(EXAMPLE, ATTENTION, CROSS, bias=ALiBiSpec()),
    r"needs one n_heads, not \[\]": lambda: stacked(EXAMPLE, LinearAttentionSpec(2, 4), bias=ALiBiSpec()),
    r"blocks\[1\] gives 5 values a token to a stream of 8": lambda: stacked(
        EXAMPLE, ATTENTION, RecurrentSpec("gru", 5, project=False)
    ),
    r"blocks\[0\]: dot scores compare d_hidden = 5 with d_model = 8": lambda: stacked(
        EXAMPLE, AttentiveRecurrentSpec("gru", 5, AlignmentSpec("dot"))
    ),
    r"shared = \(0,\) is not one number for each of 2": lambda: replace(STACK, shared=(0,)),
    r"shared = \(0, 1\) shares nothing": lambda: replace(STACK, shared=(0, 1)),
    r"shared\[0\] = 1, which is no block above it": lambda: replace(STACK, shared=(1, 1)),
    r"shared: blocks\[1\] is another than blocks\[0\]": lambda: stacked(
        EXAMPLE, ATTENTION, LinearAttentionSpec(2, 4), shared=(0, 0)
    ),
    # models
    "PatchSpec: height = 0, width = 4, size = 2, channels = 3": lambda: PatchSpec(0, 4, 2),
    "squares of size = 4 do not fill 8 × 6 pixels": lambda: PatchSpec(8, 6, 4),
    "EmbedSpec: n_types = -1": lambda: EmbedSpec(n_types=-1),
    "EmbedSpec: d_embed = 0": lambda: EmbedSpec(d_embed=0),
    "LMHeadSpec: soft_cap = -1.0 must be positive": lambda: LMHeadSpec(soft_cap=-1.0),
    "activation = relu stands after a matrix that": lambda: PoolerHeadSpec(dense=False, activation="relu"),
    "ClassifierHeadSpec: n_classes = 0": lambda: ClassifierHeadSpec(0),
    "TaggerHeadSpec: n_classes = 0": lambda: TaggerHeadSpec(0),
    "DecoderSpec: vocab_size = 1": lambda: replace(EXAMPLE, vocab_size=1),
    "EncoderSpec: .* context = 1": lambda: replace(READS, context=1),
    "even width, not 9": lambda: replace(EXAMPLE, embed=EmbedSpec(SinusoidalSpec()), stack=replace(STACK, d_model=9)),
    "EncoderSpec: vocab_size = 11, but patches": lambda: replace(SEES, vocab_size=11),
    "context = 9, but the image has 5 places": lambda: replace(SEES, context=9),
    "an image has no tokens that a head could": lambda: replace(SEES, head=MaskedLMHeadSpec()),
    "patches are read at once, by an encoder": lambda: replace(EXAMPLE, vocab_size=0, context=5, embed=SEES.embed),
    "vectors of d_embed = 4 cannot be a head's": lambda: replace(EXAMPLE, embed=EmbedSpec(d_embed=4)),
    r"blocks\[1\] lets a token see later ones": lambda: stacked(EXAMPLE, ATTENTION, CROSS),
    r"blocks\[0\] lets a token see": lambda: stacked(EXAMPLE, RecurrentSpec("gru", 4, both_directions=True)),
    r"DecoderSpec: blocks\[0\] lets": lambda: stacked(EXAMPLE, LinearAttentionSpec(2, 4, KernelRule(causal=False))),
    r"blocks\[0\] attend to an encoder, but this is one": lambda: replace(READS, stack=WRITES.stack),
    r"EncoderSpec: blocks\[1\] attend": lambda: stacked(READS, ATTENTION, BAHDANAU),
    "it has no head": lambda: EncoderDecoderSpec(as_encoder(EXAMPLE), WRITES, 0),
    "no block of the decoder attends": lambda: EncoderDecoderSpec(READS, EXAMPLE, 0),
    "d_model is 6 in the encoder, 8 in the decoder": lambda: EncoderDecoderSpec(
        replace(READS, stack=replace(STACK, d_model=6)), WRITES, 0
    ),
    "vocabularies of 9 and 11 share no table": lambda: EncoderDecoderSpec(replace(READS, vocab_size=9), WRITES, 0),
    "its encoder reads a text, not patches": lambda: EncoderDecoderSpec(SEES, WRITES, 0, False),
    "vectors of 4 and 8 share no table": lambda: EncoderDecoderSpec(
        replace(READS, embed=EmbedSpec(d_embed=4)), WRITES, 0
    ),
    "start_id = 11": lambda: EncoderDecoderSpec(READS, WRITES, VOCAB),
    "start_id = -1": lambda: EncoderDecoderSpec(READS, WRITES, -1),
}


def refused(build: Callable[[], object]) -> SpecError:
    with pytest.raises(SpecError) as caught:
        build()
    return caught.value


@pytest.mark.parametrize("message", ILLEGAL)
def test_illegal_spec_is_refused_by_name(message: str) -> None:
    error = refused(ILLEGAL[message])
    with pytest.raises(SpecError, match=message):
        raise error
    kind, problem = error.problem.split(": ", 1)
    assert hasattr(pellucid.spec, kind) and problem  # whose rule it is
    assert str(error) == (f"{error.problem}\n  {error.remedy}" if error.remedy else error.problem)


def rules() -> dict[str, ast.Call]:
    """Every rule of the room, by where it stands."""
    found: dict[str, ast.Call] = {}
    for path in sorted(Path(pellucid.spec.__path__[0]).glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "require":
                found[f"{path.name}:{node.lineno}"] = node
    return found


def broken_rule(build: Callable[[], object]) -> str:
    """The one that refuses: where ``require`` was called from."""
    frames = traceback.extract_tb(refused(build).__traceback__)
    inside = [f for f in frames if Path(f.filename).parent.name == "spec" and f.name != "require"]
    return f"{Path(inside[-1].filename).name}:{inside[-1].lineno}"


def test_every_rule_has_a_case() -> None:
    """Read from the source: a rule that nothing here breaks is named, and so is one that no longer exists."""
    broken = {broken_rule(build) for build in ILLEGAL.values()}
    assert broken == set(rules())
    assert len(rules()) > 40


def test_a_choice_of_words_is_read_with_a_suggestion() -> None:
    """Of the fields that are one of several words, a file may hold another: the error lists or suggests them."""
    json_ = json.loads(json.dumps(WRITES.to_json()))
    json_["stack"]["blocks"][0]["mixer"] = {"type": "RecurrentSpec", "cell": "lsmt", "d_hidden": 3}
    message = str(refused(lambda: type(WRITES).from_json(json_)))
    assert message.startswith("DecoderSpec.stack.blocks[0].mixer.cell: ") and "did you mean 'lstm'?" in message


# --- one edit of a legal model ---------------------------------------------------------------------------------------

any_head = st.one_of(masked_heads, poolers, classifiers, taggers, st.none())
no_words = st.one_of(poolers, classifiers, taggers, st.none())
anything = st.one_of(specs(), encoder_specs(masks, any_head), image_specs(no_words), encoder_decoder_specs())
# type -> fields, each with what it may not be, given the rest of the part
EDITS: dict[str, dict[str, Callable[[Any], Any]]] = {
    "AttentionSpec": {
        "n_heads": lambda a: 0,
        "n_kv_heads": lambda a: a["n_heads"] + 1,
        "head_dim": lambda a: -4,
        "soft_cap": lambda a: 0.0,
    },
    "LinearAttentionSpec": {"n_heads": lambda a: 0, "head_dim": lambda a: 0},
    "GatedDecayRule": {"rank": lambda r: -1, "temperature": lambda r: -1.0},
    "RecurrentSpec": {"d_hidden": lambda r: 0},
    "AttentiveRecurrentSpec": {"d_hidden": lambda r: 0},
    "AlignmentSpec": {"d_align": lambda a: 0 if a["score"] == "additive" else 4},
    "FFNSpec": {"d_ff": lambda f: 0},
    "GatedFFNSpec": {"d_ff": lambda f: -12},
    "MoESpec": {"top_k": lambda m: m["n_experts"] + 1, "n_experts": lambda m: m["top_k"] - 1},
    "RotarySpec": {"base": lambda r: 1.0},
    "LayerNormSpec": {"eps": lambda n: -0.5},
    "RMSNormSpec": {"eps": lambda n: -0.5},
    "ByPartsScaling": {"low_freq_factor": lambda s: s["high_freq_factor"], "original_context": lambda s: 0},
    "LinearScaling": {"factor": lambda s: 0.5},
    "YaRNScaling": {"factor": lambda s: 0.0, "original_context": lambda s: -1, "beta_slow": lambda s: 0.0},
    "LearnedSpec": {"offset": lambda p: -1},
    "BucketedBiasSpec": {"n_buckets": lambda b: 1, "max_distance": lambda b: 1},
    "EmbedSpec": {"n_types": lambda e: -1, "d_embed": lambda e: 0},
    "PatchSpec": {"height": lambda p: 0, "size": lambda p: 99, "channels": lambda p: -1},
    "LMHeadSpec": {"soft_cap": lambda h: -1.0},
    "ClassifierHeadSpec": {"n_classes": lambda h: 0},
    "TaggerHeadSpec": {"n_classes": lambda h: 1},
    "StackSpec": {"d_model": lambda s: 0, "blocks": lambda s: [], "shared": lambda s: [0, 0, 0, 0]},
    "DecoderSpec": {"vocab_size": lambda d: 1, "context": lambda d: 0},
    "EncoderSpec": {"vocab_size": lambda d: 1, "context": lambda d: 0},
    "EncoderDecoderSpec": {"start_id": lambda m: m["decoder"]["vocab_size"]},
    "Window": {"size": lambda w: 0},
    "Prefix": {"length": lambda p: -1},
}


def places(value: Any) -> Iterator[tuple[dict[str, Any], str]]:
    """Every part of a written model, and each of its fields that may be made illegal."""
    if isinstance(value, list):
        for item in value:
            yield from places(item)
    elif isinstance(value, dict):
        for field in EDITS.get(value.get("type", ""), {}):
            yield value, field
        for item in value.values():
            yield from places(item)


@given(anything, st.data())
@settings(max_examples=examples(60))
def test_one_illegal_edit_of_a_legal_model_is_refused(spec: ModelSpec, data: st.DataObject) -> None:
    """Wherever in the tree; the message says which field of what, and its value."""
    json_ = json.loads(json.dumps(spec.to_json()))
    assert type(spec).from_json(json_) == spec
    part, field = data.draw(st.sampled_from(list(places(json_))))
    part[field] = EDITS[part["type"]][field](part)
    error = refused(lambda: type(spec).from_json(json_))
    assert error.problem.startswith(type(spec).__name__) and field in error.problem
    assert isinstance(part[field], list) or str(part[field]) in error.problem


@given(specs(), st.sampled_from([Full(), ~Causal(), Window(3), Causal() | Window(2)]), st.data())
@settings(max_examples=examples(20))
def test_a_decoder_with_one_layer_that_looks_ahead_is_refused(spec: Any, mask: Any, data: st.DataObject) -> None:
    i = data.draw(st.integers(0, spec.n_layers - 1))
    blocks = list(spec.stack.blocks)
    blocks[i] = BlockSpec(AttentionSpec(1, 1, 4, mask), None, BLOCK.norm)
    with pytest.raises(SpecError, match=rf"blocks\[{i}\] lets a token see later ones"):
        replace(spec, stack=replace(spec.stack, blocks=tuple(blocks), bias=None, shared=()))


@given(encoder_decoder_specs(), st.data())
@settings(max_examples=examples(20))
def test_two_halves_that_do_not_fit_are_refused(spec: EncoderDecoderSpec, data: st.DataObject) -> None:
    silent = tuple(BlockSpec(ATTENTION, None, BLOCK.norm) for _ in spec.decoder.stack.blocks)
    wrong: dict[str, Callable[[], object]] = {
        "it has no head": lambda: replace(spec, encoder=replace(spec.encoder, head=MaskedLMHeadSpec())),
        "no block of the decoder attends": lambda: replace(
            spec, decoder=replace(spec.decoder, stack=replace(spec.decoder.stack, blocks=silent, bias=None, shared=()))
        ),
        f"start_id = {VOCAB + 7}": lambda: replace(spec, start_id=VOCAB + 7),
        "share no table": lambda: replace(
            spec, encoder=replace(spec.encoder, vocab_size=VOCAB + 1), shared_embedding=True
        ),
        "attend to an encoder, but this is one": lambda: replace(spec.encoder, stack=spec.decoder.stack),
    }
    message = data.draw(st.sampled_from(sorted(wrong)))
    with pytest.raises(SpecError, match=message):
        wrong[message]()


def test_nan_and_infinity_are_refused() -> None:
    """It is neither above nor below a bound: rules must be written so that it breaks them."""
    for build in (
        lambda: RotarySpec(base=math.nan),
        lambda: replace(ATTENTION, soft_cap=math.nan),
        lambda: GatedDecayRule(temperature=math.nan),
        lambda: RotarySpec(scaling=LinearScaling(math.nan)),
        lambda: LMHeadSpec(soft_cap=math.nan),
    ):
        assert "nan" in refused(build).problem
