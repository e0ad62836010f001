"""Taps belong to a call: to the thread that opens them, to some rows, to every forward; and they know gradients."""

from __future__ import annotations

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Barrier
from typing import Any

import pytest
import torch
from drawn import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import EXAMPLE, as_encoder, build, close, ids, specs
from torch import Tensor, nn

from pellucid.batch import Batch, Tokens
from pellucid.errors import TapError
from pellucid.generate.decode import generate
from pellucid.generate.sample import Sampling
from pellucid.interpret.edits import Add, Patch, Scale
from pellucid.nn.models import Decoder
from pellucid.spec import MaskedLMHeadSpec
from pellucid.taps import Tapped, point_axes

few = settings(max_examples=examples(10))
TEXT = torch.tensor([[3, 1, 4, 1, 5, 9], [2, 6, 5, 3, 5, 8], [9, 7, 9, 3, 2, 3]])


def listened(model: Decoder, text: Tensor, **taps: Any) -> Tensor:
    with torch.no_grad(), model.taps(**taps):
        return model(text)


def noise(x: Tensor) -> Tensor:
    return x + torch.randn(x.shape, generator=torch.Generator().manual_seed(7), dtype=x.dtype)


def silent(model: Decoder) -> bool:
    return not any(m.ears.listener or m.ears.plain for m in model.modules() if isinstance(m, Tapped))


# --- losses ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("asked", ["nll_sum", "logprobs", "scores"])
@pytest.mark.parametrize("kind", ["decoder", "encoder"])
def test_an_edit_of_logits_is_refused_by_a_loss(asked: str, kind: str) -> None:
    """It would change nothing: a loss is computed in chunks, and never passes this point."""
    spec = EXAMPLE if kind == "decoder" else replace(as_encoder(EXAMPLE), head=MaskedLMHeadSpec())
    model, batch = build(spec), Batch(TEXT, Tokens.plain(*TEXT.shape), TEXT)  # pyright: ignore[reportArgumentType]
    with model.taps(edit={"logits": Scale(0.0)}), pytest.raises(TapError, match="edit of logits would change nothing"):
        getattr(model, asked)(batch)
    alone = model.nll_sum(batch)
    with model.taps(read="logits", edit={"embed": Scale(1.0)}):
        assert torch.equal(model.nll_sum(batch), alone)


# --- threads ---------------------------------------------------------------------------------------------------------


def test_two_threads_that_tap_one_model_each_hear_their_own_call() -> None:
    """A listener that is an attribute of the module would hear, and change, the other thread's calls."""
    model, both_open, both_ran = build(EXAMPLE), Barrier(3), Barrier(3)
    with torch.no_grad():
        alone = [model(TEXT[i : i + 1]) for i in range(2)]

    def listen(i: int) -> tuple[Tensor, Tensor]:
        with torch.no_grad(), model.taps(read="logits", edit={"embed": Scale(float(i + 2))}) as acts:
            both_open.wait(60)
            logits = [model(TEXT[i : i + 1]) for _ in range(20)]
            both_ran.wait(60)
            return logits[-1], acts["logits"]

    with ThreadPoolExecutor(2) as pool:
        heard = [pool.submit(listen, i) for i in range(2)]
        both_open.wait(60)
        with torch.no_grad():
            untapped = [model(TEXT[i : i + 1]) for i in range(2)]  # this thread has no taps
        both_ran.wait(60)
    for i, one in enumerate(heard):
        logits, read = one.result()
        assert torch.equal(untapped[i], alone[i])
        with torch.no_grad(), model.taps(edit={"embed": lambda x, i=i: (i + 2) * x}):
            assert torch.equal(logits, model(TEXT[i : i + 1])) and torch.equal(read, logits)
        assert (logits - alone[i]).abs().max() > 1e-3
    assert silent(model)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])  # noqa: S301
def test_a_copy_of_a_model_that_is_listened_to_has_no_listeners(copied: Any) -> None:
    model = build(EXAMPLE)
    with torch.no_grad(), model.taps(read="logits") as acts:
        other = copied(model)
        assert silent(other)
        other(TEXT)
        assert not acts
    with torch.no_grad():
        assert torch.equal(other(TEXT), model(TEXT))


# --- rows ------------------------------------------------------------------------------------------------------------


@given(specs().map(build), ids(st.integers(2, 4)), st.data())
@few
def test_rows_read_are_those_rows_of_what_is_read(model: Decoder, text: Tensor, data: st.DataObject) -> None:
    rows = data.draw(st.lists(st.integers(0, len(text) - 1), min_size=1, unique=True))
    with torch.no_grad(), model.taps(read="*") as whole:
        model(text)
    with torch.no_grad(), model.taps(read="*", rows=rows) as acts:
        model(text)
    for name in whole:
        assert torch.equal(acts[name], whole[name][rows]), name


@given(specs().map(build), st.data())
@few
def test_an_edit_of_some_rows_leaves_the_others(model: Decoder, data: st.DataObject) -> None:
    streams = [name for name, axes in point_axes(model).items() if axes == "batch time d_model"]
    point, row = data.draw(st.sampled_from(streams)), data.draw(st.integers(0, 2))
    with torch.no_grad():
        before = model(TEXT)
        with model.taps(edit={point: noise}, rows=torch.tensor([row])):
            after = model(TEXT)
        with model.taps(edit={point: noise}):
            alone = model(TEXT[row : row + 1])
    close(after[row], alone[0])
    others = [i for i in range(3) if i != row]
    close(after[others], before[others])


def test_nested_taps_edit_other_rows_each() -> None:
    model = build(EXAMPLE)
    with torch.no_grad(), model.taps(edit={"embed": Scale(0.0)}, rows=[0]), model.taps(edit={"embed": noise}, rows=[2]):
        logits = model(TEXT)
    with torch.no_grad(), model.taps(edit={"embed": Scale(0.0)}):
        close(logits[0], model(TEXT[:1])[0])
    with torch.no_grad():
        close(logits[1], model(TEXT)[1])


@pytest.mark.parametrize("rows", [[], [-1], [1, 1], *map(torch.tensor, ([0.5], [[0]], [True]))])
def test_rows_that_are_no_rows_are_refused(rows: Any) -> None:
    with pytest.raises(TapError, match="rows"):
        build(EXAMPLE).taps(read="embed", rows=rows).__enter__()


def test_a_row_beyond_the_batch_is_refused_by_the_name_of_the_point() -> None:
    model = build(EXAMPLE)
    with pytest.raises(TapError, match=r"row 3 is asked for at blocks\.0\.attn\.z, which has 3 rows"):
        listened(model, TEXT, read="blocks.0.attn.z", rows=[0, 3])
    assert silent(model)


# --- every forward ---------------------------------------------------------------------------------------------------


@given(specs().map(build), ids(st.just(2), max_time=6))
@few
def test_all_forwards_over_a_cache_join_to_one_over_the_whole_text(model: Decoder, text: Tensor) -> None:
    joins = {name for name, axes in point_axes(model).items() if axes.split()[1:2] == ["time"]}
    with torch.no_grad(), model.taps(read=joins) as whole:
        model(text)
    cache = model.new_cache(*text.shape)
    with torch.no_grad(), model.taps(read=joins, keep="all") as acts:
        for part in (text[:, :1], text[:, 1:3], *text[:, 3:].split(1, 1)):
            if part.shape[1]:
                model(part, cache=cache)
    for name in joins:
        assert len(acts.each(name)) == 1 + (text.shape[1] > 1) + max(0, text.shape[1] - 3)
        assert torch.equal(acts[name], acts.each(name)[-1])
        if acts[name].is_floating_point():
            close(torch.cat(acts.each(name), 1), whole[name])


def test_a_generation_is_heard_from_its_first_token_to_its_last() -> None:
    model = build(EXAMPLE)
    greedy = Sampling(temperature=0.0)
    with model.taps(read=["embed", "blocks.1.resid_post"], keep="all") as acts:
        (written,) = generate(model, [[3, 1, 4]], max_new_tokens=5, sampling=greedy, ignore_eos=True)
    heard = torch.cat(acts.each("blocks.1.resid_post"), 1)
    read = torch.tensor([[3, 1, 4, *written.ids[:-1]]])
    assert heard.shape[:2] == read.shape and len(acts.each("embed")) >= 5
    with torch.no_grad(), model.taps(read="blocks.1.resid_post") as once:
        model(read)
    close(heard, once["blocks.1.resid_post"])


def test_without_all_the_last_forward_alone_is_kept() -> None:
    model = build(EXAMPLE)
    with torch.no_grad(), model.taps(read="embed") as acts:
        model(TEXT)
        model(TEXT[:1])
    assert len(acts.each("embed")) == 1 and acts["embed"].shape[0] == 1


# --- gradients -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("rows", [None, [2, 0]])
def test_gradients_are_those_of_autograd(frozen: bool, rows: list[int] | None) -> None:
    model, names = build(EXAMPLE), ["embed", "blocks.0.attn.pattern", "blocks.1.ffn_act", "final_norm"]
    with model.taps(read=names) as plain:
        loss = model(TEXT).square().sum()
    expected = dict(zip(names, torch.autograd.grad(loss, [plain[name] for name in names]), strict=True))
    model.requires_grad_(not frozen)
    with model.taps(read=names, gradients=True, rows=rows) as acts:
        again = model(TEXT).square().sum()
    close(again, loss)
    gradients = acts.gradients(again)
    assert list(gradients) == list(acts) and set(acts) == set(names)
    for name in names:
        assert acts[name].requires_grad
        close(gradients[name], expected[name] if rows is None else expected[name][rows])
    assert all(p.grad is None for p in model.parameters())


def test_gradients_of_all_forwards_are_those_of_each() -> None:
    model = build(EXAMPLE)
    with model.taps(read="final_norm", keep="all", gradients=True) as acts:
        loss = model(TEXT[:1]).sum() + 2 * model(TEXT[1:]).sum()
    first, second = acts.gradients(loss).each("final_norm")
    assert first.shape == (1, 6, 8) and second.shape == (2, 6, 8)
    close(second, 2 * first[:, :1].expand_as(second))


def test_a_point_that_the_loss_does_not_depend_on_has_gradients_of_zero() -> None:
    model = build(EXAMPLE)
    with model.taps(read=["embed", "logits"], gradients=True) as acts:
        model(TEXT)
    gradients = acts.gradients(acts["embed"].sum())
    assert not gradients["logits"].any() and (gradients["embed"] == 1).all()


def test_gradients_that_were_not_recorded_are_refused() -> None:
    model = build(EXAMPLE)
    with torch.no_grad(), model.taps(read="embed", gradients=True) as acts:
        loss = model(TEXT).sum()
    with pytest.raises(TapError, match="no gradient was recorded for embed"):
        acts.gradients(loss)
    model.requires_grad_(False)
    with model.taps(read="embed") as acts:
        loss = model(TEXT).sum()
    with pytest.raises(TapError, match=r"gradients=True"):
        acts.gradients(loss)


# --- ready-made edits ------------------------------------------------------------------------------------------------


def test_patch_puts_each_value_at_its_own_place() -> None:
    model, values = build(EXAMPLE), torch.randn(3, 8)
    rows, positions = torch.tensor([0, 2, 2]), torch.tensor([5, 1, 3])
    with torch.no_grad(), model.taps(read="*.resid_mid") as before:
        model(TEXT)
    edit = {"blocks.0.resid_mid": Patch(rows, positions, values)}
    with torch.no_grad(), model.taps(read="*.resid_mid", edit=edit) as after:
        model(TEXT)
    wanted = before["blocks.0.resid_mid"].clone()
    for row, position, value in zip(rows.tolist(), positions.tolist(), values, strict=True):
        wanted[row, position] = value
    assert torch.equal(after["blocks.0.resid_mid"], wanted)


def test_patch_counts_positions_behind_the_heads() -> None:
    model, values = build(EXAMPLE), torch.randn(1, 4, 4)  # (places, heads, head_dim)
    patch = Patch(torch.tensor([1]), torch.tensor([2]), values, axis=2)
    with torch.no_grad(), model.taps(read="blocks.0.attn.z", edit={"blocks.0.attn.z": patch}) as acts:
        model(TEXT)
    assert torch.equal(acts["blocks.0.attn.z"][1, :, 2], values[0])


def test_patch_refuses_rows_without_places() -> None:
    """Under the shape checks the annotation says it; without them the error does (tests/compile)."""
    with pytest.raises(Exception, match="positions"):
        Patch(torch.tensor([0, 1]), torch.tensor([0]), torch.zeros(2, 8))


def test_scale_and_add_are_what_their_names_say() -> None:
    x, head = torch.randn(2, 4, 6, 4), torch.tensor([1.0, 0, 1, 1])[:, None, None]
    assert torch.equal(Scale(head)(x), x * head)
    assert torch.equal(Add(torch.ones(4), 0.5)(x), x + 0.5)
    assert all(isinstance(edit, nn.Module) for edit in (Scale(0.0), Add(torch.ones(4))))
    assert Scale(0.5)(x.bfloat16()).dtype == torch.bfloat16


# --- controls --------------------------------------------------------------------------------------------------------


def test_control_a_listener_that_all_threads_share_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    class Shared:
        listener, plain = None, False

    monkeypatch.setattr("pellucid.taps.points._Ears", Shared)
    with pytest.raises(AssertionError):
        test_two_threads_that_tap_one_model_each_hear_their_own_call()
