"""Canvas and camera of a synthetic street, and its slender things: people, cyclists, poles, signs.

Everything is placed in metres (x right, y up, z ahead of the camera) and drawn at once into the
picture (anti-aliased) and into the label map (hard edges). Callers draw from far to near.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import cv2
import numpy as np
import numpy.typing as npt

SKY, BUILDING, POLE, ROAD, PAVEMENT, TREE, SIGN, FENCE, CAR, PEDESTRIAN, BICYCLIST = range(11)

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]
Colour = tuple[float, float, float]
Points = Sequence[tuple[float, float]] | npt.NDArray[np.float64]
Points3 = Sequence[tuple[float, float, float]] | npt.NDArray[np.float64]

_TILE = 1024
_SUBPIXEL_BITS = 4
GLASS: Colour = (38, 44, 52)
_CLOTHES: tuple[Colour, ...] = (
    (28, 28, 34), (45, 50, 70), (70, 66, 60), (110, 30, 34), (40, 70, 120), (150, 145, 135),
    (205, 200, 195), (60, 80, 50), (120, 90, 60), (200, 190, 60), (25, 25, 25), (90, 40, 80),
)  # fmt: skip
PAINTS: tuple[Colour, ...] = (
    (24, 25, 28), (170, 172, 176), (205, 206, 208), (60, 64, 72), (120, 16, 22), (30, 50, 105),
    (40, 42, 46), (125, 130, 136), (28, 70, 50), (180, 150, 40), (90, 100, 120), (70, 20, 30),
)  # fmt: skip


@lru_cache(maxsize=1)
def _make_noise() -> tuple[Floats, Floats]:
    """White and fractal noise tiles, float32 [1024,1024], unit variance; made once a process."""
    rng = np.random.default_rng(20240229)
    white = rng.standard_normal((_TILE, _TILE), dtype=np.float32)
    fractal = np.zeros_like(white)
    for octave in range(9):
        cells = max(_TILE >> octave, 2)
        layer = rng.standard_normal((cells, cells), dtype=np.float32)
        fractal += cv2.resize(layer, (_TILE, _TILE), interpolation=cv2.INTER_CUBIC) * (1.35**octave)
    return white, (fractal - fractal.mean()) / fractal.std()


def crop_noise(rng: np.random.Generator, height: int, width: int, white: bool = False) -> Floats:
    """Returns a random window of a noise tile, float32 [height,width]; larger windows are
    stretched.
    """
    tile = _make_noise()[0 if white else 1]
    h, w = min(height, _TILE), min(width, _TILE)
    y, x = rng.integers(0, _TILE - h + 1), rng.integers(0, _TILE - w + 1)
    patch = tile[y : y + h, x : x + w]
    return patch if (h, w) == (height, width) else cv2.resize(patch, (width, height))


def pick(rng: np.random.Generator, colours: Sequence[Colour], spread: float = 0.12) -> Colour:
    """Returns one of the colours, its brightness and each channel varied a little."""
    r, g, b = colours[int(rng.integers(len(colours)))]
    k, kr, kg, kb = (1 + rng.uniform(-spread, spread, 4) * (1.0, 0.4, 0.4, 0.4)).tolist()
    return (min(r * k * kr, 255.0), min(g * k * kg, 255.0), min(b * k * kb, 255.0))


@dataclass(frozen=True)
class Camera:
    """A pinhole camera over a road whose centre line bends sideways by curve * z^2."""

    focal: float
    centre: float
    horizon: float
    height: float
    curve: float

    def project(self, points: Points3) -> npt.NDArray[np.float64]:
        """Returns the pixels [n,2] of world points [n,3] in metres."""
        p = np.asarray(points, np.float64)
        z = np.maximum(p[:, 2], 0.6)
        pixels = np.empty((len(p), 2))
        pixels[:, 0] = self.centre + self.focal * (p[:, 0] / z + self.curve * z)
        pixels[:, 1] = self.horizon + self.focal * (self.height - p[:, 1]) / z
        return pixels


@dataclass
class Canvas:
    """The picture uint8 [H,W,3] and its label map uint8 [H,W], with the light they are drawn in."""

    image: Bytes
    label: Bytes
    camera: Camera
    haze: Colour
    haze_per_m: float
    left: float = 1.0  # brightness of faces that look right, i.e. on the left side of the street
    right: float = 1.0
    front: float = 0.8
    sizes: tuple[int, int] = field(init=False)

    def __post_init__(self) -> None:
        self.sizes = (self.label.shape[0], self.label.shape[1])

    def tone(self, colour: Colour, gain: float = 1.0, z: float = 0.0) -> Colour:
        """Returns the colour under this light, faded towards the haze with distance."""
        a, (hr, hg, hb) = math.exp(-z * self.haze_per_m), self.haze
        r, g, b = (min(c * gain, 255.0) * a for c in colour)
        return (r + hr * (1 - a), g + hg * (1 - a), b + hb * (1 - a))

    def fill(self, points: Points, colour: Colour | None, class_id: int | None) -> None:
        """Fills a polygon [n,2] in pixels, in the picture, the label map, or both."""
        h, w = self.sizes
        # Far outside the frame the fixed-point numbers would overflow.
        p = np.minimum(np.maximum(points, -4.0 * w - h), 5.0 * w + h)
        p = (p * (1 << _SUBPIXEL_BITS) + 0.5).astype(np.int32)
        if colour is not None:
            cv2.fillPoly(self.image, [p], colour, cv2.LINE_AA, _SUBPIXEL_BITS)
        if class_id is not None:
            cv2.fillPoly(self.label, [p], (class_id,), cv2.LINE_8, _SUBPIXEL_BITS)

    def fill_world(self, points: Points3, colour: Colour | None, class_id: int | None) -> None:
        """Fills a polygon given in metres [n,3]."""
        self.fill(self.camera.project(points), colour, class_id)


@dataclass(frozen=True)
class Stand:
    """A flat figure that faces the camera, in local metres (right, up) from its foot point."""

    canvas: Canvas
    x: float
    z: float
    class_id: int
    gain: float = 1.0
    flip: float = 1.0
    foot: npt.NDArray[np.float64] = field(init=False)
    scale: float = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "foot", self.canvas.camera.project([(self.x, 0.0, self.z)])[0])
        object.__setattr__(self, "scale", self.canvas.camera.focal / self.z)

    def place(self, points: Points) -> npt.NDArray[np.float64]:
        """Returns the pixels [n,2] of points in local metres [n,2]."""
        k = np.array([self.scale * self.flip, -self.scale])
        pixels: npt.NDArray[np.float64] = self.foot + np.asarray(points, np.float64) * k
        return pixels

    def fill(self, points: Points, colour: Colour, label: bool = True) -> None:
        tone = self.canvas.tone(colour, self.gain, self.z)
        self.canvas.fill(self.place(points), tone, self.class_id if label else None)

    def disc(self, x: float, y: float, rx: float, ry: float, colour: Colour) -> None:
        a = np.linspace(0, 2 * np.pi, 12, endpoint=False)
        self.fill(np.stack([x + rx * np.cos(a), y + ry * np.sin(a)], 1), colour)

    def limb(self, joints: Points, widths: Sequence[float], colour: Colour) -> None:
        """Draws a chain of tapered strokes through the joints."""
        p = np.asarray(joints, np.float64)
        for a, b, wa, wb in zip(p[:-1], p[1:], widths[:-1], widths[1:], strict=True):
            d = b - a
            n = np.array([-d[1], d[0]]) / (np.hypot(d[0], d[1]) + 1e-9) / 2
            self.fill(np.stack([a + n * wa, b + n * wb, b - n * wb, a - n * wa]), colour)


def draw_pedestrian(canvas: Canvas, rng: np.random.Generator, x: float, z: float) -> None:
    """Draws somebody walking or standing."""
    s = Stand(canvas, x, z, PEDESTRIAN, float(rng.uniform(0.6, 1.1)), float(rng.choice([-1, 1])))
    t, top, legs = float(rng.uniform(1.5, 1.88)), pick(rng, _CLOTHES), pick(rng, _CLOTHES[:7])
    skin, hair = pick(rng, ((205, 160, 135), (140, 95, 70), (90, 60, 45))), pick(rng, _CLOTHES[:3])
    k, stride, bulk = t / 1.75, float(rng.uniform(0.02, 0.42)), float(rng.uniform(0.9, 1.25))
    for side in (-1, 1):
        knee = (0.5 * side * stride + 0.05, 0.47 * k)
        foot = (side * stride * 0.9 + 0.04, 0.06)
        s.limb([(0.05 * side, 0.88 * k), knee, foot], [0.19 * bulk, 0.15, 0.11], legs)
        s.fill([(foot[0] - 0.07, 0), (foot[0] + 0.17, 0), (foot[0] + 0.05, 0.11)], (30, 28, 28))
    w = 0.19 * bulk
    hem = 0.8 if rng.random() < 0.6 else 0.5  # a jacket, or a coat
    s.fill([(-w, hem * k), (-w * 1.12, 1.35 * k), (-0.08, 1.5 * k), (0.08, 1.5 * k),
            (w * 1.12, 1.35 * k), (w, hem * k)], top)  # fmt: skip
    for side in (-1, 1):
        swing = -side * stride * 0.55
        s.limb([(side * w, 1.4 * k), (side * w + swing * 0.5, 1.12 * k),
                (side * w + swing + 0.05, 0.88 * k)], [0.13, 0.11, 0.09], top)  # fmt: skip
    if rng.random() < 0.35:
        s.fill([(-w - 0.16, 0.55), (-w - 0.16, 0.9), (-w + 0.06, 0.9), (-w + 0.06, 0.55)], hair)
    s.disc(0, 1.62 * k, 0.1, 0.135, skin)
    s.disc(-0.015, 1.68 * k, 0.105, 0.09, hair)


def draw_bicyclist(canvas: Canvas, rng: np.random.Generator, x: float, z: float) -> None:
    """Draws a cyclist, between side view and end view; the wheels are labelled as discs."""
    s = Stand(canvas, x, z, BICYCLIST, float(rng.uniform(0.6, 1.1)), float(rng.choice([-1, 1])))
    u = float(rng.choice([rng.uniform(0.16, 0.4), rng.uniform(0.5, 1.0)]))  # foreshortening
    top, legs, dark = pick(rng, _CLOTHES), pick(rng, _CLOTHES[:7]), (26.0, 26.0, 28.0)
    a = np.linspace(0, 2 * np.pi, 16, endpoint=False)
    for hub in (-0.52 * u, 0.52 * u):
        rim = np.stack([hub + 0.34 * max(u, 0.1) * np.cos(a), 0.35 + 0.34 * np.sin(a)], 1)
        pixels = s.place(rim)
        canvas.fill(pixels, None, BICYCLIST)
        fixed = np.round(pixels * (1 << _SUBPIXEL_BITS)).astype(np.int32)[None]
        tone = canvas.tone(dark, s.gain, z)
        width = max(1, round(0.05 * s.scale))
        cv2.polylines(canvas.image, fixed, True, tone, width, cv2.LINE_AA, _SUBPIXEL_BITS)
    frame, w = pick(rng, PAINTS), 0.05
    s.limb([(-0.52 * u, 0.35), (-0.2 * u, 0.9), (-0.05 * u, 0.35), (-0.52 * u, 0.35)],
           [w] * 4, frame)  # fmt: skip
    s.limb([(-0.15 * u, 0.8), (0.36 * u, 0.82), (-0.05 * u, 0.35)], [w] * 3, frame)
    s.limb([(0.52 * u, 0.35), (0.36 * u, 1.02), (0.46 * u, 1.06)], [w] * 3, dark)
    pedal = float(rng.uniform(-0.16, 0.16))
    for side, lift in ((-0.09, pedal), (0.09, -pedal)):
        o = side * (1 - u * 0.7)
        knee = (0.16 * u + o, 0.68 + lift / 2)
        s.limb([(-0.18 * u + o, 0.98), knee, (-0.02 * u + o, 0.3 + lift)],
               [0.19, 0.15, 0.1], legs)  # fmt: skip
    b = 0.17 + 0.05 * (1 - u)
    s.fill([(-0.3 * u - b / 2, 0.92), (-0.12 * u - b, 1.3), (0.1 * u - b / 2, 1.5),
            (0.1 * u + b / 2, 1.5), (0.05 * u + b, 1.3), (-0.1 * u + b / 2, 0.92)],
           top)  # fmt: skip
    for side in (-1, 1):
        o = side * b * (1 - u * 0.8)
        s.limb([(0.08 * u + o, 1.42), (0.2 * u + o * 1.5, 1.18), (0.44 * u + o * 1.3, 1.06)],
               [0.12, 0.1, 0.08], top)  # fmt: skip
    s.disc(0.2 * u, 1.63, 0.1, 0.13, pick(rng, ((205, 160, 135), (140, 95, 70))))
    s.disc(0.19 * u, 1.7, 0.12, 0.09, pick(rng, _CLOTHES))


def draw_lamp(canvas: Canvas, rng: np.random.Generator, x: float, z: float) -> None:
    """Draws a lamp post or, now and then, a bollard."""
    s = Stand(canvas, x, z, POLE, float(rng.uniform(0.5, 1.1)), -1.0 if x > 0 else 1.0)
    paint = pick(rng, ((120, 122, 120), (150, 145, 130), (30, 34, 32), (190, 188, 180)))
    if rng.random() < 0.25:
        s.limb([(0, 0), (0, 1.0)], [0.2, 0.17], paint)
        return
    t, arm = float(rng.uniform(4.5, 9)), float(rng.uniform(0.3, 1.8))
    s.limb([(0, 0), (0, 1.2), (0, t)], [0.24, 0.17, 0.13], paint)
    if rng.random() < 0.7:
        s.limb([(0, t - 0.05), (arm, t + 0.25)], [0.11, 0.09], paint)
        s.limb([(arm - 0.1, t + 0.25), (arm + 0.55, t + 0.3)], [0.2, 0.16], (150, 148, 140))


def draw_sign(canvas: Canvas, rng: np.random.Generator, x: float, z: float) -> None:
    """Draws a traffic sign, a board or a traffic light on its pole."""
    gain, kind = float(rng.uniform(0.5, 1.15)), int(rng.integers(5))
    pole, s = Stand(canvas, x, z, POLE, gain), Stand(canvas, x, z, SIGN, gain)
    t = float(rng.uniform(2.2, 3.4))
    pole.limb([(0, 0), (0, t + 0.3)], [0.12, 0.11], pick(rng, ((125, 126, 122), (70, 72, 70))))
    white, red, blue = (225.0, 224.0, 218.0), (185.0, 25.0, 30.0), (25.0, 70.0, 160.0)
    if kind == 0:
        r = float(rng.uniform(0.3, 0.5))
        edge, face = ((red, white), (blue, blue), (red, red))[int(rng.integers(3))]
        s.disc(0, t, r, r, edge)
        s.disc(0, t, r * 0.74, r * 0.74, face)
        s.limb([(-r * 0.5, t), (r * 0.5, t)], [r * 0.3] * 2, white if face != white else GLASS)
    elif kind == 1:
        r = float(rng.uniform(0.35, 0.55)) * float(rng.choice([1, -1]))
        for k, c in ((1.0, red), (0.62, white)):
            foot = t - r * 0.55 * k
            s.fill([(-abs(r) * k, foot), (abs(r) * k, foot), (0, t + r * k)], c)
    elif kind == 2:  # direction board
        w, h = float(rng.uniform(0.3, 1.0)), float(rng.uniform(0.25, 0.7))
        face = pick(rng, (blue, (20, 95, 60), white, (210, 180, 40)))
        ink = (235.0, 235.0, 230.0) if sum(face) < 450 else (30.0, 30.0, 30.0)
        s.fill([(-w, t - h), (w, t - h), (w, t + h), (-w, t + h)], ink)
        s.fill([(-w + 0.06, t - h + 0.06), (w - 0.06, t - h + 0.06), (w - 0.06, t + h - 0.06),
                (-w + 0.06, t + h - 0.06)], face)  # fmt: skip
        for y in np.arange(t - h + 0.25, t + h - 0.1, 0.28):
            s.limb([(-w * 0.7, y), (w * float(rng.uniform(0, 0.75)), y)], [0.1] * 2, ink)
    else:  # traffic light
        s.fill([(-0.24, t - 0.6), (0.24, t - 0.6), (0.24, t + 0.6), (-0.24, t + 0.6)], (22, 24, 24))
        lit = int(rng.integers(4))
        lamps = ((60.0, 235.0, 150.0), (250.0, 190.0, 60.0), (250.0, 60.0, 50.0))
        for i, c in enumerate(lamps):
            on = 1.0 if i == lit else 0.22
            s.disc(0, t + (i - 1) * 0.37, 0.13, 0.13, (c[0] * on, c[1] * on, c[2] * on))
