"""Looking: the lens ends in the model's output, what is shown is what was computed, the impossible is refused."""

from __future__ import annotations

import html
import io
import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from drawn import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from pellucid import build
from pellucid.designs import DESIGNS
from pellucid.errors import TapError, UsageError
from pellucid.interpret import lens as lens_module
from pellucid.interpret.lens import logit_lens
from pellucid.interpret.record import capture
from pellucid.look.ink import percent
from pellucid.look.look import Look, look
from pellucid.look.page.html import to_html
from pellucid.look.seen import Attention, Head
from pellucid.look.terminal import show
from pellucid.look.text import label, prose
from pellucid.nn.models import AnyModel, Decoder, EncoderDecoder
from pellucid.nn.residual import Sublayer
from pellucid.spec import (
    POST_NORM,
    AttentionSpec,
    BlockSpec,
    ClassifierHeadSpec,
    DecoderSpec,
    EmbedSpec,
    EncoderDecoderSpec,
    EncoderHeadSpec,
    EncoderSpec,
    FFNSpec,
    Full,
    LearnedSpec,
    LMHeadSpec,
    MaskedLMHeadSpec,
    ModelSpec,
    PatchSpec,
    Placement,
    PoolerHeadSpec,
    RMSNormSpec,
    StackSpec,
    TaggerHeadSpec,
)
from pellucid.text.tokenizer import END_OF_TEXT, Tokenizer
from pellucid.text.tokenizer_roles import Roles

TEXT = "the cat sat on the mat; the dog sat on the log.\n"
CONTEXT = 48


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train([TEXT * 8], 280)


def decoder(tokenizer: Tokenizer | None = None, placement: Placement | None = None) -> Decoder:
    torch.manual_seed(0)
    block = BlockSpec(AttentionSpec(4, 2, 8), FFNSpec(48), RMSNormSpec(), placement or Placement())
    stack = StackSpec(32, (block,) * 3, RMSNormSpec() if placement is None else None)
    spec = DecoderSpec(300, CONTEXT, EmbedSpec(LearnedSpec()), stack, LMHeadSpec(tied=False, bias=True))
    model = Decoder(spec)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.4)
    model.tokenizer = tokenizer
    return model


@pytest.fixture(scope="module")
def seen(tokenizer: Tokenizer) -> Look:
    return look(decoder(tokenizer), TEXT, name="tiny")


def lens_of(model: Decoder, ids: torch.Tensor):
    acts = capture(model, ids, ["embed", "blocks.*.resid_post"])
    return logit_lens(model, acts, ids, top=5), acts


@pytest.mark.parametrize("placement", [None, POST_NORM], ids=["pre-norm", "post-norm"])
def test_the_lens_ends_in_the_models_output(placement: Placement | None) -> None:
    model = decoder(placement=placement)
    ids = torch.randint(0, 300, (2, 17))
    lens, acts = lens_of(model, ids)
    with torch.inference_mode():
        logits = model(ids)
        assert torch.equal(model.unembed(acts["blocks.2.resid_post"]), logits)
    best = logits.log_softmax(-1).topk(5)
    assert torch.equal(lens.ids[-1], best.indices)
    assert torch.equal(lens.probs[-1], best.values.exp())
    assert (lens.kl[-1] == 0).all()
    assert not torch.equal(lens.ids[0], best.indices), "control: the embedding must not guess like the output"
    assert (lens.kl[:-1] > 0.01).all(), "control: an earlier layer is another distribution"


def test_the_lens_agrees_with_its_definition() -> None:
    model, ids = decoder(), torch.randint(0, 300, (1, 11))
    lens, acts = lens_of(model, ids)
    with torch.inference_mode():
        output = model(ids).double().log_softmax(-1)
        logp = model.unembed(acts["blocks.0.resid_post"]).double().log_softmax(-1)
    kl = (output.exp() * (output - logp)).sum(-1)
    torch.testing.assert_close(lens.kl[1].double(), kl, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(lens.entropy[1].double(), -(logp.exp() * logp).sum(-1), rtol=1e-4, atol=1e-5)
    for t in range(10):
        order = logp[0, t].argsort(descending=True).tolist()
        assert lens.actual_rank[1, 0, t] == order.index(int(ids[0, t + 1])) + 1


def test_an_impossible_token_gives_no_nan() -> None:
    model, ids = decoder(), torch.randint(0, 299, (1, 5))
    with torch.no_grad():
        assert model.head.bias is not None
        model.head.bias[299] = -torch.inf
    lens, _ = lens_of(model, ids)
    assert torch.isfinite(lens.kl).all()
    assert torch.isfinite(lens.entropy).all()


def test_losses_are_the_models_own(seen: Look, tokenizer: Tokenizer) -> None:
    ids = torch.tensor([tokenizer.encode(TEXT, bos=True)])
    logp = decoder(tokenizer)(ids).detach().log_softmax(-1)[0]
    expected = [-float(logp[t, ids[0, t + 1]]) for t in range(ids.shape[1] - 1)]
    assert seen.guesses is not None
    np.testing.assert_allclose(seen.guesses.loss, expected, rtol=1e-4)  # patterns are read on another kernel
    np.testing.assert_allclose(seen.guesses.bits * math.log(2), seen.guesses.loss, rtol=1e-6)
    assert [token.id for token in seen.tokens] == ids[0].tolist()
    assert seen.tokens[0].label == "<|endoftext|>"
    np.testing.assert_allclose(seen.guesses.top_probs, logp.topk(10).values.exp().numpy(), rtol=1e-4)
    for t, correct in enumerate(seen.guesses.lens[-1].correct):
        assert correct == (seen.guesses.rank[t] == 1)


def test_patterns_and_norms_are_the_activations(seen: Look, tokenizer: Tokenizer) -> None:
    ids = torch.tensor([tokenizer.encode(TEXT, bos=True)])
    acts = capture(decoder(tokenizer), ids, ["blocks.1.attn.pattern", "blocks.1.ffn_out"])
    np.testing.assert_allclose(seen.attention.patterns[1], acts["blocks.1.attn.pattern"][0].numpy(), atol=1e-5)
    np.testing.assert_allclose(seen.norms["ffn_out"][1], acts["blocks.1.ffn_out"][0].norm(dim=-1).numpy(), rtol=1e-4)
    for layer in seen.attention.patterns:
        np.testing.assert_allclose(layer.sum(-1), 1, rtol=1e-5)
        assert not np.triu(layer, 1).any()
    assert len(seen.attention.heads) == 3 * 4
    head = seen.attention.heads[5]
    assert seen.attention.patterns[head.layer][head.head, head.query, head.key] == pytest.approx(head.weight)


def designed(name: str, tokenizer: Tokenizer | None, n_layers: int = 4) -> Decoder:
    model = build(DESIGNS[name](300, CONTEXT, n_layers, 32, 8))
    model.tokenizer = tokenizer
    return model


@pytest.mark.parametrize("name", DESIGNS)
def test_every_design_can_be_looked_into(name: str, tokenizer: Tokenizer) -> None:
    model = designed(name, tokenizer, n_layers=2)
    seen = look(model, TEXT, name=name)
    attends = [isinstance(block.mixer, AttentionSpec) for block in model.spec.stack.blocks]
    assert [len(layer) > 0 for layer in seen.attention.patterns] == attends
    assert [layer.mixer == "attention" for layer in seen.layers] == attends
    assert (seen.model.n_heads > 0) == any(attends)
    assert seen.guesses is not None
    assert len(seen.guesses.lens) == 3
    assert np.isfinite(seen.norms["mixer_out"]).all()
    for layer, block in enumerate(model.spec.stack.blocks):
        assert (block.ffn is None) == (not seen.layers[layer].feed_forward)
        assert (block.ffn is None) == (
            "ffn_out" not in seen.norms or bool(np.isnan(seen.norms["ffn_out"][layer]).all())
        )
    json.dumps(seen.to_json(), allow_nan=False)
    assert "nan" not in printed(seen, 80).split("Attention")[1]


def test_a_hybrid_shows_heads_only_where_it_attends(tokenizer: Tokenizer) -> None:
    model = designed("lstm_attention", tokenizer)
    seen = look(model, TEXT)
    assert [layer.mixer for layer in seen.layers] == ["LSTM", "LSTM", "LSTM", "attention"]
    assert [head.layer for head in seen.attention.heads] == [3] * 4
    assert "1 attention" in printed(seen, 80)
    ids = torch.tensor([[token.id for token in seen.tokens]])
    acts = capture(model, ids, ["blocks.2.rnn.h", "blocks.2.rnn_out", "blocks.3.attn_out"])
    norms = {name: act[0].norm(dim=-1).numpy() for name, act in acts.items()}
    np.testing.assert_allclose(seen.norms["state"][2], norms["blocks.2.rnn.h"], rtol=1e-4)
    np.testing.assert_allclose(seen.norms["mixer_out"][2], norms["blocks.2.rnn_out"], rtol=1e-4)
    np.testing.assert_allclose(seen.norms["mixer_out"][3], norms["blocks.3.attn_out"], rtol=1e-4)
    assert np.isnan(seen.norms["state"][3]).all()


def test_without_attention_it_says_so_in_a_line(tokenizer: Tokenizer) -> None:
    seen = look(designed("gru", tokenizer, n_layers=2), TEXT)
    assert seen.attention.heads == ()
    assert "Attention  none to show" in printed(seen, 80)
    assert "heads ×" not in printed(seen, 80)
    assert "+ffn" not in printed(seen, 80)


def test_experts_are_the_routers_choices(tokenizer: Tokenizer) -> None:
    model = designed("moe", tokenizer, n_layers=2)
    seen = look(model, TEXT)
    ids = torch.tensor([[token.id for token in seen.tokens]])
    logits = capture(model, ids, ["blocks.1.router_logits"])["blocks.1.router_logits"][0]
    best = logits.softmax(-1).topk(2)
    experts = seen.experts[1]
    assert (experts.layer, experts.n_experts) == (1, 8)
    assert experts.ids.tolist() == best.indices.tolist()
    np.testing.assert_allclose(experts.weights, (best.values / best.values.sum(-1, keepdim=True)).numpy(), rtol=1e-4)
    assert experts.load.sum() == pytest.approx(1)
    assert experts.load[3] == pytest.approx((best.indices == 3).sum().item() / best.indices.numel())
    last = "·".join(f"{expert}" for expert in experts.ids[-1])
    row = next(line for line in printed(seen, 80).split("Experts")[1].splitlines() if line.startswith("layer 1"))
    assert row.split()[-1] == last
    assert look(decoder(tokenizer), TEXT).experts == ()
    assert max(map(len, printed(seen, 40).splitlines())) <= 40
    assert "layer 1" in printed(look(model, [7]), 80).split("Experts")[1]


EVERYWHERE = AttentionSpec(4, 4, 8, Full())


def drawn(spec: ModelSpec, tokenizer: Tokenizer | None = None) -> AnyModel:
    """A model of this spec with weights large enough that its layers differ."""
    model = build(spec)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.4)
    model.tokenizer = tokenizer
    return model


def encoder_spec(head: EncoderHeadSpec | None, n_layers: int = 2) -> EncoderSpec:
    block = BlockSpec(EVERYWHERE, FFNSpec(48), RMSNormSpec())
    stack = StackSpec(32, (block,) * n_layers, RMSNormSpec())
    return EncoderSpec(300, CONTEXT, EmbedSpec(LearnedSpec()), stack, head)


def pair_spec() -> EncoderDecoderSpec:
    block = BlockSpec(AttentionSpec(4, 2, 8), FFNSpec(48), RMSNormSpec(), cross=EVERYWHERE)
    writer = DecoderSpec(300, CONTEXT, EmbedSpec(LearnedSpec()), StackSpec(32, (block,) * 3, RMSNormSpec()))
    return EncoderDecoderSpec(encoder_spec(None), writer, start_id=0)


def test_an_encoder_shows_looks_both_ways_and_how_alike_its_tokens_are(tokenizer: Tokenizer) -> None:
    model = drawn(encoder_spec(None), tokenizer)
    seen = look(model, TEXT)
    ids = torch.tensor([[token.id for token in seen.tokens]])
    acts = capture(model, ids, ["embed", "blocks.*.attn.pattern", "blocks.*.resid_post"])
    for layer, pattern in enumerate(seen.attention.patterns):
        np.testing.assert_allclose(pattern, acts[f"blocks.{layer}.attn.pattern"][0].numpy(), atol=1e-6)
        assert np.triu(pattern, 1).any(), "it sees what comes later"
    states = acts["blocks.1.resid_post"][0]
    expected = torch.cosine_similarity(states[:, None], states[None], dim=-1).numpy()
    assert seen.encoding is not None
    np.testing.assert_allclose(seen.encoding.alike[2], expected, atol=1e-5)
    assert len(seen.encoding.alike) == 3
    assert not np.allclose(seen.encoding.alike[0], seen.encoding.alike[2], atol=0.05), "control: layers differ"
    assert (seen.guesses, seen.encoding.pooled, seen.encoding.classes) == (None, None, None)
    head, pattern = seen.attention.heads[5], seen.attention.patterns[1][1]
    queries = np.arange(2, len(pattern) - 2)
    assert head.following == pytest.approx(pattern[queries, queries + 1].mean(), rel=1e-5)
    assert head.last == pytest.approx(pattern[queries, -1].mean(), rel=1e-5)
    assert "Logit lens" not in printed(seen, 80)
    assert "How alike the tokens are" in printed(seen, 80)


def test_a_masked_lm_guesses_each_place_and_what_masks_hide() -> None:
    masking = with_mask()
    model = drawn(encoder_spec(MaskedLMHeadSpec()), masking)
    seen = look(model, "the cat sat on the [MASK].", top=4)
    places = [place for place, token in enumerate(seen.tokens) if token.id == masking.mask_id]
    assert seen.guesses is not None
    assert seen.guesses.masked == tuple(places)
    assert len(places) == 1
    ids = torch.tensor([[token.id for token in seen.tokens]])
    logp = model(ids).detach().log_softmax(-1)[0]
    np.testing.assert_allclose(seen.guesses.top_probs, logp.exp().topk(4).values.numpy(), rtol=1e-4)
    shapes = (seen.guesses.top_ids.shape, seen.guesses.loss.shape)
    assert (seen.guesses.ahead, *shapes) == (0, (len(seen.tokens), 4), (len(seen.tokens),))
    for place, token in enumerate(seen.tokens):
        if place in places:
            assert math.isnan(seen.guesses.loss[place])
            assert seen.guesses.rank[place] == 0
        else:
            assert seen.guesses.loss[place] == pytest.approx(-float(logp[place, token.id]), rel=1e-4)
            assert seen.guesses.lens[-1].correct[place] == (seen.guesses.rank[place] == 1)
    assert "What the masks hide" in printed(seen, 80)
    json.dumps(seen.to_json(), allow_nan=False)
    plain = look(drawn(encoder_spec(None), masking), "the [MASK].")
    assert plain.guesses is None, "control: where nothing is guessed, a mask written out is text"
    assert masking.mask_id not in [token.id for token in plain.tokens]


def with_mask() -> Tokenizer:
    """A vocabulary that has a mask, as those of published encoders do."""
    inner = Tokenizer.train([TEXT * 8], 280).inner
    inner.add_special_tokens(["[MASK]"])
    return Tokenizer(inner, Roles(bos_id=inner.token_to_id(END_OF_TEXT), mask_id=inner.token_to_id("[MASK]")))


def test_a_pooled_vector_is_measured_and_classes_are_probabilities(tokenizer: Tokenizer) -> None:
    model = drawn(encoder_spec(PoolerHeadSpec("mean", dense=False)), tokenizer)
    seen = look(model, TEXT)
    ids = torch.tensor([[token.id for token in seen.tokens]])
    vector = model(ids)[0].detach()
    assert seen.encoding is not None
    assert seen.encoding.pooled is not None
    assert seen.encoding.pooled.norm == pytest.approx(float(vector.norm()), rel=1e-4)
    states = capture(model, ids, ["final_norm"])["final_norm"][0]
    expected = torch.cosine_similarity(states, vector[None]).numpy()
    np.testing.assert_allclose(seen.encoding.pooled.likeness, expected, atol=1e-5)
    dense = look(drawn(encoder_spec(PoolerHeadSpec("first")), tokenizer), TEXT).encoding
    assert dense is not None and dense.pooled is not None
    assert len(dense.pooled.likeness) == 0, "behind a dense layer a cosine with the states means nothing"
    for head, places in ((ClassifierHeadSpec(3), 1), (TaggerHeadSpec(3), ids.shape[1])):
        model = drawn(encoder_spec(head), tokenizer)
        seen = look(model, TEXT)
        assert seen.encoding is not None and seen.encoding.classes is not None
        assert seen.encoding.classes.shape == (places, 3)
        np.testing.assert_allclose(seen.encoding.classes, model(ids)[0].detach().softmax(-1).numpy(), atol=1e-5)
        assert seen.encoding.class_names == ("0", "1", "2") and "Classes" in printed(seen, 60)
        model.class_names = ("good", "bad", "\x1b[2J")
        named = look(model, TEXT)
        assert named.encoding is not None
        assert named.encoding.class_names == ("good", "bad", "\\u001b[2J") and "\x1b[2J" not in printed(named, 60)
        assert named.encoding.class_names[int(named.encoding.classes[0].argmax())] in printed(named, 60)  # pyright: ignore
    score = look(drawn(encoder_spec(ClassifierHeadSpec(1)), tokenizer), TEXT).encoding
    assert score is not None and score.classes is None, "a score is no class"


def test_an_encoder_decoder_shows_both_sides_and_looks_across(tokenizer: Tokenizer) -> None:
    model = drawn(pair_spec(), tokenizer)
    assert isinstance(model, EncoderDecoder)
    seen = look(model, "the cat sat on the mat", target="a dog")
    assert seen.guesses is not None and seen.across is not None and seen.across.source is not None
    source, ids = (torch.tensor([[token.id for token in side.tokens]]) for side in (seen.across.source, seen))
    assert int(ids[0, 0]) == model.spec.start_id
    logp = model(source, ids).detach().log_softmax(-1)[0]
    expected = [-float(logp[t, ids[0, t + 1]]) for t in range(ids.shape[1] - 1)]
    np.testing.assert_allclose(seen.guesses.loss, expected, rtol=1e-4)
    acts = capture(model, ids, ["decoder.blocks.2.cross.pattern", "encoder.blocks.1.attn.pattern"], source)
    cross, reads = seen.across.attention.patterns[2], seen.across.source.attention.patterns[1]
    np.testing.assert_allclose(cross, acts["decoder.blocks.2.cross.pattern"][0].numpy(), atol=1e-6)
    np.testing.assert_allclose(reads, acts["encoder.blocks.1.attn.pattern"][0].numpy(), atol=1e-6)
    assert [len(layer) for layer in seen.across.attention.patterns] == [4, 4, 4]
    link = seen.across.attention.heads[6]
    assert seen.across.attention.patterns[link.layer][link.head, link.query, link.key] == pytest.approx(link.weight)
    text = printed(seen, 90)
    assert "Looking at the source" in text
    assert text.index("encoder") < text.index("decoder")
    assert max(map(len, printed(seen, 60).splitlines())) <= 60
    json.dumps(seen.to_json(), allow_nan=False)


def test_without_a_target_it_is_what_the_model_would_write(tokenizer: Tokenizer) -> None:
    model = drawn(pair_spec(), tokenizer)
    seen = look(model, "the cat sat on the mat")
    tokens = [token.id for token in seen.tokens]
    assert seen.guesses is not None
    assert (seen.guesses.rank[: len(tokens) - 1] == 1).all(), "each is its own best guess"
    assert len(tokens) <= CONTEXT


def test_a_target_written_in_training_mode_is_that_of_evaluation_mode(tokenizer: Tokenizer) -> None:
    """It was written with dropout on, so each look at a model in training showed another text."""
    model = drawn(pair_spec(), tokenizer)
    for module in model.modules():
        if isinstance(module, Sublayer):
            module.dropout = 0.5
    evaluated = look(model.eval(), "the cat sat on the mat")
    trained = look(model.train(), "the cat sat on the mat")
    assert trained.tokens == evaluated.tokens
    assert all(module.training for module in model.modules())


def test_unshowable_looks_are_refused_by_name(tokenizer: Tokenizer) -> None:
    images = EncoderSpec(
        0, 5, EmbedSpec(LearnedSpec(), patches=PatchSpec(4, 4, 2)), encoder_spec(None).stack, ClassifierHeadSpec(2)
    )
    with pytest.raises(UsageError, match=r"(?s)reads images.*model\.taps"):
        look(build(images), [1, 2])
    with pytest.raises(UsageError, match="answers what an encoder reads"):
        look(build(pair_spec().decoder), [1, 2])
    with pytest.raises(UsageError, match="has no encoder"):
        look(decoder(tokenizer), TEXT, target="a dog")
    with pytest.raises(UsageError, match=f"tokens long, but the model's context is {CONTEXT - 1}"):
        look(drawn(pair_spec(), tokenizer), TEXT, target="cat dog " * 60)


def test_special_tokens_are_marked(seen: Look) -> None:
    assert [token.special for token in seen.tokens] == [True] + [False] * (len(seen.tokens) - 1)


def test_a_large_vocabulary_is_decoded_a_few_tokens_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids = decoder(), torch.randint(0, 300, (2, 11))
    whole, acts = lens_of(model, ids)
    monkeypatch.setattr(lens_module, "CHUNK_BYTES", 4 * 300 * 6)
    sizes: list[int] = []
    unembed = model.unembed
    monkeypatch.setattr(model, "unembed", lambda x: sizes.append(x.shape[1]) or unembed(x))
    cut = logit_lens(model, acts, ids, top=5)
    assert set(sizes) == {6, 22 % 6}
    for field in ("ids", "probs", "actual_nll", "actual_rank", "entropy", "kl"):
        torch.testing.assert_close(getattr(cut, field), getattr(whole, field), rtol=1e-5, atol=1e-6)


def test_looking_leaves_the_model_as_it_was(tokenizer: Tokenizer) -> None:
    model = decoder(tokenizer).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    look(model, TEXT)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    with pytest.raises(TapError):
        capture(model.eval(), torch.tensor([[1]]), ["blocks.9.resid_post"])
    assert not model.training


def test_json_says_the_same(seen: Look) -> None:
    told = json.loads(json.dumps(seen.to_json(), allow_nan=False))
    assert told["model"]["n_layers"] == 3
    assert [len(row) for row in told["patterns"][0][0]] == list(range(1, len(seen.tokens) + 1))
    assert seen.guesses is not None
    assert told["loss"][3] == pytest.approx(float(seen.guesses.loss[3]), rel=1e-3)


def test_ids_without_a_tokenizer_and_a_single_token() -> None:
    one = look(decoder(), [7], top=400)
    assert one.tokens[0].label == "#7"
    assert one.guesses is not None
    assert one.guesses.loss.shape == (0,)
    assert one.guesses.top_ids.shape == (1, 300)
    json.dumps(one.to_json(), allow_nan=False)
    assert "What comes next?" in printed(one, 80)


def test_unreadable_inputs_are_refused(tokenizer: Tokenizer) -> None:
    model = decoder(tokenizer)
    too_long = "cat dog " * 60
    n_tokens = len(tokenizer.encode(too_long, bos=True))
    with pytest.raises(UsageError, match=f"{n_tokens} tokens long, but the model's context is {CONTEXT}"):
        look(model, too_long)
    with pytest.raises(UsageError, match="empty"):
        look(model, "")
    with pytest.raises(UsageError, match="no token ids"):
        look(model, [])
    with pytest.raises(UsageError, match="token id 300 "):
        look(model, [1, 300])
    with pytest.raises(UsageError, match="top = 0"):
        look(model, TEXT, top=0)
    with pytest.raises(UsageError, match="no tokenizer"):
        look(decoder(), TEXT)
    with pytest.raises(UsageError, match="at least one residual"):
        logit_lens(model, {}, torch.tensor([[1]]))


@pytest.mark.parametrize(
    ("text", "shown", "running"),
    [
        (" the", "␣the", " the"),
        ("\n    ", "⏎␣␣␣␣", "⏎\n····"),
        ("\t", "⇥", "⇥\t"),
        ("\u202eabc", "\\u202eabc", "\\u202eabc"),
        ("\u200b", "\\u200b", "\\u200b"),
        ("\x00\x1b[31m", "\\x00\\x1b[31m", "\\x00\\x1b[31m"),
        ("\u0301", "◌\u0301", "\u0301"),
        ("naïve 漢字", "naïve␣漢字", "naïve 漢字"),
    ],
)
def test_tokens_are_written_visibly(text: str, shown: str, running: str) -> None:
    assert label(text) == shown
    assert prose(text) == running


@settings(max_examples=examples(200), deadline=None)
@given(st.text())
def test_labels_are_one_visible_line(text: str) -> None:
    shown = label(text)
    assert shown.isprintable() or not shown
    assert len(shown) >= len(text)
    assert " " not in shown


def printed(seen: Look, width: int) -> str:
    console = Console(width=width, file=io.StringIO(), color_system=None)
    show(seen, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize("width", [40, 80, 120, 400])
def test_the_terminal_view_fits_its_width(seen: Look, width: int) -> None:
    text = printed(seen, width)
    assert max(map(len, text.splitlines())) <= width
    cut = re.search(r"the last (\d+)\s+of\s+(\d+)\s+tokens", text)
    assert (cut is None) == (width == 400), "it says when tokens are left out, and only then"
    assert "\x1b" not in text


def test_links_name_their_tokens_in_60_columns(tokenizer: Tokenizer) -> None:
    seen = look(drawn(encoder_spec(None), tokenizer), TEXT)
    seen = replace(seen, tokens=tuple(replace(token, label=f"␣word{i}") for i, token in enumerate(seen.tokens)))
    links = re.findall(r"(\S+) → (\S+) <?\d+% *$", printed(seen, 60), flags=re.MULTILINE)
    assert links and ("…", "…") not in links


def test_nothing_is_nothing() -> None:
    assert [percent(share) for share in (0.0, 0.001, 0.0095, 0.5, 1.0)] == ["0%", "<1%", "1%", "50%", "100%"]


def test_the_terminal_shows_surprise_with_and_without_colour(seen: Look) -> None:
    assert seen.guesses is not None
    assert float(seen.guesses.bits.max()) > 6, "control: some token must be surprising"
    assert re.search(r"\[+[^\]]+\]", printed(seen, 80).split("What comes next")[0])
    console = Console(width=80, file=io.StringIO(), color_system="truecolor", force_terminal=True)
    show(seen, console)
    assert isinstance(console.file, io.StringIO)
    assert "\x1b[38;2;" in console.file.getvalue()


@pytest.mark.parametrize("head", [None, MaskedLMHeadSpec(), PoolerHeadSpec("mean", dense=False), TaggerHeadSpec(3)])
def test_a_token_that_reads_as_markup_is_shown_as_it_is(head: EncoderHeadSpec | None) -> None:
    """A closing tag that nothing has opened, which chat models have as a token."""
    inner = with_mask().inner
    inner.add_tokens(["[/INST]", "[bold]"])
    model = drawn(encoder_spec(head), Tokenizer(inner, Roles()))
    assert "[/INST]" in printed(look(model, "[/INST] a [bold] b", top=300), 120)


def test_markup_in_a_text_is_text(tokenizer: Tokenizer) -> None:
    text = printed(look(decoder(tokenizer), "[bold]x[/bold] [link=a]"), 120)
    letters = re.sub(r"[\[\]]", "", text.split("What comes next")[0])
    assert "boldx/bold" in letters.replace("\n", "")


def many_heads(seen: Look) -> Look:
    """The same with forty heads: thirty-six rest on the first token, three look back by one, one at no such place."""
    first = [Head(i // 4, i % 4, 0.99 - i / 100, 0.0, 0.0, 5, 3, 0.3) for i in range(36)]
    back = [Head(9, h, 0.1, 0.6 + h / 10, 0.1, 5, 4, 0.9) for h in range(3)]
    patterns = (np.zeros((4, 1, 1), np.float32),) * 10
    heads = (*first, *back, Head(9, 3, 0.3, 0.1, 0.1, 6, 2, 0.8))
    points = {**seen.points, "pattern": tuple(f"blocks.{layer}.attn.pattern" for layer in range(10))}
    layers = seen.layers[:1] * 10
    return replace(seen, attention=Attention(patterns, heads), points=points, layers=layers)


def test_heads_are_listed_by_kind_and_no_kind_crowds_out_another(seen: Look) -> None:
    """Of 270 heads the 24 that were listed all rested on the first token."""
    lines = printed(many_heads(seen), 100).split("Attention")[1].split("\n\n")[0].splitlines()
    kinds = [line.split() for line in lines if line.startswith(("first", "previous", "mixed"))]
    assert kinds == [["first", "36", "█████████·"], ["previous", "3", "·········▇"], ["mixed", "1", "·········▃"]]
    listed = [line.split()[0] for line in lines[:-1] if re.match(r"\d", line)]
    assert "24 of 40 heads" in lines[0]
    assert listed == [*(f"{i // 4}.{i % 4}" for i in range(20)), "9.2", "9.1", "9.0", "9.3"]
    assert lines[-1] == "9.3 is head 3 of blocks.9.attn.pattern"
    assert max(map(len, printed(many_heads(seen), 40).splitlines())) <= 40


def test_layers_and_heads_are_numbered_as_the_points_are(seen: Look, tokenizer: Tokenizer) -> None:
    assert seen.points["pattern"] == tuple(f"blocks.{layer}.attn.pattern" for layer in range(3))
    assert seen.points["ffn_out"][2] == "blocks.2.ffn_out"
    rows = [line.split("  ")[0] for line in printed(seen, 80).split("Logit lens")[1].splitlines() if line]
    assert [row for row in rows if row.startswith(("layer", "embed", "output"))][:4] == [
        "output",
        "layer 1",
        "layer 0",
        "embed",
    ]
    hybrid = look(designed("lstm_attention", tokenizer), TEXT)
    assert hybrid.points["mixer_out"][2:] == ("blocks.2.rnn_out", "blocks.3.attn_out")
    assert hybrid.points["state"] == ("blocks.0.rnn.h", "blocks.1.rnn.h", "blocks.2.rnn.h", "")
    pair = look(drawn(pair_spec(), tokenizer), "the cat", target="a dog")
    assert pair.across is not None and pair.guesses is not None
    assert pair.points["cross"][1] == "decoder.blocks.1.cross.pattern"
    assert pair.across.source.points["pattern"][0] == "encoder.blocks.0.attn.pattern"
    assert [row.point for row in pair.guesses.lens][:2] == ["decoder.embed", "decoder.blocks.0.resid_post"]


def test_every_point_that_is_named_can_be_read(tokenizer: Tokenizer) -> None:
    for model in (decoder(tokenizer), designed("moe", tokenizer, 2), drawn(pair_spec(), tokenizer)):
        seen = look(model, "the cat")
        named = {name for names in seen.points.values() for name in names if name}
        assert named <= set(model.point_names())


def test_one_long_vector_leaves_the_bars_of_the_others(seen: Look) -> None:
    """A first token of length 22,700 drew all others as equally short."""
    norms = {stream: values.copy() for stream, values in seen.norms.items()}
    norms["resid_post"][:, 0] = 22_700.0
    rows = printed(replace(seen, norms=norms), 120).split("Residual stream")[1].splitlines()
    plain = printed(seen, 120).split("Residual stream")[1].splitlines()
    for row, before in zip(rows, plain, strict=True):
        if row.startswith("layer"):
            bars = row.split()[2]
            assert bars[0] == "↑" and len(set(bars)) > 4
            assert row.split()[-2:] == before.split()[-2:], "what layers add is as it was"


def test_sections_can_be_chosen(seen: Look) -> None:
    console = Console(width=80, file=io.StringIO(), color_system=None)
    show(seen, console, only=("lens", "stream"))
    assert isinstance(console.file, io.StringIO)
    titles = re.findall(r"^([A-Z][\w ?]+?)(?:  |$)", console.file.getvalue(), flags=re.MULTILINE)
    assert titles == ["Logit lens", "Residual stream"]


def test_reprs_are_short(seen: Look, tokenizer: Tokenizer) -> None:
    assert seen.guesses is not None
    mean = float(seen.guesses.bits.mean())
    n = len(seen.tokens)
    assert repr(seen) == f"<Look: tiny reads {n} tokens; 3 layers × 4 heads, mean {mean:.2f} bits a token>"
    encoded = look(drawn(encoder_spec(None), tokenizer), TEXT)
    assert repr(encoded) == f"<Look: model reads {n} tokens; 2 layers × 4 heads>"
    parts = [*vars(seen).values(), *vars(encoded).values(), seen.guesses.lens[0]]
    short = [repr(part) for part in parts if type(part).__module__ == "pellucid.look.seen"]
    assert max(map(len, short)) < 400
    assert repr(seen.guesses).startswith(f"Guesses(ahead=1, top_ids=int64[{n} × 10], top_probs=float32[{n} × 10]")


def test_a_notebook_shows_the_page_in_a_frame(seen: Look) -> None:
    shown = seen._repr_html_()  # pyright: ignore[reportPrivateUsage]
    frame = re.fullmatch(r'<iframe srcdoc="([^"<>]*)" sandbox="allow-scripts"[^<>]*></iframe>', shown)
    assert frame is not None, "no character of the page ends the attribute"
    assert html.unescape(frame[1]) == to_html(seen)
