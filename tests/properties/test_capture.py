"""What is captured is a part of the whole: some layers, positions and heads; its memory is told before the run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from drawn import examples
from hypothesis import given, settings
from strategies import EXAMPLE, build, close, ids, specs
from torch import Tensor, nn

from pellucid.engine import memory
from pellucid.errors import TapError, TooLargeError, UsageError
from pellucid.interpret.plan import Plan
from pellucid.interpret.record import capture, record
from pellucid.nn.models import Decoder
from pellucid.spec import MoESpec

TEXT = torch.tensor([[3, 1, 4, 1, 5, 9], [2, 6, 5, 3, 5, 8]])
STREAM, Z, K = "blocks.1.resid_post", "blocks.1.attn.z", "blocks.1.attn.k"


def test_layers_positions_and_heads_are_parts_of_the_whole() -> None:
    model = build(EXAMPLE)
    whole = capture(model, TEXT, "*")
    some = capture(model, TEXT, ["embed", "blocks.*"], layers=[-1], positions=[0, -1], heads=[3, 0])
    assert {name.split(".")[1] for name in some if name.startswith("blocks.")} == {"1"} and "embed" in some
    close(some[STREAM], whole[STREAM][:, [0, 5]])
    close(some[Z], whole[Z][:, [3, 0]][:, :, [0, 5]])
    close(some[K], whole[K][:, [1, 0]][:, :, [0, 5]])  # two heads share one of keys: 3 reads the second
    close(some["blocks.1.attn.pattern"], whole["blocks.1.attn.pattern"][:, [3, 0]][:, :, [0, 5]])


def test_kept_activations_have_the_type_that_is_asked_for() -> None:
    found = capture(build(EXAMPLE), TEXT, "embed", dtype=torch.float16, device="cpu")
    assert found["embed"].dtype == torch.float16


@given(specs().map(build), ids())
@settings(max_examples=examples(15))
def test_the_memory_of_plain_points_is_told_to_the_byte(model: Decoder, text: Tensor) -> None:
    told: list[Plan] = []
    points = [name for name in model.point_names() if not _unknown(model, name)]
    (seen,) = record(model, [text], points, announce=told.append)
    assert told[0].passing == told[0].kept == sum(x.nbytes for x in seen.values())


def _unknown(model: Decoder, name: str) -> bool:
    """Points of layers whose sizes the spec does not tell by the names of their axes."""
    if not name.startswith("blocks."):
        return False
    block = model.spec.stack.blocks[int(name.split(".")[1])]
    return ".rnn." in name or isinstance(block.ffn, MoESpec) or (".attn." in name and not hasattr(block.mixer, "mask"))


def test_a_plan_tells_what_is_kept_before_the_model_runs() -> None:
    model, told = build(EXAMPLE), list[Plan]()
    recording = record(model, [TEXT], STREAM, positions=[-1], dtype=torch.float16, announce=told.append)
    assert not told
    kept = next(recording)
    assert told[0].kept == kept[STREAM].nbytes == 2 * 8 * 2 and told[0].passing == TEXT.numel() * 8 * 8
    assert str(told[0]) == "a point of 2 × 6 tokens: 0.0 MB while the model runs, 0.0 MB kept on cpu"


def test_a_capture_that_does_not_fit_is_refused_before_the_model_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    model, ran = build(EXAMPLE), list[int]()
    model.embed.register_forward_pre_hook(lambda *_: ran.append(1))
    monkeypatch.setattr(memory, "free_bytes", lambda device: 1000)
    with pytest.raises(TooLargeError, match=r"recording 1 points of 2 × 6 tokens .* about 6 tokens|about \d tokens"):
        capture(model, TEXT.repeat(4, 1), STREAM)
    assert not ran
    monkeypatch.setattr(memory, "free_bytes", lambda device: 10_000)
    capture(model, TEXT, STREAM)
    assert ran


@pytest.mark.parametrize(
    ("wrong", "near"),
    [
        ("blocks.0.atn.pattern", "did you mean 'blocks.0.attn.pattern'"),
        ("blocks.*.atn.pattern", "did you mean 'blocks.*.attn.pattern'"),
        ("blocks.*.resid", r"blocks.*.resid_p"),
        ("zzzz", "known: embed, final_norm, logits, blocks.*.resid_pre"),
    ],
)
def test_an_unknown_point_is_an_error_with_the_nearest_names(wrong: str, near: str) -> None:
    with pytest.raises(TapError) as told:
        capture(build(EXAMPLE), TEXT, wrong)
    assert near in str(told.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": [2]}, "layer 2 of the model, which has 2"),
        ({"heads": [4]}, r"head 4 of blocks.0.attn.k?.*, which has 4"),
        ({"positions": [6]}, "position 6 of embed, which has 6"),
    ],
)
def test_layers_heads_and_positions_that_there_are_not_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        capture(build(EXAMPLE), TEXT, "*", **options)


def test_control_a_head_of_another_group_is_seen() -> None:
    model = build(EXAMPLE)
    keys = capture(model, TEXT, K)[K]
    assert not torch.equal(capture(model, TEXT, K, heads=[3])[K], keys[:, :1])


def test_all_points_take_no_more_walks_through_the_model_than_one(monkeypatch: pytest.MonkeyPatch) -> None:
    model, walks = build(EXAMPLE), list[nn.Module]()
    every, modules = model.point_names(), nn.Module.modules

    def counted(self: nn.Module) -> Iterator[nn.Module]:
        walks.append(self)
        return modules(self)

    monkeypatch.setattr(nn.Module, "modules", counted)
    capture(model, TEXT, every[0])
    of_one = len(walks)
    capture(model, TEXT, every)
    assert 0 < len(walks) - of_one <= of_one
