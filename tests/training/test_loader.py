"""Epochs are functions of seed and number; wrong labels are named."""

from __future__ import annotations

import numpy as np
import pytest

from export.datasets import IGNORE_LABEL, Sample
from export.symbols.networks import IMAGENET
from training.loader import WHOLE, Batch, Cached, Loader, Mixture, Shard
from training.transforms import Augmentation


class Plain:
    """Images of one colour each; ``reads`` counts how often a sample was made."""

    def __init__(self, length: int, prefix: str = "plain", label: int = 1) -> None:
        self.length, self.prefix, self.label = length, prefix, label
        self.reads = 0

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Sample:
        self.reads += 1
        random = np.random.default_rng(index)
        image = random.integers(0, 256, (40, 48, 3)).astype(np.uint8)
        return image, np.full((40, 48), self.label, np.uint8)

    def name(self, index: int) -> str:
        return f"{self.prefix}/{index}.png"


def make_loader(
    mixture: Mixture,
    *,
    batch_size: int = 4,
    workers: int = 2,
    seed: int = 1,
    classes: int = 3,
    shard: Shard = WHOLE,
) -> Loader:
    augmentation = Augmentation(32, 32, 48, color_jitter=0.2)
    return Loader(
        mixture, augmentation, num_classes=classes, batch_size=batch_size, workers=workers,
        seed=seed, pixels=IMAGENET, shard=shard,
    )  # fmt: skip


def same(one: list[Batch], other: list[Batch]) -> bool:
    return all(
        a.names == b.names
        and np.array_equal(a.images, b.images)
        and np.array_equal(a.labels, b.labels)
        for a, b in zip(one, other, strict=True)
    )


def test_batches_are_full_and_of_the_crop_size() -> None:
    batches = list(make_loader(Mixture(Plain(11), None, 0.0)).epoch(0))
    assert len(batches) == 2
    for batch in batches:
        assert batch.images.shape == (4, 3, 32, 32)
        assert batch.images.dtype == np.float32
        assert batch.labels.shape == (4, 32, 32)
        assert batch.labels.dtype == np.uint8
        assert len(batch.names) == 4


def test_seed_and_epoch_decide_the_batches_whatever_the_workers() -> None:
    mixture = Mixture(Plain(12), None, 0.0)
    first = list(make_loader(mixture, workers=1).epoch(3))
    assert same(first, list(make_loader(mixture, workers=4).epoch(3)))
    assert not same(first, list(make_loader(mixture).epoch(4)))
    assert not same(first, list(make_loader(mixture, seed=2).epoch(3)))


def test_the_shards_of_a_batch_make_it_up() -> None:
    whole = list(make_loader(Mixture(Plain(9), None, 0.0)).epoch(2))
    parts = [
        list(make_loader(Mixture(Plain(9), None, 0.0), shard=Shard(rank, 2)).epoch(2))
        for rank in range(2)
    ]
    joined = [
        Batch(
            np.concatenate([one.images, other.images]),
            np.concatenate([one.labels, other.labels]),
            one.names + other.names,
        )
        for one, other in zip(*parts, strict=True)
    ]
    assert same(joined, whole)


def test_a_shard_reads_its_own_images_only() -> None:
    dataset = Plain(8)
    list(make_loader(Mixture(dataset, None, 0.0), shard=Shard(1, 2)).epoch(0))
    assert dataset.reads == 4


def test_a_batch_that_cannot_be_shared_out_is_refused() -> None:
    with pytest.raises(ValueError, match="batch size 4 cannot be shared equally among 3"):
        make_loader(Mixture(Plain(9), None, 0.0), shard=Shard(0, 3))


def test_an_epoch_shows_every_image_once() -> None:
    batches = make_loader(Mixture(Plain(24), None, 0.0)).epoch(0)
    names = [name for batch in batches for name in batch.names]
    assert sorted(names) == sorted(f"plain/{i}.png" for i in range(24))


def test_more_batches_than_are_prefetched_come_in_order() -> None:
    loader = make_loader(Mixture(Plain(40), None, 0.0), batch_size=2, workers=3)
    order = [dataset.name(index) for dataset, index in loader.mixture.order(
        np.random.default_rng((1, 0)))]  # fmt: skip
    assert [name for batch in loader.epoch(0) for name in batch.names] == order


@pytest.mark.parametrize(("share", "extra"), [(0.0, 0), (0.25, 20), (0.5, 60), (0.1, 7)])
def test_the_share_of_scenes_is_of_the_whole_epoch(share: float, extra: int) -> None:
    mixture = Mixture(Plain(60), Plain(5, "scene"), share)
    order = mixture.order(np.random.default_rng(0))
    names = [dataset.name(index) for dataset, index in order]
    assert sum(name.startswith("scene/") for name in names) == extra
    assert {name for name in names if name.startswith("plain/")} == {
        f"plain/{i}.png" for i in range(60)
    }
    assert len(order) == 60 + extra


@pytest.mark.parametrize("share", [-0.1, 1.0])
def test_an_impossible_share_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match="expected 0 or more, and below 1"):
        Mixture(Plain(4), Plain(4), share)


def test_a_label_that_is_no_class_names_its_file() -> None:
    loader = make_loader(Mixture(Plain(4, "masks", label=7), None, 0.0))
    with pytest.raises(ValueError, match=r"masks/\d\.png: labels \[7\] are outside 0\.\.2"):
        next(loader.epoch(0))


def test_ignored_labels_are_in_range() -> None:
    loader = make_loader(Mixture(Plain(4, label=IGNORE_LABEL), None, 0.0))
    assert (next(loader.epoch(0)).labels == IGNORE_LABEL).all()


def test_a_batch_larger_than_the_dataset_is_refused() -> None:
    with pytest.raises(ValueError, match=r"batch size 8 is larger than .* \(7 images\)"):
        make_loader(Mixture(Plain(7), None, 0.0), batch_size=8)


def test_cached_samples_are_made_once() -> None:
    plain = Plain(3)
    cached = Cached(plain)
    first, again = cached[1], cached[1]
    assert plain.reads == 1
    assert first[0] is again[0]
    assert len(cached) == 3
    assert cached.name(2) == "plain/2.png"
