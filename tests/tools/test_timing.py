"""How benchmarks judge claims, and what they count as work and as growth."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest
from benchmarks.timing import AMX, BFLOAT16, judge, medians, network_work, on_known

import resnetlab


@pytest.mark.parametrize(("bar", "at_most", "holds"), [(2.0, False, True), (1.5, True, False), (2, True, True)])
def test_a_claim_holds_up_to_its_bar(bar: float, at_most: bool, holds: bool, capsys: pytest.CaptureFixture[str]):
    assert judge("speed", 2.0, bar, at_most=at_most) is holds
    assert capsys.readouterr().out.startswith(f"speed: 2.00x (bar {bar:.2f}x")


def test_a_kind_of_processor_without_bar_is_not_judged(capsys: pytest.CaptureFixture[str]):
    assert judge("speed", 0.0, {})
    assert capsys.readouterr().out.startswith("speed: 0.00x")
    assert on_known(2.0) == {AMX: 2.0, BFLOAT16: 2.0}


def test_a_step_counts_two_operations_per_mac_and_its_backward_pass_twice():
    model = resnetlab.create_model("resnet20")
    macs = resnetlab.summarize(model, (3, 32, 32)).macs
    forward = network_work(model, (3, 32, 32), images=5, precision="float32")
    assert forward.amount == 10 * macs
    step = network_work(model, (3, 32, 32), images=5, precision="float32", training=True)
    assert step.amount == 3 * forward.amount


def test_shares_are_of_functions_whose_work_is_known(capsys: pytest.CaptureFixture[str]):
    model = resnetlab.create_model("resnet20")
    work = network_work(model, (3, 32, 32), images=1, precision="float32")
    timing = medians({"a": list, "b": list}, images=1, rounds=1, warmup=0, work={"b": work})
    assert (set(timing.seconds), set(timing.shares)) == ({"a", "b"}, {"b"})
    assert "float32" in capsys.readouterr().out


def test_growth_is_the_exponent_beyond_a_constant(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    exponent = import_module("growth").exponent
    work = [1e3, 1e4, 1e5]
    assert exponent(work, [5 + 1e-3 * x for x in work], 1) == pytest.approx(1)
    assert exponent(work, [5 + 1e-6 * x**2 for x in work], 1) == pytest.approx(2, abs=0.1)
    assert exponent(work, [5.0, 5.1, 5.9], 1) is None
    assert exponent([1, 2], [3.0, 6.0], 1) == pytest.approx(1)
