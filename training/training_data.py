"""The batches that a run trains on."""

from __future__ import annotations

from training.datasets import SegmentationDataset, open_dataset
from training.loader import Cached, Loader, Mixture, Shard
from training.options import TrainOptions
from training.transforms import Augmentation


def open_loader(options: TrainOptions, num_classes: int, shard: Shard) -> Loader:
    """Of the dataset's training split, with as many rendered scenes mixed in as was asked for.

    Raises:
        FileNotFoundError, ValueError: as ``open_dataset`` and ``Loader`` say.
    """
    o = options
    primary: SegmentationDataset = open_dataset(o.dataset, "train", o.root)
    if o.dataset == "synthetic":
        primary = Cached(primary)
    scenes = Cached(open_dataset("synthetic", "train")) if o.synthetic_share else None
    augmentation = Augmentation(
        o.height, o.crop_width, o.base_size, o.scale_range,
        color_jitter=o.color_jitter, rotation=o.rotation, class_crops=o.class_crops,
        short_size=o.short_size, aspect=o.aspect, blur_probability=o.blur,
    )  # fmt: skip
    return Loader(
        Mixture(primary, scenes, o.synthetic_share),
        augmentation,
        num_classes=num_classes,
        batch_size=o.batch_size,
        workers=o.workers,
        seed=o.seed,
        shard=shard,
        pixels=o.pixels,
    )
