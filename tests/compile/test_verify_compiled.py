"""The check of compiled code: silent on clean models of both makers, and it finds a branch that only compilers take."""

from __future__ import annotations

import shutil

import pytest
import torch
from faults_base import Fault
from planted import FAULTS

from pellucid.verify.run import verify

PLANTED = [fault for fault in FAULTS if fault.check == "compiled"]
pytestmark = [
    pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++"))), reason="there is no C++ compiler here"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"),
]


@pytest.mark.parametrize(
    "fault", [pytest.param(each, marks=pytest.mark.slow if "theirs" in str(each) else ()) for each in PLANTED], ids=str
)
def test_a_planted_fault_is_found(fault: Fault, monkeypatch: pytest.MonkeyPatch) -> None:
    model = fault.model()
    clean = verify(model, ["compiled"])["compiled"]
    assert clean.verdict == "pass", clean
    assert not any(getattr(part, "_compiled_call_impl", None) for part in model.modules()), "it is as it was"
    torch._dynamo.reset()
    broken = verify(fault.plant(model, monkeypatch) or model, ["compiled"])["compiled"]
    assert broken.verdict == "fail", broken
