"""What is hidden, and what the target says of it, by the published rules; each rule beside a wrong one that is seen."""

from __future__ import annotations

import inspect
import itertools
import textwrap
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from drawn import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from pellucid.batch import IGNORE, Batch, Tokens
from pellucid.data.corpus import Document
from pellucid.data.denoise import Denoising, infilled, permuted, sentence_ends, span_lengths
from pellucid.data.feed import PackedText
from pellucid.data.fim import FilledInText, Markers
from pellucid.data.masked import MaskedText, WordEdges
from pellucid.data.replaced import ReplacedText
from pellucid.data.rewriting import RewrittenText
from pellucid.data.spans import Spans, counts, hide, random_spans
from pellucid.data.store import TokenStore, build_store
from pellucid.data.ul2 import MIXTURE, MixtureOfDenoisers, R, S, X
from pellucid.designs import design
from pellucid.errors import DataError, UsageError
from pellucid.look.rows import show_rows
from pellucid.nn.init import initialise
from pellucid.nn.loss import Predictions
from pellucid.nn.models import AnyModel, Decoder, Encoder, build_model
from pellucid.nn.stack import Stack
from pellucid.predicates import Ahead
from pellucid.text.markers import MIDDLES, MODES, middles_of, modes_of, sentinel_names, sentinels_of
from pellucid.text.tokenizer import MASK, Tokenizer
from pellucid.train.aids import FurtherHeads, MultiToken, ReplacedTokens, drawn_tokens, labels_ahead
from pellucid.train.checkpoint import with_aid
from pellucid.train.config import TrainOptions
from pellucid.train.fits import choose_objective, objectives_of, refuse_idle
from pellucid.train.objectives import Objective, aid_for, objective_for
from pellucid.train.parts import ObjectiveSpec
from pellucid.train.run import train
from pellucid.train.step import accumulate
from pellucid.train.world import ALONE, World

TEXTS = [inspect.getsource(textwrap), "Ein Satz. Und noch einer. Größer als zuvor, übrigens. Schluß." * 4]
SPECIAL = [MASK, *MODES, *sentinel_names(40), *MIDDLES[0]]
few = settings(max_examples=examples(25), deadline=None)


def numbers(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(TEXTS, 420, special=SPECIAL)


@pytest.fixture(scope="module")
def store(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    documents = [Document(f"{i}", text) for i, text in enumerate(TEXTS)]
    return build_store(documents, tokenizer, tmp_path_factory.mktemp("store") / "tokens")


# --- spans: the rule of T5's code, the format of the paper's figure 2 ------------------------------------------------

SENTINELS, END = tuple(range(900, 1000)), 0


def t5_target(ids: list[int], hidden: list[bool]) -> tuple[list[int], list[int]]:
    """The format by a loop: a sentinel for each hidden span, in order; one more and the end behind the last."""
    source, target, used = list[int](), list[int](), 0
    for i, (token, is_hidden) in enumerate(zip(ids, hidden, strict=True)):
        if is_hidden and not (i and hidden[i - 1]):
            source.append(SENTINELS[used])
            target.append(SENTINELS[used])
            used += 1
        (target if is_hidden else source).append(token)
    return source, [*target, SENTINELS[used], END]


@few
@given(st.lists(st.booleans(), min_size=2, max_size=40))
def test_hidden_spans_stand_behind_sentinels_in_order_and_one_more_ends_them(hidden: list[bool]) -> None:
    ids = list(range(1, 1 + len(hidden)))
    found = hide(np.array(ids), np.array(hidden), SENTINELS, END)
    source, target = t5_target(ids, hidden)
    assert (found.source.tolist(), found.target.tolist()) == (source, target)
    assert found.target[found.hidden].tolist() == [
        token for token, is_hidden in zip(ids, hidden, strict=True) if is_hidden
    ]
    if sum(hidden):
        backwards = hide(np.array(ids), np.array(hidden), SENTINELS[::-1], END)
        assert backwards.source.tolist() != source, "control: sentinels in the other order"


def test_figure_2_of_the_paper_is_what_spans_make() -> None:
    """Thank you <X> me to your party <Y> week . | <X> for inviting <Y> last <Z> (Raffel et al. 2019)."""
    words = "Thank you for inviting me to your party last week .".split()
    hidden = np.array([word in ("for", "inviting", "last") for word in words])
    found = hide(np.arange(len(words)), hidden, (100, 101, 102), 103)
    names = {100: "<X>", 101: "<Y>", 102: "<Z>", 103: "end", **dict(enumerate(words))}
    assert " ".join(names[i] for i in found.source.tolist()) == "Thank you <X> me to your party <Y> week ."
    assert " ".join(names[i] for i in found.target.tolist()) == "<X> for inviting <Y> last <Z> end"


@few
@given(
    st.integers(2, 600),
    st.sampled_from([(0.15, 3.0), (0.5, 3.0), (0.15, 64.0), (0.5, 1.0), (0.9, 2.0)]),
    st.integers(0, 9),
)
def test_spans_are_as_many_and_as_long_as_the_published_rule_says(
    row: int, how: tuple[float, float], seed: int
) -> None:
    """round(rate · row) tokens, round(tokens / mean) spans, a kept span first and a hidden one last (T5's code)."""
    rate, mean = how
    hidden = random_spans(row, rate, mean, numbers(seed))
    tokens = min(max(round(row * rate), 1), row - 1)
    spans = sum(1 for is_hidden, _ in itertools.groupby(hidden.tolist()) if is_hidden)
    assert len(hidden) == row and int(hidden.sum()) == tokens
    assert spans == min(max(round(tokens / mean), 1), tokens, row - tokens)
    assert not hidden[0] and hidden[-1]


def test_all_divisions_into_spans_are_equally_likely() -> None:
    """6 tokens, half of them hidden in 2 spans: 2 × 2 divisions."""
    drawn = [tuple(random_spans(6, 0.5, 1.5, numbers(seed)).tolist()) for seed in range(2000)]
    frequent = {division: drawn.count(division) / len(drawn) for division in set(drawn)}
    assert len(frequent) == 4 and all(share == pytest.approx(0.25, abs=0.04) for share in frequent.values())


# --- UL2 --------------------------------------------------------------------------------------------------------------


def test_each_denoiser_is_drawn_alike_and_named_by_its_mode() -> None:
    mixture, ids = MixtureOfDenoisers(SENTINELS, END, (801, 802, 803)), np.arange(1, 257)
    rng, seen = numbers(0), list[tuple[int, int, int]]()
    for _ in range(1400):
        row = mixture(ids, rng)
        spans = int((row.source >= 900).sum())
        seen.append((int(row.source[0]), int(row.hidden.sum()), spans))
        if row.source[0] == 802:
            assert row.source[1:].tolist() == [*range(1, 193), 900], "S: the last quarter is to be continued"
    wanted = {(801 + d.mode, *(counts(256, d.masked, d.span) if d.span else (64, 1))) for d in MIXTURE}
    assert set(seen) == wanted
    shares = [sum(mode == 801 + which for mode, _, _ in seen) / len(seen) for which in (R, S, X)]
    assert shares == pytest.approx([2 / 7, 1 / 7, 4 / 7], abs=0.05)


# --- denoising --------------------------------------------------------------------------------------------------------


def test_lengths_of_infilled_spans_are_poisson_and_hide_the_share_that_is_asked() -> None:
    """Mean 3, variance 3, a twentieth of length 0 (Lewis et al. 2019, section 2.2); a geometric law is another."""
    lengths = [span_lengths(2000, 0.3, 3.0, numbers(seed)) for seed in range(20)]
    assert all(int(one.sum()) == 600 for one in lengths)
    whole = np.concatenate([one[:-1] for one in lengths])  # the last is cut to fit
    assert whole.mean() == pytest.approx(3, abs=0.1) and whole.var() == pytest.approx(3, abs=0.2)
    assert (whole == 0).mean() == pytest.approx(np.exp(-3), abs=0.01)
    other = numbers(0).geometric(1 / 3, len(whole))
    assert other.var() != pytest.approx(3, abs=0.2), "control: another distribution of the same mean"


@few
@given(st.integers(2, 200), st.floats(0.01, 0.99), st.integers(0, 99))
def test_every_span_becomes_one_mask_and_the_target_is_the_text(row: int, masked: float, seed: int) -> None:
    ids = np.arange(1, row + 1)
    found = Denoising(mask=999, end=0, separator=-1, masked=masked)(ids, numbers(seed))
    assert found.target.tolist() == [*ids.tolist(), 0] and len(found.source) <= row
    kept = found.source[found.source != 999]
    assert kept.tolist() == sorted(kept.tolist()), "nothing changes places unless sentences do"
    assert set(kept.tolist()) == set(found.target[:-1][~found.hidden[:-1]].tolist())
    assert int(found.hidden.sum()) == min(max(round(row * masked), 1), row - 1) == row - len(kept)


def test_infilled_spans_hide_neighbours() -> None:
    found = infilled(np.array([2, 0, 3]), 10, numbers(3))
    runs = [
        len(list(group)) for token, group in itertools.groupby(found.tolist(), key=lambda place: place < 0) if token
    ]
    assert sum(runs) == 3 and len(found) == 8
    gaps = np.diff(np.concatenate(([-1], found[found >= 0], [10]))) - 1
    assert int(gaps.sum()) == 5


def test_sentences_change_places_within_their_document() -> None:
    text = [1, 2, 8, 3, 8, 4, 9, 5, 8, 6, 8, 7, 8]  # 8 ends a sentence, 9 stands between two documents
    separators, stops = np.array(text) == 9, np.array(text) == 8
    seen = set[str]()
    for seed in range(200):
        order = permuted(separators, stops, numbers(seed))
        moved = np.array(text)[order]
        assert sorted(order.tolist()) == list(range(len(text))) and moved[6] == 9
        seen |= {"".join(map(str, moved[:6])), "".join(map(str, moved[7:]))}
    first = {"128384", "124383"[:0] or "128438", "381284", "384128", "412838", "438128"}
    assert {one for one in seen if set(one) <= set("12348")} == first
    assert {one for one in seen if set(one) <= set("5678")} == {
        "".join(p) for p in itertools.permutations(("58", "68", "78"))
    }


def test_a_sentence_ends_with_a_full_stop(tokenizer: Tokenizer) -> None:
    ends = sentence_ends(tokenizer)
    assert ends[tokenizer.encode(".")[0]] and not ends[tokenizer.encode(",")[0]] and not ends[tokenizer.bos_id or 0]


# --- whole words ------------------------------------------------------------------------------------------------------


def test_whole_words_are_hidden_whole_and_as_many_of_them(tokenizer: Tokenizer, store: TokenStore) -> None:
    edges = WordEdges.of(tokenizer)
    rows: dict[str, Any] = {"context": 64, "batch_size": 32, "seed": 0, "mask_id": tokenizer.mask_id}
    split = {"words": 0, "tokens": 0}
    share = places = 0
    for name, words in (("words", edges), ("tokens", None)):
        feed, plain = (
            MaskedText(store, None, words=words, **rows),
            PackedText(store, None, context=64, batch_size=32, seed=0),
        )
        for at in range(12):
            (batch,), (before,) = feed.batches(at, 1, ALONE), plain.batches(at, 1, ALONE)
            for ids, labels in zip(before.ids.numpy(), batch.labels.numpy(), strict=True):
                first, drawn = edges.first_of_word(ids), labels != IGNORE
                asked = ids != store.eot
                split[name] += int((drawn != drawn[first])[asked & asked[first]].sum())
                share += int(drawn.sum()) if words is not None else 0
                places += int(asked.sum()) if words is not None else 0
    assert split["words"] == 0 and split["tokens"] > 100, "control: single tokens tear words"
    assert share / places == pytest.approx(0.15, abs=0.02)


def test_a_word_is_letters_that_meet(tokenizer: Tokenizer) -> None:
    ids = np.array(tokenizer.encode("Größer als x=12, übrigens"))
    first = WordEdges.of(tokenizer).first_of_word(ids)
    words = [tokenizer.decode(ids[first == begin]) for begin in np.unique(first)]
    assert "".join(words) == "Größer als x=12, übrigens"
    assert [word.strip() for word in words if word.strip(" ,=")] == ["Größer", "als", "x", "12", "übrigens"]


# --- fill in the middle -----------------------------------------------------------------------------------------------


def filled_in(store: TokenStore, tokenizer: Tokenizer, **more: Any) -> FilledInText:
    asked: dict[str, Any] = {"context": 96, "batch_size": 8, "seed": 1} | more
    return FilledInText(store, store, tokenizer=tokenizer, markers=Markers(*middles_of(tokenizer)), **asked)


def told(ids: np.ndarray, tokenizer: Tokenizer) -> tuple[str, str]:
    """(kind, text) of a document, its parts put back where they belong by the format of the paper."""
    pre, suf, mid = middles_of(tokenizer)
    found = ids.tolist()
    if pre not in found:
        return "plain", tokenizer.decode(found)
    a, b, c = found.index(pre), found.index(suf), found.index(mid)
    if b == a + 1:
        return "SPM", tokenizer.decode(found[c + 1 :]) + tokenizer.decode(found[b + 1 : c])
    return "PSM", tokenizer.decode([*found[a + 1 : b]]) + tokenizer.decode(found[c + 1 :]) + tokenizer.decode(
        found[b + 1 : c]
    )


def test_parts_of_a_document_put_together_are_the_document(store: TokenStore, tokenizer: Tokenizer) -> None:
    feed, kinds, cut = filled_in(store, tokenizer, fim_rate=0.5, spm_rate=0.25), list[str](), 0
    for number in range(400):
        window = feed.rows.windows(number, 1)[0]
        if (window[1:] == store.eot).any():
            continue
        row, middle = feed.rearranged(window, numbers(number))
        kind, text = told(row, tokenizer)
        kinds.append(kind)
        whole = tokenizer.decode(window)
        assert len(row) <= len(window) and whole.startswith(text), "only the end of the suffix may be missing"
        cut += text != whole
        if kind != "plain":
            assert not middle.any() or middle.tolist() == sorted(middle.tolist())
    moved = len(kinds) - kinds.count("plain")
    assert 0.35 < moved / len(kinds) < 0.55 and cut > 0, "those whose suffix is too short to be cut stay as they are"
    assert kinds.count("SPM") / moved == pytest.approx(0.25, abs=0.08)


def test_rates_of_0_and_1_move_nothing_and_everything(store: TokenStore, tokenizer: Tokenizer) -> None:
    none, every = (filled_in(store, tokenizer, fim_rate=rate, spm_rate=0.0) for rate in (0.0, 1.0))
    plain = PackedText(store, store, context=96, batch_size=8, seed=1)
    (a,), (b,), (c,) = (feed.batches(3, 1, ALONE) for feed in (none, plain, every))
    assert torch.equal(a.ids, b.ids) and torch.equal(a.labels, b.labels) and a.n_bytes == b.n_bytes
    assert sum(bool((row == middles_of(tokenizer)[2]).any()) for row in c.ids) >= 6


def test_held_out_middles_alone_are_scored(store: TokenStore, tokenizer: Tokenizer) -> None:
    middle = middles_of(tokenizer)[2]
    scored = 0
    for batch in filled_in(store, tokenizer).evaluation():
        for ids, labels in zip(batch.ids.tolist(), batch.labels.tolist(), strict=True):
            places = [place for place, label in enumerate(labels) if label != IGNORE]
            scored += len(places)
            assert not places or middle in ids[: places[0] + 1]
    assert scored > 200


# --- every objective --------------------------------------------------------------------------------------------------

FEEDS: dict[str, tuple[str, Callable[[Tokenizer, TokenStore, dict[str, Any]], Any]]] = {
    "spans": (
        "encoder_decoder",
        lambda t, s, r: RewrittenText(s, s, corruption=Spans(sentinels_of(t), 0), start_id=0, **r),
    ),
    "ul2": (
        "encoder_decoder",
        lambda t, s, r: RewrittenText(
            s, s, corruption=MixtureOfDenoisers(sentinels_of(t), 0, modes_of(t)), start_id=0, **r
        ),
    ),
    "denoise": (
        "encoder_decoder",
        lambda t, s, r: RewrittenText(
            s, s, corruption=Denoising(t.mask_id or 0, 0, 0, stops=sentence_ends(t)), start_id=0, around=t.around, **r
        ),
    ),
    "words": ("encoder", lambda t, s, r: MaskedText(s, s, mask_id=t.mask_id or 0, words=WordEdges.of(t), **r)),
    "rtd": ("discriminator", lambda t, s, r: ReplacedText(s, s, mask_id=t.mask_id or 0, **r)),
    "ahead": ("modern", lambda t, s, r: PackedText(s, s, **r)),
    "fim": ("modern", lambda t, s, r: FilledInText(s, s, tokenizer=t, markers=Markers(*middles_of(t)), **r)),
    "prefix": ("prefix", lambda t, s, r: PackedText(s, s, ahead=Ahead(marked=True), **r)),
}


@pytest.mark.parametrize("name", FEEDS)
def test_any_split_gives_the_same_rows_and_the_same_gradient(
    name: str, tokenizer: Tokenizer, store: TokenStore
) -> None:
    which, make = FEEDS[name]
    feed = make(tokenizer, store, {"context": 40, "batch_size": 6, "seed": 3})
    model = initialise(build_model(design(which)(tokenizer.vocab_size, 40, 2, 16, 8)), "fan_in", 0)
    ahead = 3 if name == "ahead" else 1
    spec = ObjectiveSpec(name="rtd" if name == "rtd" else "causal", smoothing=0.0, tokens_ahead=ahead)
    aid = aid_for(model, spec, "fan_in", 1)
    objective = objective_for(model, spec, aid)
    wanted = gradient(model, aid, objective, feed.batches(2, 1, ALONE))
    rows = tokens_of(feed.batches(2, 1, ALONE))
    for size, micro in ((1, 4), (3, 2)):
        parts = [batch for rank in range(size) for batch in feed.batches(2, micro, World(rank=rank, size=size))]
        assert tokens_of(parts) == rows
        assert torch.allclose(gradient(model, aid, objective, parts), wanted, atol=1e-6)
    assert tokens_of(feed.batches(3, 1, ALONE)) != rows, "control: another step reads other rows"
    held_out = [list(feed.evaluation()), list(feed.evaluation(20))]
    assert len(held_out[0]) > 1 and (name in ("prefix", "ahead") or tokens_of(held_out[0]) == tokens_of(held_out[1]))


def tokens_of(batches: list[Batch]) -> list[list[int]]:
    """Rows as lists of what is read and said, without padding."""
    found: list[list[int]] = []
    for batch in batches:
        for row in range(len(batch.ids)):
            there = batch.tokens.pos[row] >= 0
            read = [] if batch.source is None else batch.source.ids[row][batch.source.tokens.pos[row] >= 0].tolist()
            found.append([*read, -1, *batch.ids[row][there].tolist(), -2, *batch.labels[row][there].tolist()])
    return found


def gradient(model: AnyModel, aid: torch.nn.Module | None, objective: Objective, batches: list[Batch]) -> torch.Tensor:
    whole = with_aid(model, aid)
    whole.zero_grad()
    accumulate(model, objective, batches)
    return torch.cat([p.grad.flatten() for p in whole.parameters() if p.grad is not None])


# --- what learns beside the model


def test_labels_ahead_stay_in_their_document() -> None:
    seg = torch.tensor([[0, 0, 0, 1, 1, -1]])
    batch = Batch(torch.arange(6)[None], Tokens.packed(seg), torch.tensor([[1, 2, 3, 4, IGNORE, IGNORE]]))
    assert labels_ahead(batch, 1).tolist() == [[2, 3, IGNORE, IGNORE, IGNORE, IGNORE]]
    assert labels_ahead(batch, 2).tolist() == [[3, IGNORE, IGNORE, IGNORE, IGNORE, IGNORE]]
    across = Batch(batch.ids, Tokens.plain(1, 6), batch.labels)
    assert labels_ahead(across, 1).tolist() != labels_ahead(batch, 1).tolist(), "control: one document"


def test_one_loss_a_head_and_the_first_is_the_models_own(tokenizer: Tokenizer, store: TokenStore) -> None:
    """With heads that are copies of the last block, the loss is that of the model on labels further and further on."""
    model = initialise(build_model(design("modern")(tokenizer.vocab_size, 40, 2, 16, 8)), "fan_in", 0)
    assert isinstance(model, Decoder)
    (batch,) = PackedText(store, None, context=40, batch_size=4, seed=3).batches(0, 1, ALONE)
    aid = FurtherHeads(model.spec, 2)
    for head in aid.heads:
        assert isinstance(head, Stack)
        head.layers[0].load_state_dict(model.layers[-1].state_dict())
    alone = [model.nll_sum(replace(batch, labels=labels_ahead(batch, n) if n else batch.labels)) for n in range(3)]
    assert torch.allclose(MultiToken(aid)(model, batch), torch.stack(alone).sum(), rtol=1e-5)
    assert MultiToken(aid).count(batch) == int((batch.labels != IGNORE).sum())


def test_tokens_are_drawn_from_the_generator_by_their_numbers() -> None:
    """The share of each token is its probability; numbers of another row would give others."""
    table = torch.tensor([[0.0], [1.0], [2.0]])
    states, draws = torch.ones(1, 30_000, 1), torch.rand(1, 30_000, generator=torch.Generator().manual_seed(0))
    found = drawn_tokens(Predictions(states, table), torch.ones(1, 30_000, dtype=torch.bool), draws)
    wanted = torch.tensor([0.0, 1.0, 2.0]).softmax(-1)
    assert torch.allclose(found.bincount(minlength=3) / 30_000, wanted, atol=0.01)
    assert (found[draws[0].argsort()].diff() >= 0).all()


def test_a_draw_that_hits_the_right_token_is_no_replacement(tokenizer: Tokenizer, store: TokenStore) -> None:
    model = initialise(build_model(design("discriminator")(tokenizer.vocab_size, 40, 1, 16, 8)), "fan_in", 0)
    assert isinstance(model, Encoder)
    spec = ObjectiveSpec(name="rtd", smoothing=0.0)
    aid = aid_for(model, spec, "normal", 1)
    feed = ReplacedText(store, None, context=40, batch_size=16, seed=3, mask_id=tokenizer.mask_id or 0)
    (batch,) = feed.batches(0, 1, ALONE)
    masked = batch.labels != IGNORE
    assert (batch.ids[masked] == tokenizer.mask_id).all(), "a generator reads masks alone"
    assert isinstance(aid, Encoder) and aid.embed.tokens is model.embed.tokens
    told = ReplacedTokens(aid, 7.5).told(batch, aid.predictions(batch))
    truth = torch.where(masked, batch.labels, batch.ids)
    assert torch.equal(told.labels == 1, told.ids != truth) and torch.equal(told.ids[~masked], batch.ids[~masked])
    assert (told.labels == 1)[masked].any() and not (told.labels == 1)[~masked].any()
    hit = replace(batch, labels=torch.where(masked, told.ids, IGNORE))
    again = ReplacedTokens(aid, 7.5).told(hit, aid.predictions(hit))
    assert torch.equal(again.ids, told.ids) and not (again.labels == 1).any()


# --- what cannot be ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda t, s, r: Spans(SENTINELS[:5], 0).refuse(200),
            "10 hidden spans of a row need 11 sentinels.* has 5\n.*--span",
        ),
        (
            lambda t, s, r: Spans(SENTINELS, 0, span=50.0).refuse(40),
            "spans of 50 tokens do not fit rows of 40\n.*--span < 40",
        ),
        (
            lambda t, s, r: Spans(SENTINELS, 0, masked=0.9, span=1.5).refuse(50),
            "target of 45 .* longer than a row of 50",
        ),
        (lambda t, s, r: Spans(SENTINELS, 0, masked=0.0), "masked = 0.0 of the tokens leaves no text"),
        (lambda t, s, r: Denoising(1, 0, 0, masked=0.0), "masked = 0.0 of the tokens leaves no text"),
        (lambda t, s, r: Denoising(1, 0, 0, span=80.0).refuse(40), "spans of 80 tokens do not fit rows of 40"),
        (
            lambda t, s, r: MixtureOfDenoisers(SENTINELS[:9], 0, (1, 2, 3)).refuse(200),
            "need 11 sentinels, but the vocabulary has 9",
        ),
        (
            lambda t, s, r: RewrittenText(s, s, corruption=Spans(SENTINELS, 0), start_id=0, **r | {"context": 2}),
            "no row",
        ),
        (lambda t, s, r: sentinels_of(t), "has no sentinels .*\n.*<extra_id_"),
        (lambda t, s, r: modes_of(t), r"has no token \[R\]"),
        (lambda t, s, r: middles_of(t), r"has no token <\|fim_prefix\|>"),
    ],
)
def test_spans_that_cannot_be_are_refused(make: Callable[..., object], message: str, store: TokenStore) -> None:
    plain = Tokenizer.train(TEXTS, 300)
    with pytest.raises(DataError, match=f"(?s){message}"):
        make(plain, store, {"context": 40, "batch_size": 6, "seed": 3})


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"objective": "spans", "design": "modern"}, "objective spans does not fit the design 'modern'"),
        ({"objective": "fim", "design": "encoder_decoder"}, "does not fit.*seq2seq or spans or denoise or ul2"),
        ({"objective": "prefix", "design": "modern"}, "does not fit the design 'modern'.*--design prefix"),
        ({"objective": "spans", "whole_words": True}, "--whole-words decides nothing for the objective spans.*mlm"),
        ({"objective": "mlm", "tokens_ahead": 2}, "--tokens-ahead decides nothing for the objective mlm"),
        ({"tokens_ahead": 2, "design": "prefix"}, "tokens_ahead = 2 is for a decoder that sees no later token"),
        ({"tokens_ahead": 2, "smoothing": 0.1}, "smoothing does not go with"),
        ({"span": 4.0}, "--span decides nothing for the objective causal.*spans, denoise"),
        ({"objective": "ul2", "masked": 0.2}, "--masked decides nothing for the objective ul2"),
        (
            {"objective": "spans", "vocab_size": 300},
            "vocab_size=300 is too small.*at least 357: 256 bytes and 101 special",
        ),
        ({"objective": "spans", "context": 40, "span": 60.0}, "spans of 60 tokens do not fit rows"),
        ({"objective": "fim", "fim_rate": 1.5}, "fim_rate = 1.5 cannot be used"),
    ],
)
def test_a_run_that_cannot_be_is_refused_before_it_is_written(
    asked: dict[str, Any], message: str, tmp_path: Path
) -> None:
    (tmp_path / "text.txt").write_text(TEXTS[0], encoding="utf-8")
    with pytest.raises((UsageError, DataError), match=f"(?s){message}"):
        train(tmp_path / "text.txt", tmp_path / "out", steps=2, precision="fp32", **asked)
    assert not (tmp_path / "out").exists()


def test_an_objective_has_a_design_that_fits_it() -> None:
    for name in ("causal", "prefix", "fim", "mlm", "rtd", "spans", "denoise", "ul2", "seq2seq"):
        options = TrainOptions(objective=name)
        assert choose_objective(options, None)[0] == name
        refuse_idle(options, name)
    assert objectives_of(design("prefix")(300, 64, 1, 16, 8)) == ("causal", "prefix")
    assert objectives_of(design("lstm")(300, 64, 1, 16, 8)) == ("causal", "fim")


# --- what is shown ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FEEDS)
def test_a_batch_is_shown_with_what_it_hides_with_and_without_colour(
    name: str, tokenizer: Tokenizer, store: TokenStore
) -> None:
    feed = FEEDS[name][1](tokenizer, store, {"context": 40, "batch_size": 6, "seed": 3})
    (batch,) = feed.batches(0, 1, ALONE)
    pages: list[str] = []
    for colour in (True, False):
        console = Console(width=200, force_terminal=colour, color_system="truecolor" if colour else None, record=True)
        with console.capture() as captured:
            show_rows(batch, tokenizer, console, shifted=name not in ("words", "rtd"))
        pages.append(captured.get())
    coloured, plain = pages
    assert "\x1b[" in coloured and "[[" not in coloured.replace("\x1b[", "")
    assert "\x1b[" not in plain and plain.count("row ") >= 3 and "[[predicted]]" in plain
    if batch.source is not None:
        shown = tokenizer.tokens_as_text([int(batch.source.ids[0, 1])])[0].strip()
        assert shown in plain and "reads" in plain and "writes" in plain
