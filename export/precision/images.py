"""The images that a lower precision is calibrated on and judged by, and where they come from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, overload

import numpy as np
from numpy.typing import NDArray

from export.datasets import find_dataset
from export.errors import ImagesMissing, InvalidImages
from serving.errors import SegserveError
from serving.imaging.decode import decode
from serving.imaging.geometry import Size, plan, prepare

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
MAX_MEGAPIXELS = 200.0
# Of a folder without labels every fifth image is kept from calibration, to judge by.
HELD_OUT = 5


class ImageSource(Protocol):
    """A source of images: ``source[i]`` is (RGB uint8 [H, W, 3], labels uint8 [H, W] or None)."""

    @property
    def title(self) -> str:
        """Names the images in the protocol of an accuracy: ``camvid val``, ..."""
        ...

    @property
    def labelled(self) -> bool: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None]: ...


@dataclass(frozen=True)
class ImageFiles:
    """A source of image files without labels."""

    title: str
    paths: tuple[Path, ...]

    @property
    def labelled(self) -> bool:
        return False

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[NDArray[np.uint8], None]:
        path = self.paths[index]
        try:
            return decode(path.read_bytes(), max_megapixels=MAX_MEGAPIXELS), None
        except (SegserveError, OSError) as error:
            raise InvalidImages(f"{path}: {error}; take it out of the folder") from error


class DatasetSplit:
    """One split of a dataset that an installed package offers.

    Raises ImagesMissing where the split is not under ``root``.
    """

    def __init__(self, dataset: str, split: str, root: Path | None) -> None:
        try:
            self._samples = find_dataset(dataset).open(split, root)
        except (ValueError, OSError) as error:
            raise ImagesMissing(str(error)) from error
        self.title = f"{dataset} {split}"

    @property
    def labelled(self) -> bool:
        return True

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        try:
            return self._samples[index]
        except (ValueError, OSError) as error:
            raise InvalidImages(str(error)) from error


class Selection:
    """A choice of ``count`` of a source's images; all where ``count`` is None or more.

    They are evenly spread, as neighbours are often frames of one video.
    """

    def __init__(self, source: ImageSource, count: int | None) -> None:
        self._source = source
        total = len(source)
        wanted = total if count is None else min(count, total)
        self._indices = np.linspace(0, total - 1, wanted).round().astype(int).tolist()
        self.title = source.title

    @property
    def labelled(self) -> bool:
        return self._source.labelled

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None]:
        return self._source[self._indices[index]]


class PreparedImages(Sequence[NDArray[np.uint8]]):
    """A source's images as the server would feed them: uint8 [H, W, 3] of one size, read when
    they are needed."""

    def __init__(self, source: ImageSource, size: Size) -> None:
        self._source = source
        self._size = size

    def __len__(self) -> int:
        return len(self._source)

    @overload
    def __getitem__(self, index: int) -> NDArray[np.uint8]: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[NDArray[np.uint8]]: ...

    def __getitem__(self, index: int | slice) -> NDArray[np.uint8] | Sequence[NDArray[np.uint8]]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        image, _ = self._source[range(len(self))[index]]
        return prepare(image, plan(Size(image.shape[0], image.shape[1]), self._size))


def find_images(folder: Path) -> tuple[Path, ...]:
    """Returns the image files under a folder, sorted. Raises ImagesMissing where there are none."""
    paths = tuple(sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES))
    if not paths:
        raise ImagesMissing(
            f"{folder} holds no images ({' '.join(SUFFIXES)}); name a folder of photos like those"
            " that the model will see"
        )
    return paths


def calibration_source(folder: Path | None, dataset: str | None, root: Path | None) -> ImageSource:
    """Returns what int8 is calibrated on: a folder's images, else a dataset's training split.

    Raises ImagesMissing, naming the remedy, where there is neither.
    """
    if folder is not None:
        paths = find_images(folder)
        held_out = _held_out(paths)
        return ImageFiles(folder.name, tuple(p for p in paths if p not in held_out) or paths)
    remedy = (
        "name a folder of photos with --calibration DIR, or a dataset with --dataset and --root"
    )
    if dataset is None:
        raise ImagesMissing(f"int8 is calibrated on real images; {remedy}")
    try:
        return DatasetSplit(dataset, "train", root)
    except ImagesMissing as error:
        raise ImagesMissing(f"int8 is calibrated on real images, but {error}; {remedy}") from error


def validation_source(
    folder: Path | None, dataset: str | None, root: Path | None
) -> ImageSource | None:
    """Returns what a precision is judged by: a dataset's validation split, else the images of a
    folder that calibration does not see (all of them where they are fewer than five), else None.

    Raises ImagesMissing where ``root`` is given and has no such split.
    """
    if dataset is not None:
        try:
            return DatasetSplit(dataset, "val", root)
        except ImagesMissing:
            if root is not None:
                raise
    if folder is None:
        return None
    paths = find_images(folder)
    held_out = _held_out(paths)
    return ImageFiles(f"{folder.name}, held out" if held_out else folder.name, held_out or paths)


def _held_out(paths: tuple[Path, ...]) -> tuple[Path, ...]:
    return paths[HELD_OUT - 1 :: HELD_OUT]
