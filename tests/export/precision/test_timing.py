"""Ratios of times: the interval's arithmetic, and that all graphs take turns."""

import numpy as np
import pytest

from export.passes.build import build_model
from export.precision import served_graph as timing
from export.precision.quantise import has_vnni
from export.precision.served_graph import compare_times, median_ratio

SIZE = (32, 48)


def test_the_median_and_its_interval():
    found = median_ratio([3.0, 1.0, 2.0, 9.0, 1.5, 2.5, 1.8])
    assert (found.median, found.low, found.high, found.rounds) == (2.0, 1.0, 9.0, 7)
    # Table values of the sign test: the 4th and the 12th of 15, the 10th and the 22nd of 31.
    found = median_ratio(list(range(1, 16)))
    assert (found.low, found.high) == (4, 12)
    found = median_ratio(list(range(31, 0, -1)))
    assert (found.low, found.high) == (10, 22)
    assert str(median_ratio([0.5] * 9)) == "0.50 (0.50-0.50)"


def test_outliers_move_neither_median_nor_interval():
    quiet = median_ratio([1.0] * 15)
    noisy = median_ratio([1.0] * 12 + [50.0, 0.01, 90.0])
    assert (noisy.median, noisy.low, noisy.high) == (quiet.median, quiet.low, quiet.high)


def test_the_interval_holds_the_true_median():
    random = np.random.default_rng(0)
    samples = random.lognormal(0, 1, (2000, 11))
    held = [ratio.low <= 1 <= ratio.high for ratio in map(median_ratio, samples)]
    assert 0.93 < np.mean(held) <= 1


@pytest.mark.parametrize(("seconds", "rounds"), [(0.0, timing.MIN_ROUNDS), (1e9, 31)])
def test_graphs_take_turns(make_network, make_params, monkeypatch, seconds, rounds):
    graph = make_network(*SIZE)
    models = [build_model(graph, make_params(graph, *SIZE), *SIZE)] * 3
    monkeypatch.setattr(timing, "SECONDS", seconds)
    ran, begun = [], []
    real = timing.ServedGraph.seconds
    monkeypatch.setattr(
        timing.ServedGraph,
        "seconds",
        lambda served, image: (ran.append(id(served)), real(served, image))[1],
    )
    image = np.zeros((*SIZE, 3), np.uint8)
    found = compare_times(models[1:], models[0], image, lambda n: lambda: begun.append(n))
    assert [ratio.rounds for ratio in found] == [rounds] * 2
    assert begun == [rounds] * rounds
    turns = [tuple(ran[start : start + 3]) for start in range(0, len(ran), 3)]
    assert len(turns) == rounds + 1  # one to warm up
    assert all(len(set(turn)) == 3 for turn in turns)
    assert len(set(turns)) > 1


def test_vnni_is_read_off_the_flags(tmp_path):
    file = tmp_path / "cpuinfo"
    file.write_text("processor : 0\nflags\t\t: fpu avx2 avx512_vnni\n")
    assert has_vnni(file)
    file.write_text("processor : 0\nflags\t\t: fpu avx2\n")
    assert not has_vnni(file)
    assert not has_vnni(tmp_path / "absent")
