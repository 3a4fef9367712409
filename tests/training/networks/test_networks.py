"""ICNet against GluonCV's, at any width, and on its way through files."""

from __future__ import annotations

import importlib.util
import json
from typing import Any

import pytest

Facts = dict[str, Any]


@pytest.fixture(scope="module")
def facts(run_script) -> Facts:
    """What ``scripts/networks.py`` found out in one MXNet process."""
    if importlib.util.find_spec("gluoncv") is None:
        pytest.skip("gluoncv is not installed (extra 'training')")
    return json.loads(run_script("networks").splitlines()[-1])


def convolution(kernel: int, inputs: int, outputs: int, norm: bool = True) -> int:
    """Parameters of a convolution without bias, and of its batch norm."""
    return kernel * kernel * inputs * outputs + (4 * outputs if norm else 0)


def count_small_icnet(classes: int) -> int:
    """Parameters of ICNet-ResNet18 at half width, layer by layer."""
    total = convolution(3, 3, 32) + convolution(3, 32, 32) + convolution(3, 32, 64)
    inputs = 64
    for channels in (32, 64, 128, 256):
        total += convolution(3, inputs, channels) + convolution(3, channels, channels)
        total += 2 * convolution(3, channels, channels)
        total += convolution(1, inputs, channels)
        inputs = channels
    total += convolution(3, 3, 32) + convolution(3, 32, 32) + convolution(3, 32, 64)
    total += 4 * convolution(1, 256, 64) + convolution(3, 512, 256)
    total += convolution(1, 256, 128) + convolution(1, 64, 128)
    total += convolution(3, 128, 128) + convolution(1, 128, 128)
    total += convolution(3, 128, 128) + convolution(1, 64, 128)
    return total + 3 * convolution(1, 128, classes, norm=False)


def test_the_parameters_are_those_of_gluoncv(facts: Facts) -> None:
    assert facts["gluoncv"]["same_names_and_shapes"]


def test_the_outputs_are_those_of_gluoncv(facts: Facts) -> None:
    """Our classifier runs before the last resize, which changes rounding only."""
    found = facts["gluoncv"]
    assert found["shapes"] == [[1, 19, 64, 96], [1, 19, 16, 24], [1, 19, 8, 12], [1, 19, 4, 6]]
    assert min(found["scale"]) > 1e-3
    assert max(found["relative"]) < 1e-4


def test_half_width_counts_as_computed_by_hand(facts: Facts) -> None:
    assert facts["files"]["parameters"] == count_small_icnet(11)


def test_norm_arguments_reach_every_norm_layer(facts: Facts) -> None:
    norms = facts["norms"]
    assert norms["layers"] == norms["synchronised"] == norms["running_means"] > 30
    assert norms["devices"] == [3]


def test_without_the_full_map_the_others_stay_as_they_are(facts: Facts) -> None:
    assert facts["files"]["low_outputs"] == 3
    assert facts["files"]["low_difference"] < 1e-5


def test_symbol_and_parameters_give_the_network_back(facts: Facts) -> None:
    assert facts["files"]["symbol_difference"] < 1e-5
    assert facts["files"]["reload_difference"] < 1e-5


def test_parameters_of_another_network_are_refused_by_name(facts: Facts) -> None:
    assert "does not fit this network" in facts["files"]["misfit"]
    assert "the network has (" in facts["files"]["misfit"]
    assert "no parameters at" in facts["files"]["no_file"]


def test_a_wrong_size_is_refused_with_the_nearest_legal_one(facts: Facts) -> None:
    assert "multiples of 32, not 360x480; the nearest is 352x480" in facts["refusals"]["size"]
    assert "the nearest is 32x64" in facts["refusals"]["small"]


def test_unknown_names_are_refused_with_the_known_ones(facts: Facts) -> None:
    assert facts["refusals"]["model"].startswith("unknown model 'unet'; known: icnet, ")
    assert "unknown backbone 'vgg16'; known: resnet18, " in facts["refusals"]["backbone"]
