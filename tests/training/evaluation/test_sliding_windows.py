"""Scales, windows, mirror images and centre crops, against plain NumPy that loops over pixels."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest

from export.symbols.networks import IMAGENET
from serving.imaging.geometry import Size
from training.evaluation.evaluator import CenterCrops
from training.evaluation.sliding_windows import (
    GLUONCV_SCALES,
    SlidingWindows,
    enlarge,
    scaled_size,
    window_starts,
)

CLASSES = 3
MEAN = np.array([0.485, 0.456, 0.406], np.float32)
STD = np.array([0.229, 0.224, 0.225], np.float32)


class Patches:
    """A network that answers a quarter of its input's size, differently left and right, top and
    bottom: a random linear map of each 4x4 patch, plus a slope over the window."""

    def __init__(self, crop: Size, strength: float = 1.0) -> None:
        random = np.random.default_rng(4)
        self.crop = crop
        self.weights = strength * random.standard_normal((CLASSES, 3 * 16))
        self.slope = random.standard_normal((CLASSES, crop.height // 4, crop.width // 4))
        self.calls = 0

    def __call__(self, window: np.ndarray) -> np.ndarray:
        assert window.shape == (3, self.crop.height, self.crop.width)
        assert window.dtype == np.float32
        self.calls += 1
        rows, columns = self.crop.height // 4, self.crop.width // 4
        patches = window.reshape(3, rows, 4, columns, 4).transpose(1, 3, 0, 2, 4)
        maps = patches.reshape(rows, columns, 48) @ self.weights.T
        return (maps.transpose(2, 0, 1) + self.slope).astype(np.float32)


def interpolate(maps: np.ndarray, ys: list[float], xs: list[float]) -> np.ndarray:
    """Bilinear, one pixel after the other, float64."""
    height, width = maps.shape[1:]
    out = np.empty((len(maps), len(ys), len(xs)))
    for i, y in enumerate(ys):
        for j, x in enumerate(xs):
            top, left = min(math.floor(y), height - 1), min(math.floor(x), width - 1)
            down, right = min(top + 1, height - 1), min(left + 1, width - 1)
            a, b = y - top, x - left
            out[:, i, j] = (
                (1 - a) * (1 - b) * maps[:, top, left] + (1 - a) * b * maps[:, top, right]
                + a * (1 - b) * maps[:, down, left] + a * b * maps[:, down, right]
            )  # fmt: skip
    return out


def aligned(length: int, have: int) -> list[float]:
    return [i * (have - 1) / (length - 1) for i in range(length)]


def half_pixel(length: int, have: int) -> list[float]:
    return [min(max((i + 0.5) * have / length - 0.5, 0.0), have - 1.0) for i in range(length)]


def plain_softmax(maps: np.ndarray) -> np.ndarray:
    out = np.empty_like(maps)
    for i in range(maps.shape[1]):
        for j in range(maps.shape[2]):
            powers = [math.exp(value - maps[:, i, j].max()) for value in maps[:, i, j]]
            out[:, i, j] = [power / sum(powers) for power in powers]
    return out


def reference(image, network, crop, base_size, scales, flip) -> np.ndarray:
    """GluonCV's MultiEvalModel written out, with softmax in place of exp."""
    h, w = image.shape[:2]
    scores = np.zeros((CLASSES, h, w))
    for factor in scales:
        long_size = math.ceil(base_size * factor)
        if h > w:
            height, width = long_size, int(1.0 * w * long_size / h + 0.5)
        else:
            height, width = int(1.0 * h * long_size / w + 0.5), long_size
        resized = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
        normal = ((resized / 255.0 - MEAN) / STD).transpose(2, 0, 1)
        ph, pw = max(height, crop.height), max(width, crop.width)
        black = (-MEAN / STD).astype(np.float64)
        padded = np.empty((3, ph, pw))
        padded[:] = black[:, None, None]
        padded[:, :height, :width] = normal
        total, counts = np.zeros((CLASSES, ph, pw)), np.zeros((ph, pw))
        down, across = int(crop.height * (2.0 / 3.0)), int(crop.width * (2.0 / 3.0))
        for row in range(math.ceil((ph - crop.height) / down) + 1):
            for column in range(math.ceil((pw - crop.width) / across) + 1):
                h0, w0 = row * down, column * across
                h1, w1 = min(h0 + crop.height, ph), min(w0 + crop.width, pw)
                window = np.empty((3, crop.height, crop.width))
                window[:] = black[:, None, None]
                window[:, : h1 - h0, : w1 - w0] = padded[:, h0:h1, w0:w1]
                views = [window, window[:, :, ::-1]] if flip else [window]
                seen = []
                for index, view in enumerate(views):
                    logits = network(np.ascontiguousarray(view, np.float32)).astype(float)
                    ys = aligned(crop.height, logits.shape[1])
                    xs = aligned(crop.width, logits.shape[2])
                    probabilities = plain_softmax(interpolate(logits, ys, xs))
                    seen.append(probabilities[:, :, ::-1] if index else probabilities)
                total[:, h0:h1, w0:w1] += (sum(seen) / len(seen))[:, : h1 - h0, : w1 - w0]
                counts[h0:h1, w0:w1] += 1
        mean = (total / counts)[:, :height, :width]
        scores += interpolate(mean, half_pixel(h, height), half_pixel(w, width))
    return scores / len(scales)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(
    ("shape", "crop", "scales"),
    [
        ((30, 44), Size(24, 24), (0.5, 1.0, 1.75)),  # padded once, short edge padded, a grid
        ((44, 31), Size(24, 24), (1.25,)),  # upright
        ((30, 44), Size(16, 24), (0.75, 1.25)),  # a crop that is no square
    ],
)
def test_equals_plain_numpy(
    shape: tuple[int, int], crop: Size, scales: tuple[float, ...], flip: bool
) -> None:
    image = np.random.default_rng(2).integers(0, 256, (*shape, 3)).astype(np.uint8)
    image = cv2.GaussianBlur(image, (0, 0), 2)
    windows = SlidingWindows(crop, 40, IMAGENET, scales, flip)
    network = Patches(crop)
    found = windows.probabilities(image, network)
    expected = reference(image, Patches(crop), crop, 40, scales, flip)
    assert found.shape == (CLASSES, *shape)
    np.testing.assert_allclose(found, expected, atol=2e-5)
    np.testing.assert_allclose(found.sum(0), 1.0, atol=1e-5)
    assert found.argmax(0).std() > 0.1, "one class everywhere would prove nothing"


def test_sure_networks_overflow_nothing() -> None:
    """GluonCV's exp of summed logits is infinite from 89 on."""
    image = np.random.default_rng(3).integers(0, 256, (30, 44, 3)).astype(np.uint8)
    network = Patches(Size(24, 24), strength=500.0)
    found = SlidingWindows(Size(24, 24), 40, IMAGENET).probabilities(image, network)
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found.sum(0), 1.0, atol=1e-5)


def test_cityscapes_at_the_published_sizes() -> None:
    """The grids of notes: 2048 base, 768 crop, stride 512."""
    sizes = [scaled_size(Size(1024, 2048), 2048 * factor) for factor in GLUONCV_SCALES]
    assert sizes[0] == Size(512, 1024)
    assert sizes[-1] == Size(1792, 3584)
    assert window_starts(512, 768) == (0,)
    assert window_starts(1024, 768) == (0, 512)
    assert window_starts(3584, 768) == (0, 512, 1024, 1536, 2048, 2560, 3072)
    assert window_starts(768, 768) == (0,)
    assert scaled_size(Size(500, 375), 520 * 0.75) == Size(390, 293)


def test_the_long_edge_is_rounded_up_and_the_short_one_to_the_nearest() -> None:
    assert scaled_size(Size(500, 375), 390.5) == Size(391, 293)  # 293.25
    assert scaled_size(Size(375, 500), 390.01) == Size(293, 391)
    assert scaled_size(Size(30, 40), 50.0) == Size(38, 50)  # 37.5
    assert scaled_size(Size(30, 40), 49.2) == Size(38, 50)
    assert scaled_size(Size(7, 7), 3.1) == Size(4, 4)
    assert scaled_size(Size(1, 90), 30.0) == Size(1, 30)
    assert scaled_size(Size(90, 1), 30.0) == Size(30, 1)


@pytest.mark.parametrize(
    ("length", "window", "starts"),
    [
        (24, 24, (0,)),
        (25, 24, (0, 16)),
        (40, 24, (0, 16)),
        (41, 24, (0, 16, 32)),
        (5, 1, (0, 1, 2, 3, 4)),
        (10, 25, (0,)),
    ],
)
def test_windows_follow_each_other_until_the_end_is_seen(
    length: int, window: int, starts: tuple[int, ...]
) -> None:
    assert window_starts(length, window) == starts


def test_enlarging_keeps_the_corners() -> None:
    maps = np.random.default_rng(1).standard_normal((2, 3, 4)).astype(np.float32)
    found = enlarge(maps, Size(9, 11))
    expected = interpolate(maps.astype(float), aligned(9, 3), aligned(11, 4))
    np.testing.assert_allclose(found, expected, atol=1e-6)
    np.testing.assert_array_equal(found[:, ::8, ::10], maps[:, ::2, ::3])
    assert enlarge(maps, Size(3, 4)) is maps


class One:
    """A dataset of one image whose red channel is its label."""

    def __init__(self, height: int, width: int) -> None:
        label = np.add.outer(np.arange(height) * 2, np.arange(width)).astype(np.uint8)
        self.sample = np.repeat(label[..., None], 3, 2), label

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int):
        return self.sample

    def name(self, index: int) -> str:
        return "one.png"


@pytest.mark.parametrize(("height", "width"), [(32, 64), (64, 33), (16, 21), (40, 40)])
def test_val_takes_the_centre_of_what_just_covers_the_crop(height: int, width: int) -> None:
    crops = CenterCrops(One(height, width), 24, 24)
    image, label = crops[0]
    assert (len(crops), crops.name(0)) == (1, "one.png")
    assert image.shape == (24, 24, 3)
    assert label.shape == (24, 24)
    # GluonCV's arithmetic.
    rows = 24 if height <= width else int(24 * height / width)
    columns = 24 if width <= height else int(24 * width / height)
    top, left = round((rows - 24) / 2), round((columns - 24) / 2)
    for y, x in ((0, 0), (23, 23), (6, 15)):
        source = (top + y + 0.5) * height / rows, (left + x + 0.5) * width / columns
        assert label[y, x] == 2 * math.floor(source[0]) + math.floor(source[1])
        clamped = [
            min(max(s - 0.5, 0), n - 1) for s, n in zip(source, (height, width), strict=True)
        ]
        assert image[y, x, 0] == pytest.approx(2 * clamped[0] + clamped[1], abs=1.01)
