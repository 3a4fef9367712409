"""The rendered street scenes: the same for a seed, correctly labelled, all classes present."""

from functools import lru_cache

import numpy as np
import pytest

from export.datasets import IGNORE_LABEL
from training.datasets.synthetic import Scene, SyntheticDataset, render_scene
from training.datasets.synthetic.elements import BUILDING, PAVEMENT, ROAD, SKY

SCENES = 40


@lru_cache(maxsize=1)
def _scenes() -> list[Scene]:
    return [render_scene(seed) for seed in range(SCENES)]


def _shares() -> np.ndarray:
    """Share of each class over all scenes, float64 [11]."""
    counts = sum(np.bincount(s.label.ravel(), minlength=256) for s in _scenes())
    return counts[:11] / counts.sum()


def _mean_row(label: np.ndarray, class_id: int) -> float:
    rows = np.nonzero(label == class_id)[0]
    return float(rows.mean()) if rows.size else float("nan")


@pytest.mark.parametrize(("height", "width"), [(360, 480), (130, 251), (720, 960)])
def test_any_size_has_the_promised_shape_and_type(height: int, width: int) -> None:
    scene = render_scene(3, height, width)
    assert scene.image.shape == (height, width, 3)
    assert scene.label.shape == (height, width)
    assert scene.image.dtype == scene.label.dtype == np.uint8
    assert scene.image.std() > 10


def test_a_seed_gives_one_scene() -> None:
    again = render_scene(7)
    assert np.array_equal(again.image, _scenes()[7].image)
    assert np.array_equal(again.label, _scenes()[7].label)


def test_seeds_give_different_scenes() -> None:
    labels = {scene.label.tobytes() for scene in _scenes()}
    assert len(labels) == SCENES


def test_labels_are_classes_or_ignored() -> None:
    found = np.unique(np.concatenate([np.unique(s.label) for s in _scenes()]))
    assert set(found.tolist()) <= {*range(SyntheticDataset.NUM_CLASSES), IGNORE_LABEL}
    ignored = np.mean([np.mean(s.label == IGNORE_LABEL) for s in _scenes()])
    assert ignored < 0.02


def test_every_class_appears_with_a_plausible_share() -> None:
    shares = _shares()
    assert (shares > 0.002).all(), shares
    assert 0.2 < shares[ROAD] < 0.45
    assert 0.1 < shares[BUILDING] < 0.4
    assert 0.08 < shares[SKY] < 0.3
    assert shares[PAVEMENT] > 0.02


def test_the_sky_is_above_the_road() -> None:
    for scene in _scenes():
        sky, road = _mean_row(scene.label, SKY), _mean_row(scene.label, ROAD)
        assert np.isnan(sky) or sky < road
        assert road > scene.label.shape[0] / 2


def test_picture_and_labels_agree() -> None:
    """The sky is brighter than the road, in all but a few odd lights."""
    brighter = [
        s.image[s.label == SKY].mean() > s.image[s.label == ROAD].mean()
        for s in _scenes()
        if (s.label == SKY).any()
    ]
    assert np.mean(brighter) > 0.9


def test_the_size_only_changes_the_resolution() -> None:
    large = render_scene(5, 720, 960).label[::2, ::2]
    assert abs(np.mean(large == SKY) - np.mean(_scenes()[5].label == SKY)) < 0.2


def test_splits_share_no_scene() -> None:
    splits = [SyntheticDataset(500, split) for split in ("train", "val", "test")]
    seeds = [{dataset.seed(i) for i in range(500)} for dataset in splits]
    assert len(set.union(*seeds)) == 1500
    assert splits[0].name(3) != splits[1].name(3)
    assert not np.array_equal(splits[0][3][1], splits[1][3][1])


def test_dataset_is_a_sequence() -> None:
    dataset = SyntheticDataset(2, "val", 120, 160)
    items = list(dataset)
    assert len(dataset) == len(items) == 2
    image, label = items[1]
    assert image.shape == (120, 160, 3)
    assert np.array_equal(dataset[1][0], image)
    assert np.array_equal(dataset[1][1], label)
    with pytest.raises(IndexError):
        dataset[2]


def test_an_unknown_split_is_named() -> None:
    with pytest.raises(ValueError, match="'validation'"):
        SyntheticDataset(1, "validation")
