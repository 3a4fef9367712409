"""Which parameters ``--freeze`` names, in every network that is published as a symbol or recipe."""

from __future__ import annotations

import pytest

from export.symbols.find import PUBLISHED
from export.symbols.graph import read_symbol
from training.options import make_parser, parse_options
from training.parameters import frozen_names
from training.recipe import read_recipe, recipe_names

CAFFE = (
    "conv1_weight", "bn_conv1_gamma", "res2a_branch1_weight", "bn2a_branch1_gamma",
    "res3a_branch1_weight", "bn3a_branch1_beta", "res4b1_branch2a_weight", "res5a_branch2b_weight",
    "fc6_weight", "score_bias",
)  # fmt: skip
OURS = (
    "icnet_conv1_conv0_weight", "icnet_conv1_batchnorm0_gamma", "icnet_batchnorm0_gamma",
    "icnet_layer1_block0_conv0_weight", "icnet_layer2_block0_down_conv0_weight",
    "icnet_layer3_block0_conv0_weight", "icnet_layer4_block0_conv0_weight",
    "icnet_sub1_0_conv0_weight", "icnet_head_cls_weight",
)  # fmt: skip


@pytest.mark.parametrize(
    ("names", "freeze", "held"),
    [
        (CAFFE, "1", 2),
        (CAFFE, "2", 4),
        (CAFFE, "5", 8),
        (CAFFE, "conv1,bn_conv1,res2,bn2", 4),
        (OURS, "1", 3),
        (OURS, "2", 4),
        (OURS, "layer1", 1),
        (OURS, "icnet_layer1,icnet_sub1", 2),
    ],
)
def test_names(names: tuple[str, ...], freeze: str, held: int) -> None:
    found = frozen_names(names, make_parser().parse_args(["--freeze", freeze]).freeze)
    assert len(found) == held
    # They come first in both lists.
    assert freeze.endswith("sub1") or freeze == "layer1" or found == set(names[:held])


@pytest.mark.parametrize("path", sorted(PUBLISHED.glob("*.json.gz")), ids=lambda path: path.name)
def test_depths_of_published_symbols(path) -> None:
    names = read_symbol(path).variables()
    sizes = [len(frozen_names(names, (str(depth),))) for depth in range(1, 6)]
    # Stem: three convolutions, each with gamma, beta and two statistics; then blocks of three
    # convolutions, and one beside the first.
    blocks = (3, 4, 23 if "resnet101" in path.name else 6, 3)
    expected = [15]
    for count in blocks:
        expected.append(expected[-1] + 5 * (3 * count + 1))
    assert sizes == expected
    assert not [n for n in frozen_names(names, ("5",)) if "resnetv1s" not in n]


def test_what_no_name_begins_with_is_refused() -> None:
    with pytest.raises(ValueError, match=r"--freeze res9,x: no parameter has such a name: .*conv1"):
        frozen_names(CAFFE, ("res2", "res9", "x"))
    with pytest.raises(ValueError, match="expected 1 to 5, the number of parts"):
        frozen_names(CAFFE, ("6",))
    with pytest.raises(ValueError, match="give the starts"):
        frozen_names(("fc6_weight",), ("1",))


@pytest.mark.parametrize("text", ["conv1,,res2", "", "1,conv1"])
def test_what_is_no_list_is_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_options([f"--freeze={text}"])
    assert "is neither a number of parts nor a list of names" in capsys.readouterr().err


def test_msras_recipes_fix_what_the_scripts_fixed() -> None:
    """``fixed_param_prefix`` of mxnetgo's scripts, without gamma and beta: of all batch norms."""
    for name in recipe_names():
        msra = name.startswith("deeplab_msra")
        fixed = ("conv1", "bn_conv1", "res2", "bn2") if msra else ()
        assert parse_options(["--recipe", name]).freeze == fixed
        assert ("fix" in " ".join(read_recipe(name).notes).lower()) >= msra
