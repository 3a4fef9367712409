"""The tests' own waits: what never comes fails soon, and a busy machine has more time."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from tests.support import waiting
from tests.support.waiting import LOOP_SECONDS, SLOWEST, WAIT_SECONDS, stretched, wait_for


class Clock:
    """Stands for the module ``time``: it goes on while somebody sleeps, and on no other account."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(waiting, "time", clock)
    return clock


@pytest.fixture
def set_load(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Says how many processes wanted each core in the last minutes."""

    def say(share: float) -> None:
        load = share * (os.cpu_count() or 1)
        monkeypatch.setattr(os, "getloadavg", lambda: (load, load, load))

    return say


@pytest.mark.parametrize(("share", "seconds"), [(0.1, WAIT_SECONDS), (3.0, 3.0 * WAIT_SECONDS)])
def test_what_never_comes_fails_after_the_time_it_has(
    clock: Clock, set_load: Callable[[float], None], share: float, seconds: float
) -> None:
    set_load(share)
    with pytest.raises(AssertionError, match=r"last: \[\]"):
        wait_for(list)
    assert clock.now == pytest.approx(seconds, abs=0.01)


def test_the_load_that_comes_meanwhile_counts(
    clock: Clock, set_load: Callable[[float], None]
) -> None:
    set_load(0.1)

    def late() -> bool:
        if clock.now > 0.5 * WAIT_SECONDS:
            set_load(6.0)
        return clock.now > 5.0 * WAIT_SECONDS

    assert wait_for(late)


def test_no_load_makes_a_red_run_endless(set_load: Callable[[float], None]) -> None:
    set_load(1000.0)
    assert stretched(LOOP_SECONDS) < stretched(WAIT_SECONDS) == SLOWEST * WAIT_SECONDS <= 160.0
