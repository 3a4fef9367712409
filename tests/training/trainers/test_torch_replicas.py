"""Several processes that train one network equal a single one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed (extra 'torch')")

from export.symbols.networks import IMAGENET  # noqa: E402
from export.symbols.params import read_params  # noqa: E402
from training.datasets.synthetic import render_scene  # noqa: E402
from training.guard.guard import Finding, NonFiniteStep, first_finding  # noqa: E402
from training.guard.replay import replay  # noqa: E402
from training.loader import Batch, Shard, join_shards  # noqa: E402
from training.options import parse_options  # noqa: E402
from training.runs.checkpoint import RunFolder  # noqa: E402
from training.runs.log import read_records  # noqa: E402
from training.trainers import torch_replicas  # noqa: E402
from training.trainers.torch_replicas import check_replicas, count_replicas  # noqa: E402
from training.transforms import normalize  # noqa: E402

CLASSES, HEIGHT, WIDTH, STEPS, ROWS = 11, 64, 96, 3, 4
SCRIPTS = Path(__file__).parents[1] / "scripts"
ROOT = Path(__file__).resolve().parents[3]
TRAIN = Path(torch_replicas.__file__).resolve().parents[1] / "train.py"
CASES = {
    "whole": ["--syncbn"],
    "parts": ["--syncbn", "--accumulate", "2"],
    "clipped": ["--syncbn", "--clip-grad", "0.5", "--optimizer", "adam"],
}


def launch(processes: int, script: Path, *arguments: str | Path) -> str:
    """What it printed; nothing goes wrong and nobody warns."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone",
               f"--nproc-per-node={processes}", script, *arguments]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr.lower()
    return done.stdout + done.stderr


def flags_of(symbol: Path, *more: str) -> list[str]:
    flags = f"--trainer torch --symbol {symbol} --crop-size {HEIGHT}x{WIDTH} --base-size {WIDTH}"
    recipe = f"--no-cuda --batch-size {ROWS} --epochs 2 --lr 0.01 --scale-range 1,1"
    return [*flags.split(), *recipe.split(), *more]


@pytest.fixture(scope="module")
def steps(steady_symbol: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The steps of one process and of two; the halves of a batch ignore unequally much."""
    folder = tmp_path_factory.mktemp("steps")
    scenes = [render_scene(seed, HEIGHT, WIDTH) for seed in range(STEPS * ROWS)]
    images = np.stack([normalize(scene.image, IMAGENET) for scene in scenes]).astype(np.float64)
    labels = np.stack([scene.label for scene in scenes])
    labels[0::ROWS, :50] = 255
    labels[1::ROWS, :, :40] = 255
    shape = (STEPS, ROWS)
    weights = np.linspace(0.5, 3, CLASSES).astype(np.float32)
    np.savez(folder / "batches.npz", images=images.reshape(*shape, *images.shape[1:]),
             labels=labels.reshape(*shape, HEIGHT, WIDTH), weights=weights)  # fmt: skip
    cases = json.dumps({name: flags_of(steady_symbol, *more) for name, more in CASES.items()})
    for processes in (1, 2):
        launch(processes, SCRIPTS / "replica_steps.py", folder, cases)
    return folder


def read(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as file:
        return {name: file[name] for name in file.files}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_two_processes_equal_one(steps: Path, case: str) -> None:
    alone, first, second = (read(steps / f"{case}-{which}.npz") for which in ("1-0", "2-0", "2-1"))
    assert len(set(alone["losses"])) == STEPS
    for name, expected in alone.items():
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)
        apart = np.abs(first[name] - expected).max()
        assert apart <= 1e-9 * max(1e-3, np.abs(expected).max()), (name, apart)


@pytest.fixture(scope="module")
def runs(steady_symbol: Path, tmp_path_factory: pytest.TempPathFactory, write_scenes) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    root = write_scenes(folder / "scenes", {"train": 2 * ROWS, "val": 3})
    more = f"--dataset camvid --root {root} --save-dir {folder} --log-interval 1"
    flags = flags_of(steady_symbol, *more.split())
    said = launch(2, TRAIN, *flags, "--checkname", "whole")
    (folder / "said.txt").write_text(said)
    launch(2, SCRIPTS / "replica_runs.py", folder, ROOT, *flags)
    return folder


def run_of(runs: Path, name: str) -> RunFolder:
    return RunFolder(runs / "camvid" / "icnet" / name)


@pytest.mark.slow
def test_one_process_writes_the_run(runs: Path) -> None:
    said, run = (runs / "said.txt").read_text(), run_of(runs, "whole")
    assert said.count("epoch 2 iteration 2/2") == 1
    assert said.count("validation: pixAcc") == 2
    assert said.count("done: best mIoU") == 1
    assert [record.epoch for record in read_records(run.log)] == [1, 2]
    assert len(run.command.read_text().splitlines()) == 1
    assert len(json.loads(run.environment.read_text())) == 1
    assert not list(run.path.parent.glob("whole.*"))


@pytest.mark.slow
def test_two_processes_resumed_equal_two_uninterrupted(runs: Path) -> None:
    """Without --syncbn: the first process's statistics are kept and passed on. Killed once; told
    to end by a signal to the second process, then by one to the first within the validation."""
    said = [json.loads((runs / f"said-{rank}.json").read_text()) for rank in range(2)]
    assert [(one["broken"], one["epochs"]) for one in said] == [(True, 2)] * 2
    assert [one["told"] for one in said] == [[[1, 1], [1, 2]]] * 2
    whole = read_params(run_of(runs, "whole").last)
    for run, starts in (("broken", 2), ("told", 3)):
        other = read_params(run_of(runs, run).last)
        for name in whole.names():
            np.testing.assert_array_equal(whole.find(name), other.find(name), err_msg=name)
        assert len(json.loads(run_of(runs, run).environment.read_text())) == starts


@pytest.mark.slow
def test_a_nan_in_one_processes_rows_is_refused_by_both(runs: Path) -> None:
    said = [json.loads((runs / f"said-{rank}.json").read_text()) for rank in range(2)]
    assert [one["finite"] for one in said] == [True, True]
    (record,) = read_records(run_of(runs, "skipped").log)
    assert record.skipped_steps == 1
    for one in said:
        assert "first not finite: input data; files " in one["stopped"]
        assert "003.png" in one["stopped"]
    assert "guard.replay" in said[0]["stopped"]
    assert "reported by the first process" in said[1]["stopped"]
    (zipped,) = (run_of(runs, "stopped").path / "non-finite").iterdir()
    with zipfile.ZipFile(zipped) as archive:
        # The whole batch: it is refused again by a single process.
        assert len(json.loads(archive.read("incident.json"))["files"]) == ROWS
    again = replay(zipped)
    assert isinstance(again, NonFiniteStep)
    assert again.finding == Finding("input", "data")


def test_the_first_finding_of_all_processes_counts() -> None:
    layers = ("conv0", "bn0", "conv1")
    late, early = Finding("activation", "conv1"), Finding("activation", "bn0")
    assert first_finding([late, early], layers) == early
    assert first_finding([early, Finding("input", "data")], layers).quantity == "input"
    loss = Finding("loss", "of finite logits")
    assert first_finding([loss, late], layers) == late


@pytest.mark.parametrize("parts", [1, 2])
def test_parts_of_all_processes_are_the_parts_of_one(parts: int) -> None:
    random = np.random.default_rng(1)
    images = random.standard_normal((8, 3, 2, 2)).astype(np.float32)
    batch = Batch(images, np.arange(32, dtype=np.uint8).reshape(8, 2, 2), tuple("abcdefgh"))
    shards = [Shard(rank, 2, parts) for rank in range(2)]
    rows = [shard.rows(8) for shard in shards]
    assert sorted(rows[0] + rows[1]) == list(range(8))
    half = 4 // parts
    assert sorted(rows[0][:half] + rows[1][:half]) == list(range(2 * half))
    joined = join_shards(
        [Batch(images[r], batch.labels[r], tuple(batch.names[i] for i in r)) for r in rows],
        shards[1],
    )
    assert joined.names == batch.names
    np.testing.assert_array_equal(joined.images, batch.images)
    np.testing.assert_array_equal(joined.labels, batch.labels)


def test_a_batch_that_cannot_be_shared_out_is_refused() -> None:
    options = parse_options(["--trainer", "torch", "--batch-size", "12", "--accumulate", "3"])
    check_replicas(options, 2)
    check_replicas(replace(options, eval_only=True), 8)
    with pytest.raises(ValueError, match=r"8 processes x 3 accumulated parts: .* multiple of 24"):
        check_replicas(options, 8)
    check_replicas(replace(options, syncbn=True, compile=True), 1)
    with pytest.raises(ValueError, match="--compile cannot trace"):
        check_replicas(replace(options, syncbn=True, compile=True), 2)


def test_as_many_processes_as_gpus_that_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    with pytest.warns(UserWarning, match="--ngpus 8: only 4 available"):
        assert count_replicas(parse_options(["--trainer", "torch", "--ngpus", "8"])) == 4
    asked = {"--ngpus 4": 4, "--ngpus 2": 2, "--ngpus 1": 1, "--ngpus 8 --no-cuda": 1,
             "--ngpus 4 --eval": 4, "": 1}  # fmt: skip
    for flags, count in asked.items():
        assert count_replicas(parse_options(["--trainer", "torch", *flags.split()])) == count
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert count_replicas(parse_options(["--trainer", "torch", "--ngpus", "8"])) == 1


def test_a_process_a_gpu_is_started_with_the_same_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[list[str]] = []
    monkeypatch.setattr(os, "execv", lambda _, command: started.append(command))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    torch_replicas.start_replicas(4, ["train.py", "--ngpus", "4"])
    ((*launcher, script, flag, value),) = started
    assert launcher[1:] == ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=4"]
    assert (script, flag, value) == ("train.py", "--ngpus", "4")
