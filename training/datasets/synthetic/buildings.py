"""The large things in a synthetic street: facades, trees and fences."""

import cv2
import numpy as np
import numpy.typing as npt

from training.datasets.synthetic.elements import (
    BUILDING,
    FENCE,
    GLASS,
    TREE,
    Bytes,
    Canvas,
    Colour,
    Floats,
    crop_noise,
    pick,
)

WALLS: tuple[Colour, ...] = (
    (120, 72, 56), (150, 120, 92), (182, 170, 140), (205, 200, 190), (96, 88, 80), (138, 96, 70),
    (170, 150, 118), (78, 60, 54), (190, 180, 165), (110, 108, 106), (165, 110, 85),
)  # fmt: skip
_TRIMS: tuple[Colour, ...] = ((225, 222, 214), (190, 186, 176), (90, 86, 84), (50, 48, 48))
_SHOPS: tuple[Colour, ...] = (
    (30, 60, 140), (160, 25, 30), (25, 90, 60), (40, 40, 42), (215, 210, 200), (200, 150, 30),
)  # fmt: skip
_LEAVES: tuple[Colour, ...] = (
    (62, 78, 36), (48, 64, 34), (84, 92, 44), (70, 70, 38), (100, 84, 44), (40, 52, 36),
)  # fmt: skip


def paint_facade(
    rng: np.random.Generator, width: float, height: float, ppm: float, wall: Colour
) -> Bytes:
    """Paints a wall seen square on, uint8 [height*ppm, width*ppm, 3]: masonry, windows, doors,
    shops.
    """
    h, w = max(int(height * ppm), 4), max(int(width * ppm), 4)
    rough = float(rng.uniform(0.03, 0.1))
    grain = 1 + rough * crop_noise(rng, h, w) + 0.4 * rough * crop_noise(rng, h, w, white=True)
    t: Bytes = cv2.merge([cv2.convertScaleAbs(grain, alpha=c) for c in wall])
    if ppm > 9 and rng.random() < 0.5:  # courses of brick or stone
        t[:: max(int(ppm * rng.uniform(0.15, 0.4)), 2)] = [c * 0.85 for c in wall]
    floors = max(1, round(height / float(rng.uniform(2.7, 3.6))))
    columns = max(1, round(width / float(rng.uniform(1.8, 3.8))))
    fh, cw = h / floors, w / columns
    ww, wh = float(rng.uniform(0.3, 0.75)), float(rng.uniform(0.35, 0.65))
    trim, edge = np.array(pick(rng, _TRIMS)), max(int(ppm * 0.1), 1)
    glass = np.array(pick(rng, (GLASS, (70, 80, 92), (24, 26, 30), (130, 145, 160))))
    shop = rng.random() < 0.4
    for floor in range(floors):
        top = int(h - (floor + 1) * fh)
        if floor == 0 and shop:
            t[top + int(fh * 0.3) : h - int(fh * 0.1)] = GLASS
            t[top : top + max(int(fh * 0.28), 1)] = pick(rng, _SHOPS)
            for x0 in range(0, w, max(int(cw), 2)):
                t[top:h, x0 : x0 + edge + 1] = trim
            continue
        y0 = top + int(fh * (1 - wh) * 0.45)
        y1 = y0 + max(int(fh * wh), 1)
        for column in range(columns):
            x0 = int(cw * column + cw * (1 - ww) / 2)
            x1 = x0 + max(int(cw * ww), 1)
            if floor == 0 and rng.random() < 0.2:  # a door
                t[y0:h, x0 : x0 + max((x1 - x0) * 2 // 3, 1)] = pick(rng, _SHOPS)
                continue
            t[max(y0 - edge, 0) : y1 + edge, max(x0 - edge, 0) : x1 + edge] = trim
            t[y0:y1, x0:x1] = np.minimum(glass * rng.uniform(0.6, 1.5), 255)
            t[(y0 + y1) // 2, x0:x1] = trim
            if ppm > 6:
                t[y0:y1, (x0 + x1) // 2] = trim
    return t


def paste_quad(
    canvas: Canvas, texture: Bytes, quad: npt.NDArray[np.float64], class_id: int
) -> None:
    """Warps a texture onto a quad in pixels [4,2], clockwise from the top left."""
    h, w = canvas.sizes
    low = np.maximum(np.floor(quad.min(0)), 0).astype(int)
    high = np.minimum(np.ceil(quad.max(0)) + 1, (w, h)).astype(int)
    size = high - low
    if size.min() < 1:
        return
    th, tw = texture.shape[:2]
    corners = np.array([(0, 0), (tw, 0), (tw, th), (0, th)], np.float32)
    m = cv2.getPerspectiveTransform(corners, (quad - low).astype(np.float32))
    view = canvas.image[low[1] : high[1], low[0] : high[0]]
    # The plain fill first gives anti-aliased edges; the warped texture covers the inside.
    r, g, b, _ = cv2.mean(texture)
    canvas.fill(quad, (r, g, b), class_id)
    warped = cv2.warpPerspective(texture, m, (int(size[0]), int(size[1])), flags=cv2.INTER_LINEAR,
                                 borderMode=cv2.BORDER_REPLICATE)  # fmt: skip
    inside = np.zeros(view.shape[:2], np.uint8)
    cv2.fillConvexPoly(inside, np.round(quad - low).astype(np.int32), 255)
    cv2.copyTo(warped, inside, view)


def draw_building(
    canvas: Canvas, rng: np.random.Generator, side: int, x: float, z0: float, z1: float
) -> None:
    """Draws a house along the street from z0 to z1, its facade in the plane side * x."""
    cam, gain = canvas.camera, canvas.left if side < 0 else canvas.right
    height = float(rng.choice([rng.uniform(3, 6), rng.uniform(6, 12), rng.uniform(10, 18)]))
    wall, depth, x = pick(rng, WALLS), float(rng.uniform(6, 12)), side * x
    roof = pick(rng, ((70, 66, 66), (96, 62, 50), (52, 54, 60), (110, 100, 90)))
    back, rise = x + side * depth, float(rng.choice([0, rng.uniform(1, 4)]))
    mid = (x + back) / 2
    if rise:
        canvas.fill_world([(x - side * 0.3, height, z0), (mid, height + rise, z0),
                           (mid, height + rise, z1), (x - side * 0.3, height, z1)],
                          canvas.tone(roof, (gain + 1) / 2, z0), BUILDING)  # fmt: skip
    end = [(x, 0, z0), (x, height, z0), (mid, height + rise, z0), (back, height, z0), (back, 0, z0)]
    canvas.fill_world(end, canvas.tone(wall, canvas.front, z0), BUILDING)
    for _ in range(int(rng.integers(3)) if rise else 0):  # chimneys
        cz, cx = float(rng.uniform(z0, z1)), mid
        top = height + rise + float(rng.uniform(0.4, 1.5))
        canvas.fill_world([(cx - 0.5, height + rise * 0.7, cz), (cx - 0.5, top, cz),
                           (cx + 0.5, top, cz), (cx + 0.5, height + rise * 0.7, cz)],
                          canvas.tone(wall, canvas.front, cz), BUILDING)  # fmt: skip
    z0 = max(z0, 0.85 * cam.focal * abs(x) / (canvas.sizes[1] * 0.65))  # what lies off the frame
    if z0 >= z1:
        return
    quad = cam.project([(x, height, z1), (x, height, z0), (x, 0, z0), (x, 0, z1)])
    if side > 0:
        quad = quad[[1, 0, 3, 2]]
    quad = quad[[1, 0, 3, 2]] if quad[0, 0] > quad[1, 0] else quad
    visible = np.clip(quad[:, 0], 0, canvas.sizes[1])
    if np.ptp(visible) < 1:
        return
    enough = (canvas.sizes[0] * canvas.sizes[1] * 0.4 / (height * (z1 - z0))) ** 0.5
    ppm = float(np.clip(0.9 * cam.focal / z0, 2.5, enough))
    texture = paint_facade(rng, z1 - z0, height, ppm, wall)
    z = (z0 + z1) / 2
    clear, dark = float(np.exp(-z * canvas.haze_per_m)), np.array(canvas.tone((0, 0, 0), 1.0, z))
    lut = np.minimum(np.arange(256) * gain, 255)[:, None] * clear + dark
    paste_quad(canvas, cv2.LUT(texture, lut[None].astype(np.uint8)), quad, BUILDING)


def _paste_soft(
    canvas: Canvas, x: int, y: int, colour: Bytes, alpha: Floats, solid: npt.NDArray[np.bool_]
) -> None:
    """Blend a patch uint8 [h,w,3] at (x, y) by alpha float32 [h,w]; Tree where solid [h,w]."""
    h, w = canvas.sizes
    y0, y1, x0, x1 = max(y, 0), min(y + alpha.shape[0], h), max(x, 0), min(x + alpha.shape[1], w)
    if y0 >= y1 or x0 >= x1:
        return
    cut = (slice(y0 - y, y1 - y), slice(x0 - x, x1 - x))
    view = canvas.image[y0:y1, x0:x1]
    a = np.ascontiguousarray(alpha[cut], np.float32)
    view[:] = cv2.blendLinear(np.ascontiguousarray(colour[cut]), view.copy(), a, 1 - a)
    canvas.label[y0:y1, x0:x1][solid[cut]] = TREE


def draw_foliage(
    canvas: Canvas, rng: np.random.Generator, box: tuple[float, float, float, float], z: float,
    bare: bool = False,
) -> None:  # fmt: skip
    """Draws a crown or a hedge in a pixel box (left, top, right, bottom); bare crowns are
    see-through.
    """
    x, y = int(np.floor(box[0])), int(np.floor(box[1]))
    w, h = max(int(box[2] - box[0]), 3), max(int(box[3] - box[1]), 3)
    if x >= canvas.sizes[1] or x + w <= 0 or y + h <= 0:
        return
    k = 2 if min(w, h) > 60 else 1  # the outline needs no full resolution
    yy, xx = np.ogrid[-1 : 1 : h * 1j, -1 : 1 : w * 1j]
    shape = 1 - 1.5 * (np.abs(xx) ** 2.4 + np.abs(yy) ** 2.4)  # below 0 at the box: no flat cuts
    rough = cv2.resize(crop_noise(rng, h // k + 1, w // k + 1), (w, h))
    fine = crop_noise(rng, h, w)
    grain = crop_noise(rng, h, w, white=True)
    body = shape.astype(np.float32) + 0.28 * rough + 0.14 * fine + 0.05 * grain
    slope = 0.12 * (canvas.right - canvas.left)
    ramp = (slope * xx - 0.2 * yy).astype(np.float32)
    lit = 0.95 + 0.14 * rough + 0.22 * fine + 0.2 * grain + ramp
    leaf = pick(rng, _LEAVES, 0.2) if not bare else pick(rng, ((92, 80, 70), (70, 62, 56)), 0.15)
    base = canvas.tone(leaf, (canvas.front + 1) / 2, z)
    colour = cv2.merge([cv2.convertScaleAbs(lit, alpha=c) for c in base])
    alpha = np.clip((body - 0.12) * 6, 0, 1)
    if bare:
        alpha = alpha * np.clip(0.38 + 0.25 * fine + 0.22 * grain, 0, 1)
    _paste_soft(canvas, x, y, colour, alpha, body > 0.2)


def draw_tree(canvas: Canvas, rng: np.random.Generator, x: float, z: float, bare: bool) -> None:
    """Draws a tree on a trunk, with leaves, or bare with branches against what stands behind it."""
    foot = canvas.camera.project([(x, 0.0, z)])[0]
    s = canvas.camera.focal / z
    height, spread = float(rng.uniform(4, 12)), float(rng.uniform(1.5, 3.8))
    fork = height * float(rng.uniform(0.2, 0.38))
    bark = canvas.tone(pick(rng, ((70, 60, 50), (50, 44, 40), (96, 88, 78))), canvas.front, z)
    r = float(rng.uniform(0.12, 0.3))
    trunk = np.array([(-r * 1.2, 0), (r * 1.2, 0), (r * 0.7, fork * 1.4), (-r * 0.7, fork * 1.4)])
    canvas.fill(foot + trunk * (s, -s), bark, TREE)
    wide, pad = spread * 1.15 * s, (height - fork) * 0.08 * s
    top, low = foot[1] - height * s - pad, foot[1] - fork * s + pad
    crown = (foot[0] - wide, top, foot[0] + wide, low)
    draw_foliage(canvas, rng, crown, z, bare)
    if not bare:
        return
    tips = [(0.0, fork * 0.9, np.pi / 2, height * 0.3, r * 1.3)]
    for _ in range(4):
        grown = []
        for bx, by, angle, length, width in tips:
            ex, ey = bx + np.cos(angle) * length, by + np.sin(angle) * length
            a, b = foot + np.array([bx, -by]) * s, foot + np.array([ex, -ey]) * s
            thick = max(1, round(width * s))
            if max(abs(a).max(), abs(b).max()) < 1e4:
                ends = [tuple(int(v * 16) for v in p) for p in (a, b)]
                cv2.line(canvas.image, ends[0], ends[1], bark, thick, cv2.LINE_AA, 4)
            for turn in rng.uniform(0.15, 0.7, 2) * (-1, 1):
                grown.append((ex, ey, angle + turn, length * 0.72, width * 0.6))
        tips = grown


def draw_fence(
    canvas: Canvas, rng: np.random.Generator, x: float, z0: float, z1: float, height: float
) -> None:
    """Draws railings (see-through, labelled as a whole) or boards along the street, z0 to z1."""
    paint = pick(rng, ((35, 36, 38), (110, 84, 60), (150, 140, 125), (60, 70, 60), (205, 203, 198)))
    gain = canvas.left if x < 0 else canvas.right
    solid = rng.random() < 0.45
    base = [(x, 0.0, z0), (x, height, z0), (x, height, z1), (x, 0.0, z1)]
    canvas.fill_world(base, canvas.tone(paint, gain * 0.85, z0) if solid else None, FENCE)
    step, z = float(rng.uniform(0.14, 0.3)) * (2 if solid else 1), z0
    ink = canvas.tone(paint, gain * (0.65 if solid else 1), (z0 + z1) / 2)
    while z < z1:
        wide = 0.03 if solid else 0.06
        canvas.fill_world([(x, 0, z), (x, height, z), (x, height, z + wide), (x, 0, z + wide)],
                          ink, None)  # fmt: skip
        z += step * max(1.0, z / 12)
    for y in (0.12, height - 0.08):
        canvas.fill_world([(x, y, z0), (x, y + 0.08, z0), (x, y + 0.08, z1), (x, y, z1)], ink, None)
