"""Datasets: pairs of an RGB image and a label map, opened by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import Enum
from pathlib import Path

from export.datasets import Sample, SegmentationDataset, find_dataset
from serving.palette import LabelSet, canonical_name, load_labels
from training.datasets.ade20k import ADE20K
from training.datasets.camvid import CamVid
from training.datasets.cityscapes import Cityscapes
from training.datasets.coco import COCO21
from training.datasets.folder import FolderDataset, read_folder_labels
from training.datasets.mhp import MHPv1
from training.datasets.pascal import PascalAug, PascalVOC
from training.datasets.synthetic import SyntheticDataset

# Enough that a network learns streets and not these streets; 0.7 MB and 40 ms each.
SYNTHETIC_LENGTHS = {"train": 1500, "val": 100}
IN_FOLDERS: Mapping[str, Callable[[Path, str], SegmentationDataset]] = {
    "ade20k": ADE20K,
    "camvid": CamVid,
    "citys": Cityscapes,
    "coco": COCO21,
    "mhpv1": MHPv1,
    "pascal_aug": PascalAug,
    "pascal_voc": PascalVOC,
}
# Under ~/.mxnet/datasets, where GluonCV's scripts put them.
DEFAULT_FOLDERS = {"ade20k": "ade", "mhpv1": "mhp", "pascal_aug": "voc", "pascal_voc": "voc"}

__all__ = [
    "ADE20K",
    "COCO21",
    "KNOWN",
    "CamVid",
    "Cityscapes",
    "FolderDataset",
    "KnownDataset",
    "MHPv1",
    "PascalAug",
    "PascalVOC",
    "Sample",
    "SegmentationDataset",
    "SyntheticDataset",
    "canonical_name",
    "dataset_labels",
    "default_root",
    "open_dataset",
]


class KnownDataset(Enum):
    """The datasets of this project, which the entry points ``segserve.datasets`` name."""

    ade20k = "ade20k"
    camvid = "camvid"
    citys = "citys"
    coco = "coco"
    folder = "folder"
    mhpv1 = "mhpv1"
    pascal_aug = "pascal_aug"
    pascal_voc = "pascal_voc"
    synthetic = "synthetic"

    def open(self, split: str, root: Path | None = None) -> SegmentationDataset:
        """Opens a split; see :func:`open_dataset`."""
        return open_dataset(self.value, split, root)

    def labels(self, root: Path | None = None) -> LabelSet:
        """Returns names and colours of the classes; see :func:`dataset_labels`."""
        return dataset_labels(self.value, root)


KNOWN = tuple(dataset.value for dataset in KnownDataset)


def open_dataset(name: str, split: str, root: Path | None = None) -> SegmentationDataset:
    """Opens ``split`` (``train``, ``val``, with some ``test``) of a dataset.

    Args:
        root: the dataset's folder; None is :func:`default_root`. ``folder`` has no default.

    Raises:
        ValueError: an unknown dataset.
        FileNotFoundError: the dataset is not there; the message shows the layout.
    """
    name = canonical_name(name)
    if name == "synthetic":
        return SyntheticDataset(SYNTHETIC_LENGTHS.get(split, 100), split)
    if name == "folder":
        return FolderDataset(_named_root(root), split)
    if name not in IN_FOLDERS:
        return find_dataset(name).open(split, root)
    return IN_FOLDERS[name](root or default_root(name), split)


def default_root(name: str) -> Path:
    """Returns ``~/.mxnet/datasets/<name>``, with GluonCV's names of the folders."""
    name = canonical_name(name)
    return Path.home() / ".mxnet" / "datasets" / DEFAULT_FOLDERS.get(name, name)


def dataset_labels(name: str, root: Path | None = None) -> LabelSet:
    """Returns names and colours of a dataset's classes.

    Raises:
        ValueError: no names are known for it.
        FileNotFoundError: ``folder`` without its ``labels.txt``.
    """
    name = canonical_name(name)
    if name == "folder":
        return read_folder_labels(_named_root(root))
    if name not in KNOWN:
        return find_dataset(name).labels(root)
    return load_labels(name)


def _named_root(root: Path | None) -> Path:
    if root is None:
        raise ValueError("dataset 'folder' needs --root, the folder with your photos and masks")
    return root
