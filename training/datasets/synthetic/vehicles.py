"""Vehicles of a synthetic street: a side profile extruded to a body, seen from any angle."""

from collections.abc import Callable

import cv2
import numpy as np
import numpy.typing as npt

from training.datasets.synthetic.elements import CAR, GLASS, PAINTS, Canvas, Colour, pick

Profile = list[tuple[float, float]]
Fill = Callable[[Profile, float | list[float], Colour, float], None]

# (along the length 0 rear .. 1 front, height in metres): lower body, then the glazed upper part.
_SHAPES: dict[str, tuple[tuple[float, float], Profile, Profile]] = {
    "hatchback": (
        (3.9, 1.68),
        [(0, 0.35), (0.0, 0.85), (0.03, 0.98), (0.66, 0.98), (0.95, 0.78), (1, 0.6), (1, 0.3)],
        [(0.03, 0.95), (0.12, 1.42), (0.5, 1.48), (0.72, 0.95)],
    ),
    "saloon": (
        (4.5, 1.76),
        [(0, 0.35), (0, 0.92), (0.16, 1.0), (0.68, 0.96), (0.96, 0.76), (1, 0.6), (1, 0.3)],
        [(0.12, 0.97), (0.28, 1.38), (0.52, 1.43), (0.73, 0.93)],
    ),
    "estate": (
        (4.6, 1.8),
        [(0, 0.35), (0, 0.9), (0.02, 1.02), (0.7, 1.0), (0.96, 0.8), (1, 0.6), (1, 0.3)],
        [(0.02, 1.0), (0.06, 1.5), (0.55, 1.55), (0.75, 0.97)],
    ),
    "van": (
        (5.2, 1.95),
        [(0, 0.4), (0, 1.2), (0.8, 1.2), (0.97, 1.0), (1, 0.7), (1, 0.35)],
        [(0, 1.15), (0.01, 2.2), (0.7, 2.25), (0.86, 1.15)],
    ),
    "bus": (
        (9.5, 2.5),
        [(0, 0.4), (0, 1.3), (1, 1.3), (1, 0.4)],
        [(0, 1.25), (0.0, 3.0), (0.99, 3.0), (1, 1.25)],
    ),
}
_NAMES = ("hatchback", "saloon", "estate", "van", "bus")


def draw_vehicle(canvas: Canvas, rng: np.random.Generator, x: float, z: float, yaw: float) -> None:
    """Draws a vehicle centred at (x, z), its front turned by yaw from straight ahead (radians)."""
    kind = str(rng.choice(_NAMES, p=(0.38, 0.27, 0.21, 0.1, 0.04)))
    if kind == "bus" and z < 18:
        kind = "van" if z > 10 else "estate"  # nearer it would fill the frame
    (length, width), low, high = _SHAPES[kind]
    paint, gain = pick(rng, PAINTS), float(rng.uniform(0.8, 1.1))
    sin, cos = np.sin(yaw), np.cos(yaw)

    def place(points: Profile, across: float | list[float]) -> npt.NDArray[np.float64]:
        """Profile points at a distance across the car -> pixels [n,2]."""
        p = np.asarray(points, np.float64)
        u, v = (p[:, 0] - 0.5) * length, np.asarray(across) * (width / 2)
        world = np.empty((len(p), 3))
        world[:, 0], world[:, 1] = x + u * sin + v * cos, p[:, 1]
        world[:, 2] = z + u * cos - v * sin
        return canvas.camera.project(world)

    def fill(points: Profile, across: float | list[float], colour: Colour, k: float) -> None:
        canvas.fill(place(points, across), canvas.tone(colour, gain * k, z), None)

    def fill_hull(points: Profile, inset: float, colour: Colour, k: float) -> None:
        both = np.concatenate([place(points, -inset), place(points, inset)]).astype(np.float32)
        canvas.fill(cv2.convexHull(both)[:, 0], canvas.tone(colour, gain * k, z), CAR)

    ground = [(-0.03, 0.0), (1.03, 0.0), (1.03, 0.0), (-0.03, 0.0)]
    fill(ground, [-1.15, -1.15, 1.15, 1.15], (24, 24, 26), 1.0)  # shadow: the label stays Road
    fill_hull([(0.06, 0.05), (0.94, 0.05), (0.94, 0.5), (0.06, 0.5)], 0.95, (18, 18, 20), 1.0)
    fill_hull(high, 0.88, paint, 1.05)
    fill_hull(low, 1.0, paint, 1.0)
    side = 1.0 if (x * cos - z * sin) < 0 else -1.0
    facing = abs(x * cos - z * sin) > width / 2
    flank = canvas.front if abs(sin) > 0.7 else (canvas.right if x > 0 else canvas.left)
    if facing:
        fill(low, side, paint, 0.55 + 0.45 * flank)
        fill(high, [side * (0.98 if y < 1.3 else 0.88) for _, y in high], paint, 0.9)
        _fill_side_windows(fill, high, side, kind)
        angles = np.linspace(0, 2 * np.pi, 14, endpoint=False)
        for hub in (0.19, 0.8):
            for r, c in ((0.33, (16.0, 16.0, 17.0)), (0.19, (120.0, 122.0, 126.0))):
                wheel = [(hub + r * np.cos(a) / length, 0.33 + r * np.sin(a)) for a in angles]
                canvas.fill(place(wheel, side * 1.01), canvas.tone(c, gain, z), CAR)
    ahead = x * sin + z * cos  # distance of the camera behind the centre, along the car
    if abs(ahead) > length / 2:
        _fill_end(fill, rng, 0.0 if ahead > 0 else 1.0, low, high, paint, canvas.front)


def _fill_side_windows(fill: Fill, high: Profile, side: float, kind: str) -> None:
    (u0, y0), (u1, y1), (u2, y2), (u3, y3) = high
    if kind == "van":
        u0, u1 = 0.62, 0.62
    y0, y1, y2, y3 = y0 + 0.08, y1 - 0.09, y2 - 0.09, y3 + 0.08
    inset = [side * 0.97, side * 0.88, side * 0.88, side * 0.97]
    if kind == "bus":
        cuts = np.linspace(0.03, 0.97, 8)
    else:
        cuts = np.array([0.06, 0.48, 0.94]) if kind != "van" else np.array([0.05, 0.93])
    for a, b in zip(cuts[:-1], cuts[1:] - 0.02, strict=True):
        pane = [(u0 + (u3 - u0) * a, y0), (u1 + (u2 - u1) * a, y1),
                (u1 + (u2 - u1) * b, y2), (u0 + (u3 - u0) * b, y3)]  # fmt: skip
        fill(pane, inset, GLASS, 1.1)


def _fill_end(
    fill: Fill, rng: np.random.Generator, u: float, low: Profile, high: Profile, paint: Colour,
    light: float,
) -> None:  # fmt: skip
    """The rear (u = 0) or the front (u = 1): body, window, lamps, plate, bumper."""
    rear = u == 0.0
    belt = low[2][1] if rear else low[-3][1]
    foot, top = high[0 if rear else -1], high[1 if rear else 2]
    k = 0.5 + 0.5 * light
    fill([(u, 0.3), (u, belt), (u, belt), (u, 0.3)], [-1, -0.97, 0.97, 1], paint, k)
    glass = [foot, top, top, foot]
    fill(glass, [-0.95, -0.86, 0.86, 0.95], paint, k)
    lift = (top[0] - foot[0]) * 0.12
    pane = [(foot[0] + lift, foot[1] + 0.07), (top[0] - lift, top[1] - 0.09)]
    fill([pane[0], pane[1], pane[1], pane[0]], [-0.85, -0.76, 0.76, 0.85], GLASS, 1.2)
    bumper = pick(rng, (paint, (40, 40, 42)))
    fill([(u, 0.3), (u, 0.5), (u, 0.5), (u, 0.3)], [-1, -1, 1, 1], bumper, 0.7)
    lamp: Colour = (170, 20, 24) if rear else (225, 225, 220)
    for s in (-1.0, 1.0):
        y0, y1 = (belt - 0.32, belt - 0.06) if rear else (0.58, 0.72)
        across = [s * 0.95, s * 0.95, s * 0.68, s * 0.68]
        fill([(u, y0), (u, y1), (u, y1), (u, y0)], across, lamp, 1.0)
        fill([(u, 0.05), (u, 0.3), (u, 0.3), (u, 0.05)], across, (14, 14, 15), 1.0)  # a tyre
    if not rear:
        grille = [(u, 0.5), (u, 0.64), (u, 0.64), (u, 0.5)]
        fill(grille, [-0.55, -0.55, 0.55, 0.55], (22, 22, 24), 1.0)
    plate: Colour = (215, 180, 50) if rear and rng.random() < 0.6 else (225, 225, 222)
    y = 0.62 if rear else 0.42
    fill([(u, y), (u, y + 0.11), (u, y + 0.11), (u, y)], [-0.27, -0.27, 0.27, 0.27], plate, 1.0)
