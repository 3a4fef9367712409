"""Every published recipe is a command line that parses, with the facts of its publication."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from training.options import TrainOptions, parse_options
from training.recipe import Recipe, read_recipe, recipe_names
from training.schedules import make_schedule

# Flags of the published scripts that say nothing about the result.
UNRELATED = ("run", "log_interval")


def options_of(name: str, *more: str) -> TrainOptions:
    return parse_options(["--recipe", name, *more])


def published(recipe: Recipe) -> dict[tuple[str, str], float]:
    return {(row.measure, row.protocol): row.value for row in recipe.results}


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_and_each_of_its_rows_parses(name: str) -> None:
    recipe = read_recipe(name)
    assert recipe.title
    assert recipe.source
    assert recipe.results, "what should it reach?"
    assert recipe.replaces, "which command does it stand for?"
    for row in recipe.results:
        options = parse_options(recipe.arguments(row))
        if "lr" in row.options:
            assert (options.lr, options.loss_scale) == (
                row.options["lr"], row.options["loss-scale"],
            )  # fmt: skip


@pytest.mark.parametrize(
    "name", ["icnet_resnet50_citys", "psp_resnet101_citys", "icnet_resnet50_mhpv1"]
)
def test_a_recipe_is_the_command_that_it_replaces(name: str) -> None:
    (command,) = read_recipe(name).replaces
    flags = shlex.split(command.split("train.py", 1)[1])
    # Only these two are not in the command: its script had them inside.
    known = {"loss_weights", "optimizer"}
    given, made = parse_options(flags), options_of(name)
    different = {
        field
        for field in given.__dataclass_fields__
        if getattr(given, field) != getattr(made, field) and field not in UNRELATED
    }
    assert different <= known


def test_published_facts() -> None:
    icnet = options_of("icnet_resnet50_citys")
    assert (icnet.lr, icnet.epochs, icnet.batch_size, icnet.height) == (0.01, 240, 16, 768)
    assert icnet.loss_weights == (2.0, 1.0, 1.0)
    assert 74.8 in published(read_recipe("icnet_resnet50_citys")).values()
    assert options_of("psp_resnet101_citys").loss_weights == (1.0, 1.0)
    mhp = options_of("icnet_resnet50_mhpv1")
    assert (mhp.optimizer, mhp.lr, mhp.epochs) == ("adam", 1e-5, 120)
    assert published(read_recipe("icnet_resnet50_mhpv1"))[
        "mIoU", "gluon-cv model zoo, 19 classes"
    ] == 44.5  # fmt: skip
    for stride, best in ((16, 82.75), (8, 83.14)):
        name = f"deeplabv3plus_xception65_voc_os{stride}"
        xception = options_of(name)
        assert (xception.output_stride, xception.short_size) == (stride, 520)
        assert (xception.rotation, xception.weight_decay) == (10.0, 4e-5)
        assert max(published(read_recipe(name)).values()) == best


def test_the_mixed_precision_table_is_whole() -> None:
    recipe = read_recipe("icnet_resnet50_citys_mixed")
    finals = {
        (row.options["lr"], row.options["loss-scale"], row.protocol.split("final, ")[1]): row.value
        for row in recipe.results
        if "final" in row.protocol
    }
    assert finals == {
        (0.06, 128, "8 GPU, O1"): 68.1, (0.08, 128, "8 GPU, O1"): 68.3,
        (0.1, 128, "8 GPU, O1"): 67.7, (0.08, 128, "8 GPU, O2"): 67.7,
        (0.08, 32, "8 NPU, O1"): 67.6, (0.1, 32, "8 NPU, O1"): 68.1,
        (0.11, 32, "8 NPU, O1"): 67.9, (0.12, 32, "8 NPU, O1"): 67.0,
        (0.1, 32, "8 NPU, O2"): 66.5, (0.1, 128, "8 NPU, O1"): 67.0,
    }  # fmt: skip
    assert len(recipe.results) == 2 * len(finals)


def test_mxnetgos_steps() -> None:
    for name, epochs, step in (("deeplab_msra_voc", 8, 5), ("deeplab_msra_citys", 10, 6)):
        o = options_of(name)
        assert o.epochs == 4 * epochs
        rate = make_schedule(
            o.schedule, o.lr, 100, o.epochs, o.warmup_epochs, o.lr_steps, o.lr_factor
        )
        assert rate(0) == rate(400 * step - 1) == 1e-3
        assert rate(400 * step) == rate(400 * epochs - 1) == pytest.approx(1e-4)
    assert options_of("deeplab_msra_dcn_voc").model == "deeplab_msra_dcn"
    assert published(read_recipe("deeplab_msra_dcn_citys")) == {
        ("mIoU", "val, the official 8 GPU implementation"): 75.2
    }


def test_the_steps_of_the_official_deformable_network() -> None:
    """Its rates are of iterations: 2975 images and their mirror images, 8 at a time."""
    o = options_of("deeplab_msra_dcn_citys")
    batches = 2975 // o.batch_size
    rate = make_schedule(
        o.schedule, o.lr, batches, o.epochs, o.warmup_epochs, o.lr_steps, o.lr_factor
    )
    for iteration, expected in ((0, 5e-5), (999, 5e-5), (1000, 5e-4), (29_999, 5e-4)):
        assert rate(iteration) == pytest.approx(expected)
    assert rate(round(40.336 * 2 * 2975 / 8)) == pytest.approx(5e-5)
    assert o.epochs * batches == pytest.approx(53 * 2 * 2975 / 8, rel=0.003)
    assert (o.weight_decay, o.momentum) == (5e-4, 0.9)


def test_flags_that_are_given_win() -> None:
    options = options_of("icnet_resnet50_citys", "--lr", "0.5", "--crop-size", "64x96")
    assert (options.lr, options.height, options.crop_width) == (0.5, 64, 96)
    assert options.epochs == 240


def test_wrong_recipes_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in (
        (["--recipe", "resnet"], "no recipe 'resnet'; known: deeplab_msra_citys"),
        (["--recipe"], "expected one argument"),
        (["--recipe", "icnet_resnet50_citys", "--loss-weights", "1,1,1"], "not both"),
    ):
        with pytest.raises(SystemExit):
            parse_options(arguments)
        assert message in capsys.readouterr().err
    (tmp_path / "options.json").write_text("{}")
    with pytest.raises(SystemExit):
        parse_options(["--recipe", "icnet_resnet50_citys", "--resume", str(tmp_path)])
    assert "--recipe starts a run" in capsys.readouterr().err
