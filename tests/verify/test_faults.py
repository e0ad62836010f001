"""``verify`` is itself verified: each planted fault is found by its check, which the clean model passed."""

from __future__ import annotations

import pytest
from faults_base import Fault
from planted import FAULTS

from pellucid.verify.checks import all_checks
from pellucid.verify.report import Finding
from pellucid.verify.run import verify


def finding(subject: object, check: str) -> Finding:
    return verify(subject, [check])[check]


# those of compiled code are tried in tests/compile: shape checks would be compiled with it
HERE = [fault for fault in FAULTS if fault.check != "compiled"]


@pytest.mark.parametrize("fault", HERE, ids=[f"{i}-{fault}" for i, fault in enumerate(HERE)])
def test_a_planted_fault_is_found(fault: Fault, monkeypatch: pytest.MonkeyPatch) -> None:
    model = fault.model()
    clean = finding(model, fault.check)
    assert clean.verdict == "pass", clean
    broken = finding(fault.plant(model, monkeypatch) or model, fault.check)
    assert broken.verdict == "fail", broken


def test_every_check_has_a_fault_that_it_finds() -> None:
    assert {fault.check for fault in FAULTS} == set(all_checks())
