"""GluonCV's validation images: the centre of an image that is scaled to the crop."""

from __future__ import annotations

import math

import numpy as np

from training.datasets.base import Sample, SegmentationDataset
from training.datasets.pixels import resize_pair


class CenterCrops:
    """A dataset of centre crops of ``height`` x ``width``, images and labels.

    Each image is scaled until it just covers the crop (for a square one: the short edge becomes
    the crop's), linearly, its label by the pixel at the same place. Source: GluonCV's
    ``SegmentationDataset._val_sync_transform``, which scales with Pillow's filter; here it is the
    resize that the network is served with.
    """

    def __init__(self, dataset: SegmentationDataset, height: int, width: int) -> None:
        self.dataset = dataset
        self.height = height
        self.width = width

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Sample:
        image, label = self.dataset[index]
        ratio = max(self.height / label.shape[0], self.width / label.shape[1])
        # Rounded up where rounding down would leave a row out.
        rows = max(self.height, math.floor(label.shape[0] * ratio))
        columns = max(self.width, math.floor(label.shape[1] * ratio))
        image, label = resize_pair(image, label, rows, columns)
        top, left = round((rows - self.height) / 2), round((columns - self.width) / 2)
        window = slice(top, top + self.height), slice(left, left + self.width)
        return np.ascontiguousarray(image[window]), np.ascontiguousarray(label[window])

    def name(self, index: int) -> str:
        return self.dataset.name(index)
