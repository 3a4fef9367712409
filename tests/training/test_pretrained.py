"""GluonCV's zoo by name, against a file server on this machine: hashes, resuming, offline."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import Result
from typer import Typer
from typer.testing import CliRunner

from export.cli import export
from export.errors import WeightsError
from export.symbols.params import read_params
from export.weights import zoo
from export.weights.cli import import_weights_command
from export.weights.zoo import find_zoo_network, obtain_weights, zoo_networks
from tests.support.file_server import Files, serve_files
from training.evaluation.options import parse_evaluation
from training.options import parse_options

NAME = "fcn_resnet101_voc"


@pytest.fixture
def files() -> Iterator[Files]:
    with serve_files() as served:
        yield served


@dataclass(frozen=True)
class Published:
    """A small network under a published name; ``content`` is its ``.params`` file."""

    files: Files
    folder: Path
    content: bytes
    address: str

    @property
    def network(self) -> zoo.ZooNetwork:
        return find_zoo_network(NAME)


def publish(
    content: bytes, files: Files, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> Published:
    """As GluonCV does: a zip of the file, both named after its hash."""
    sha1 = hashlib.sha1(content).hexdigest()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as packed:
        packed.writestr(f"{NAME}-{sha1[:8]}.params", content)
    address = f"/gluon/models/{NAME}-{sha1[:8]}.zip"
    files.content[address] = buffer.getvalue()
    monkeypatch.setattr(zoo, "_read_table", lambda: {NAME: sha1})
    monkeypatch.setenv("MXNET_HOME", str(folder / "home"))
    monkeypatch.setenv("MXNET_GLUON_REPO", f"http://127.0.0.1:{files.port}/")
    return Published(files, folder / "home/models", content, address)


@pytest.fixture
def bytes_only(files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Published:
    return publish(b"weights" * 999, files, tmp_path, monkeypatch)


def test_the_table_is_gluoncvs_own() -> None:
    if importlib.util.find_spec("gluoncv") is None:
        pytest.skip("gluoncv is not installed (extra 'training')")
    networks = zoo_networks()
    icnet = networks["icnet_resnet50_citys"]
    assert (icnet.model, icnet.backbone, icnet.dataset) == ("icnet", "resnet50", "citys")
    assert icnet.stem.startswith("icnet_resnet50_citys-")
    assert icnet.size == (1024, 2048)
    assert networks["psp_resnet101_citys"].model == "pspnet"
    assert networks["deeplab_resnet152_voc"].dataset == "pascal_voc"
    assert networks["icnet_resnet50_mhpv1"].size == (768, 768)
    assert len(networks) == 19
    for network in networks.values():
        assert len(bytes.fromhex(network.sha1)) == 20
    with pytest.raises(WeightsError, match=r"'danet.* is not .*deeplab_resnet50_citys"):
        find_zoo_network("danet_resnet50_citys")


def test_weights_are_fetched_once_and_checked(bytes_only: Published) -> None:
    seen: list[tuple[int, int]] = []
    path = obtain_weights(bytes_only.network, bytes_only.folder, lambda *s: seen.append(s))
    assert path.read_bytes() == bytes_only.content
    assert seen[-1][0] == seen[-1][1]
    assert obtain_weights(bytes_only.network, bytes_only.folder) == path
    assert bytes_only.files.asked == [(bytes_only.address, None)]
    assert [file.name for file in bytes_only.folder.iterdir()] == [path.name]


def test_a_download_goes_on_where_it_broke_off(bytes_only: Published) -> None:
    bytes_only.files.cut = 50
    with pytest.raises(WeightsError, match="broke off after 50 of"):
        obtain_weights(bytes_only.network, bytes_only.folder)
    bytes_only.files.cut = 0
    path = obtain_weights(bytes_only.network, bytes_only.folder)
    assert path.read_bytes() == bytes_only.content
    assert bytes_only.files.asked[-1] == (bytes_only.address, "bytes=50-")


def test_another_content_is_refused_and_not_kept(bytes_only: Published) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as packed:
        packed.writestr(f"{bytes_only.network.stem}.params", b"another network")
    bytes_only.files.content[bytes_only.address] = buffer.getvalue()
    with pytest.raises(WeightsError, match=rf"SHA-1 .*{NAME} {bytes_only.network.sha1}"):
        obtain_weights(bytes_only.network, bytes_only.folder)
    assert list(bytes_only.folder.iterdir()) == []
    bytes_only.files.content[bytes_only.address] = b"a page that says sorry"
    with pytest.raises(WeightsError, match="does not hold"):
        obtain_weights(bytes_only.network, bytes_only.folder)
    assert list(bytes_only.folder.iterdir()) == []
    # What somebody put there is told, and left.
    kept = bytes_only.folder / f"{bytes_only.network.stem}.params"
    kept.write_bytes(b"put there by hand")
    with pytest.raises(WeightsError, match="remove it"):
        obtain_weights(bytes_only.network, bytes_only.folder)
    assert kept.exists()


def test_offline_the_file_and_its_place_are_named(
    bytes_only: Published, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MXNET_GLUON_REPO", "http://127.0.0.1:9")
    stem = bytes_only.network.stem
    with pytest.raises(WeightsError, match="cannot be fetched") as told:
        obtain_weights(bytes_only.network, bytes_only.folder)
    assert f"get {stem}.zip elsewhere and put it, or the {stem}.params in it" in str(told.value)
    assert str(told.value).endswith(f"into {bytes_only.folder}")
    # Either file does, and a zip that was put there by hand stays.
    zipped = bytes_only.folder / f"{stem}.zip"
    zipped.write_bytes(bytes_only.files.content[bytes_only.address])
    path = obtain_weights(bytes_only.network, bytes_only.folder)
    assert path.read_bytes() == bytes_only.content
    assert zipped.exists()


def test_a_zip_that_would_fill_the_disk_is_refused(
    bytes_only: Published, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zoo, "MAX_BYTES", 100)
    with pytest.raises(WeightsError, match="would take 6993 bytes"):
        obtain_weights(bytes_only.network, bytes_only.folder)


@pytest.fixture
def small_fcn(
    run_script, files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Published:
    """FCN-ResNet18 of quarter width and 7 classes, under a published name."""
    run_script("rename_parameters", tmp_path / "fcn.params", tmp_path / "renamed")
    return publish((tmp_path / "fcn.params").read_bytes(), files, tmp_path, monkeypatch)


def test_a_name_stands_for_network_and_weights_everywhere(
    small_fcn: Published, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    options = parse_options(["--pretrained", NAME, "--dataset", "camvid"])
    assert (options.model, options.backbone, options.width) == ("fcn", "resnet18", 0.25)
    assert (options.dataset, options.resume) == ("camvid", None)
    assert options.finetune is not None
    assert read_params(options.finetune).find("fcn_head_block_classifier_bias").shape == (7,)

    evaluated = parse_evaluation(["--pretrained", NAME, "--eval"])
    assert evaluated.weights == options.finetune
    assert evaluated.run.dataset == "pascal_voc"
    assert len(small_fcn.files.asked) == 1, "fetched and converted once"

    labels = tmp_path / "labels.txt"
    labels.write_text("".join(f"class{i}\n" for i in range(7)))
    told = run(
        export, "--pretrained", NAME, "--labels", str(labels), "--size", "64x96", "--no-verify",
        "--repository", str(tmp_path / "models"),
    )  # fmt: skip
    assert told.exit_code == 0, told.output
    assert (tmp_path / "models/fcn/1/model.onnx").is_file()
    told = run(export, "--pretrained", NAME, "--model", "fcn", "--size", "64x96")
    assert "leave --model out" in told.output.replace("\n", " ")

    # The folder that the command writes is one more name.
    told = run(import_weights_command, NAME, "--from", "gluoncv", "--size", "64x96", "--out", "own")
    assert told.exit_code == 0, told.output
    assert parse_options(["--pretrained", "own"]).finetune == Path("own/network.params")
    with pytest.raises(SystemExit):
        parse_options(["--pretrained", "own", "--finetune", "x.params"])
    assert "leave out --resume and --finetune" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        parse_options(["--pretrained", "unet_voc"])
    assert "'unet_voc' is not a pretrained network" in capsys.readouterr().err


def run(command, *arguments: str) -> Result:
    app = Typer()
    app.command()(command)
    return CliRunner(env={"COLUMNS": "200"}).invoke(app, arguments)
