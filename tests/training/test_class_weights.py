"""``--class-weights``: a list or a file, one number a class."""

from __future__ import annotations

import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from training import recipe, train
from training.class_weights import check_class_weights, weigh_classes
from training.options import parse_options
from training.runs.checkpoint import RunFolder, RunState
from training.runs.environment import read_environment

# SegNet's for CamVid (Models/segnet_train.prototxt).
SEGNET = "0.2595,0.1826,4.5640,0.1417,0.9051,0.3826,9.6446,1.8418,0.6823,6.2478,7.3614"


def test_a_list_and_a_file_say_the_same(tmp_path: Path) -> None:
    by_line, by_comma = tmp_path / "lines.txt", tmp_path / "commas.txt"
    by_line.write_text(SEGNET.replace(",", "\n") + "\n")
    by_comma.write_text(SEGNET)
    weights = [
        parse_options(["--class-weights", str(given)]).class_weights
        for given in (SEGNET, by_line, by_comma)
    ]
    assert weights[0] == weights[1] == weights[2]
    assert weights[0][:2] == (0.2595, 0.1826)
    np.testing.assert_array_equal(weigh_classes([], 11, 0.0, weights[0]), np.float32(weights[0]))
    assert parse_options([]).class_weights == ()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--class-weights nowhere.txt", "neither a comma-separated list of numbers nor a file"),
        ("--class-weights 1,-1", "weights are 0 or more, and not all of them 0"),
        ("--class-weights 1,nan", "weights are 0 or more"),
        ("--class-weights 0,0", "not all of them 0"),
        ("--class-weights 1,2 --class-balance 0.5", "not both"),
    ],
)
def test_wrong_ones_are_refused(
    flags: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parse_options(flags.split())
    assert message in capsys.readouterr().err


def test_a_file_of_something_else_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "labels.txt"
    file.write_text("road\nsky\n")
    with pytest.raises(SystemExit):
        parse_options(["--class-weights", str(file)])
    assert "could not convert string to float: 'road'" in capsys.readouterr().err


def test_another_number_than_the_classes_is_refused_before_anything_is_built(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py", "--dataset", "camvid", "--class-weights", "1,2"])
    with pytest.raises(SystemExit, match=r"has 2 numbers, the dataset 11 classes: .* Sky, B"):
        train.main()
    check_class_weights((), ("sky",))


def test_a_recipe_holds_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = tmp_path / "recipes"
    folder.mkdir()
    (folder / "camvid.toml").write_text(
        'title = "t"\nsource = "s"\nreplaces = []\nnotes = []\nresults = []\n'
        f'[options]\ndataset = "camvid"\nclass-weights = [{SEGNET}]\n'
    )
    monkeypatch.setattr(recipe, "files", lambda _: tmp_path)
    options = parse_options(["--recipe", "camvid"])
    assert len(options.class_weights) == 11
    assert options.class_weights[6] == 9.6446


def test_a_resumed_run_has_them_without_the_file(tmp_path: Path) -> None:
    file = tmp_path / "weights.txt"
    file.write_text(SEGNET)
    flags = ["--dataset", "camvid", "--class-weights", str(file), "--freeze", "conv1,layer1"]
    options = replace(parse_options(flags), run=tmp_path / "run")
    run = RunFolder(options.run)
    run.start(asdict(options), read_environment())
    with run.checkpoint(RunState(1)) as aside:
        aside.last.touch()
        aside.optimizer.touch()
    file.unlink()
    resumed = parse_options(["--resume", str(run.path)])
    assert resumed.class_weights == options.class_weights
    assert resumed.freeze == ("conv1", "layer1")
