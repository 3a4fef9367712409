"""Every command line of the five notes runs here, on a few images in its dataset's layout.

The flags are those of the notes. Behind them stand flags that make the run small (sizes, channels,
two images a batch, two epochs), and of most trainings ``--trainer torch`` with the symbol that
MXNet built, so that one process can run all of them. The first of each kind runs in MXNet, which is
what the published commands mean.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import json
import math
import os
import shlex
import subprocess
import sys
import tarfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer import Typer
from typer.testing import CliRunner

from export.symbols.graph import read_symbol
from export.symbols.params import random_params, read_params, write_params
from tests.support.notes_lines import (
    EQUIVALENTS,
    MXNETGO,
    SCORINGS,
    SCRIPTS,
    SETUP,
    TRAININGS,
    Line,
    find_commands,
)
from tests.support.tiny_datasets import write_citys, write_mhp, write_pascal_aug
from training.datasets import open_dataset
from training.datasets.cli import dataset
from training.datasets.preparation import Archive, Preparation, prepare
from training.options import TrainOptions, parse_options
from training.recipe import read_recipe
from training.runs.checkpoint import RunFolder
from training.runs.log import read_records
from training.schedules import make_schedule

ROOT = Path(__file__).resolve().parents[2]
NOTES = ROOT.parent / "shared/notes"
SCRIPT = Path(__file__).parent / "scripts/command_lines.py"
# Of the crop: at 64 the quarter image that one network sees too has maps of 2x2, and the gradients
# of their batch norms overflow in float16 with the published scale.
SIZE, OF_TWO_PASSES = 64, 128
# Behind the flags of the notes: an iteration an epoch, so that each has its rate in the log.
SMALL = "--width 0.125 --base-size 96"
TINY = f"{SMALL} --batch-size 2 --epochs 2 --val-interval 2 --workers 1"
# What TINY and the trainer change of the options; all others are the command's.
CHANGED = {
    "width", "height", "crop_width", "base_size", "short_size", "batch_size", "epochs",
    "val_interval", "workers", "trainer", "symbol", "run", "root",
}  # fmt: skip
CLASSES = {"citys": 19, "mhpv1": 19, "pascal_aug": 21, "pascal_voc": 21}

RUN = (*TRAININGS, *SCORINGS, *EQUIVALENTS, *SCRIPTS)
TRAIN_LINES = tuple(line for line in RUN if line.script == "train.py")
TEST_LINES = tuple(line for line in RUN if line.script == "test.py")
BY_TEXT = {line.text: line for line in RUN}
FULL_8P = BY_TEXT["bash ./test/train_full_8p.sh --data_path=xxx"]
VAL = next(line for line in EQUIVALENTS if "val.py" in line.text)
EVALUATE = BY_TEXT["evaluate.py"]
TRAIN_XCEPTION = BY_TEXT["train_multi_gpu.py"]
EXPORT = BY_TEXT["python3.7.5 pth2onnx.py"]
DEMO = BY_TEXT["python3.7.5 demo.py"]
# The first of each kind, and what scores it.
IN_MXNET = dict(zip(TRAININGS[:3], SCORINGS[:3], strict=True))
# What was trained for the weights that a command scores.
IN_TORCH = {
    SCORINGS[3]: TRAININGS[7],
    SCORINGS[4]: TRAININGS[8],
    EVALUATE: TRAIN_XCEPTION,
    **{line: FULL_8P for line in EQUIVALENTS if "icnet_resnet50_citys_mixed " in f"{line.here} "
       and line.script == "test.py"},
}  # fmt: skip

# The set-up trains and scores all of it: 84 s alone, more beside others.
pytestmark = pytest.mark.timeout(900)

needs_frameworks = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("mxnet", "torch")),
    reason="mxnet or torch is not installed (extras 'training' and 'torch')",
)


@dataclass(frozen=True)
class Command:
    """A command for ``command_lines.py``; ``copies`` are (from, to) before it."""

    script: str
    flags: list[str]
    copies: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Done:
    """What a command did: its exit status, and what it printed."""

    code: int
    stdout: str
    stderr: str


class Home:
    """A home folder with the datasets where GluonCV's scripts put them, and what was run in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        datasets = path / ".mxnet/datasets"
        write_citys(datasets / "citys", {"train": 2, "val": 2})
        # The notes' --data_path=xxx.
        (path / "xxx").symlink_to(datasets / "citys")
        write_mhp(datasets / "mhp", 4)
        write_pascal_aug(datasets / "voc", {"train": 2, "val": 2})
        self.commands: dict[str, Command] = {}

    def run(self, name: str, commands: Mapping[str, Command]) -> dict[str, Done]:
        """All of them in one process, whose home and working folder this is."""
        self.commands |= commands
        file = self.path / f"{name}.json"
        file.write_text(json.dumps([asdict(command) for command in commands.values()]))
        caches = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
        environment = {
            **os.environ, "HOME": str(self.path), "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "", "XDG_CACHE_HOME": str(caches),
        }  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-W", "ignore", SCRIPT, file],
            cwd=self.path, capture_output=True, text=True, env=environment, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        results = json.loads(file.with_suffix(".done").read_text())
        return {key: Done(**one) for key, one in zip(commands, results, strict=True)}

    def run_of(self, key: str) -> RunFolder:
        """The folder of a training."""
        return RunFolder(self.path / parse_options(self.commands[key].flags).run)

    def scores_of(self, key: str) -> Any:
        """``evaluation.json`` of a scoring."""
        flags = self.commands[key].flags
        folder = self.path / flags[flags.index("--output") + 1]
        return json.loads((folder / "evaluation.json").read_text())


def identify(line: Line) -> str:
    """A short name in pytest's output."""
    words = [word for word in line.text.split() if not word.startswith(("python", "bash"))]
    return f"{line.note[:3]}:{' '.join(words)[:40]}"


def told(line: Line) -> TrainOptions:
    """What the command says, before anything makes it small."""
    flags = shlex.split(line.flags)
    return parse_options(flags if line.script == "train.py" else scoring_options(flags))


def scoring_options(flags: list[str]) -> list[str]:
    """The flags of ``test.py`` that ``train.py`` has too."""
    own = {"--scales": 1, "--output": 1, "--size": 1, "--flip": 0, "--eval": 0}
    kept, skip = [], 0
    for flag in flags:
        if flag in own:
            skip = own[flag]
        elif skip:
            skip -= 1
        else:
            kept.append(flag)
    return kept


def side_of(options: TrainOptions) -> int:
    """Of the crop that its network is built for."""
    return OF_TWO_PASSES if options.model == "icnet_two_pass" else SIZE


def training(line: Line, *more: str) -> Command:
    """A command of ``train.py``, small."""
    size = f"--crop-size {side_of(told(line))}"
    return Command("train.py", [*shlex.split(f"{line.flags} {TINY} {size}"), *more])


def symbol_of(options: TrainOptions) -> str:
    """The file of the network at the tests' size."""
    parts = options.model, options.backbone, options.aux, options.output_stride
    return f"symbols/{'-'.join(map(str, parts))}-{CLASSES[options.dataset]}/network-symbol.json"


def building(options: TrainOptions) -> Command:
    """How MXNet writes it."""
    side = side_of(options)
    flags = (
        f"--model {options.model} --backbone {options.backbone} --width 0.125 --num-classes "
        f"{CLASSES[options.dataset]} --size {side}x{side} --output-stride {options.output_stride} "
        f"--output {Path(symbol_of(options)).parent}"
    )
    return Command("networks.tracing", [*flags.split(), *(["--aux"] if options.aux else [])])


def source_of(line: Line) -> TrainOptions:
    """Where a command of ``test.py`` has its network and data from: its flags, or the run."""
    return told(line if "--dataset" in line.flags else FULL_8P)


def scoring(line: Line, weights: Path, to: str, *more: str) -> Command:
    """A command of ``test.py``, small, that finds copied weights where it looks for them."""
    side = str(side_of(source_of(line)))
    size = ["--crop-size", side, *([] if "--scales" in line.flags else ["--size", side])]
    output = ["--output", f"scores/{TEST_LINES.index(line)}"]
    flags = [*shlex.split(line.flags), *SMALL.split(), *size, *more, *output]
    return Command("test.py", flags, ((str(weights), to),) if to else ())


def write_start(folder: Path, symbol: str) -> str:
    """In place of ImageNet's weights: random ones whose residual sums stay bounded."""
    path = Path(symbol).with_name("start.params")
    start = random_params(read_symbol(folder / symbol), SIZE, SIZE, 1, neutral=False)
    write_params(start, folder / path)
    return str(path)


def best_of(training: Command) -> Path:
    """Where it leaves its best weights."""
    return RunFolder(parse_options(training.flags).run).best


def resumed_from(line: Line) -> str:
    words = shlex.split(line.flags)
    return words[words.index("--resume") + 1]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    return Home(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def in_mxnet(home: Home) -> dict[str, Done]:
    """The first of each kind as published; and the symbols of all networks, for the others."""
    commands: dict[str, Command] = {}
    for line in IN_MXNET:
        commands[f"mxnet {line.text}"] = training(line)
    for trained, line in IN_MXNET.items():
        best = best_of(commands[f"mxnet {trained.text}"])
        to = resumed_from(line)
        if to.startswith("/home"):
            # Another computer's.
            to = "models/psp.params"
            commands[line.text] = scoring(line, best, to, "--resume", to)
        else:
            commands[line.text] = scoring(line, best, "" if to.endswith("/") else to)
    for line in (*TRAIN_LINES, EVALUATE, VAL):
        commands[symbol_of(told(line))] = building(told(line))
    done = home.run("mxnet", commands)
    for key, result in done.items():
        assert result.code == 0, f"{key}\n{result.stderr}"
    return done


@pytest.fixture(scope="module")
def in_torch(home: Home, in_mxnet: dict[str, Done]) -> dict[str, Done]:
    """All trainings; then what scores or shows some of them."""
    assert in_mxnet
    commands: dict[str, Command] = {}
    for number, line in enumerate(TRAIN_LINES):
        more = f"--trainer torch --symbol {symbol_of(told(line))} --save-dir torch-{number}".split()
        if told(line).short_size:
            more += ["--short-size", str(side_of(told(line)))]
        if told(line).model.startswith("deeplab_msra"):
            # Its batch norms keep their statistics: it cannot start from nothing.
            more += ["--finetune", write_start(home.path, symbol_of(told(line)))]
        start = told(line).finetune
        copies = ((str(best_of(commands[TRAIN_XCEPTION.text])), str(start)),) if start else ()
        commands[line.text] = replace(training(line, *more), copies=copies)
    for line, trained in IN_TORCH.items():
        best, to = best_of(commands[trained.text]), resumed_from(line)
        if to.endswith(".params"):
            network = symbol_of(told(line))
            command = scoring(line, best, to, "--trainer", "torch", "--symbol", network)
        else:
            command = scoring(line, best, "", "--resume", str(best.parent))
        commands[line.text] = command
    # Weights from elsewhere, which export/weights imports.
    network = symbol_of(told(VAL))
    start = write_start(home.path, network)
    commands[VAL.text] = scoring(
        VAL, Path(start), resumed_from(VAL), "--trainer", "torch", "--symbol", network
    )
    return home.run("torch", commands)


@pytest.mark.skipif(not NOTES.is_dir(), reason="the notes are not here")
def test_no_line_of_the_notes_is_left_out() -> None:
    known = {(line.note, line.text) for line in (*TRAININGS, *SCORINGS, *EQUIVALENTS)}
    found = {
        (path.name, command)
        for path in NOTES.glob("*.md")
        for command in find_commands(path.read_text("utf-8"))
    }
    setup = {
        (note, command): (one, start)
        for note, command in found - known
        for one, start in SETUP
        if note == one and command.startswith(start)
    }
    assert found - setup.keys() == known
    assert set(setup.values()) == set(SETUP)
    for line in SCRIPTS:
        assert line.text in (NOTES / line.note).read_text("utf-8"), line.text


def test_the_mapping_is_documented() -> None:
    document = (ROOT / "docs/recipes.md").read_text("utf-8")
    for line in (*EQUIVALENTS, *SCRIPTS):
        assert line.text in document, line.text
        assert line.here.removeprefix("python ") in document, line.here


def check_training(home: Home, key: str, line: Line, done: Done) -> None:
    """It trained what the command says, to the end, and wrote the run."""
    assert done.code == 0, done.stderr + done.stdout
    wanted, run = told(line), home.run_of(key)
    saved = json.loads(run.options.read_text())
    for name, value in json.loads(json.dumps(asdict(wanted), default=str)).items():
        if name not in CHANGED and not (name == "finetune" and value is None):
            assert saved[name] == value, name
    first, second = read_records(run.log)
    assert (first.learning_rate, second.learning_rate) == pytest.approx(expected_rates(wanted))
    assert all(math.isfinite(record.loss) and record.loss > 0 for record in (first, second))
    assert (first.skipped_steps, second.skipped_steps) == (0, 0)
    assert wanted.no_val or 0 <= second.miou <= second.pixel_accuracy <= 1
    weights = read_params(run.last)
    assert all(np.isfinite(weights.find(name)).all() for name in weights.names())
    classes = CLASSES[wanted.dataset]
    assert any(weights.find(name).shape[:1] == (classes,) for name in weights.names())
    assert "done: best mIoU" in done.stdout


def expected_rates(options: TrainOptions) -> tuple[float, float]:
    """Of two epochs of an iteration each."""
    if options.schedule == "cosine":
        assert options.warmup_epochs == 3, "two epochs see its warm-up only"
        return options.lr / 3, 2 * options.lr / 3
    if options.schedule == "step":
        assert min(options.lr_steps) >= 2
        return options.lr, options.lr
    return options.lr, options.lr * 0.5**0.9


@pytest.mark.slow
@needs_frameworks
@pytest.mark.parametrize("line", TRAIN_LINES, ids=identify)
def test_a_training_does_what_its_command_says(
    home: Home, in_torch: dict[str, Done], line: Line
) -> None:
    import torch

    check_training(home, line.text, line, in_torch[line.text])
    newest = home.run_of(line.text).newest()
    assert newest is not None
    states = torch.load(newest.optimizer, weights_only=True)
    kept = {name for state in states["optimizer"]["state"].values() for name in state}
    expected = "exp_avg" if told(line).optimizer == "adam" else "momentum_buffer"
    assert expected in kept
    if told(line).loss_scale:
        assert states["scaler"]["scale"] == told(line).loss_scale


@pytest.mark.slow
@needs_frameworks
@pytest.mark.parametrize("line", IN_MXNET, ids=identify)
def test_a_training_runs_in_mxnet_as_published(
    home: Home, in_mxnet: dict[str, Done], line: Line
) -> None:
    key = f"mxnet {line.text}"
    check_training(home, key, line, in_mxnet[key])
    run = home.run_of(key)
    assert json.loads(run.options.read_text())["trainer"] == "gluon"
    assert len(read_symbol(run.symbol).heads) == (2 if "--aux" in line.text else 4)
    assert f"{told(line).dataset}/{told(line).model}/" in str(run.path)


@pytest.mark.slow
@needs_frameworks
@pytest.mark.parametrize("line", [x for x in TEST_LINES if x is not DEMO], ids=identify)
def test_a_scoring_does_what_its_command_says(
    home: Home, in_mxnet: dict[str, Done], in_torch: dict[str, Done], line: Line
) -> None:
    done = (in_mxnet | in_torch)[line.text]
    assert done.code == 0, done.stderr + done.stdout
    scores = home.scores_of(line.text)
    source = source_of(line)
    dataset_name = source.dataset
    assert (scores["dataset"], scores["split"]) == (dataset_name, "val")
    assert scores["model"] == source.model
    assert scores["images"] == scores["time"]["images"] == (1 if dataset_name == "mhpv1" else 2)
    assert len(scores["classes"]) == CLASSES[dataset_name]
    assert 0 <= scores["mean_iou"] <= scores["pixel_accuracy"] <= 1
    assert scores["protocol"].startswith("testval: ")
    assert ("scales 0.5, 0.75, 1, 1.25, 1.5, 1.75" in scores["protocol"]) == bool(line.adds), (
        "the note says multi-scale"
    )
    assert "pixAcc" in done.stdout
    assert "t_cpu" in done.stdout


@pytest.mark.slow
@needs_frameworks
def test_scoring_a_run_gives_its_validation_again(home: Home, in_mxnet: dict[str, Done]) -> None:
    """The published pair: ``train.py``, and ``test.py --resume`` with the folder that it wrote."""
    assert in_mxnet
    record = read_records(home.run_of(f"mxnet {TRAININGS[0].text}").log)[-1]
    scores = home.scores_of(SCORINGS[0].text)
    assert scores["mean_iou"] == pytest.approx(record.miou, abs=1e-4)
    assert scores["pixel_accuracy"] == pytest.approx(record.pixel_accuracy, abs=1e-4)


@pytest.mark.slow
@needs_frameworks
def test_a_training_runs_in_several_processes(home: Home, in_mxnet: dict[str, Done]) -> None:
    """As ``--ngpus`` starts one a GPU: here two on the CPU, each with one of the two images."""
    assert in_mxnet
    line = TRAININGS[0]
    more = f"--trainer torch --symbol {symbol_of(told(line))} --no-cuda --save-dir together"
    flags = training(line, *more.split()).flags
    environment = {**os.environ, "HOME": str(home.path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
         str(ROOT / "training/train.py"), *flags],
        cwd=home.path, capture_output=True, text=True, env=environment, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("done: best mIoU") == 1, "the first process tells"
    records = read_records(RunFolder(home.path / parse_options(flags).run).log)
    assert [record.learning_rate for record in records] == pytest.approx([0.01, 0.01 * 0.5**0.9])
    assert all(math.isfinite(record.loss) for record in records)


@pytest.mark.slow
@needs_frameworks
def test_the_demo_writes_coloured_predictions(home: Home, in_torch: dict[str, Done]) -> None:
    assert in_torch[DEMO.text].code == 0, in_torch[DEMO.text].stderr
    flags = home.commands[DEMO.text].flags
    written = sorted((home.path / flags[flags.index("--output") + 1]).iterdir())
    assert [path.stem[:11] for path in written] == ["town_000000", "town_000001"]
    with Image.open(written[0]) as picture:
        assert (picture.mode, picture.size) == ("P", (96, 64))
        assert (picture.getpalette() or [])[:3] == [128, 64, 128], "Cityscapes' road"


@pytest.mark.slow
@needs_frameworks
def test_the_trained_network_becomes_onnx(home: Home, in_torch: dict[str, Done]) -> None:
    assert in_torch
    run = home.run_of(FULL_8P.text).path
    flags = EXPORT.flags.replace("runs/citys/icnet_two_pass/icnet_resnet50_citys_mixed", str(run))
    done = subprocess.run(
        [sys.executable, "-c", "from serving.cli import main; main()",
         *shlex.split(flags), "--no-verify", "--repository", "models"],
        cwd=home.path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr + done.stdout
    (model,) = (home.path / "models").glob("*/1/model.onnx")
    assert model.stat().st_size > 10_000
    labels = (model.parents[1] / "labels.txt").read_text().splitlines()
    assert (len(labels), labels[0]) == (19, "road")


def test_pascal_voc_is_unpacked(tmp_path: Path) -> None:
    """What ``python pascal_voc.py`` did; from an archive that is there, as if downloaded."""
    write_pascal_aug(tmp_path / "VOCdevkit", {"train": 1, "val": 1})
    downloads = tmp_path / "voc/downloads"
    downloads.mkdir(parents=True)
    with tarfile.open(downloads / "voc.tar", "w") as packed:
        packed.add(tmp_path / "VOCdevkit", "VOCdevkit")
    digest = hashlib.sha1((downloads / "voc.tar").read_bytes()).hexdigest()
    archive = Archive("voc.tar", digest, "", ("VOCdevkit/VOC2012", "VOC2012"))
    command = BY_TEXT["python pascal_voc.py"].here.split()
    assert command[:3] == ["segserve", "dataset", "prepare"]
    assert prepare(command[3], tmp_path / "voc", {"pascal_voc": Preparation((archive,))})
    assert len(open_dataset("pascal_voc", "train", tmp_path / "voc")) == 1


def test_mhp_says_what_to_put_where(tmp_path: Path) -> None:
    app = Typer()
    app.command()(dataset)
    command = BY_TEXT["python mhp_v1.py"].flags.split()[1:]
    result = CliRunner(env={"COLUMNS": "200"}).invoke(app, [*command, "--root", str(tmp_path)])
    assert result.exit_code == 1
    assert "LV-MHP-v1" in result.output
    assert "train_list.txt" in result.output


@pytest.mark.parametrize(
    "line", [x for x in SCRIPTS if x.text.startswith("[")], ids=lambda line: line.text
)
def test_mxnetgos_steps_are_the_rates_of_the_notes(line: Line) -> None:
    """(epoch, rate): the rate holds until that epoch, of four passes over the data each."""
    assert line.note == MXNETGO
    o, start = told(line), 0
    rate = make_schedule(o.schedule, o.lr, 10, o.epochs, o.warmup_epochs, o.lr_steps, o.lr_factor)
    steps = ast.literal_eval(line.text)
    assert o.epochs == 4 * steps[-1][0]
    for end, expected in steps:
        assert rate(40 * start) == rate(40 * end - 1) == pytest.approx(expected)
        start = end


@pytest.mark.parametrize("line", [x for x in TRAIN_LINES if "--recipe" in x.flags], ids=identify)
def test_recipes_name_the_scripts_that_they_replace(line: Line) -> None:
    words = shlex.split(line.flags)
    recipe = read_recipe(words[words.index("--recipe") + 1])
    named = " ".join((*recipe.replaces, *recipe.notes))
    assert line.text.removesuffix(".py") in named
