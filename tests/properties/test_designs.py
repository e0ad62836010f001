"""Designs and published sizes: every one is a legal spec and a model that learns, and the sizes are the papers'."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from typing import Any

import pytest
import torch
from strategies import close

from pellucid.batch import Batch, Tokens
from pellucid.designs import DESIGNS, PUBLISHED, attention_is_all_you_need, design, summary, width
from pellucid.errors import SpecError, UsageError
from pellucid.nn.flops import count_parameters, forward_flops
from pellucid.nn.init import initialise
from pellucid.nn.models import Decoder, Encoder, EncoderDecoder, build_model
from pellucid.recipes.attention_is_all_you_need import RECIPES, compare
from pellucid.spec import (
    POST_NORM,
    AttentionSpec,
    Causal,
    DecoderSpec,
    EncoderDecoderSpec,
    Full,
    LearnedSpec,
    ModelSpec,
    MoESpec,
    RecurrentSpec,
    SinusoidalSpec,
    Window,
)

VOCAB, CONTEXT = 97, 64


def tiny(name: str, n_layers: int = 5) -> DecoderSpec:
    return DESIGNS[name](VOCAB, CONTEXT, n_layers, 32, 8)


@pytest.mark.parametrize("name", DESIGNS)
def test_a_design_is_a_model_that_learns(name: str) -> None:
    spec = tiny(name)
    assert DecoderSpec.from_json(spec.to_json()) == spec
    model = initialise(Decoder(spec), "fan_in")
    assert model.n_parameters == count_parameters(spec).total
    ids = torch.arange(40)[None] % 7  # a text that repeats
    batch = Batch(ids[:, :-1], Tokens.plain(1, 39), ids[:, 1:])
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    losses: list[float] = []
    for _ in range(12):
        optimizer.zero_grad()
        loss = model.nll_sum(batch) / 39
        loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("name", DESIGNS)
def test_a_design_writes_with_its_cache(name: str) -> None:
    model = initialise(Decoder(tiny(name)), seed=1).double().eval()
    ids = torch.randint(VOCAB, (2, 30), generator=torch.Generator().manual_seed(0))
    cache = model.new_cache(2)
    with torch.no_grad():
        got = torch.cat([model(part, cache=cache) for part in ids.split([1, 9, 1, 19], 1)], 1)
        close(got, model(ids))


@pytest.mark.parametrize("name", DESIGNS)
@pytest.mark.parametrize("d_model", [256, 640])
def test_blocks_are_of_equal_size(name: str, d_model: int) -> None:
    """12 · d_model² a block, within a twelfth: what rounding widths to multiples costs. Experts: of those met."""
    few, many = (DESIGNS[name](VOCAB, CONTEXT, n, d_model, 64) for n in (4, 8))
    a, b = count_parameters(few), count_parameters(many)
    squares = (b.mixers + b.ffn - a.mixers - a.ffn) / 4 / d_model**2
    ffn = few.stack.blocks[0].ffn
    if isinstance(ffn, MoESpec):
        assert squares > 30
        idle = (ffn.n_experts - ffn.top_k) * 3 * d_model * ffn.expert.d_ff
        squares -= idle / d_model**2
    assert squares == pytest.approx(12, abs=1)


def test_names_and_summaries() -> None:
    assert not DESIGNS.keys() & PUBLISHED.keys()
    for name in DESIGNS | PUBLISHED:
        assert summary(name).endswith("."), "the first line is a sentence"
    assert design("hybrid") is DESIGNS["hybrid"]
    with pytest.raises(SpecError, match=r"there is no design 'hybird'\n.*did you mean 'hybrid'"):
        design("hybird")
    with pytest.raises(SpecError, match=r"attention_is_all_you_need has no size 'bigg'\n.*did you mean 'big'"):
        attention_is_all_you_need("bigg")
    with pytest.raises(SpecError, match="d_model = 100 is no multiple of head_dim = 64"):
        DESIGNS["delta"](VOCAB, CONTEXT, 2, 100, 64)
    assert [width(depth) for depth in (1, 4, 5, 12)] == [128, 128, 192, 640]


@pytest.mark.parametrize("n_layers", range(1, 10))
@pytest.mark.parametrize("name", ["hybrid", "lstm_attention"])
def test_every_fourth_block_of_a_hybrid_attends(name: str, n_layers: int) -> None:
    attends = [isinstance(block.mixer, AttentionSpec) for block in tiny(name, n_layers).stack.blocks]
    assert attends[::-1] == [i % 4 == 0 for i in range(n_layers)]


@pytest.mark.parametrize(("context", "size"), [(8, 2), (256, 64), (1024, 256), (8192, 256)])
def test_a_window_is_never_the_whole_context(context: int, size: int) -> None:
    mixer = DESIGNS["window"](VOCAB, context, 1, 32, 8).stack.blocks[0].mixer
    assert isinstance(mixer, AttentionSpec) and mixer.mask == Causal() & Window(size)


# --- published sizes --------------------------------------------------------------------------------------------------

# of Hugging Face's bert-base-uncased, gpt2, t5-base and Llama-3.1-8B; the others by the formulas of their papers
PARAMETERS = {
    "bert_base": 109_514_298,
    "gpt2": 124_439_808,
    "t5_base": 222_903_552,
    "llama3_8b": 8_030_261_248,
    "seq2seq_luong": 2 * 50_000_000 + 8 * 4 * 1000 * (1000 + 1000 + 2) + 1000**2 + 2000 * 1000 + 50_000_000,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes(name: str) -> None:
    """Built without memory for the weights: what the model has is what is counted, and what was published."""
    spec = PUBLISHED[name]()
    assert type(spec).from_json(spec.to_json()) == spec
    with torch.device("meta"):
        model = build_model(spec)
    assert model.n_parameters == count_parameters(spec).total
    assert model.n_parameters == PARAMETERS.get(name, model.n_parameters)


def shrunk(value: Any, d_model: int) -> Any:
    """The same spec with small sizes."""
    if isinstance(value, tuple):
        return tuple(shrunk(item, d_model) for item in value)
    if not is_dataclass(value) or isinstance(value, type):
        return value
    small = {"d_model": 16, "d_ff": 24, "vocab_size": VOCAB, "context": 24, "head_dim": 8, "d_align": 8, "d_hidden": 16}
    changed: dict[str, Any] = {}
    for field in fields(value):
        old = getattr(value, field.name)
        if field.name in small and old:
            changed[field.name] = small[field.name]
        elif field.name in ("n_heads", "n_kv_heads"):
            changed[field.name] = max(1, old // 8)
        elif field.name != "runs":
            changed[field.name] = shrunk(old, d_model)
    return replace(value, **changed)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models_run(name: str) -> None:
    spec: ModelSpec = shrunk(PUBLISHED[name](), 16)
    model = initialise(build_model(spec), "xavier")
    source, ids = (torch.randint(VOCAB, (2, n), generator=torch.Generator().manual_seed(n)) for n in (9, 7))
    arguments = (source, ids) if isinstance(model, EncoderDecoder) else (ids,)
    logits = model(*arguments)
    assert logits.shape == (2, 7, VOCAB) and logits.isfinite().all()
    logits.logsumexp(-1).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters() if p.numel() != 2 * 16)
    if isinstance(model, Encoder):
        types = torch.ones_like(ids)
        assert (model(ids, types=types) - logits).abs().max() > 1e-3, "token types say something"


# --- Vaswani et al. 2017 ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "n", "d_model", "d_ff", "h", "d_k"), [("base", 6, 512, 2048, 8, 64), ("big", 6, 1024, 4096, 16, 64)]
)
def test_table_3(size: str, n: int, d_model: int, d_ff: int, h: int, d_k: int) -> None:
    spec = attention_is_all_you_need(size)
    for side in (spec.encoder, spec.decoder):
        assert (side.n_layers, side.d_model, side.vocab_size) == (n, d_model, 37_000)
        assert side.embed.positions == SinusoidalSpec() and side.embed.scale == d_model**0.5
        assert side.stack.final_norm is None
        for block in side.stack.blocks:
            assert isinstance(block.mixer, AttentionSpec)
            assert (block.mixer.n_heads, block.mixer.n_kv_heads, block.mixer.head_dim) == (h, h, d_k)
            assert (block.ffn.d_ff, block.ffn.activation, block.placement) == (d_ff, "relu", POST_NORM)  # type: ignore[union-attr]
            assert block.mixer.mask == (Full() if side is spec.encoder else Causal())
            assert block.cross == (None if side is spec.encoder else replace(block.mixer, mask=Full()))
    assert spec.shared_embedding and spec.decoder.head.tied
    # projections without biases, two matrices with, two values a norm and channel; one table
    encoder = 4 * d_model**2 + 2 * d_model * d_ff + d_ff + d_model + 2 * 2 * d_model
    decoder = encoder + 4 * d_model**2 + 2 * d_model
    assert count_parameters(spec).total == n * (encoder + decoder) + 37_000 * d_model


# N, d_model, d_ff, d_k -> millions, of the rows of table 3 that give a number
ROWS = {
    (6, 512, 2048, 64): 65, (2, 512, 2048, 64): 36, (4, 512, 2048, 64): 50, (8, 512, 2048, 64): 80,
    (6, 256, 2048, 32): 28, (6, 1024, 2048, 128): 168, (6, 512, 1024, 64): 53, (6, 512, 4096, 64): 90,
}  # fmt: skip


def millions(vocab_size: int, n: int, d_model: int, d_ff: int, d_k: int) -> int:
    """Parameters of a row with this vocabulary, as the table rounds them."""
    spec = attention_is_all_you_need("base", vocab_size)

    def resized(block: Any) -> Any:
        mixer, cross = (x and replace(x, head_dim=d_k) for x in (block.mixer, block.cross))
        return replace(block, mixer=mixer, cross=cross, ffn=replace(block.ffn, d_ff=d_ff))

    def side(one: Any) -> Any:
        stack = replace(one.stack, d_model=d_model, blocks=tuple(resized(one.stack.blocks[0]) for _ in range(n)))
        return replace(one, stack=stack)

    return round(count_parameters(replace(spec, encoder=side(spec.encoder), decoder=side(spec.decoder))).total / 1e6)


def test_parameters_and_flops_of_the_recipe_are_the_papers() -> None:
    """One vocabulary of 41,100 gives every row but the big one; 37,000 does not, and the big one wants fewer."""
    assert {row: millions(41_100, *row) for row in ROWS} == ROWS
    assert {row: millions(37_000, *row) for row in ROWS} != ROWS
    base, big = compare(RECIPES["base"]), compare(RECIPES["big"])
    assert (base.parameters, big.parameters) == (63_045_632, 214_171_648)
    assert base.implied_vocabulary == pytest.approx(40_800, abs=100)
    assert big.implied_vocabulary == pytest.approx(35_900, abs=100)
    for ours in (base, big):
        assert ours.paid == pytest.approx(ours.said_flops, rel=0.01), "the paper's own method gives its numbers"
    assert (round(base.used, 2), round(big.used, 2)) == (0.29, 0.42)
    spec = RECIPES["base"].spec
    assert base.flops == 100_000 * 1000 * 3 * forward_flops(spec, 25)


def test_the_schedule_is_equation_3() -> None:
    base, big = RECIPES["base"], RECIPES["big"]
    rates = [base.learning_rate(step) for step in range(1, 10_000)]
    assert rates.index(max(rates)) + 1 == 4000 == base.warmup
    assert max(rates) == pytest.approx(512**-0.5 * 4000**-0.5)
    assert rates[1999] == pytest.approx(max(rates) / 2)
    assert base.learning_rate(16_000) == pytest.approx(max(rates) / 2)
    assert big.learning_rate(4000) == pytest.approx(max(rates) / 2**0.5)
    with pytest.raises(UsageError, match="step = 0"):
        base.learning_rate(0)
    assert (base.steps, base.dropout, big.steps, big.dropout) == (100_000, 0.1, 300_000, 0.3)
    assert (base.betas, base.eps, base.smoothing) == ((0.9, 0.98), 1e-9, 0.1)


def test_before_2017_there_was_no_residual_stream() -> None:
    for name in ("seq2seq", "seq2seq_luong"):
        spec = PUBLISHED[name]()
        assert isinstance(spec, EncoderDecoderSpec)
        blocks = (*spec.encoder.stack.blocks, *spec.decoder.stack.blocks)
        assert all(block.residual.skip == 0 and block.ffn is None for block in blocks)
        assert count_parameters(spec).norms == 0
    first = PUBLISHED["seq2seq"]()
    assert isinstance(first, EncoderDecoderSpec)
    reader = first.encoder.stack.blocks[0].mixer
    assert isinstance(reader, RecurrentSpec) and reader.both_directions
    assert not isinstance(first.encoder.embed.positions, LearnedSpec)
