"""The poly schedule, by hand."""

from __future__ import annotations

import pytest

from training.schedules import PolySchedule


def test_starts_at_the_base_and_ends_near_zero() -> None:
    schedule = PolySchedule(0.01, 100)
    assert schedule(0) == pytest.approx(0.01)
    assert 0 < schedule(99) < 0.01 * 0.02
    assert schedule(100) == 0.0
    assert schedule(500) == 0.0


def test_half_way_is_half_to_the_power() -> None:
    assert PolySchedule(2.0, 10)(5) == pytest.approx(2.0 * 0.5**0.9)
    assert PolySchedule(2.0, 10, power=1.0)(5) == pytest.approx(1.0)


def test_never_rises_without_warmup() -> None:
    schedule = PolySchedule(0.1, 37)
    rates = [schedule(i) for i in range(37)]
    assert rates == sorted(rates, reverse=True)


def test_warms_up_linearly_then_decays_over_the_rest() -> None:
    schedule = PolySchedule(1.0, 14, warmup=4)
    assert [schedule(i) for i in range(5)] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])
    assert schedule(9) == pytest.approx(0.5**0.9)
    assert schedule(14) == 0.0


def test_all_warmup_is_no_division_by_zero() -> None:
    schedule = PolySchedule(1.0, 3, warmup=3)
    assert [schedule(i) for i in range(4)] == pytest.approx([1 / 3, 2 / 3, 1.0, 1.0])
