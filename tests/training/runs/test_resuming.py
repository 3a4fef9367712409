"""A run that ended anywhere goes on there, to the weights of an uninterrupted one (PyTorch)."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed (extra 'torch')")

from export.symbols.graph import write_symbol  # noqa: E402
from export.symbols.params import read_params  # noqa: E402
from training.options import parse_options  # noqa: E402
from training.run import Run  # noqa: E402
from training.runs.checkpoint import (  # noqa: E402
    CheckpointNotWritten,
    RunFolder,
    RunState,
    Saver,
)
from training.runs.interruption import Interrupted  # noqa: E402
from training.runs.log import EpochRecord, read_records  # noqa: E402
from training.trainers.network_symbol import make_symbol  # noqa: E402
from training.trainers.torch_trainer import TorchLearner  # noqa: E402

CLASSES, HEIGHT, WIDTH, BATCHES = 11, 64, 96, 3
WAYS = {
    "plain": (),
    "averaged": ("--ema", "0.9", "--dtype", "bfloat16", "--schedule", "cosine"),
    "scaled": ("--dtype", "float16", "--accumulate", "2", "--optimizer", "adam"),
}
MakeRun = Callable[..., Run]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory, write_scenes) -> Path:
    root: Path = write_scenes(tmp_path_factory.mktemp("scenes"), {"train": 2 * BATCHES, "val": 2})
    return root


@pytest.fixture(scope="module")
def make_run(run_script, scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> MakeRun:
    """Runs of a small ICNet with its dropout."""
    folder = tmp_path_factory.mktemp("runs")
    network = f"--crop-size {HEIGHT}x{WIDTH} --backbone resnet18 --width 0.25"
    recipe = f"--no-cuda --base-size {WIDTH} --batch-size 2 --epochs 2 --lr 0.02"
    data = f"--dataset camvid --root {scenes} --save-dir {folder}"
    flags = [*f"--trainer torch {network} {recipe} {data}".split()]
    graph = make_symbol(parse_options(flags), CLASSES)
    assert any(node.op == "Dropout" and node.number("p", 0) for node in graph.nodes)
    write_symbol(graph, folder / "symbol.json")

    def make(name: str, *more: str) -> Run:
        given = ["--symbol", str(folder / "symbol.json"), "--checkname", name, *more]
        options = parse_options([*flags, *given])
        return Run(options, TorchLearner(options, CLASSES))

    return make


@pytest.fixture(scope="module")
def whole(make_run: MakeRun) -> dict[str, RunFolder]:
    """Uninterrupted runs."""
    runs = {way: make_run(f"whole-{way}", *flags) for way, flags in WAYS.items()}
    for run in runs.values():
        assert run.fit().epochs_done == 2
    return {way: run.folder for way, run in runs.items()}


def act_before(run: Run, place: tuple[int, int], act: Callable[[], None]) -> None:
    """``act`` before step ``place`` (epoch, iteration) of a run."""
    begin = run.learner.begin_step

    def begin_step(epoch: int, iteration: int) -> None:
        if (epoch, iteration) == place:
            act()
        begin(epoch, iteration)

    run.learner.begin_step = begin_step  # type: ignore[method-assign]


def resume(run: Run, make_run: MakeRun) -> RunFolder:
    resumed = make_run("unused", "--resume", str(run.folder.path))
    assert resumed.folder == run.folder
    assert resumed.fit().epochs_done == 2
    return run.folder


def without_seconds(record: EpochRecord) -> tuple[object, ...]:
    return (record.epoch, record.learning_rate, record.loss, record.miou, record.skipped_steps)


def check_equal(one: RunFolder, other: RunFolder) -> None:
    weights, others = read_params(one.last), read_params(other.last)
    for name in weights.names():
        np.testing.assert_array_equal(weights.find(name), others.find(name), err_msg=name)
    logs = [[without_seconds(r) for r in read_records(folder.log)] for folder in (one, other)]
    assert logs[0] == logs[1]
    assert len(logs[0]) == 2
    assert one.read_state().best_epoch == other.read_state().best_epoch


class Killed(BaseException):
    """Stands for SIGKILL: nothing is written any more."""


def kill() -> None:
    raise Killed


@pytest.mark.parametrize("place", [(1, 0), (1, 2)])
@pytest.mark.parametrize("way", WAYS)
def test_killed_and_resumed_equals_uninterrupted(
    way: str, place: tuple[int, int], make_run: MakeRun, whole: dict[str, RunFolder]
) -> None:
    often = () if place[1] == 0 else ("--checkpoint-minutes", "1e-9")
    run = make_run(f"killed-{way}-{place[1]}", *WAYS[way], *often)
    act_before(run, place, kill)
    with pytest.raises(Killed):
        run.fit()
    assert run.folder.read_state().place == place
    check_equal(resume(run, make_run), whole[way])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_behind_the_step(
    number: signal.Signals, make_run: MakeRun, whole: dict[str, RunFolder]
) -> None:
    def ignore(number: int, frame: object) -> None:
        """Stands for what was there before; a signal more does not end the tests' own process."""

    before = [signal.signal(each, ignore) for each in (signal.SIGINT, signal.SIGTERM)]
    try:
        run = make_run(f"told-{number.name}", *WAYS["averaged"])
        act_before(run, (0, 1), lambda: os.kill(os.getpid(), number))
        with pytest.raises(Interrupted, match=number.name) as told:
            run.fit()
        assert told.value.signal_number == number
        assert signal.getsignal(signal.SIGINT) is signal.getsignal(signal.SIGTERM) is ignore
    finally:
        for each, handler in zip((signal.SIGINT, signal.SIGTERM), before, strict=True):
            signal.signal(each, handler)
    # The step that was under way is kept, before any epoch is finished.
    assert run.folder.read_state().place == (0, 2)
    check_equal(resume(run, make_run), whole["averaged"])


def test_a_second_signal_ends_it_at_once(make_run: MakeRun) -> None:
    def tell_twice() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    run = make_run("told-twice")
    act_before(run, (0, 1), tell_twice)
    with pytest.raises(KeyboardInterrupt):
        run.fit()
    assert run.folder.newest() is None


def test_a_signal_within_the_validation_repeats_only_that(
    make_run: MakeRun, whole: dict[str, RunFolder]
) -> None:
    run = make_run("told-in-validation")
    logits = run.learner.logits

    def tell(image: np.ndarray) -> np.ndarray:
        os.kill(os.getpid(), signal.SIGINT)
        return logits(image)

    run.learner.logits = tell  # type: ignore[method-assign]
    with pytest.raises(Interrupted):
        run.fit()
    assert run.folder.read_state().place == (0, BATCHES)
    assert read_records(run.folder.log) == ()
    resumed = make_run("unused", "--resume", str(run.folder.path))
    act_before(resumed, (0, BATCHES - 1), kill)
    assert resumed.fit().epochs_done == 2
    check_equal(run.folder, whole["plain"])


def test_a_damaged_file_costs_no_step(
    make_run: MakeRun,
    whole: dict[str, RunFolder],
    scenes: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One of the validation's is met after an epoch; mended, that epoch is not trained again."""
    photo = scenes / "val" / "001.png"
    content = photo.read_bytes()
    photo.write_bytes(content[:100])
    try:
        run = make_run("damaged")
        with pytest.raises(ValueError, match=r"001\.png"):
            run.fit()
    finally:
        photo.write_bytes(content)
    assert run.folder.read_state().place == (0, BATCHES)
    saved = "saved up to epoch 1, iteration 3; --resume continues from there"
    assert saved in capsys.readouterr().err
    check_equal(resume(run, make_run), whole["plain"])


def test_a_missing_split_is_told_before_the_first_step(
    make_run: MakeRun, scenes: Path, tmp_path: Path
) -> None:
    for name in ("train", "trainannot"):
        (tmp_path / name).symlink_to(scenes / name)
    run = make_run("split", "--root", str(tmp_path))
    act_before(run, (0, 0), kill)
    with pytest.raises(FileNotFoundError, match="no CamVid split 'val'"):
        run.fit()
    unscored = make_run("split", "--root", str(tmp_path), "--no-val")
    act_before(unscored, (0, 0), kill)
    with pytest.raises(Killed):
        unscored.fit()


def test_checkpoints_are_due_by_the_clock(tmp_path: Path, make_run: MakeRun) -> None:
    now = 0.0
    learner = make_run("clock").learner
    learner.start(np.ones(CLASSES, np.float32))
    saver = Saver(RunFolder(tmp_path), learner, 2.0, lambda: now)
    now = 119.0
    assert not saver.is_due()
    now = 120.0
    assert saver.is_due()
    saver.save(RunState(1))
    assert not saver.is_due()
    now = 1e9
    assert not Saver(RunFolder(tmp_path), learner, 0.0, lambda: now).is_due()


def test_an_epoch_of_another_length_begins_again(
    make_run: MakeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run("longer", "--checkpoint-minutes", "1e-9")
    act_before(run, (0, 2), kill)
    with pytest.raises(Killed):
        run.fit()
    with pytest.warns(UserWarning, match="batch_size 3"):
        resumed = make_run("unused", "--resume", str(run.folder.path), "--batch-size", "3")
    assert resumed.fit().epochs_done == 2
    assert "epoch 1 starts again: it has 2 iterations now instead of 3" in capsys.readouterr().out


def test_a_full_disk_leaves_the_checkpoint_before(
    make_run: MakeRun, whole: dict[str, RunFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The size of a file is limited in place of the disk's; both end a write with an OSError."""
    import resource

    run = make_run("full")
    write = run.learner.write_optimizer
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Else the limit ends the process.
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    def write_until_full(path: Path) -> None:
        limited = run.folder.read_state().epochs_done == 1
        if limited:
            resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
        try:
            write(path)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    monkeypatch.setattr(run.learner, "write_optimizer", write_until_full)
    try:
        with pytest.raises(CheckpointNotWritten, match=r"full: File too large; .* --resume"):
            run.fit()
    finally:
        signal.signal(signal.SIGXFSZ, handler)
    assert run.folder.read_state().place == (1, 0)
    assert not list(run.folder.path.glob("*.part"))
    check_equal(resume(run, make_run), whole["plain"])
