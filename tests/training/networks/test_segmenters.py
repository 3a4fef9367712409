"""The networks: structure, files, refusals."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from export.errors import InvalidParams
from export.lowering.convert import convert
from export.symbols.graph import read_symbol
from export.symbols.networks import NETWORKS
from export.symbols.params import read_params
from export.symbols.shapes import infer_shapes

Facts = dict[str, Any]


@pytest.fixture(scope="module")
def facts(run_script) -> Facts:
    """What ``scripts/segmenters.py`` found out in one MXNet process."""
    if importlib.util.find_spec("gluoncv") is None:
        pytest.skip("gluoncv is not installed (extra 'training')")
    return json.loads(run_script("segmenters").splitlines()[-1])


@pytest.mark.parametrize("name", ["pspnet", "fcn", "deeplabv3"])
def test_equals_gluoncv(facts: Facts, name: str) -> None:
    found = facts["gluoncv"][name]
    assert found["same_names_and_shapes"]
    assert found["same_at_101_without_aux"]
    assert found["outputs_without_aux"] == 1
    assert found["shapes"] == [[1, 7, 64, 96], [1, 7, 64, 96]]
    assert max(found["relative"]) < 1e-5


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("deeplabv3plus", [1, 7, 64, 96]),
        ("deeplabv3plus_8", [1, 7, 65, 97]),
        ("deeplab_msra", [1, 7, 64, 96]),
        ("deeplab_msra_dcn", [1, 7, 65, 97]),
        ("fcn_odd", [1, 7, 65, 97]),
        ("deeplabv2", [1, 7, 65, 97]),
        ("deeplabv3plus_resnet", [1, 7, 64, 96]),
        ("deeplabv3plus_resnet_8", [1, 7, 64, 96]),
        ("icnet_fast_seg", [1, 7, 64, 96]),
        ("icnet_two_pass", [1, 7, 64, 96]),
        ("icnet_paper", [1, 7, 193, 225]),
    ],
)
def test_runs_hybridized_and_through_its_files(facts: Facts, name: str, shape: list[int]) -> None:
    found = facts["networks"][name]
    assert found["shape"] == shape
    assert found["hybrid"] < 1e-5
    assert found["file"] < 1e-5


def test_counts_of_the_published_networks(facts: Facts) -> None:
    """Counted from TensorFlow's and Caffe's definitions."""
    assert facts["full"]["deeplabv3plus"] == 41_055_413
    assert facts["full"]["deeplab_msra"] == 44_637_267
    offsets = 3 * 18 * (512 * 9 + 1)
    assert facts["full"]["deeplab_msra_dcn"] == 44_637_267 + offsets
    backbone = 44_637_267 - (2048 * 1024 + 1024) - (1024 * 19 + 19) - 19 * 32 * 32
    assert facts["full"]["deeplabv2"] == backbone + 4 * (2048 * 9 * 21 + 21)


def test_icnet_of_the_paper_has_half_the_width(facts: Facts) -> None:
    """Counted from hszhao's prototxt, and the two auxiliary classifiers of training."""

    def convolved(kernel: int, before: int, after: int) -> int:
        return kernel * kernel * before * after + 2 * after

    total = convolved(3, 3, 32) + convolved(3, 32, 32) + convolved(3, 32, 64)
    before = 64
    for units, inner in ((3, 32), (4, 64), (6, 128), (3, 256)):
        total += convolved(1, before, 4 * inner)
        for _ in range(units):
            total += convolved(1, before, inner) + convolved(3, inner, inner)
            total += convolved(1, inner, 4 * inner)
            before = 4 * inner
    total += convolved(1, 1024, 256) + convolved(3, 256, 128) + convolved(1, 256, 128)
    total += convolved(3, 3, 32) + convolved(3, 32, 32) + convolved(3, 32, 64)
    total += convolved(3, 128, 128) + convolved(1, 64, 128) + 128 * 19 + 19
    assert facts["full"]["icnet_paper"] == total + 2 * 128 * 19


def test_an_output_stride_can_be_chosen_at_evaluation(facts: Facts) -> None:
    for found in facts["strides"].values():
        assert found["same"]
        assert found["shape"] == [1, 7, 64, 96]
        assert found["differs"] > 1e-3
    assert facts["networks"]["deeplabv3plus_resnet_8"]["deepest"] == 8
    assert facts["networks"]["deeplabv3plus_resnet"]["deepest"] == 4


def test_threads_share_the_graph_that_the_learner_built(facts: Facts) -> None:
    assert facts["race"] == {"problems": [], "built": True, "built_again": 0}


def test_the_epsilon_of_xception_is_tensorflows_everywhere(facts: Facts) -> None:
    """65 convolutions and 4 shortcuts of the backbone with 1e-3; 14 norms behind it with 1e-5."""
    separable = 2 * (3 * 3 + 16 * 3 + 2 * 3)
    assert facts["networks"]["deeplabv3plus"]["epsilons"] == {
        "0.001": 2 + separable + 4,
        "1e-05": 14,
    }


def test_output_strides_of_deeplabv3plus(facts: Facts) -> None:
    assert 4 * 16 in facts["networks"]["deeplabv3plus"]["strides"]
    assert 8 in facts["networks"]["deeplabv3plus"]["strides"]
    assert facts["networks"]["deeplabv3plus_8"]["strides"] == [9, 17, 33, 65]


def test_parameters_have_the_published_names(facts: Facts) -> None:
    tensorflow = set(facts["networks"]["deeplabv3plus"]["parameters"])
    assert {
        "entry_flow_conv1_1_BN_gamma",
        "entry_flow_block2_shortcut_BN_running_mean",
        "middle_flow_unit_16_separable_conv3_pointwise_weight",
        "exit_flow_block2_separable_conv1_depthwise_BN_beta",
        "aspp3_depthwise_weight",
        "decoder_conv1_pointwise_BN_gamma",
        "logits_semantic_bias",
    } <= tensorflow
    caffe = set(facts["networks"]["deeplab_msra"]["parameters"])
    assert {
        "bn_conv1_moving_var", "res2c_branch2b_weight", "res3b3_branch2a_weight",
        "bn4b22_branch2c_gamma", "res5a_branch1_weight", "fc6_bias", "upsampling_weight",
    } <= caffe  # fmt: skip
    assert "res5c_branch2b_offset_bias" in facts["networks"]["deeplab_msra_dcn"]["parameters"]


def test_the_mapping_has_every_name(facts: Facts) -> None:
    assert sorted(facts["contracts"]) == sorted(NETWORKS)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_keeps_the_contract(facts: Facts, name: str) -> None:
    found = facts["contracts"][name]
    assert found["prediction"] == [2, 7, *found["size"]]
    assert found["classes"] == [7]
    assert found["low_outputs"] >= 1
    assert "not 10x10; the nearest is" in found["refusal"]


def test_msra_gives_probabilities(facts: Facts) -> None:
    assert facts["networks"]["deeplab_msra"]["sum"] == pytest.approx(1, abs=1e-5)


def test_norm_arguments_reach_every_norm_layer(facts: Facts) -> None:
    assert len(facts["norms"]) == len(NETWORKS) + 1
    for found in facts["norms"].values():
        assert found["operators"] == ["_contrib_SyncBatchNorm"]
        assert found["devices"] == ["3"]
        assert found["count"] > 50


def test_wrong_sizes_are_refused_with_the_nearest_legal_one(facts: Facts) -> None:
    refusals = facts["refusals"]
    assert "multiples of 8, not 711x1003; the nearest is 712x1000" in refusals["pspnet"]
    assert "multiples of 8, not 713x1000; the nearest is 712x1000" in refusals["deeplabv3"]
    assert "multiples of 32, not 712x1000; the nearest is 704x992" in refusals["icnet"]
    assert "at least 16 pixels, not 9x1000; the nearest is 16x1000" in refusals["fcn"]
    assert "the nearest is 705x1008" in refusals["deeplabv3plus"]
    assert "multiples of 32 plus 1, not 1024x2048; the nearest is 1025x2049" in refusals["paper"]
    assert "the nearest is 193x193" in refusals["paper_small"]


def test_unknown_names_are_refused_with_the_known_ones(facts: Facts) -> None:
    refusals = facts["refusals"]
    assert "has 8 and 16" in refusals["stride"]
    assert "known: xception65, resnet18" in refusals["backbone"]
    assert "known: resnet50, resnet101, resnet152" in refusals["msra"]


def test_the_command_renames_structural_parameters(run_script, tmp_path: Path) -> None:
    """``--params``: a file of ``save_parameters`` comes out under the symbol's names."""
    saved = tmp_path / "structural.params"
    output = tmp_path / "out"
    run_script("rename_parameters", saved, output)
    graph = read_symbol(output / "network-symbol.json")
    parameters = read_params(output / "network.params")
    shapes = infer_shapes(graph, 64, 96).parameters
    assert all(parameters.find(name).shape == shape for name, shape in shapes.items())
    structural = read_params(saved)
    assert "head.block.4.bias" in structural.arguments
    np.testing.assert_array_equal(
        parameters.find("fcn_head_block_classifier_bias"), structural.arguments["head.block.4.bias"]
    )
    with pytest.raises(InvalidParams, match=r"training\.networks\.tracing --params"):
        convert(graph, structural, 64, 96)
