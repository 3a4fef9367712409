"""Augmentation keeps image and label together; the resampling is what its formula says."""

from __future__ import annotations

import numpy as np
import pytest

from export.datasets import IGNORE_LABEL, Sample
from export.symbols.networks import IMAGENET, pixels_of
from serving.imaging.geometry import Size, plan, prepare
from training.datasets.files import resize_pair
from training.transforms import (
    Augmentation,
    draw_class_pixel,
    jitter_color,
    normalize,
    rotate,
    subsample_labels,
)

STEP = 20


def make_sample(height: int = 60, width: int = 90, block: int = 10) -> Sample:
    """Blocks of classes 0..10; every channel of the image is ``label * STEP``."""
    random = np.random.default_rng(4)
    classes = random.integers(0, 11, (height // block, width // block), np.uint8)
    label = classes.repeat(block, 0).repeat(block, 1)
    return np.repeat((label * STEP)[..., None], 3, axis=2), label


@pytest.mark.parametrize("size", [(60, 90), (40, 64), (128, 96), (33, 200)])
@pytest.mark.parametrize("base_size", [45, 90, 150])
def test_any_image_is_cropped_to_the_size_asked_for(size: tuple[int, int], base_size: int) -> None:
    augmentation = Augmentation(*size, base_size, color_jitter=0.2)
    for seed in range(4):
        image, label = augmentation(make_sample(), np.random.default_rng(seed))
        assert image.shape == (*size, 3)
        assert label.shape == size
        assert image.dtype == label.dtype == np.uint8
        assert image.flags.c_contiguous
        assert label.flags.c_contiguous


def test_padding_is_ignored_and_black() -> None:
    """The scaled image, 30x45, is smaller than the crop: the rest is no class."""
    augmentation = Augmentation(64, 96, 45, (1.0, 1.0), blur_probability=0.0)
    image, label = augmentation(make_sample(), np.random.default_rng(0))
    outside = np.ones((64, 96), bool)
    outside[:30, :45] = False
    assert (label[outside] == IGNORE_LABEL).all()
    assert (image[outside] == 0).all()
    assert (label[~outside] != IGNORE_LABEL).all()


def test_flips_take_image_and_label_together() -> None:
    augmentation = Augmentation(60, 90, 90, (1.0, 1.0), blur_probability=0.0)
    original, mirrored = make_sample(), make_sample()[1][:, ::-1]
    flipped = 0
    for seed in range(40):
        image, label = augmentation(original, np.random.default_rng(seed))
        np.testing.assert_array_equal(image[..., 0], label * STEP)
        if np.array_equal(label, mirrored):
            flipped += 1
        else:
            np.testing.assert_array_equal(label, original[1])
    assert 10 <= flipped <= 30


def test_scaled_and_cropped_labels_lie_on_their_pixels() -> None:
    """Away from the edges of blocks, where the image blends and the label cannot."""
    augmentation = Augmentation(96, 96, 180, (0.6, 1.8), blur_probability=0.0)
    for seed in range(10):
        image, label = augmentation(make_sample(block=30), np.random.default_rng(seed))
        counted = label != IGNORE_LABEL
        right = np.abs(image[..., 0].astype(int) - label * STEP)[counted] < STEP // 2
        assert right.mean() > 0.9


def test_class_crops_show_a_small_class_more_often() -> None:
    label = np.zeros((90, 120), np.uint8)
    label[10:13, 100:103] = 7
    sample = np.zeros((90, 120, 3), np.uint8), label
    seen = {
        share: sum(
            bool((augmentation(sample, np.random.default_rng(seed))[1] == 7).any())
            for seed in range(60)
        )
        for share, augmentation in (
            (share, Augmentation(32, 32, 120, (1.0, 1.0), class_crops=share))
            for share in (0.0, 1.0)
        )
    }
    assert seen[1.0] >= 2 * max(1, seen[0.0])


def test_classes_are_drawn_evenly_and_void_never() -> None:
    label = np.full((20, 30), 255, np.uint8)
    label[:10] = 3
    label[15, 7] = 5
    random = np.random.default_rng(3)
    drawn = [label[draw_class_pixel(label, random)] for _ in range(200)]
    assert set(drawn) == {3, 5}
    assert 60 <= drawn.count(5) <= 140


def test_an_all_void_image_can_still_be_cropped() -> None:
    label = np.full((20, 30), 255, np.uint8)
    row, column = draw_class_pixel(label, np.random.default_rng(1))
    assert 0 <= row < 20
    assert 0 <= column < 30


@pytest.mark.parametrize("degrees", [90.0, -90.0, 180.0])
def test_a_turn_is_around_the_middle(degrees: float) -> None:
    """Exactly: a square's pixels fall on pixels, and positive angles turn to the left."""
    label = np.arange(7 * 7, dtype=np.uint8).reshape(7, 7)
    image = np.stack([label, label + 50, label + 100], -1)
    turned, classes = rotate(image, label, degrees)
    np.testing.assert_array_equal(classes, np.rot90(label, round(degrees / 90)))
    np.testing.assert_array_equal(turned, np.rot90(image, round(degrees / 90)))


def test_what_turns_in_from_outside_is_black_and_ignored() -> None:
    image, label = np.full((9, 31, 3), 200, np.uint8), np.full((9, 31), 3, np.uint8)
    turned, classes = rotate(image, label, 90.0)
    assert classes.shape == (9, 31)
    assert (classes[:, 11:20] == 3).all()
    assert (classes[:, :11] == IGNORE_LABEL).all()
    assert (classes[:, 20:] == IGNORE_LABEL).all()
    assert not turned[:, :10].any()
    assert not turned[:, 21:].any()


def test_a_rotation_turns_image_and_label_together() -> None:
    image, label = make_sample(60, 90, 30)
    turned, classes = rotate(image, label, 90.0)
    square, inner = np.rot90(label[:, 15:75]), classes[:, 15:75]
    assert (inner == square).mean() > 0.9
    counted = classes != IGNORE_LABEL
    assert (~counted).any()
    right = np.abs(turned[..., 0].astype(int) - classes.astype(int) * STEP)[counted] < STEP // 2
    assert right.mean() > 0.9


@pytest.mark.parametrize("more", [{}, {"rotation": 20.0}, {"aspect": 0.3, "class_crops": 0.5}])
def test_labels_are_never_mixed(more: dict[str, float]) -> None:
    augmentation = Augmentation(64, 64, 150, (0.5, 2.0), **more)
    image, label = make_sample()
    label = np.where(label < 5, np.uint8(0), np.uint8(10))
    for seed in range(10):
        _, found = augmentation((image, label), np.random.default_rng(seed))
        assert set(np.unique(found).tolist()) <= {0, 10, IGNORE_LABEL}


def test_a_seed_gives_one_augmentation() -> None:
    augmentation = Augmentation(48, 48, 90, color_jitter=0.3)
    once, again, other = (
        augmentation(make_sample(), np.random.default_rng(seed))[0] for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(once, again)
    assert not np.array_equal(once, other)


def test_the_sample_itself_is_left_alone() -> None:
    image, label = make_sample()
    before = image.copy(), label.copy()
    Augmentation(32, 32, 90, color_jitter=0.3)((image, label), np.random.default_rng(0))
    np.testing.assert_array_equal(image, before[0])
    np.testing.assert_array_equal(label, before[1])


def test_color_jitter_of_nothing_changes_nothing() -> None:
    image = make_sample()[0]
    np.testing.assert_array_equal(jitter_color(image, 0.0, np.random.default_rng(0)), image)


def test_color_jitter_stays_in_its_bounds() -> None:
    """Gain within 1 +- 0.13 and offset within +- 12.8, so mid-grey moves by 12.8 at most."""
    grey = np.full((4, 4, 3), 128, np.uint8)
    moved = [jitter_color(grey, 0.1, np.random.default_rng(seed)) for seed in range(50)]
    distances = np.array([int(image.max()) - 128 for image in moved])
    assert np.abs(distances).max() <= 13
    assert distances.min() < -5
    assert distances.max() > 5


def test_normalize_is_mean_and_deviation_with_channels_first() -> None:
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    found = normalize(image, IMAGENET)
    assert found.shape == (3, 5, 7)
    assert found.dtype == np.float32
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    for channel in range(3):
        expected = (image[..., channel] / 255.0 - mean[channel]) / std[channel]
        np.testing.assert_allclose(found[channel], expected, atol=1e-5)


def test_each_network_sees_its_own_pixels() -> None:
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    signed = normalize(image, pixels_of("deeplabv3plus", "xception65"))
    np.testing.assert_allclose(signed.transpose(1, 2, 0), image / 127.5 - 1, atol=1e-6)
    caffe = normalize(image, pixels_of("deeplab_msra", "resnet101"))
    expected = image[..., ::-1].astype(float) - (104, 116, 122)
    np.testing.assert_allclose(caffe.transpose(1, 2, 0), expected, atol=1e-3)
    assert pixels_of("icnet") == IMAGENET


@pytest.mark.parametrize(
    ("height", "width", "rows", "columns"),
    [(64, 96, 16, 24), (64, 96, 4, 6), (352, 480, 88, 120), (33, 65, 5, 9), (8, 8, 8, 8)],
)
def test_subsampling_takes_the_aligned_corners_grid(
    height: int, width: int, rows: int, columns: int
) -> None:
    """Point i of the small map is the pixel nearest to i*(H-1)/(h-1); corners are corners."""
    labels = np.random.default_rng(1).integers(0, 255, (2, height, width)).astype(np.uint8)
    found = subsample_labels(labels, rows, columns)
    assert found.shape == (2, rows, columns)
    for i in range(rows):
        for j in range(columns):
            y, x = i * (height - 1) / (rows - 1), j * (width - 1) / (columns - 1)
            np.testing.assert_array_equal(found[:, i, j], labels[:, round(y), round(x)])
    np.testing.assert_array_equal(found[:, -1, -1], labels[:, -1, -1])


def test_subsampling_to_one_point_takes_the_first() -> None:
    labels = np.arange(12, dtype=np.uint8).reshape(1, 3, 4)
    assert subsample_labels(labels, 1, 1).tolist() == [[[0]]]


@pytest.mark.parametrize(("height", "width"), [(20, 60), (60, 20)])
def test_the_short_edge_is_scaled_where_it_is_told(height: int, width: int) -> None:
    image = np.zeros((height, width, 3), np.uint8)
    label = np.ones((height, width), np.uint8)
    cut = Augmentation(200, 200, 999, (1.0, 1.0), short_size=40)
    counted = cut((image, label), np.random.default_rng(0))[1] != IGNORE_LABEL
    sides = sorted((int(counted.any(0).sum()), int(counted.any(1).sum())))
    assert sides == [40, 120], "and the rest is padding"


def test_axes_are_scaled_apart_within_the_aspect() -> None:
    augmentation = Augmentation(8, 8, 90, (0.7, 1.5), aspect=0.15)
    random = np.random.default_rng(2)
    drawn = np.array([augmentation._draw_scales(random) for _ in range(400)])
    assert drawn.min() >= 0.7 - 1e-9
    assert drawn.max() <= 1.5 + 1e-9
    ratio = np.maximum(drawn[:, 0] / drawn[:, 1], drawn[:, 1] / drawn[:, 0])
    assert 1.1 < ratio.max() <= 1.15 + 1e-9
    whole = Augmentation(8, 8, 90, (0.7, 1.5))
    assert len(set(whole._draw_scales(random))) == 1
    image, label = augmentation(make_sample(), np.random.default_rng(0))
    assert image.shape[:2] == label.shape == (8, 8)


@pytest.mark.parametrize("edges", [{"base_size": 45}, {"base_size": 0, "short_size": 30}])
def test_a_long_or_a_short_edge_says_how_large_scale_1_is(edges: dict[str, int]) -> None:
    augmentation = Augmentation(64, 96, scale_range=(1.0, 1.0), blur_probability=0.0, **edges)
    _, label = augmentation(make_sample(), np.random.default_rng(0))
    counted = label != IGNORE_LABEL
    assert (counted.any(1).sum(), counted.any(0).sum()) == (30, 45)


def test_images_are_resized_as_the_server_does() -> None:
    image, label = make_sample()
    found, small = resize_pair(image, label, 33, 51)
    served = prepare(image, plan(Size(60, 90), Size(33, 51)))
    np.testing.assert_array_equal(found, served)
    assert set(np.unique(small)) <= set(np.unique(label))
    assert small.shape == (33, 51)


@pytest.mark.parametrize(
    ("before", "after", "taken"),
    [
        (3, 2, [0, 2]),  # centres at 0.75 and 2.25
        (5, 2, [1, 3]),
        (5, 3, [0, 2, 4]),
        (7, 3, [1, 3, 5]),
        (3, 5, [0, 0, 1, 2, 2]),  # at 0.3, 0.9, 1.5, 2.1 and 2.7
    ],
)
def test_a_label_is_that_of_the_pixel_which_holds_the_centre(
    before: int, after: int, taken: list[int]
) -> None:
    """As the image's: OpenCV's older nearest neighbour takes the one before."""
    label = np.arange(before, dtype=np.uint8)[None].repeat(4, 0) + np.uint8(10) * np.arange(
        4, dtype=np.uint8
    ).reshape(-1, 1)
    image = np.zeros((*label.shape, 3), np.uint8)
    _, found = resize_pair(image, label, 4, after)
    np.testing.assert_array_equal(found, label[:, taken])
    _, turned = resize_pair(image.transpose(1, 0, 2), label.T, after, 4)
    np.testing.assert_array_equal(turned, found.T)
