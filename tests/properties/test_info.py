"""``pellucid info``: every part is said, drawn and counted, for every design and whatever hypothesis puts together."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from drawn import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import EXAMPLE, causal_masks, classifiers, encoder_specs, image_specs, specs

from pellucid.cli.costs import kernels, rows
from pellucid.cli.diagram import draw
from pellucid.cli.main import run
from pellucid.cli.outline import formula, outline
from pellucid.cli.words import fold
from pellucid.designs import DESIGNS, PUBLISHED
from pellucid.nn.flops import cache_bytes, count_parameters, forward_flops
from pellucid.predicates import big_bird
from pellucid.spec import (
    NO_NORM,
    POST_NORM,
    PRE_NORM,
    REORDERED_NORM,
    SANDWICH_NORM,
    AttentionSpec,
    BlockSpec,
    ByPartsScaling,
    Causal,
    DecoderSpec,
    EncoderDecoderSpec,
    EncoderSpec,
    FeedForwardSpec,
    FFNSpec,
    Full,
    GatedFFNSpec,
    LayerNormSpec,
    LinearAttentionSpec,
    LinearScaling,
    MixerSpec,
    ModelSpec,
    MoESpec,
    NTKScaling,
    Placement,
    Prefix,
    RecurrentSpec,
    ResidualSpec,
    RotaryScaling,
    RotarySpec,
    Window,
    YaRNScaling,
)
from pellucid.spec.words import describe, norm_name, times

SVG = "{http://www.w3.org/2000/svg}"
ALL: dict[str, ModelSpec] = {
    **{name: make(500, 64, 8, 64, 16) for name, make in DESIGNS.items()},
    **{name: make() for name, make in PUBLISHED.items()},
}


def sides(spec: ModelSpec) -> list[DecoderSpec | EncoderSpec]:
    return [spec.encoder, spec.decoder] if isinstance(spec, EncoderDecoderSpec) else [spec]


def drawn_blocks(spec: ModelSpec) -> Iterator[tuple[DecoderSpec | EncoderSpec, BlockSpec]]:
    """Each block as often as a drawing has it: equal ones once."""
    for side in sides(spec):
        for group in fold(side.stack.blocks):
            for _, block in group.runs:
                yield side, block


# --- the picture ------------------------------------------------------------------------------------------------------


def check_picture(spec: ModelSpec, name: str = "a <model> & more") -> None:
    """Well-formed, nothing outside the page, and as many boxes, norms, ⊕, loops and readers as the spec has."""
    root = ElementTree.fromstring(draw(spec, name))
    texts = ["".join(text.itertext()) for text in root.iter(f"{SVG}text")]
    assert texts.count(name) == 1
    kinds = [shape.get("class", "") for shape in root.iter()]
    parts = [part for side, block in drawn_blocks(spec) for part in block.parts(side.d_model)]
    for kind in ("attention", "linear", "recurrent"):
        assert kinds.count(kind) == sum(part.kind == kind for part in parts)
    for part in parts:
        assert texts.count(part.title) >= sum(part.title == other.title for other in parts)
    added, norms = 0, 0
    for side in sides(spec):
        added += (side.embed.positions is not None) + (side.embed.n_types > 0)
        norms += (side.embed.norm is not None) + (side.stack.final_norm is not None)
    for side, block in drawn_blocks(spec):
        n, place = len(block.parts(side.d_model)), block.placement
        norms += n * (place.pre + place.post + place.out)
        added += 1 if block.parallel else n * (block.residual.skip != 0)
    waves = sum(type(side.embed.positions).__name__ == "SinusoidalSpec" for side in sides(spec))
    assert kinds.count("norm") == norms
    assert kinds.count("dot") == added + waves
    loops = sum(" C" in path.get("d", "") for path in root.iter(f"{SVG}path"))
    assert loops == sum(part.kind in ("linear", "recurrent") for part in parts)
    assert ("what was read" in texts) == isinstance(spec, EncoderDecoderSpec)
    left, top, width, height = map(float, root.get("viewBox", "").split())
    for rect in root.iter(f"{SVG}rect"):
        x, y, w, h = (float(rect.get(key, "nan")) for key in ("x", "y", "width", "height"))
        assert left <= x and top <= y and x + w <= left + width + 1e-6 and y + h <= top + height + 1e-6


@pytest.mark.parametrize("name", ALL)
def test_every_design_is_drawn_whole(name: str) -> None:
    check_picture(ALL[name])


@given(specs() | encoder_specs(causal_masks) | image_specs(classifiers))
@settings(max_examples=examples(40))
def test_any_model_is_drawn_whole(spec: DecoderSpec | EncoderSpec) -> None:
    check_picture(spec)


def test_an_encoder_is_read_by_every_kind_of_block_that_does() -> None:
    """One arrow from the encoder to each box that reads it, whose tip lies on that box's left edge."""
    for name in ("attention_is_all_you_need", "seq2seq", "seq2seq_luong", "t5_base"):
        root = ElementTree.fromstring(draw(ALL[name], name))
        boxes = [rect for rect in root.iter(f"{SVG}rect") if rect.get("class") in ("attention", "recurrent")]
        edges = {(float(box.get("x", 0)), float(box.get("y", 0)), float(box.get("height", 0))) for box in boxes}
        arrows = [path.get("d", "") for path in root.iter(f"{SVG}path") if path.get("d", "").count("L") == 2]
        ends = [tuple(map(float, arrow.split("L")[-1].split())) for arrow in arrows]
        reached = [end for end in ends if any(x == end[0] and y < end[1] < y + h for x, y, h in edges)]
        assert len(reached) == 1, name


def test_the_mask_is_shown() -> None:
    """Nine by nine little squares: all of them for a mask that hides nothing, a triangle for a causal one."""

    def shades(spec: ModelSpec) -> list[int]:
        kinds = [rect.get("class") for rect in ElementTree.fromstring(draw(spec, "x")).iter(f"{SVG}rect")]
        return [kinds.count(shade) for shade in ("every", "some", "none")]

    assert shades(ALL["bert_base"]) == [81, 0, 0]
    assert shades(ALL["modern"]) == [36, 9, 36]
    assert shades(ALL["lstm"]) == [0, 0, 0]
    assert shades(ALL["window"])[2] > 36


def test_more_experts_than_are_drawn_are_hinted_at() -> None:
    def texts(n_experts: int) -> list[str]:
        block = replace(EXAMPLE.stack.blocks[0], ffn=MoESpec(FFNSpec(8), n_experts, 2))
        root = ElementTree.fromstring(draw(replace(EXAMPLE, stack=replace(EXAMPLE.stack, blocks=(block,))), "x"))
        return ["".join(text.itertext()) for text in root.iter(f"{SVG}text")]

    assert "…" in texts(64) and "…" not in texts(10)


def test_a_page_may_be_dark() -> None:
    picture = draw(ALL["moe"], "moe")
    style = next(iter(ElementTree.fromstring(picture).iter(f"{SVG}style"))).text or ""
    day, night = style.split("@media (prefers-color-scheme: dark) {")
    for kind in ("page", "frame", "wire", "text", "attention", "ffn", "norm"):
        assert re.search(rf"\.{kind} {{", day) and re.search(rf"\.{kind} {{", night), kind


# --- words ------------------------------------------------------------------------------------------------------------


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=14))
def test_folding_loses_nothing(letters: list[str]) -> None:
    blocks = {letter: replace(EXAMPLE.stack.blocks[0], mixer=RecurrentSpec("gru", ord(letter))) for letter in "abc"}
    stack = [blocks[letter] for letter in letters]
    groups = fold(stack)
    unfolded = [b for g in groups for _ in range(g.times) for n, block in g.runs for b in [block] * n]
    assert unfolded == stack
    starts = [0]
    for group in groups:
        starts.append(starts[-1] + group.times * sum(n for n, _ in group.runs))
    assert [group.at for group in groups] == starts[:-1]


def test_a_pattern_is_found() -> None:
    def shape(name: str, n_layers: int) -> list[tuple[int, list[int]]]:
        groups = fold(DESIGNS[name](500, 64, n_layers, 64, 16).stack.blocks)
        return [(group.times, [n for n, _ in group.runs]) for group in groups]

    assert shape("modern", 12) == [(1, [12])]
    assert shape("hybrid", 12) == [(3, [3, 1])]
    assert shape("hybrid", 4) == [(1, [3]), (1, [1])]
    assert shape("hybrid", 10) == [(1, [1]), (2, [1, 3]), (1, [1])]


@pytest.mark.parametrize(
    ("placement", "residual", "said"),
    [
        (PRE_NORM, ResidualSpec(), "x + f(LayerNorm(x))"),
        (POST_NORM, ResidualSpec(), "LayerNorm(x + f(x))"),
        (SANDWICH_NORM, ResidualSpec(), "x + LayerNorm(f(LayerNorm(x)))"),
        (REORDERED_NORM, ResidualSpec(), "x + LayerNorm(f(x))"),
        (NO_NORM, ResidualSpec(skip=0.0), "f(x)"),
        (POST_NORM, ResidualSpec(skip=2.5), "LayerNorm(2.5 · x + f(x))"),
        (PRE_NORM, ResidualSpec(1.0, 24**-0.5, 1e-4), "x + 1/√24 · gain · f(LayerNorm(x))"),
    ],
)
def test_the_residual_formula_is_said(placement: Placement, residual: ResidualSpec, said: str) -> None:
    block = replace(EXAMPLE.stack.blocks[0], norm=LayerNormSpec(), placement=placement, residual=residual)
    assert formula(block) == said


def test_masks_and_factors_in_words() -> None:
    assert describe(Full()) == "sees all"
    assert describe(Causal() & Window(256)) == "causal & window(256)"
    assert describe(~(Causal() | Prefix(3))) == "~(causal | prefix(3))"
    sparse = describe(Causal() & big_bird(64))
    assert sparse == "causal & (near blocks(64, 1) | global tokens(128) | random blocks(64, 3))"
    assert [times(x) for x in (0.5, 2.0, 512**0.5, 768**-0.5, 0.1234567, 22.0)] == [
        *("0.5", "2", "√512", "1/√768", "0.1235", "22"),
    ]
    assert norm_name(None) == "no norm"


EXPERTS = MoESpec(GatedFFNSpec(12), 4, 1, renormalise=False)
SAID: dict[MixerSpec | FeedForwardSpec, str] = {
    AttentionSpec(2, 2, 4, bias=True, out_bias=True): "2 heads of 4, causal, biases",
    AttentionSpec(2, 2, 4, bias=True): "2 heads of 4, causal, biases on q, k, v",
    LinearAttentionSpec(2, 4, out_bias=True): "kernel elu + 1, state 2 × 4 × 4, bias on o",
    FFNSpec(12, "gelu_tanh"): "GELU (tanh) of 12, biases",
    GatedFFNSpec(12): "SwiGLU of 12",
    EXPERTS: "4 experts, 1 a token, SwiGLU of 12, weights not renormalised",
}
STRETCHED: dict[RotaryScaling, str] = {
    LinearScaling(4.0): "linear",
    NTKScaling(4.0): "NTK",
    YaRNScaling(4.0, 8): "YaRN",
    ByPartsScaling(4.0, 8): "by parts",
}


@pytest.mark.parametrize(("part", "words"), SAID.items())
def test_particular_parts_are_named(part: MixerSpec | FeedForwardSpec, words: str) -> None:
    """Two models that differ in what they compute do not read alike."""
    place = "ffn" if isinstance(part, FFNSpec | GatedFFNSpec | MoESpec) else "mixer"
    block = replace(EXAMPLE.stack.blocks[0], **{place: part})
    assert words in [", ".join(said.details) for said in block.parts(8)]


@pytest.mark.parametrize(("scaling", "words"), STRETCHED.items())
def test_how_a_context_was_stretched_is_said(scaling: RotaryScaling, words: str) -> None:
    mixer = AttentionSpec(2, 2, 4, rotary=RotarySpec(scaling=scaling))
    assert f"rotary (stretched 4 times, {words})" in mixer.part(8).details


# --- numbers ----------------------------------------------------------------------------------------------------------


def check_rows(spec: ModelSpec, time: int) -> None:
    table = rows(spec, time)
    assert sum(row.parameters for row in table) == count_parameters(spec).total
    assert sum(row.flops for row in table) == forward_flops(spec, time)
    assert sum(row.kept for row in table) == cache_bytes(spec, time)
    assert all(min(row.parameters, row.flops, row.kept) >= 0 for row in table)


@pytest.mark.parametrize("name", ALL)
def test_the_parts_add_up(name: str) -> None:
    check_rows(ALL[name], 50)


@given(specs() | encoder_specs(causal_masks) | image_specs(classifiers), st.integers(1, 24))
@settings(max_examples=examples(40))
def test_the_parts_of_any_model_add_up(spec: DecoderSpec | EncoderSpec, time: int) -> None:
    check_rows(spec, time)
    for line in outline(spec, 60).splitlines():
        assert len(line) <= 60
    assert kernels(spec, time)


def test_the_kernel_is_said_with_its_reason() -> None:
    assert kernels(ALL["modern"], 64)["attention, causal"].startswith("sdpa: ")
    long = DESIGNS["window"](500, 4096, 2, 64, 16)
    assert kernels(long, 4096)["attention, causal & window(256)"].startswith("blocked: ")
    assert set(kernels(ALL["hybrid"], 64)) == {"linear attention", "attention, causal"}
    assert "alignment" in kernels(ALL["seq2seq_luong"], 64)


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")


@pytest.mark.parametrize("name", [*DESIGNS, *PUBLISHED])
def test_info_of_every_design(name: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    sizes = ["--depth", "8", "--context", "64"] if name in DESIGNS else []
    assert run(["info", name, *sizes, "--tokens", "32", "--svg", str(tmp_path / "x.svg")]) == 0
    shown = " ".join(capsys.readouterr().out.replace("│", "").split())
    made = PUBLISHED[name]() if name in PUBLISHED else DESIGNS[name](32768, 64, 8, 384, 64)
    assert f"{count_parameters(made).total:,}" in shown
    for side, block in drawn_blocks(made):
        for part in block.parts(side.d_model, side.stack.bias):
            assert part.title in shown
            assert all(detail in shown for detail in part.details), part
            assert all(matrix in shown for matrix in part.matrices)
    assert ElementTree.parse(tmp_path / "x.svg").getroot().tag == f"{SVG}svg"
    assert ("beside the paper" in shown) == name.startswith("attention_is_all_you_need")


@pytest.mark.parametrize("arguments", [[], ["--list"]])
def test_info_lists_all(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["info", *arguments]) == 0
    shown = capsys.readouterr().out
    for name in DESIGNS | PUBLISHED:
        assert re.search(rf"^{name} ", shown, re.MULTILINE), name


def test_info_of_a_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for name in ("bert_base", "seq2seq", "delta"):
        ALL[name].save(tmp_path / "spec.json")
        for subject in (tmp_path, tmp_path / "spec.json"):
            assert run(["info", str(subject)]) == 0
            assert f"{count_parameters(ALL[name]).total:,}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "code", "said"),
    [
        ("berd_base", 1, r"there is no design 'berd_base' did you mean 'bert_base'\?"),
        ("hybird", 1, r"there is no design 'hybird' did you mean 'hybrid'\?"),
        ("bert_base --depth 3", 2, r"--depth is for a design, and bert_base has its own leave it out"),
        ("modern --list", 2, r"modern does not go with a list of all designs"),
        ("--context 64", 2, r"--context does not go with a list of all designs"),
        ("--svg x.svg", 2, r"--svg does not go with a list of all designs"),
        ("modern --tokens 0", 2, r"tokens = 0 cannot be used --tokens must be at least 1"),
        ("modern --d-model 33 --depth 2", 1, r"AttentionSpec: rotary turns pairs of dimensions"),
    ],
)
def test_wrong_questions(line: str, code: int, said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run(["info", *line.split()]) == code
    heard = " ".join(capsys.readouterr().err.split())
    assert re.search(said, heard), heard
