"""Edits that are modules are compiled into their block once, whatever their values; functions leave it uncompiled."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, Lock
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

from pellucid.errors import TapError, UsageError
from pellucid.interpret.edits import Add, Patch, Scale
from pellucid.interpret.patching import pair, patch
from pellucid.nn.init import initialise
from pellucid.nn.models import Decoder
from pellucid.spec import AttentionSpec, BlockSpec, DecoderSpec, EmbedSpec, GatedFFNSpec, RMSNormSpec, StackSpec

BLOCK = BlockSpec(AttentionSpec(2, 2, 8), GatedFFNSpec(24), RMSNormSpec())
SPEC = DecoderSpec(31, 128, EmbedSpec(), StackSpec(16, (BLOCK,) * 3, RMSNormSpec()))
IDS = (torch.arange(2 * 100) % 31).view(2, 100)
POINT = "blocks.1.resid_mid"


# while it traces a gradient torch itself looks at the .grad of what has none
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")


@pytest.fixture(autouse=True)
def fresh() -> None:
    torch._dynamo.reset()
    counters.clear()


def models() -> tuple[Decoder, Decoder]:
    """One that runs eagerly, and its twin whose blocks are compiled as for training."""
    pair = [initialise(Decoder(SPEC), "xavier", seed=0).eval() for _ in range(2)]
    pair[1].load_state_dict(pair[0].state_dict())
    for block in pair[1].blocks:
        block.compile(backend="eager", fullgraph=True, dynamic=False)
    return pair[0], pair[1]


def compilations() -> int:
    return counters["stats"]["unique_graphs"]


def blank(position: int) -> Callable[[Tensor], Tensor]:
    return lambda x: x.index_fill(1, torch.tensor([position]), 0.0)


def one_place(position: int) -> Patch:
    return Patch(torch.tensor([0]), torch.tensor([position]), torch.full((1, 16), 0.1 * position))


@torch.no_grad()
@pytest.mark.parametrize("again", [True, False], ids=["another module each", "other numbers in one"])
def test_patching_100_positions_compiles_once_for_listeners(again: bool) -> None:
    """A compilation for each position failed at the ninth: FailOnRecompileLimitHit."""
    eager, compiled = models()
    compiled(IDS)
    assert compilations() == 1
    patch = one_place(0)
    for position in range(100):
        if again:
            patch = one_place(position)
        else:
            patch.positions.fill_(position)
            patch.values.fill_(0.1 * position)
        with compiled.taps(read=POINT, edit={POINT: patch}) as acts:
            logits = compiled(IDS)
        if position % 33 == 0:
            with eager.taps(edit={POINT: one_place(position)}):
                torch.testing.assert_close(logits, eager(IDS))
        assert torch.equal(acts[POINT][0, position], patch.values[0])
    assert compilations() <= 2


@torch.no_grad()
def test_patching_100_positions_with_functions_compiles_nothing_more() -> None:
    eager, compiled = models()
    logits, edit = compiled(IDS), blank(0)
    for position in range(100):
        edit = blank(position)
        with compiled.taps(edit={POINT: edit}):
            logits = compiled(IDS)
    with eager.taps(edit={POINT: edit}):
        torch.testing.assert_close(logits, eager(IDS))
    torch.testing.assert_close(compiled(IDS), eager(IDS))
    assert compilations() == 1


@torch.no_grad()
def test_another_layer_and_other_rows_run_the_same_graph() -> None:
    eager, compiled = models()
    compiled(IDS)
    for layer in range(3):
        for row in range(2):
            for factor in (0.0, 0.5, 2.0):
                taps: dict[str, Any] = {"edit": {f"blocks.{layer}.attn_out": Scale(factor)}, "rows": [row]}
                with eager.taps(**taps), compiled.taps(**taps):
                    torch.testing.assert_close(compiled(IDS), eager(IDS))
    assert compilations() == 2


@torch.no_grad()
@pytest.mark.parametrize("edit", [Add(torch.ones(16), 0.3), Scale(torch.linspace(0, 1, 16)), nn.Identity()])
def test_each_edit_equals_eager(edit: nn.Module) -> None:
    eager, compiled = models()
    with eager.taps(read="*", edit={POINT: edit}) as wanted, compiled.taps(read="*", edit={POINT: edit}) as acts:
        torch.testing.assert_close(compiled(IDS), eager(IDS))
    for name, x in wanted.items():
        torch.testing.assert_close(acts[name], x)


@torch.no_grad()
def test_all_forwards_are_kept_and_compile_nothing_more() -> None:
    eager, compiled = models()
    for model in (eager, compiled):
        model(IDS)
    before = compilations()
    with eager.taps(read=POINT, keep="all") as wanted, compiled.taps(read=POINT, keep="all") as acts:
        for i in range(12):
            for model in (eager, compiled):
                model((IDS + i) % 31)
    assert compilations() == before and len(acts.each(POINT)) == 12
    for ours, theirs in zip(acts.each(POINT), wanted.each(POINT), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    ("frozen", "rows"),
    [
        (False, None),
        (True, [1]),
        *(pytest.param(*each, marks=pytest.mark.slow) for each in ((False, [1]), (True, None))),
    ],
)
def test_gradients_equal_eager(frozen: bool, rows: Any) -> None:
    found = []
    for model in models():
        model.requires_grad_(not frozen)
        with model.taps(read=["embed", POINT, "blocks.2.ffn_act"], gradients=True, rows=rows) as acts:
            loss = model(IDS).square().sum()
        found.append(acts.gradients(loss))
    eager, compiled = found
    assert list(eager) == ["embed", POINT, "blocks.2.ffn_act"]
    for name, gradient in eager.items():
        assert gradient.any()
        torch.testing.assert_close(compiled[name], gradient)


def test_two_threads_that_take_turns_hear_their_own_calls_of_compiled_blocks() -> None:
    """In turns: torch 2.13 itself loses compiled frames where two calls of one compiled module overlap."""
    eager, compiled = models()
    with torch.no_grad():
        compiled(IDS)
        with compiled.taps(read=POINT, edit={POINT: Scale(1.0)}):
            compiled(IDS)
    before, start, turn = compilations(), Barrier(2), Lock()

    def listen(factor: float) -> tuple[Tensor, Tensor]:
        with torch.no_grad(), compiled.taps(read=POINT, edit={POINT: Scale(factor)}) as acts:
            logits = list[Tensor]()
            start.wait(60)
            for _ in range(20):
                with turn:
                    logits.append(compiled(IDS))
            return logits[-1], acts[POINT]

    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(listen, (0.5, 3.0)))
    for factor, (logits, read) in zip((0.5, 3.0), results, strict=True):
        with torch.no_grad(), eager.taps(read=POINT, edit={POINT: Scale(factor)}) as acts:
            torch.testing.assert_close(logits, eager(IDS))
        torch.testing.assert_close(read, acts[POINT])
    assert compilations() == before


def test_a_keep_that_does_not_exist_and_rows_without_places_are_refused() -> None:
    with pytest.raises(TapError, match="keep = 'first'"):
        models()[0].taps(read="embed", keep="first").__enter__()  # pyright: ignore[reportArgumentType]
    with pytest.raises(UsageError, match="2 rows, 1 positions"):
        Patch(torch.tensor([0, 1]), torch.tensor([0]), torch.zeros(2, 16))


def test_a_grid_of_a_compiled_model_equals_the_eager_one_and_compiles_for_no_cell() -> None:
    """Cells come in batches of many shapes, so blocks run their plain code; reading the two prompts is one shape."""
    eager, compiled = models()
    with torch.no_grad():
        compiled(IDS)
    before = compilations()
    found = [
        patch(model, pair(model, IDS[:1, :8], IDS[1:, :8]), 3, 5, positions=[0, 3, 7]) for model in (eager, compiled)
    ]
    torch.testing.assert_close(found[1].scores, found[0].scores)
    assert compilations() <= before + 1


def test_control_an_edit_that_holds_its_position_as_a_number_compiles_for_each() -> None:
    class Fixed(nn.Module):
        def __init__(self, position: int):
            super().__init__()
            self.position = position

        def forward(self, x: Tensor) -> Tensor:
            return x.index_fill(1, torch.tensor([self.position]), 0.0)

    _, compiled = models()

    def patch(edit: Callable[[Tensor], Tensor]) -> None:
        with torch.no_grad(), compiled.taps(edit={POINT: edit}):
            compiled(IDS)

    for position in range(4):
        patch(Fixed(position))
    assert compilations() == 1 + 4
