"""Datasets by name: one table for all commands, and entry points for those of other packages."""

from __future__ import annotations

import importlib.util
import json
import re
from importlib.metadata import entry_points
from importlib.util import find_spec
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from export import cli
from export.datasets import GROUP, find_dataset, find_labels, known_datasets
from export.errors import ImagesMissing, InvalidLabels
from export.passes.build import cut_at_logits, prune_heads
from export.precision.images import DatasetSplit
from export.symbols.find import PUBLISHED, NetworkName, published_symbol
from export.symbols.graph import read_symbol, write_symbol
from export.symbols.networks import MODEL_ALIASES, NETWORKS
from export.symbols.params import write_params
from export.symbols.sizes import built_size
from export.weights.zoo import DATASETS as ZOO_DATASETS
from export.weights.zoo import zoo_networks
from serving.models.repository import read_model
from serving.palette import ALIASES, LABELLED_AS, canonical_name
from training.datasets import KNOWN, dataset_labels
from training.options import parse_options

REPOSITORY = Path(__file__).parents[2]
DOCS = REPOSITORY / "docs"
SIZE = (16, 16)
NAMES = ("thing", "other thing")
DOCUMENTED = sorted((*KNOWN, *ALIASES))
SOURCE = """
import numpy as np
from serving.palette import LabelSet

class Photos:
    def __len__(self):
        return 2

    def __getitem__(self, index):
        return np.full((8, 8, 3), index, np.uint8), np.zeros((8, 8), np.uint8)

    def name(self, index):
        return str(index)

class Things:
    def open(self, split, root=None):
        if split != "train":
            raise ValueError(f"no split {split!r} under {root}")
        return Photos()

    def labels(self, root=None):
        return LabelSet(("thing", "other thing"), ((1, 2, 3), (4, 5, 6)))

things = Things()
nothing = object()
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder whose ``labels.txt`` names the classes of ``--dataset folder``."""
    (tmp_path / "labels.txt").write_text("".join(f"{name}\n" for name in NAMES))
    return tmp_path


@pytest.fixture
def other_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed package that offers datasets, two of them broken."""
    site = tmp_path / "site"
    (site / "others-1.0.dist-info").mkdir(parents=True)
    (site / "others_of_tests.py").write_text(SOURCE)
    (site / "others-1.0.dist-info" / "METADATA").write_text("Name: others\nVersion: 1.0\n")
    (site / "others-1.0.dist-info" / "entry_points.txt").write_text(
        f"[{GROUP}]\nthings = others_of_tests:things\nnothing = others_of_tests:nothing\n"
        "gone = others_of_tests_gone:things\n"
    )
    monkeypatch.syspath_prepend(site)


def labels_root(name: str, root: Path) -> Path | None:
    return root if name == "folder" else None


def test_the_projects_datasets_are_the_entry_points() -> None:
    offered = {entry.name for entry in entry_points(group=GROUP) if "training" in entry.value}
    assert offered == set(KNOWN)
    for name in KNOWN:
        assert find_dataset(name) is find_dataset(canonical_name(name))


def test_the_tables_of_names_agree() -> None:
    assert set(ALIASES.values()) <= set(KNOWN)
    assert set(LABELLED_AS) <= set(KNOWN)
    assert not set(ALIASES) & set(KNOWN)
    assert {canonical_name(name) for name in ZOO_DATASETS} <= set(KNOWN)


@pytest.mark.parametrize("name", DOCUMENTED)
def test_every_name_works_with_every_command(
    name: str, root: Path, make_network, make_params
) -> None:
    own_root = labels_root(name, root)
    labels = dataset_labels(name, own_root)  # train.py, test.py, segserve evaluate and dataset
    assert find_labels(name, None, own_root) == labels  # segserve export, import-onnx
    assert parse_options(["--dataset", name]).dataset == canonical_name(name)
    graph = make_network(*SIZE, len(labels.names))
    write_symbol(graph, root / "network-symbol.json")
    write_params(make_params(graph, *SIZE), root / "best.params")
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(cli.export)
    arguments = ["--model", "tiny", "--params", str(root / "best.params"), "--dataset", name]
    if own_root is not None:
        arguments += ["--labels", str(own_root / "labels.txt")]  # a root is scored on
    arguments += ["--pixels", "imagenet", "--no-verify", "--repository", str(root / "repository")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    written = read_model(root / "repository" / "tiny")
    assert written.labels.names == labels.names
    assert written.config.parameters["dataset"].string_value == canonical_name(name)


@pytest.mark.parametrize("zoo_name", ZOO_DATASETS)
def test_pretrained_weights_bring_their_dataset(
    zoo_name: str, root: Path, make_network, make_params
) -> None:
    """As ``--pretrained fcn_resnet101_coco`` does, from the folder that it is converted into."""
    labels = dataset_labels(zoo_name)
    graph = make_network(*SIZE, len(labels.names))
    folder = root / "weights"
    folder.mkdir()
    write_symbol(graph, folder / "network-symbol.json")
    write_params(make_params(graph, *SIZE), folder / "network.params")
    (folder / "weights.json").write_text(
        json.dumps(
            {"model": "fcn", "backbone": "resnet101", "classes": len(labels.names), "width": 1.0,
             "aux": False, "output_stride": 16, "size": SIZE, "origin": "a test",
             "dataset": canonical_name(zoo_name)}
        )
    )  # fmt: skip
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(cli.export)
    arguments = ["--pretrained", str(folder), "--no-verify", "--repository", str(root / "models")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert read_model(root / "models" / "fcn").labels == labels


def documented(page: str, start: str, end: str) -> list[str]:
    """Returns the names in code of a part of a page, its braces expanded."""
    text = (DOCS / page).read_text("utf-8").partition(start)[2].partition(end)[0]
    names = []
    for code in re.findall("`([^` ]+)`", text):
        parts = [part.split(",") for part in re.split("[{}]", code)]
        names += ["".join(chosen) for chosen in product(*parts)]
    return names


def test_documented_datasets_are_known() -> None:
    table = documented("datasets.md", "| name (alias)", "A label is a class")
    assert set(DOCUMENTED) <= set(table)
    rows = (DOCS / "datasets.md").read_text("utf-8").partition("| name (alias)")[2].splitlines()[2:]
    for row in rows[: len(KNOWN)]:
        name, *also = re.findall("`([^`]+)`", row.split("|")[1])
        assert name in KNOWN
        assert [canonical_name(other) for other in also] == [name] * len(also)


@pytest.mark.parametrize("name", sorted((*NETWORKS, *MODEL_ALIASES)))
def test_every_network_name_finds_the_same_symbol(name: str) -> None:
    assert name in documented("export.md", "| `--model` |", "`icnet`, `pspnet`, `fcn`")
    model = MODEL_ALIASES.get(name, name)
    asked, known = NetworkName(name, "resnet50", 1.0, "cityscapes"), (model, "resnet50", 1.0)
    assert asked.stem == NetworkName(*known, "citys").stem
    assert published_symbol(asked) == published_symbol(NetworkName(*known, "citys"))
    has_one = model in ("icnet", "pspnet", "fcn", "deeplabv3")
    assert (published_symbol(asked) is not None) == has_one


@pytest.mark.parametrize("path", sorted(PUBLISHED.iterdir()), ids=lambda path: path.name)
def test_published_symbols_have_the_classes_of_their_dataset(path: Path) -> None:
    dataset = path.name.removesuffix(".json.gz").rpartition("_")[2]
    graph = read_symbol(path)
    classes = cut_at_logits(prune_heads(graph), *(built_size(graph) or (0, 0))).classes
    assert classes == len(dataset_labels(dataset).names)


def test_documented_weights_are_in_the_zoo() -> None:
    if importlib.util.find_spec("gluoncv") is None:
        pytest.skip("GluonCV, whose table names the weights, is not installed (extra 'training')")
    names = documented("weights.md", "## GluonCV's zoo", "The names and their SHA-1")
    assert sorted(names) == sorted(zoo_networks())
    for network in zoo_networks().values():
        assert network.model in NETWORKS
        assert network.dataset in KNOWN


@pytest.mark.usefixtures("other_package")
def test_other_packages_offer_datasets(tmp_path: Path) -> None:
    assert "things" in known_datasets()
    labels = find_labels("things", None)
    assert labels is not None
    assert labels.names == NAMES
    assert dataset_labels("things").names == NAMES
    assert parse_options(["--dataset", "things"]).dataset == "things"
    split = DatasetSplit("things", "train", None)
    assert len(split) == 2
    assert (split[1][0] == 1).all()
    assert split[1][1].dtype == np.uint8
    with pytest.raises(ImagesMissing, match=f"no split 'val' under {tmp_path}"):
        DatasetSplit("things", "val", tmp_path)


@pytest.mark.usefixtures("other_package")
def test_entry_points_that_offer_none_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="nothing is not a valid dataset: expected an object with"):
        find_dataset("nothing")
    with pytest.raises(ValueError, match="cannot be imported from others_of_tests_gone:things"):
        find_dataset("gone")
    with pytest.raises(InvalidLabels, match="cannot be imported"):
        find_labels("gone", None)
    with pytest.raises(ValueError, match=r"unknown dataset 'kitti'; known: ade20k, .*, things"):
        find_dataset("kitti")


def documented_names() -> set[str]:
    """What follows ``--dataset`` in README, docs and recipes, and the names of the page's table."""
    pages = [*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").glob("*.md"), REPOSITORY / "Makefile"]
    found = {
        name
        for page in pages
        for name in re.findall(r"--dataset[ =]`?([a-z][a-z0-9_]*)", page.read_text("utf-8"))
    }
    table = (REPOSITORY / "docs" / "datasets.md").read_text("utf-8")
    for names in re.findall(r"^\| (`[^|]*`\)?) \| \d+ \|", table, re.M):
        found |= set(re.findall(r"`([a-z0-9_]+)`", names))
    return found - {"and", "or"}  # "--dataset and --root" in a sentence


def test_the_docs_name_only_datasets_that_every_command_knows() -> None:
    documented = documented_names()
    assert {"camvid", "citys", "voc", "ade", "mhp", "pascal_aug"} <= documented
    # An example of a package that does not exist.
    assert documented - {*DOCUMENTED} == {"mapillary"}


def expand(pattern: str) -> set[str]:
    """Returns what a shell makes of ``a{b,c}d``."""
    start, brace, rest = pattern.partition("{")
    if not brace:
        return {pattern}
    middle, _, end = rest.partition("}")
    return {start + part + tail for part in middle.split(",") for tail in expand(end)}


def test_the_docs_name_every_pretrained_network_and_no_other() -> None:
    if find_spec("gluoncv") is None:
        pytest.skip("GluonCV's table names the pretrained networks, and it is not installed")
    page = (REPOSITORY / "docs" / "weights.md").read_text("utf-8")
    section = page.partition("## GluonCV's zoo\n")[2].partition("The names and their SHA-1")[0]
    named = set().union(*(expand(pattern) for pattern in re.findall(r"`([^`]+)`", section)))
    assert named == set(zoo_networks())
    for network in zoo_networks().values():
        assert network.dataset in KNOWN
