"""What ``train.py`` says where it cannot train: one line, with the remedy."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import pytest

from training import train
from training.options import parse_options

torch = pytest.importorskip("torch", reason="torch is not installed (extra 'torch')")

from training.trainers import torch_replicas  # noqa: E402


@pytest.fixture
def say(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Runs ``main``; its last words and its exit status."""
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)

    def call(*flags: str) -> tuple[str, object]:
        monkeypatch.setattr(sys, "argv", ["train.py", *flags])
        with pytest.raises(SystemExit) as ended:
            train.main()
        status = ended.value.code
        if isinstance(status, str):
            return status, 1
        return capsys.readouterr().err.splitlines()[-1], status

    return call


def test_a_run_that_is_not_there_is_named_first(say, tmp_path: Path) -> None:
    said = say("--resume", str(tmp_path / "nope"))
    assert said == (
        f"train.py: --resume {tmp_path / 'nope'}: not a run folder or a .params file; "
        "`segserve runs` lists the runs",
        1,
    )


def test_an_unknown_dataset_tells_all_known_ones(say) -> None:
    said, status = say("--dataset", "camvit")
    assert said == (
        "train.py: error: unknown --dataset camvit; known: ade20k, camvid, citys, coco, folder, "
        "mhpv1, pascal_aug, pascal_voc, synthetic"
    )
    assert status == 2


@pytest.mark.parametrize(
    ("content", "message"), [(None, "No such file"), ("{", "expected JSON"), ("{}", "symbol.json")]
)
def test_a_symbol_that_is_none_is_named(say, tmp_path: Path, content, message: str) -> None:
    path = tmp_path / "symbol.json"
    if content is not None:
        path.write_text(content)
    said, status = say("--trainer", "torch", "--no-cuda", "--symbol", str(path))
    assert said.startswith(f"train.py: {path}: ")
    assert message in said
    assert status == 1


def test_without_mxnet_the_other_trainer_is_named(monkeypatch: pytest.MonkeyPatch, say) -> None:
    monkeypatch.setattr("training.trainers.find_spec", lambda name: None)
    said, _ = say("--dataset", "synthetic")
    assert "--trainer gluon needs MXNet: pip install 'segserve[training]'" in said
    assert "--trainer torch --symbol FILE" in said


def test_numbers_that_are_none_are_refused(say) -> None:
    for flags in (("--val-interval", "0"), ("--log-interval", "0"), ("--checkpoint-minutes", "-1")):
        said, status = say(*flags)
        assert "--val-interval and --log-interval are 1 or more" in said
        assert status == 2


def test_a_gpu_that_is_left_idle_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.warns(UserWarning, match="add --ngpus 1 or --no-cuda"):
        chosen = torch_replicas.choose_device(parse_options(["--trainer", "torch"]))
    assert chosen.type == "cpu"
    assert torch_replicas.choose_device(parse_options(["--no-cuda"])).type == "cpu"


def test_a_warning_is_a_line_of_words(capsys: pytest.CaptureFixture[str]) -> None:
    train.print_warning(UserWarning("only 4 here"), UserWarning, "train.py", 3)
    assert capsys.readouterr().err == "train.py: warning: only 4 here\n"


def test_a_full_gpu_tells_what_to_do() -> None:
    with (
        pytest.raises(ValueError, match="--accumulate N, or take a smaller --batch-size"),
        torch_replicas.explain_out_of_memory(),
    ):
        raise torch.OutOfMemoryError("CUDA out of memory")
