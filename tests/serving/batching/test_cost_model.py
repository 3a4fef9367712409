"""What batches cost, and when an image would be done."""

from __future__ import annotations

import pytest

from serving.admission.admission import AnswerCosts
from serving.batching.admission import Average, CostModel


def test_before_the_first_batch_nothing_is_predicted() -> None:
    assert CostModel().predict(1) is None
    assert CostModel().predict_done(3, [], 1, 4) is None


def test_the_last_batches_count_most() -> None:
    costs = CostModel()
    for seconds in [1.0] * 5 + [2.0] * 40:
        costs.learn(4, seconds)
    assert costs.predict(4) == pytest.approx(2.0, rel=1e-3)
    # Sizes that were not seen cost as much an image as the nearest one.
    assert costs.predict(2) == pytest.approx(1.0, rel=1e-3)


def test_an_image_waits_for_those_before_it() -> None:
    costs = CostModel()
    costs.learn(1, 0.4)
    costs.learn(2, 0.6)
    predict = costs.predict_done
    assert predict(0, [], 1, 2) == pytest.approx(0.4)
    assert predict(1, [], 1, 2) == pytest.approx(0.6)  # it joins the one before it
    assert predict(2, [], 1, 2) == pytest.approx(1.0)
    assert predict(2, [(2, 0.5)], 1, 2) == pytest.approx(1.1)
    assert predict(2, [(2, 9.0)], 1, 2) == pytest.approx(1.0)  # overdue: any moment now
    assert predict(2, [(2, 0.5)], 2, 2) == pytest.approx(0.5)  # behind the batch at work
    assert predict(4, [], 2, 2) == pytest.approx(1.0)


def test_the_average_and_its_spread_by_hand() -> None:
    """TCP's estimators: the spread learns how far an observation lies from the mean before it."""
    average = Average()
    assert average.predict() is None
    average.learn(1.0)
    assert (average.predict(), average.predict(5.0)) == (1.0, 1.0)
    average.learn(2.0)
    assert average.predict() == pytest.approx(1.2)
    assert average.predict(1.0) == pytest.approx(1.2 + 0.2)
    average.learn(0.2)
    assert average.predict() == pytest.approx(1.0)
    assert average.predict(1.0) == pytest.approx(1.0 + 0.2 + 0.2 * (1.0 - 0.2))


def test_sizes_that_were_not_seen_cost_as_the_nearest_and_smaller_one() -> None:
    costs = CostModel()
    costs.learn(2, 1.0)
    costs.learn(6, 12.0)
    assert costs.predict(3) == pytest.approx(1.5)
    assert costs.predict(4) == pytest.approx(2.0), "as near to both: the smaller one"
    assert costs.predict(5) == pytest.approx(10.0)
    assert costs.predict(8) == pytest.approx(16.0)
    assert costs.predict(2) == 1.0


def test_the_free_instance_is_taken_and_then_the_next_to_be_free() -> None:
    costs = CostModel()
    costs.learn(4, 1.0)
    costs.learn(1, 0.5)
    predict = costs.predict_done
    # Three instances, two at work for 0.2 s and 0.9 s more.
    running = [(4, 0.8), (4, 0.1)]
    assert predict(0, running, 3, 4) == pytest.approx(0.5)
    assert predict(3, running, 3, 4) == pytest.approx(1.0), "the fourth of a batch"
    assert predict(4, running, 3, 4) == pytest.approx(0.2 + 0.5)
    assert predict(8, running, 3, 4) == pytest.approx(0.9 + 0.5)
    assert predict(12, running, 3, 4) == pytest.approx(1.0 + 0.5)
    assert predict(16, running, 3, 4) == pytest.approx(1.2 + 0.5)


def test_a_margin_grows_with_the_spread_and_no_hiccup_makes_all_look_impossible() -> None:
    steady, varying, hiccup = Average(), Average(), Average()
    for number in range(50):
        steady.learn(0.1)
        varying.learn(0.08 if number % 2 else 0.12)
        hiccup.learn(0.1)
    assert steady.predict(2.0) == pytest.approx(0.1)
    assert varying.predict() == pytest.approx(0.1, rel=0.05)
    assert varying.predict(2.0) == pytest.approx(0.14, rel=0.05)
    assert varying.predict(-1.0) == pytest.approx(0.08, rel=0.1)
    assert varying.predict(-9.0) == 0.0
    hiccup.learn(20.0)
    assert hiccup.predict(2.0) == pytest.approx(2 * (hiccup.mean or 0.0))


def test_answers_cost_by_form_and_size(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("serving.admission.admission.perf_counter", lambda: now)
    costs = AnswerCosts()
    assert costs.predict_least("a", ("png",)) == costs.predict("a", ("png",), 10**6) == 0.0
    with pytest.raises(ValueError, match="no"), costs.measure("a", ("png",), 100):
        raise ValueError("no")
    assert costs.predict("a", ("png",), 10**6) == 0.0
    for pixels, seconds in ((10**4, 0.002), (10**6, 0.2)):
        for forms in (("png", "stats"), ("stats", "png")):
            with costs.measure("a", forms, pixels):
                now += seconds
    assert costs.predict("a", ("stats", "png"), 2 * 10**6) == pytest.approx(0.4)
    # Sizes differ: before one is known, little is assumed.
    assert costs.predict_least("a", ("png", "stats")) < 0.2
    assert costs.predict("a", ("png",), 10**6) == costs.predict("b", ("png", "stats"), 10**6) == 0.0
