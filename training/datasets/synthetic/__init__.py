"""Labelled street scenes drawn from a seed, in CamVid's eleven classes.

They stand in for photographs in tests, demos and README pictures, and add the rare classes (poles,
signs, fences, people, cyclists) to a small set of real ones. NumPy and OpenCV only.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import cv2
import numpy as np

from export.datasets import IGNORE_LABEL
from training.datasets.synthetic.backdrop import (
    Street,
    darken_ground,
    draw_ground,
    draw_sky,
    draw_skyline,
)
from training.datasets.synthetic.buildings import draw_building, draw_fence, draw_foliage, draw_tree
from training.datasets.synthetic.elements import (
    PAINTS,
    SKY,
    TREE,
    Bytes,
    Camera,
    Canvas,
    Floats,
    crop_noise,
    draw_bicyclist,
    draw_lamp,
    draw_pedestrian,
    draw_sign,
    pick,
)
from training.datasets.synthetic.vehicles import draw_vehicle

_SPLITS = ("train", "val", "test")
# How rough each class looks after lighting: standard deviation of the brightness factor.
_ROUGHNESS = np.array(
    [0.01, 0.09, 0.06, 0.08, 0.09, 0.12, 0.04, 0.08, 0.07, 0.08, 0.06], np.float32
)


@dataclass(frozen=True)
class Scene:
    """A rendered picture uint8 [H,W,3] RGB and its class ids uint8 [H,W]."""

    image: Bytes
    label: Bytes


def _draw_side(canvas: Canvas, rng: np.random.Generator, street: Street, side: int) -> None:
    """Draws what stands behind one pavement, from far to near: houses, gardens, trees, fences."""
    back = abs(street.backs[0] if side < 0 else street.backs[1])
    built = float(rng.choice([0.3, 0.85, 1.0], p=[0.2, 0.3, 0.5]))
    setback = float(rng.choice([0.0, rng.uniform(2, 6)], p=[0.65, 0.35]))
    bare = rng.random() < 0.4
    edge, cuts = float(rng.uniform(1.5, 6)), []
    while edge < 85:
        cuts.append((edge, edge + float(rng.uniform(5, 20)) * (1 + edge / 60)))
        edge = cuts[-1][1] + (0.0 if rng.random() < 0.7 else float(rng.uniform(1, 6)))
    fenced, high = rng.random() < 0.55, float(rng.uniform(0.8, 2.0))
    for z0, z1 in cuts[::-1]:
        if rng.random() < built:
            draw_building(canvas, rng, side, back + setback, z0, z1)
        else:
            for z in np.sort(rng.uniform(z0, z1, int(rng.integers(1, 4))))[::-1]:
                draw_tree(canvas, rng, side * (back + float(rng.uniform(1, 6))), float(z), bare)
            _draw_hedge(canvas, rng, side * (back + 0.8), z0, z1)
        if fenced and rng.random() < 0.75 and (setback or rng.random() < 0.4):
            draw_fence(canvas, rng, side * (back + 0.05), z0, z1, high)


def _draw_hedge(canvas: Canvas, rng: np.random.Generator, x: float, z0: float, z1: float) -> None:
    """Draws shrubs along the back of the pavement, so that no bare ground shows between trees."""
    zs = np.linspace(z1, z0, 5 if z0 < 25 else 3)
    tall = float(rng.uniform(0.8, 2.6))
    for a, b in pairwise(zs.tolist()):
        p = canvas.camera.project([(x, tall, a), (x, tall, b), (x, 0, b), (x, 0, a)])
        canvas.fill(p, canvas.tone((58, 60, 40), 0.8, float(a)), TREE)
        lo, hi = p.min(0), p.max(0)
        pad = (hi[1] - lo[1]) * 0.2
        w = canvas.sizes[1]
        x0, x1 = max(lo[0] - pad, -0.3 * w), min(hi[0] + pad, 1.3 * w)
        draw_foliage(canvas, rng, (x0, lo[1] - pad, x1, hi[1]), float(a))


def _draw_actors(canvas: Canvas, rng: np.random.Generator, street: Street, bare: bool) -> None:
    """Draws everything on the road and the pavements, farthest first."""
    queue: list[tuple[float, Callable[[], None]]] = []
    left, right = street.kerbs
    ahead = (left + street.middle) / 2 if street.traffic_on_left else (right + street.middle) / 2
    other = left + right - ahead

    def add(z: float, draw: Callable[[], None]) -> None:
        queue.append((z, draw))

    def log_z(near: float, far: float) -> float:
        return float(np.exp(rng.uniform(np.log(near), np.log(far))))

    for lane, yaw, near in ((ahead, 0.0, 9.0), (other, np.pi, 8.0)):
        z = log_z(near, 60)
        while z < 80 and rng.random() < 0.7:
            x, turn = lane + float(rng.normal(0, 0.25)), yaw + float(rng.normal(0, 0.06))
            add(z, partial(draw_vehicle, canvas, rng, x, z, turn))
            z += float(rng.uniform(9, 30))
    if rng.random() < 0.08:
        z, turn = log_z(9, 25), float(rng.choice([-1, 1])) * np.pi / 2
        add(z, partial(draw_vehicle, canvas, rng, float(rng.uniform(left, right)), z, turn))
    for side, kerb, back in ((-1, left, street.backs[0]), (1, right, street.backs[1])):
        if rng.random() < 0.35:  # a row of parked cars
            z, end = log_z(4.5 if abs(kerb) > 2.8 else 9, 25), log_z(15, 60)
            while z < end:
                yaw = float(rng.choice([0, np.pi])) + float(rng.normal(0, 0.03))
                x = kerb - side * 1.0
                add(z, partial(draw_vehicle, canvas, rng, x, z, yaw))
                z += float(rng.uniform(5.5, 9))
        wide = abs(back - kerb)
        for draw, mean, near in ((draw_lamp, 2.2, 6.0), (draw_sign, 2.6, 5.0)):
            for _ in range(rng.poisson(mean)):
                x, z = kerb + side * wide * float(rng.uniform(0.1, 0.6)), log_z(near, 50)
                add(z, partial(draw, canvas, rng, x, z))
        for _ in range(rng.poisson(2.2)):
            x, z = kerb + side * wide * float(rng.uniform(0.1, 0.9)), log_z(4.5, 40)
            add(z, partial(draw_pedestrian, canvas, rng, x, z))
            if rng.random() < 0.3:
                add(z + 0.1, partial(draw_pedestrian, canvas, rng, x + 0.6, z + 0.1))
        if rng.random() < 0.4:
            x, z = kerb - side * float(rng.uniform(0.5, 1.2)), log_z(4, 25)
            add(z, partial(draw_bicyclist, canvas, rng, x, z))
        if rng.random() < 0.22:
            step = float(rng.uniform(6, 14))
            for z in np.arange(float(rng.uniform(5, 12)), 70, step):
                x = kerb + side * min(0.8, wide / 2)
                add(float(z), partial(draw_tree, canvas, rng, x, float(z), bare))
        if rng.random() < 0.2:
            start, x, seed = log_z(4, 20), kerb + side * 0.3, int(rng.integers(1 << 30))
            for z in np.arange(start, start + float(rng.uniform(4, 16)), 2.0):
                # Bay by bay, for things stand beside it; one seed, so that all bays look alike.
                bay, z0 = np.random.default_rng(seed), float(z)
                add(z0 + 1, partial(draw_fence, canvas, bay, x, z0, z0 + 2, 1.05))
    if rng.random() < 0.2:
        z = log_z(6, 25)
        add(z, partial(draw_pedestrian, canvas, rng, float(rng.uniform(left, right)), z))
    for _, act in sorted(queue, key=lambda item: -item[0]):
        act()


def _draw_bonnet(canvas: Canvas, rng: np.random.Generator) -> None:
    """Draws the edge of the camera's own car, which belongs to no class."""
    h, w = canvas.sizes
    xs = np.linspace(-1, 1, 9)
    rise = float(rng.uniform(0.02, 0.07)) * (1 - xs**2 * float(rng.uniform(0.3, 0.9)))
    edge = np.stack([(xs + 1) * w / 2, h * (1 - rise)], 1)
    canvas.fill(np.concatenate([edge, [(w, h + 2), (0, h + 2)]]), pick(rng, PAINTS), IGNORE_LABEL)


def _develop(canvas: Canvas, rng: np.random.Generator) -> Bytes:
    """Adds surface texture, exposure, lens, sensor and JPEG: a rendering becomes a photograph."""
    h, w = canvas.sizes
    texture = crop_noise(rng, h, w) * 0.6 + crop_noise(rng, h, w, white=True) * 0.8
    gain = 1 + texture * np.take(_ROUGHNESS, canvas.label, mode="clip")
    yy, xx = np.ogrid[-1 : 1 : h * 1j, -1 : 1 : w * 1j]
    gain *= (1 - float(rng.uniform(0, 0.2)) * (xx**2 + yy**2)).astype(np.float32)
    gain[canvas.label == SKY] *= float(rng.uniform(1.0, 1.8))  # brighter than a display can show
    exposure = float(np.clip(np.exp(rng.normal(0.0, 0.33)), 0.5, 1.7))
    cast = exposure * (1 + rng.normal(0, 0.035, 3))
    planes = [cv2.multiply(canvas.image[..., c], gain, scale=float(cast[c]), dtype=cv2.CV_32F)
              for c in range(3)]  # fmt: skip
    photo: Floats = cv2.merge(planes)
    blur = float(rng.uniform(0.35, 0.95)) * max(h / 360, 0.5)
    taps = 2 * int(np.ceil(2 * blur)) + 1
    photo = cv2.GaussianBlur(photo, (taps, taps), blur)
    grain = cv2.merge([crop_noise(rng, h, w, white=True) for _ in range(3)])
    photo += grain * np.float32(rng.uniform(0.5, 5))
    levels = np.arange(256, dtype=np.float32) / 255
    gamma, contrast = float(np.exp(rng.normal(0, 0.2))), float(rng.uniform(0.6, 1.0))
    curve = levels**gamma
    curve = contrast * curve + (1 - contrast) * (3 * curve**2 - 2 * curve**3)
    pixels = cv2.LUT(np.clip(photo, 0, 255).astype(np.uint8), (curve * 255).astype(np.uint8))
    quality = [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(55, 97))]
    # Both ways take R for B, so the channel order survives.
    decoded: Bytes = cv2.imdecode(cv2.imencode(".jpg", pixels, quality)[1], cv2.IMREAD_COLOR)
    return decoded


def render_scene(seed: int, height: int = 360, width: int = 480) -> Scene:
    """Renders a street scene, the same for the same seed and size."""
    rng = np.random.default_rng(seed)
    wide, lane = float(rng.uniform(5.5, 9)), float(rng.uniform(-0.3, 0.3))
    kerbs = (-wide / 2 - lane * wide, wide / 2 - lane * wide)
    backs = (kerbs[0] - float(rng.uniform(1.8, 6)), kerbs[1] + float(rng.uniform(1.8, 6)))
    street = Street(kerbs, backs, lane < 0)
    camera = Camera(
        focal=float(rng.uniform(0.8, 1.15)) * width,
        centre=width * float(rng.uniform(0.35, 0.65)),
        horizon=height * float(rng.uniform(0.4, 0.58)),
        height=float(rng.uniform(1.2, 1.7)),
        curve=float(rng.normal(0, 0.0007)),
    )
    haze = pick(rng, ((210, 218, 228), (225, 225, 222), (180, 186, 194)))
    image, label = np.zeros((height, width, 3), np.uint8), np.full((height, width), SKY, np.uint8)
    sun = float(rng.uniform(-0.35, 0.35))
    canvas = Canvas(image, label, camera, haze, float(rng.uniform(0.0005, 0.006)),
                    0.8 + sun, 0.8 - sun, float(rng.uniform(0.5, 1.0)))  # fmt: skip
    draw_sky(canvas, rng, int(camera.horizon) + 1)
    draw_ground(canvas, rng, street)
    darken_ground(canvas, rng, street)
    draw_skyline(canvas, rng)
    for side in (-1, 1):
        _draw_side(canvas, rng, street, side)
    _draw_actors(canvas, rng, street, bool(rng.random() < 0.4))
    if rng.random() < 0.08:
        _draw_bonnet(canvas, rng)
    return Scene(_develop(canvas, rng), label)


class SyntheticDataset:
    """A dataset of rendered scenes: image uint8 [H,W,3] RGB, label uint8 [H,W]; splits share no
    seed.
    """

    NUM_CLASSES = 11

    def __init__(
        self, length: int, split: str = "train", height: int = 360, width: int = 480
    ) -> None:
        if split not in _SPLITS:
            raise ValueError(f"split is {split!r}, expected one of {', '.join(_SPLITS)}")
        self.length, self.split, self.height, self.width = length, split, height, width

    def __len__(self) -> int:
        return self.length

    def seed(self, index: int) -> int:
        """Returns the scene seed of an index; splits interleave, so no two can meet."""
        if not 0 <= index < self.length:
            raise IndexError(index)
        return index * len(_SPLITS) + _SPLITS.index(self.split)

    def __getitem__(self, index: int) -> tuple[Bytes, Bytes]:
        scene = render_scene(self.seed(index), self.height, self.width)
        return scene.image, scene.label

    def name(self, index: int) -> str:
        return f"synthetic_{self.split}_{index:06d}"
