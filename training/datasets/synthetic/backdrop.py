"""Draws the backdrop of a synthetic street: sky, ground, horizon."""

from dataclasses import dataclass

import cv2
import numpy as np

from training.datasets.synthetic.buildings import draw_foliage
from training.datasets.synthetic.elements import (
    BUILDING,
    PAVEMENT,
    ROAD,
    TREE,
    Canvas,
    crop_noise,
    pick,
)

_FAR = 120.0


@dataclass(frozen=True)
class Street:
    """The positions of the kerbs and the backs of the pavements, in metres from the camera."""

    kerbs: tuple[float, float]
    backs: tuple[float, float]
    traffic_on_left: bool

    @property
    def middle(self) -> float:
        return (self.kerbs[0] + self.kerbs[1]) / 2


def draw_sky(canvas: Canvas, rng: np.random.Generator, rows: int) -> None:
    """Draws a gradient from blue, white or grey, with clouds, into the rows above the horizon."""
    w, kind = canvas.sizes[1], rng.random()
    blue, gray = ((90, 140, 215), (120, 165, 225)), ((225, 228, 232), (165, 170, 178))
    top = pick(rng, blue if kind < 0.4 else gray)
    up = np.linspace(1, 0, rows // 2 + 1, dtype=np.float32)[:, None, None]
    sky = np.array(canvas.haze, np.float32) * (1 - up) + np.array(top, np.float32) * up
    cover = crop_noise(rng, max(rows // 2, 2), max(w // 4, 2))
    cover = cv2.resize(cover, (w // 2, rows // 2 + 1))[..., None]
    if kind < 0.8:
        a = np.clip(cover * 0.7 + float(rng.uniform(-0.5, 0.5)), 0, 1)
        cloud = np.array(pick(rng, ((245, 245, 245), (190, 194, 200))), np.float32)
        sky = sky * (1 - a) + cloud * a
    sky = np.broadcast_to(np.clip(sky, 0, 255).astype(np.uint8), (rows // 2 + 1, w // 2, 3))
    canvas.image[:rows] = cv2.resize(sky, (w, rows))


def _strip(x0: float, x1: float, z0: float, z1: float) -> list[tuple[float, float, float]]:
    """Returns the outline on the ground between two lateral positions, bent with the road."""
    zs = np.geomspace(z0, z1, 12).tolist() if z1 / z0 > 2 else [z0, z1]
    return [(x0, 0.0, z) for z in zs] + [(x1, 0.0, z) for z in zs[::-1]]


def draw_ground(canvas: Canvas, rng: np.random.Generator, street: Street) -> None:
    """Draws pavements, the carriageway with its kerbs, and markings, which stay Road."""
    row = int(canvas.camera.horizon)
    paving = pick(rng, ((118, 114, 108), (140, 134, 124), (96, 92, 90), (150, 142, 136)))
    asphalt = pick(rng, ((92, 92, 94), (108, 106, 104), (76, 77, 80), (122, 118, 114)))
    canvas.image[row:] = np.round(paving).astype(np.uint8)
    canvas.label[row:] = PAVEMENT
    left, right = street.kerbs
    stone = canvas.tone(paving, 1.18)
    canvas.fill_world(_strip(left - 0.22, right + 0.22, 0.7, _FAR), stone, None)
    for x0, x1 in ((left - 0.03, left + 0.08), (right - 0.08, right + 0.03)):
        canvas.fill_world(_strip(x0, x1, 0.7, _FAR), canvas.tone(asphalt, 0.6), None)
    canvas.fill_world(_strip(left, right, 0.7, _FAR), asphalt, ROAD)
    for side, kerb in ((-1, left), (1, right)):  # side streets
        if rng.random() < 0.3:
            z = float(rng.uniform(6, 30))
            end = z + float(rng.uniform(5, 9))
            mouth = [(kerb, 0, z - 2), (kerb + side * 3, 0, z), (kerb + side * 60, 0, z),
                     (kerb + side * 60, 0, end), (kerb + side * 3, 0, end),
                     (kerb, 0, end + 2)]  # fmt: skip
            canvas.fill_world(mouth, asphalt, ROAD)
    for _ in range(int(rng.integers(0, 5))):  # patches of newer or older surface
        x, z = float(rng.uniform(left, right - 0.5)), float(rng.uniform(2, 25))
        x1, z1 = min(x + float(rng.uniform(0.4, 2.5)), right), z * float(rng.uniform(1.1, 2))
        surface = canvas.tone(asphalt, float(rng.uniform(0.75, 1.15)))
        canvas.fill_world(_strip(x, x1, z, z1), surface, None)
    for _ in range(int(rng.integers(0, 6))):
        x, z = float(rng.uniform(left, right - 0.7)), float(rng.uniform(3, 20))
        canvas.fill_world(_strip(x, x + 0.55, z, z + 0.6), canvas.tone(asphalt, 0.55), None)
    _draw_markings(canvas, rng, street)
    joint = canvas.tone(paving, 0.86)
    for z in np.geomspace(2.5, 30, 14) if rng.random() < 0.6 else ():
        for x0, x1 in ((street.backs[0], left - 0.22), (right + 0.22, street.backs[1])):
            canvas.fill_world(_strip(x0, x1, float(z), float(z) * 1.01), joint, None)


def _draw_markings(canvas: Canvas, rng: np.random.Generator, street: Street) -> None:
    left, right = street.kerbs
    paint = canvas.tone(pick(rng, ((205, 205, 200), (180, 178, 170), (150, 148, 142))))
    dash, gap, z = float(rng.uniform(1.5, 4)), float(rng.uniform(1.5, 6)), float(rng.uniform(1, 6))
    style = int(rng.integers(4))
    while z < 60 and style < 3:
        z1 = min(z + dash, 60) if style else 60.0
        canvas.fill_world(_strip(street.middle - 0.06, street.middle + 0.06, z, z1), paint, None)
        z = z1 + gap
    if rng.random() < 0.5:  # no parking
        yellow = canvas.tone(pick(rng, ((190, 160, 60), (200, 198, 190))))
        for x in (left + 0.35, left + 0.6, right - 0.35, right - 0.6):
            canvas.fill_world(_strip(x - 0.05, x + 0.05, 0.7, 50), yellow, None)
    if rng.random() < 0.25:  # a crossing or a stop line
        z = float(rng.uniform(4, 20))
        if rng.random() < 0.5:
            for x in np.arange(left + 0.3, right - 0.6, 1.1):
                canvas.fill_world(_strip(x, x + 0.55, z, z + 2.6), paint, None)
        else:
            canvas.fill_world(_strip(street.middle, right - 0.2, z, z + 0.3), paint, None)


def darken_ground(canvas: Canvas, rng: np.random.Generator, street: Street) -> None:
    """Draws soft shadows of houses and trees across the street."""
    if rng.random() < 0.35:
        return
    mask = np.zeros(canvas.sizes, np.uint8)
    side = -1 if canvas.left < canvas.right else 1
    z = 1.0
    while z < 60:
        z1 = z + float(rng.uniform(3, 14))
        reach = float(rng.uniform(street.kerbs[0], street.kerbs[1] + 1))
        if rng.random() < 0.75:
            p = canvas.camera.project(_strip(side * 30, -side * abs(reach) * 0.3 + reach, z, z1))
            cv2.fillPoly(mask, [np.clip(p, -20000, 20000).astype(np.int32)], 255)
        z = z1
    mask = cv2.blur(mask, (5, 3))
    mask[: int(canvas.camera.horizon)] = 0
    depth = float(rng.uniform(0.25, 0.6))
    gain = (255 - depth * mask.astype(np.float32)).astype(np.uint8)
    cv2.multiply(canvas.image, cv2.merge([gain] * 3), canvas.image, 1 / 255)


def draw_skyline(canvas: Canvas, rng: np.random.Generator) -> None:
    """Draws far houses and trees that close the view above the end of the road."""
    w, y = canvas.sizes[1], canvas.camera.project([(0, 0, _FAR * 0.8)])[0, 1]
    x = -0.05 * w
    while x < w:
        wide = w * float(rng.uniform(0.03, 0.14))
        tall = canvas.sizes[0] * float(rng.uniform(0.02, 0.1))
        if rng.random() < 0.6:
            wall = pick(rng, ((120, 90, 76), (170, 160, 145), (100, 96, 94)))
            colour = canvas.tone(wall, 0.9, 70)
            box = [(x, y + 1), (x, y - tall), (x + wide / 2, y - tall * 1.2),
                   (x + wide, y - tall), (x + wide, y + 1)]  # fmt: skip
            canvas.fill(box, colour, BUILDING)
        else:
            low = y - tall / 2
            canvas.fill([(x, y + 1), (x, low), (x + wide, low), (x + wide, y + 1)],
                        canvas.tone((70, 74, 52), 0.8, 60), TREE)  # fmt: skip
            crown = (x - wide * 0.2, y - tall * 1.2, x + wide * 1.2, y + 2)
            draw_foliage(canvas, rng, crown, 60)
        x += wide
