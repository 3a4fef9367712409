"""The poly schedule, by hand."""

from __future__ import annotations

import pytest

from training.schedules import SCHEDULES, CosineSchedule, PolySchedule, make_schedule


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


def test_a_cosine_falls_slowly_at_both_ends() -> None:
    schedule = CosineSchedule(0.1, 100)
    assert schedule(0) == pytest.approx(0.1)
    assert schedule(50) == pytest.approx(0.05)
    assert schedule(100) == pytest.approx(0.0, abs=1e-12)
    falls = [schedule(i) - schedule(i + 1) for i in (0, 50, 99)]
    assert falls[1] > 10 * max(falls[0], falls[2])


def test_every_schedule_warms_up_alike() -> None:
    for make in SCHEDULES.values():
        schedule = make(0.1, 100, 10)
        assert [schedule(0), schedule(9), schedule(10)] == pytest.approx([0.01, 0.1, 0.1])


def test_steps_multiply_and_need_no_whole_epochs() -> None:
    rate = make_schedule("step", 1.0, 10, 4, 0.0, (1.5, 3.0), (0.1, 0.5))
    assert [rate(i) for i in (0, 14, 15, 29, 30, 39)] == pytest.approx([1, 1, 0.1, 0.1, 0.05, 0.05])
    rate = make_schedule("step", 1.0, 10, 4, 0.4, (1.0, 2.0), (0.1,))
    assert [rate(i) for i in (0, 3, 9, 10, 20)] == pytest.approx([0.25, 1, 1, 0.1, 0.01])


def test_other_schedules_take_no_steps() -> None:
    rate = make_schedule("poly", 0.1, 10, 4, 0.5, (), (0.1,))
    assert rate == PolySchedule(0.1, 40, warmup=5)
