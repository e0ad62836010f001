"""Who listens is an attribute from the start: one that appears later costs one more compilation."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

from pellucid.nn.models import Decoder
from pellucid.spec import AttentionSpec, BlockSpec, DecoderSpec, EmbedSpec, FFNSpec, LayerNormSpec, StackSpec
from pellucid.taps import Tapped

NORM = LayerNormSpec()
BLOCK = BlockSpec(AttentionSpec(2, 2, 8), FFNSpec(32), NORM)
SPEC = DecoderSpec(31, 16, EmbedSpec(), StackSpec(16, (BLOCK,) * 3, NORM))


class Late(nn.Module):
    """What ``Tapped`` must not be: the listener is set when somebody first listens."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        listener: Callable[[Tensor], Tensor] | None = getattr(self, "listener", None)
        return self.up(x) if listener is None else listener(self.up(x))


class Early(Late):
    """The same, set in the constructor."""

    def __init__(self) -> None:
        super().__init__()
        self.listener = None


@pytest.fixture(autouse=True)
def fresh() -> None:
    torch._dynamo.reset()


@pytest.mark.parametrize(("kind", "compilations"), [(Early, [1, 2, 2]), (Late, [1, 2, 3])])
def test_a_listener_that_appears_later_costs_one_more_compilation(kind: type[Late], compilations: list[int]) -> None:
    module, counter = kind(), CompileCounter()
    compiled, seen = torch.compile(module, backend=counter, fullgraph=True), []
    for listener in (None, torch.relu, None):
        if seen:
            module.listener = listener  # pyright: ignore[reportArgumentType, reportAttributeAccessIssue]
        compiled(torch.ones(2, 4))
        seen.append(counter.frame_count)
    assert seen == compilations


def test_every_tapped_module_has_its_listener_from_the_start() -> None:
    tapped = [module for module in Decoder(SPEC).modules() if isinstance(module, Tapped)]
    assert len(tapped) == 1 + 3 * 3
    assert all("listener" in vars(module.ears) and module.ears.listener is None for module in tapped)


def test_a_model_that_was_listened_to_runs_what_it_had_compiled() -> None:
    model, counter, ids = Decoder(SPEC).eval(), CompileCounter(), torch.arange(8)[None]
    with torch.no_grad():
        wanted = model(ids)
        for block in model.blocks:
            block.compile(backend=counter, fullgraph=True)
        torch.testing.assert_close(model(ids), wanted)
        before = counter.frame_count
        assert before == 1  # equal blocks share one compilation
        with model.taps(read=["embed", "final_norm"]):
            model(ids)
        assert counter.frame_count == before  # nobody listens to a block
        with model.taps(read=["blocks.1.resid_post"]) as acts:
            model(ids)
        assert list(acts) == ["blocks.1.resid_post"]
        while_listening = counter.frame_count
        torch.testing.assert_close(model(ids), wanted)
    assert counter.frame_count == while_listening  # and afterwards the first graph runs again
