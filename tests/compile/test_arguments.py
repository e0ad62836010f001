"""What the Python API is passed is checked against what it declares: field, value and remedy are named.

It stands here since these tests run as users do, without the shape checks, which would be the first to complain.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

import pellucid
from pellucid.arguments import checked, fits, words
from pellucid.designs import modern
from pellucid.errors import TapError, UsageError
from pellucid.generate.sample import Sampling
from pellucid.nn.embed import refuse_unreadable
from pellucid.nn.models import Decoder
from pellucid.train.config import TrainOptions


@pytest.fixture(scope="module")
def model() -> Decoder:
    return pellucid.build(modern(64, 32, 2, 16, 8))


WRONG: dict[str, tuple[Callable[[Any], Any], str, str]] = {
    "optimizer": (lambda _: pellucid.train("a", "b", optimizer="sgd"), "optimizer = 'sgd'", "'muon' or 'adamw'"),
    "precision": (lambda _: pellucid.train("a", "b", precision="fp16"), "precision = 'fp16'", "'fp32' or 'bf16'"),
    "init": (lambda _: pellucid.train("a", "b", init="xaver"), "init = 'xaver'", "'xavier'"),
    "minutes": (lambda _: pellucid.train("a", "b", minutes="1"), "minutes = '1'", "a number"),
    "steps": (lambda _: pellucid.train("a", "b", steps=True), "steps = True", "a whole number"),
    "freeze": (lambda _: pellucid.train("a", "b", freeze="embed.*"), "freeze = 'embed.*'", "a list"),
    "an option that is none": (lambda _: pellucid.train("a", "b", minuets=1), "no option 'minuets'", "'minutes'"),
    "data": (lambda _: pellucid.train(3, "b"), "data = 3", "name files"),  # pyright: ignore[reportArgumentType]
    "a sampling's field": (lambda _: Sampling(temprature=1), "no argument 'temprature'", "'temperature'"),  # pyright: ignore[reportCallIssue]
    "temperature": (lambda _: Sampling("hot"), "temperature = 'hot'", "a number"),  # pyright: ignore[reportArgumentType]
    "a keyword of generate": (
        lambda model: pellucid.generate(model, [[1]], temperature=0.5),  # pyright: ignore[reportCallIssue]
        "generate has no argument 'temperature'",
        "sampling=pellucid.Sampling(temperature=…)",
    ),
    "max_new_tokens": (
        lambda model: pellucid.generate(model, [[1]], max_new_tokens=2.5),  # pyright: ignore[reportArgumentType]
        "max_new_tokens = 2.5",
        "a whole number",
    ),
    "sampling": (
        lambda model: pellucid.generate(model, [[1]], sampling=0.5),  # pyright: ignore[reportArgumentType]
        "sampling = 0.5",
        "a Sampling or None",
    ),
    "one prompt of ids": (lambda model: pellucid.generate(model, [1, 2]), "prompts = [1, 2]", "[[1, 2, 3]]"),  # pyright: ignore[reportArgumentType]
    "a model": (lambda _: pellucid.generate(7, "x"), "model = 7", "pellucid.load"),  # pyright: ignore[reportArgumentType]
    "a design's name": (lambda _: pellucid.build("modern"), "spec = 'modern'", "pellucid.designs.modern("),  # pyright: ignore[reportArgumentType, reportCallIssue]
    "a rule": (lambda model: pellucid.build(model.spec, init="fanin"), "init = 'fanin'", "'fan_in'"),  # pyright: ignore[reportArgumentType, reportCallIssue]
    "a type by name": (lambda _: pellucid.load("x", "bfloat16"), "dtype = 'bfloat16'", "a dtype"),  # pyright: ignore[reportArgumentType]
    "a format": (lambda model: pellucid.convert(model, "x", "onnx"), "to = 'onnx'", "'gguf'"),  # pyright: ignore[reportArgumentType]
    "early_stopping": (lambda _: pellucid.Beams(4, early_stopping="no"), "early_stopping = 'no'", "'never'"),  # pyright: ignore[reportArgumentType]
    "penalise": (lambda _: pellucid.Beams(penalise="p"), "penalise = 'p'", "'logprobs'"),  # pyright: ignore[reportArgumentType]
    "names of checks": (lambda model: pellucid.verify(model, "cache"), "only = 'cache'", "a list"),
    "top": (lambda model: pellucid.look(model, [1, 2], top="5"), "top = '5'", "a whole number"),  # pyright: ignore[reportArgumentType]
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_argument_is_refused_with_its_remedy(case: str, model: Decoder, tmp_path: Path) -> None:
    call, problem, remedy = WRONG[case]
    with pytest.raises(UsageError) as refused:
        call(model)
    assert problem in refused.value.problem and remedy in refused.value.remedy, str(refused.value)


def test_a_path_is_loaded_where_a_model_is_wanted(model: Decoder, tmp_path: Path) -> None:
    pellucid.save(model, tmp_path / "saved")
    asked: dict[str, Any] = {"max_new_tokens": 3, "sampling": Sampling(temperature=0.0)}
    (ours,) = pellucid.generate(model, [[1, 2]], **asked)
    for name in (tmp_path / "saved", str(tmp_path / "saved")):
        assert pellucid.generate(name, [[1, 2]], **asked)[0].ids == ours.ids
    assert pellucid.look(tmp_path / "saved", [1, 2]).tokens == pellucid.look(model, [1, 2]).tokens


def test_every_option_of_a_run_says_what_it_may_be() -> None:
    for flag in TrainOptions.options:
        with pytest.raises(UsageError, match=f"^{flag} = "):
            TrainOptions(**{flag: object()})
    assert TrainOptions(freeze=["embed.*"]).freeze == ("embed.*",)


def test_annotations_say_which_values_fit() -> None:
    assert fits(3, float) and fits(3, int | None) and fits(None, int | None) and fits([1, (2)], list[int])
    assert fits(torch.tensor([1, 2]), tuple[int, ...]) and fits("a", Literal["a", 1]) and fits(len, Callable[..., int])
    assert not any(
        (fits(True, int), fits(1.0, int), fits("a", tuple[str, ...]), fits(1, Literal[True]), fits({}, list))
    )
    assert words(Literal["a", "b"] | None) == "'a' or 'b' or None"


def test_a_checked_dataclass_keeps_its_defaults_and_names_a_field() -> None:
    @checked(size="give it in metres")
    @dataclass(frozen=True)
    class Thing:
        size: float = 2.0

    assert Thing().size == 2.0 and Thing(3).size == 3
    with pytest.raises(UsageError, match="size = '3' cannot be used\n  give it in metres"):
        Thing("3")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("ids", "remedy"),
    [
        ([1, 2], r"torch\.tensor\(\[ids\]\)"),
        (torch.tensor([1, 2]), r"ids\[None\]"),
        (torch.ones(1, 2), r"ids\.long\(\)"),
        (torch.ones(1, 2, 3), "batch, time"),
    ],
)
def test_ids_without_rows_are_refused_with_a_remedy(ids: object, remedy: str) -> None:
    with pytest.raises(pellucid.errors.DataError, match=remedy):
        refuse_unreadable(ids)


def test_an_edit_that_is_no_function_or_changes_the_type_is_refused(model: Decoder) -> None:
    ids = torch.tensor([[1, 2]])
    not_one: Any = torch.zeros(3)
    with pytest.raises(TapError, match="is a tensor of shape"), model.taps(edit={"embed": not_one}):
        pass
    with pytest.raises(TapError, match=r"to torch\.float64"), model.taps(edit={"embed": lambda x: x.double()}):
        model(ids)
