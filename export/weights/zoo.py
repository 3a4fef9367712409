"""GluonCV's model zoo: its segmentation networks by name, downloaded and checked.

Names and hashes are read from the installed GluonCV (``model_zoo/model_store.py``), whose folder
(``~/.mxnet/models``, under ``MXNET_HOME`` where that is set) and addresses (``MXNET_GLUON_REPO``)
are used too: what GluonCV has downloaded is not fetched again.
"""

from __future__ import annotations

import ast
import fcntl
import os
import shutil
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from export.errors import WeightsError
from export.symbols.networks import MODEL_ALIASES
from export.weights.download import BLOCK, ArchiveError, Progress, download, sha1_of
from export.weights.importing import FACTS_FILE, ImportedWeights, import_weights, read_imported
from serving.palette import canonical_name

REPOSITORY = "https://apache-mxnet.s3-accelerate.dualstack.amazonaws.com/"
STORE = Path("model_zoo") / "model_store.py"
TABLE = "_model_sha1"
HASH_LETTERS = 8
MAX_BYTES = 2 * 2**30
# GluonCV's names of the networks and datasets that are known here too.
NETWORKS = ("icnet", "psp", "fcn", "deeplab")
BACKBONES = ("resnet50", "resnet101", "resnet152")
DATASETS = ("ade", "citys", "coco", "mhpv1", "voc")
# What they were trained at.
SIZES = {"citys": (1024, 2048), "mhpv1": (768, 768)}
USUAL_SIZE = (480, 480)


@dataclass(frozen=True)
class ZooNetwork:
    """A network of the zoo; ``sha1`` is that of its ``.params`` file."""

    name: str
    model: str
    backbone: str
    dataset: str
    sha1: str

    @property
    def stem(self) -> str:
        """Returns the file's name at GluonCV, without ending."""
        return f"{self.name}-{self.sha1[:HASH_LETTERS]}"

    @property
    def size(self) -> tuple[int, int]:
        """Returns the height and width that its symbol is built for."""
        return SIZES.get(self.dataset, USUAL_SIZE)


def zoo_networks() -> dict[str, ZooNetwork]:
    """Returns the networks of GluonCV's table that can be built here, by name.

    Raises WeightsError without GluonCV.
    """
    networks = {}
    for name, sha1 in _read_table().items():
        model, _, rest = name.partition("_")
        backbone, _, dataset = rest.partition("_")
        if model in NETWORKS and backbone in BACKBONES and dataset in DATASETS:
            networks[name] = ZooNetwork(
                name, MODEL_ALIASES.get(model, model), backbone, canonical_name(dataset), sha1
            )
    return networks


def find_zoo_network(name: str) -> ZooNetwork:
    """Returns the network of that name. Raises WeightsError where it cannot be built here."""
    networks = zoo_networks()
    if name not in networks:
        known = ", ".join(sorted(networks))
        raise WeightsError(
            f"{name!r} is not a pretrained network that can be built here: expected one of {known}"
        )
    return networks[name]


def models_folder() -> Path:
    """Returns where GluonCV keeps downloaded weights."""
    home = os.environ.get("MXNET_HOME")
    return (Path(home) if home else Path.home() / ".mxnet") / "models"


def obtain_weights(
    network: ZooNetwork, folder: Path, progress: Progress = lambda done, total: None
) -> Path:
    """Returns the checked ``.params`` file in ``folder``, downloaded where it is not there yet.

    A download that broke off continues where it stopped.

    Raises:
        WeightsError: it cannot be fetched, or is another one; the message says where to put it.
    """
    path = folder / f"{network.stem}.params"
    if path.is_file():
        _check(path, network)
        return path
    packed = folder / f"{network.stem}.zip"
    fetched = not packed.is_file()
    if fetched:
        folder.mkdir(parents=True, exist_ok=True)
        base = os.environ.get("MXNET_GLUON_REPO", REPOSITORY).rstrip("/")
        part = packed.with_name(packed.name + ".part")
        try:
            download(f"{base}/gluon/models/{packed.name}", part, progress)
        except ArchiveError as error:
            raise WeightsError(
                f"{error}; offline, get {packed.name} elsewhere and put it, or the {path.name} in "
                f"it, into {folder}"
            ) from error
        part.rename(packed)
    aside = path.with_name(path.name + ".part")
    try:
        _unpack(packed, path.name, aside)
        _check(aside, network)
    except WeightsError:
        aside.unlink(missing_ok=True)
        if fetched:
            packed.unlink()
        raise
    aside.rename(path)
    if fetched:
        packed.unlink()
    return path


def obtain_network(
    name: str,
    folder: Path | None = None,
    size: tuple[int, int] | None = None,
    progress: Progress = lambda done, total: None,
) -> ImportedWeights:
    """Returns a network of the zoo with its symbol; converted once, in ``folder`` (default: beside
    the downloaded file, for its usual size). Several processes wait for each other.

    Raises WeightsError.
    """
    network = find_zoo_network(name)
    size = size or network.size
    target = folder or models_folder() / "segserve" / f"{network.stem}-{size[0]}x{size[1]}"
    with _alone(models_folder() / f"{network.stem}.lock"):
        if folder is None and (target / FACTS_FILE).is_file():
            return read_imported(target)
        weights = obtain_weights(network, models_folder(), progress)
        return import_weights(weights, "gluoncv", target, size, dataset=network.dataset)


def resolve(name: str, progress: Progress = lambda done, total: None) -> ImportedWeights:
    """Finds what ``--pretrained`` names: one of the zoo, or a folder that ``segserve
    import-weights`` wrote.

    Raises WeightsError.
    """
    if (Path(name) / FACTS_FILE).is_file():
        return read_imported(Path(name))
    return obtain_network(name, progress=progress)


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _read_table() -> dict[str, str]:
    """Returns SHA-1 by name, read from GluonCV's source: importing it would import MXNet."""
    spec = find_spec("gluoncv")
    if spec is None or spec.origin is None:
        raise WeightsError(
            "GluonCV, whose table names the pretrained networks, is not installed: "
            "pip install 'segserve[training]'"
        )
    path = Path(spec.origin).parent / STORE
    for node in ast.parse(path.read_text("utf-8")).body:
        if (
            isinstance(node, ast.Assign)
            and isinstance(node.targets[0], ast.Name)
            and node.targets[0].id == TABLE
            and isinstance(node.value, ast.DictComp)
        ):
            pairs = ast.literal_eval(node.value.generators[0].iter)
            return {name: sha1 for sha1, name in pairs}
    raise WeightsError(f"{path} has no table {TABLE} that is understood here")


def _unpack(packed: Path, name: str, target: Path) -> None:
    try:
        with zipfile.ZipFile(packed) as archive:
            info = archive.getinfo(name)
            if info.file_size > MAX_BYTES:
                raise WeightsError(f"{packed}: {name} would take {info.file_size} bytes")
            with archive.open(info) as source, target.open("wb") as file:
                shutil.copyfileobj(source, file, BLOCK)
    # RuntimeError: an encrypted entry, or a compression that is unknown here.
    except (OSError, KeyError, zipfile.BadZipFile, EOFError, zlib.error, RuntimeError) as error:
        raise WeightsError(f"{packed} does not hold {name}: {error}") from error


def _check(path: Path, network: ZooNetwork) -> None:
    found = sha1_of(path)
    if found != network.sha1:
        raise WeightsError(
            f"{path} has SHA-1 {found}, GluonCV's {network.name} {network.sha1}; remove it and "
            "fetch it again"
        )
