"""A run folder goes on with the options that it was started with."""

from __future__ import annotations

import warnings
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from training.options import TrainOptions, parse_options
from training.runs.checkpoint import RunFolder, RunState
from training.runs.environment import read_environment

FLAGS = (
    "--dataset camvid --root data --model icnet --backbone resnet18 --width 0.5 --crop-size 352x480"
    " --epochs 7 --lr 0.02 --no-wd --loss-weights 1,0.5,0.25 --scale-range 0.75,2 --seed 5"
)


def start(folder: Path, *more: str, epochs: int = 1) -> TrainOptions:
    """A run with ``epochs`` finished ones."""
    options = replace(parse_options([*FLAGS.split(), *more]), run=folder)
    run = RunFolder(folder)
    run.start(asdict(options), read_environment())
    for epoch in range(1, epochs + 1):
        with run.checkpoint(RunState(epoch)) as aside:
            aside.last.touch()
            aside.optimizer.touch()
    return options


def resume(folder: Path, *more: str) -> TrainOptions:
    return parse_options(["--resume", str(folder), *more])


def refusal(folder: Path, capsys: pytest.CaptureFixture[str], *more: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        resume(folder, *more)
    assert stopped.value.code == 2
    return capsys.readouterr().err


def test_no_flag_needs_to_be_repeated(tmp_path: Path) -> None:
    started = start(tmp_path)
    assert resume(tmp_path) == replace(started, resume=tmp_path)


def test_what_does_not_change_the_run_may_differ_silently(tmp_path: Path) -> None:
    start(tmp_path)
    options = resume(tmp_path, "--root", "elsewhere", "--workers", "7", "--on-nan", "skip")
    assert (options.root, options.workers, options.on_nan) == (Path("elsewhere"), 7, "skip")


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ("--lr 0.001", "lr 0.001 instead of 0.02"),
        ("--epochs 9", "epochs 9 instead of 7"),
        ("--aux-weight 0.4", "loss_weights [1.0, 0.4, 0.4] instead of [1.0, 0.5, 0.25]"),
    ],
)
def test_what_changes_its_end_is_a_warning(tmp_path: Path, flags: str, told: str) -> None:
    start(tmp_path)
    with pytest.warns(UserWarning, match="results will differ from the original run") as warned:
        options = resume(tmp_path, *flags.split())
    assert told in str(warned[0].message)
    name = told.split()[0]
    assert getattr(options, name) != getattr(resume(tmp_path), name)


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ("--backbone resnet50", "backbone resnet50 instead of resnet18"),
        ("--crop-size 704x480", "height 704 instead of 352"),
        ("--optimizer adam", "optimizer adam instead of sgd"),
        ("--trainer torch", "trainer torch instead of gluon"),
    ],
)
def test_what_does_not_fit_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: str, told: str
) -> None:
    start(tmp_path)
    said = refusal(tmp_path, capsys, *flags.split())
    assert f"cannot be resumed with {told}" in said
    assert "last.params" in said


def test_averaged_weights_are_not_switched_on_later(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start(tmp_path, "--trainer", "torch")
    assert "cannot be resumed with ema 0.9" in refusal(tmp_path, capsys, "--ema", "0.9")


def test_scoring_may_use_other_devices_and_sizes(tmp_path: Path) -> None:
    start(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        options = resume(tmp_path, "--eval", "--ngpus", "1", "--crop-size", "704x960")
    assert (options.height, options.ngpus, options.backbone) == (704, 1, "resnet18")


def test_a_run_killed_in_its_first_epoch_starts_as_it_started(tmp_path: Path) -> None:
    weights = tmp_path / "start.params"
    weights.touch()
    started = start(tmp_path / "run", "--resume", str(weights), epochs=0)
    assert resume(tmp_path / "run") == started
    tuned = start(tmp_path / "tuned", "--finetune", str(weights), epochs=0)
    assert resume(tmp_path / "tuned") == tuned


def test_torch_goes_on_with_the_runs_own_symbol(tmp_path: Path) -> None:
    start(tmp_path, "--trainer", "torch", "--symbol", "somewhere.json")
    RunFolder(tmp_path).symbol.touch()
    assert resume(tmp_path).symbol == RunFolder(tmp_path).symbol


def test_an_option_that_the_run_did_not_know_has_its_default(tmp_path: Path) -> None:
    start(tmp_path)
    path = RunFolder(tmp_path).options
    path.write_text(path.read_text().replace('"max_skips"', '"no_longer_known"'))
    assert resume(tmp_path).max_skips == 10


def test_another_folder_is_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = refusal(tmp_path, capsys)
    assert "is not a run folder" in said
    assert "give the .params file" in said
