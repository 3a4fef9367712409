"""Command lines that people have in their notes run as written."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from training.datasets import canonical_name
from training.flags import parse_size
from training.options import TrainOptions, parse_options
from training.runs.checkpoint import RunFolder, RunState
from training.trainers import make_learner

ICNET_CITYS = (
    "--dataset citys --model icnet --backbone resnet50 --syncbn --ngpus 8"
    " --checkname icnet_resnet50_citys --lr 0.01 --epochs 240 --base-size 2048 --crop-size 768"
    " --workers 48"
)
NOTED = (
    ICNET_CITYS,
    "--dataset citys --model icnet --backbone resnet50 --syncbn --ngpus 1 --base-size 2048"
    " --workers 48 --eval --resume ./runs/citys/icnet/icnet_resnet50_citys/",
    "--dataset citys --model psp --aux --backbone resnet101 --syncbn --ngpus 8"
    " --checkname psp_resnet101_citys --lr 0.01 --epochs 240 --base-size 2048 --crop-size 768"
    " --workers 48",
    "--model psp --backbone resnet101 --dataset citys --batch-size 8 --ngpus 8 --eval --resume"
    " training/psp_resnet101_citys_/psp_resnet101_citys_model_best.params --aux --base-size 2048"
    " --crop-size 768",
    "--dataset mhp --model icnet --backbone resnet50 --syncbn --ngpus 8 --lr 0.00001 --epochs 120"
    " --base-size 768 --crop-size 768 --workers 48 --batch-size 16 --log-interval 1",
    "--dataset mhp --model icnet --backbone resnet50 --syncbn --ngpus 1 --workers 48 --eval"
    " --resume ./runs/mhp/icnet/resnet50/epoch_0105_mIoU_0.3974.params",
    "--dataset mhp --model psp --backbone resnet50 --syncbn --ngpus 8 --checkname psp_resnet50_mhp"
    " --lr 0.0005 --epochs 240 --base-size 768 --crop-size 480 --workers 48 --batch-size 16"
    " --log-interval 1",
    "--dataset mhp --model psp --backbone resnet50 --syncbn --ngpus 8 --batch-size 8"
    " --base-size 768 --workers 48 --eval"
    " --resume ./runs/mhp/psp/resnet50/epoch_0046_mIoU_0.3416.params",
    "--dataset mhp --model icnet --backbone resnet50 --syncbn --ngpus 1 --batch-size 1"
    " --base-size 768 --workers 48 --eval"
    " --resume ./runs/mhp/icnet/resnet50/epoch_0024_mIoU_0.3095.params",
    "--dataset mhp --model psp --backbone resnet50 --syncbn --ngpus 1 --checkname psp_resnet50_mhp"
    " --lr 0.001 --epochs 15 --base-size 768 --crop-size 768 --workers 48 --batch-size 1"
    " --log-interval 1 --clip-grad 20",
    "--dataset mhp --model icnet --backbone resnet50 --syncbn --ngpus 8"
    " --checkname icnet_resnet50_mhp --lr 0.001 --epochs 240 --base-size 768 --crop-size 768"
    " --workers 48",
)


def parse(line: str) -> TrainOptions:
    return parse_options(shlex.split(line))


def refusal(line: str, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stopped:
        parse(line)
    assert stopped.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize("line", NOTED)
def test_every_noted_command_parses(line: str) -> None:
    options = parse(line)
    assert options.dataset in ("citys", "mhpv1")
    assert options.model in ("icnet", "pspnet")
    assert options.eval_only is ("--eval" in line)
    assert options.syncbn is ("--syncbn" in line)


def test_the_flags_mean_what_they_say() -> None:
    options = parse(ICNET_CITYS)
    assert (options.height, options.crop_width, options.base_size) == (768, 768, 2048)
    assert (options.lr, options.epochs, options.workers, options.ngpus) == (0.01, 240, 48, 8)
    assert (options.backbone, options.width) == ("resnet50", 1.0)
    assert options.run == Path("runs/citys/icnet/icnet_resnet50_citys")
    assert options.loss_weights == (1.0, 0.4, 0.4)


def test_the_last_noted_command_clips_gradients() -> None:
    assert parse("--clip-grad 20").clip_grad == 20.0
    assert parse("").clip_grad == 0.0


@pytest.mark.parametrize(
    ("name", "canonical"),
    [("mhp", "mhpv1"), ("mhpv1", "mhpv1"), ("cityscapes", "citys"), ("voc", "pascal_voc")],
)
def test_datasets_have_one_name(name: str, canonical: str) -> None:
    assert canonical_name(name) == canonical
    assert parse(f"--dataset {name}").dataset == canonical


def test_psp_is_pspnet_in_the_run_folder_too() -> None:
    options = parse("--model psp --dataset mhp --save-dir out --checkname x")
    assert options.model == "pspnet"
    assert options.run == Path("out/mhpv1/pspnet/x")


@pytest.mark.parametrize(
    ("text", "size"), [("768", (768, 768)), ("352x480", (352, 480)), ("352X480", (352, 480))]
)
def test_a_crop_size_is_a_number_or_height_by_width(text: str, size: tuple[int, int]) -> None:
    assert parse_size(text) == size
    options = parse(f"--crop-size {text}")
    assert (options.height, options.crop_width) == size


@pytest.mark.parametrize("text", ["x480", "352x", "1x2x3", "0", "352x0", "wide", "3.5"])
def test_other_crop_sizes_are_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    message = refusal(f"--crop-size {text}", capsys)
    assert f"{text!r} is neither a size nor HEIGHTxWIDTH" in message


def test_loss_weights_follow_the_auxiliary_weight_unless_given() -> None:
    assert parse("--aux-weight 0.2").loss_weights == (1.0, 0.2, 0.2)
    assert parse("--loss-weights 1,0.5,0.25").loss_weights == (1.0, 0.5, 0.25)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--loss-weights 1,2", "takes 3 numbers for icnet"),
        ("--loss-weights 1,a,2", "not a comma-separated list of numbers"),
        ("--scale-range 2,1", "0 < LOW <= HIGH"),
        ("--scale-range 0,1", "0 < LOW <= HIGH"),
        ("--scale-range 1", "0 < LOW <= HIGH"),
        ("--optimizer rmsprop", "invalid choice"),
        ("--dtype bfloat16", "--dtype needs --trainer torch"),
        ("--ema 0.9", "--ema needs --trainer torch"),
        ("--trainer torch --ema 1", "between 0 and 1"),
        ("--trainer torch --batch-size 8 --accumulate 3", "equal parts"),
        ("--finetune a.params --resume b.params", "one of them"),
        ("--schedule step", "--schedule step needs --lr-steps"),
        ("--lr-steps 3", "no other schedule has them"),
        ("--schedule step --lr-steps 3,4 --lr-factor 1,2,3", "one for each of --lr-steps"),
        ("--trainer torch --dtype float16 --loss-scale 0", "a positive number nor dynamic"),
        ("--trainer torch --loss-scale 128", "--loss-scale needs --dtype float16"),
        ("--loss-scale 128", "--loss-scale needs --trainer torch"),
        ("--freeze-bn --syncbn", "exclude each other"),
        ("--legacy-loss-weights --loss-weights 1,1,1", "not both"),
        ("--no-such-flag", "unrecognized arguments"),
    ],
)
def test_wrong_values_are_refused_with_a_reason(
    line: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in refusal(line, capsys)


def test_a_run_folder_to_resume_is_the_run(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.options.write_text('{"backbone": "resnet18"}')
    with run.checkpoint(RunState(1)) as aside:
        aside.last.touch()
        aside.optimizer.touch()
    resumed = parse(f"--resume {tmp_path} --checkname other")
    assert resumed.run == resumed.resume == tmp_path
    assert resumed.backbone == "resnet18"


def test_weights_to_start_from_are_no_run(tmp_path: Path) -> None:
    file = tmp_path / "best.params"
    file.touch()
    options = parse(f"--resume {file} --dataset camvid --checkname fresh")
    assert options.resume == file
    assert options.run == Path("runs/camvid/icnet/fresh")


def test_a_missing_pytorch_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.trainers.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"segserve\[torch\]"):
        make_learner(parse("--trainer torch"), 11)
