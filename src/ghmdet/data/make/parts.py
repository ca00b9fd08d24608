"""What a scene is made of, seen from above: vehicles, clutter and trees as tables of coloured polygons."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]
Colour = tuple[int, ...]  # RGB or RGBA


class Part(NamedTuple):
    """A polygon [n, 2] in units of the thing's length, x forwards, of a colour or of a material that has one."""

    colour: str | Colour
    points: Points


LENGTHS = {"car": 1.0, "bus": 2.1, "bicycle": 0.72, "truck": 1.7, "tractor": 1.0, "helicopter": 1.7}
"""The classes of objects, and their lengths in car lengths."""
CLUTTER = ("container", "crate", "umbrella", "manhole", "puddle", "bush", "bench", "arrow")
"""Things that are no objects: the closer to a vehicle one looks, the more a detector must know."""
MATERIALS: dict[str, Colour] = {
    "glass": (38, 48, 60),
    "tyre": (28, 28, 30),
    "light": (250, 240, 190),
    "brake": (190, 40, 35),
    "metal": (150, 155, 160),
    "skin": (214, 170, 135),
    "wood": (140, 104, 62),
    "shade": (0, 0, 0, 70),
}  # those of each thing's own: paint, roof, stripe; cover, dark cover


def place(points: Points, centre: Points | float, angle: float, scale: float) -> Points:
    """Points [n, 2] turned by an angle in radians, scaled and moved."""
    c, s = np.cos(angle), np.sin(angle)
    placed: Points = points @ np.array(((c, s), (-s, c))) * scale + centre
    return placed


def box(x0: float, x1: float, half: float, y: float = 0.0) -> Points:
    """A rectangle from x0 to x1, and `half` to both sides of y."""
    return np.array([(x0, y - half), (x1, y - half), (x1, y + half), (x0, y + half)])


def _rounded(x0: float, x1: float, half: float, corner: float, y: float = 0.0) -> Points:
    c, d = corner, corner * 0.3
    quarter = [(x1 - c, half), (x1 - d, half - d), (x1, half - c)]
    right = quarter + [(x, -v) for x, v in reversed(quarter)]
    return np.array([(px, py + y) for px, py in right + [(x0 + x1 - x, -v) for x, v in right]])


def _oval(a: float, b: float, corners: int = 14, x: float = 0.0, y: float = 0.0) -> Points:
    t = np.linspace(0, 2 * np.pi, corners, endpoint=False)
    return np.stack([x + a * np.cos(t), y + b * np.sin(t)], axis=1)


def _twins(colour: str, points: Points) -> Iterator[Part]:
    yield from (Part(colour, points * (1, side)) for side in (-1, 1))


def vehicle(name: str, rng: np.random.Generator) -> Iterator[Part]:
    """The parts of an object of one of the classes, about one unit long; `rng` decides its proportions."""
    if name == "car":
        half, front, back = rng.uniform(0.2, 0.24), rng.uniform(0.12, 0.22), rng.uniform(-0.36, -0.24)
        yield from _twins("tyre", box(0.3 - 0.07, 0.3 + 0.07, 0.03, half))
        yield from _twins("tyre", box(-0.3 - 0.07, -0.3 + 0.07, 0.03, half))
        yield Part("paint", _rounded(-0.5, 0.5, half, 0.12))
        yield Part("glass", _rounded(back - 0.08, front + 0.1, half * 0.82, 0.06))
        yield Part("roof", _rounded(back, front, half * 0.74, 0.05))
        if rng.random() < 0.3:
            yield Part("glass", box(back + 0.08, back + 0.2, half * 0.5))
        yield from _twins("light", box(0.45, 0.49, 0.035, half * 0.7))
        yield from _twins("brake", box(-0.5, -0.47, 0.04, half * 0.7))
    elif name == "bus":
        half = rng.uniform(0.125, 0.15)
        yield Part("paint", _rounded(-0.5, 0.5, half, 0.04))
        yield Part("glass", box(0.42, 0.47, half * 0.85))
        yield Part("roof", box(-0.48, 0.4, half * 0.8))
        for x in np.linspace(-0.36, 0.28, int(rng.integers(2, 5))):
            yield Part("metal", box(x - 0.035, x + 0.035, half * 0.35))
        if rng.random() < 0.5:
            yield Part("stripe", box(-0.48, 0.4, half * 0.08, half * 0.6))
        yield from _twins("tyre", box(0.34, 0.4, 0.018, half + 0.012))
        yield from _twins("light", box(0.48, 0.5, 0.02, half * 0.7))
    elif name == "bicycle":
        turn = rng.uniform(-0.06, 0.06)
        yield Part("tyre", _oval(0.17, 0.03, x=-0.33))
        yield Part("tyre", _oval(0.17, 0.03, x=0.33, y=turn))
        yield Part("paint", box(-0.3, 0.3, 0.022))
        yield Part("metal", box(0.17, 0.21, 0.2, turn))
        if rng.random() < 0.7:  # a rider: arms, shoulders, head
            yield from _twins("skin", np.array([(0.0, 0.13), (0.2, 0.17), (0.2, 0.12), (0.02, 0.06)]))
            yield Part("stripe", _oval(0.09, 0.17, x=-0.02))
            yield Part("roof", _oval(0.075, 0.07, x=0.03))
        else:
            yield Part("tyre", _oval(0.09, 0.045, x=-0.14))
    elif name == "truck":
        half, gap = rng.uniform(0.14, 0.17), rng.uniform(0.2, 0.26)
        yield Part("tyre", box(-0.46, 0.4, half * 0.4))
        yield Part("paint", _rounded(gap + 0.03, 0.5, half * 0.92, 0.04))
        yield Part("glass", box(0.4, 0.45, half * 0.78))
        if rng.random() < 0.6:  # a closed box, ribbed
            yield Part("stripe", box(-0.5, gap, half))
            for x in np.linspace(-0.44, gap - 0.07, 6):
                yield Part("metal", box(x, x + 0.015, half * 0.92))
        else:  # an open bed with its load
            yield Part("paint", box(-0.5, gap, half))
            yield Part("tyre", box(-0.47, gap - 0.03, half * 0.82))
            for x in np.linspace(-0.35, gap - 0.14, 3):
                yield Part("metal", _oval(0.1, half * 0.6, 9, x, rng.uniform(-0.04, 0.04)))
        yield from _twins("light", box(0.48, 0.5, 0.025, half * 0.65))
    elif name == "tractor":
        half = rng.uniform(0.26, 0.32)
        yield from _twins("tyre", _rounded(-0.5, -0.02, 0.075, 0.04, half))
        yield from _twins("tyre", _rounded(0.22, 0.46, 0.045, 0.02, half * 0.75))
        yield Part("metal", box(-0.3, -0.2, half))
        yield Part("metal", box(0.31, 0.36, half * 0.7))
        yield Part("paint", _rounded(-0.1, 0.5, 0.12, 0.05))
        yield Part("glass", _rounded(-0.42, 0.04, half * 0.62, 0.05))
        yield Part("roof", _rounded(-0.38, -0.02, half * 0.52, 0.05))
        yield Part("tyre", _oval(0.03, 0.03, 8, 0.25, 0.07))
    else:  # a helicopter
        yield Part("paint", np.array([(-0.1, -0.06), (-0.5, -0.02), (-0.5, 0.02), (-0.1, 0.06)]))
        yield Part("stripe", box(-0.5, -0.43, 0.1))
        yield Part("paint", _oval(0.26, 0.14, x=0.1))
        yield Part("glass", _oval(0.1, 0.1, x=0.25))
        blades, start = int(rng.integers(2, 5)), rng.uniform(0, np.pi)
        for angle in start + np.arange(blades) * 2 * np.pi / blades:
            yield Part("tyre", place(box(0, 0.4, 0.018), np.array((0.08, 0)), angle, 1))
        yield Part("metal", _oval(0.045, 0.045, 8, 0.08))


def clutter(name: str, rng: np.random.Generator) -> Iterator[Part]:
    """The parts of something that is no object, one of CLUTTER."""
    if name == "container":  # as long and as coloured as a bus, without its windows
        half = 0.5 * rng.uniform(1.6, 2.6)
        yield Part("shade", box(-half, half, 0.375) + 0.08)
        yield Part("cover", box(-half, half, 0.375))
        for x in np.linspace(-0.8, 0.8, 7):
            yield Part("dark cover", box(x - 0.025, x + 0.025, 0.35))
    elif name == "crate":
        yield Part("shade", box(-0.5, 0.5, 0.5) + 0.06)
        yield Part("wood", box(-0.5, 0.5, 0.5))
        yield Part((176, 136, 84), box(-0.4, 0.4, 0.4))
        yield Part("wood", place(box(-0.55, 0.55, 0.06), 0, np.pi / 4, 1))
    elif name == "umbrella":
        rim = _oval(1, 1, 8) * 0.6
        yield Part("shade", rim + 0.1)
        for i in range(8):
            wedge = np.array([(0.0, 0.0), rim[i], rim[(i + 1) % 8]])
            yield Part("cover" if i % 2 else (240, 236, 226), wedge)
    elif name == "manhole":
        for radius, grey in ((0.32, 60), (0.26, 96), (0.1, 60)):
            yield Part((grey, grey, grey), _oval(radius, radius))
    elif name == "puddle":
        yield Part((70, 90, 118, 130), _oval(1, 1, 16) * rng.uniform(0.5, 1.0, (16, 1)))
    elif name == "bench":
        for y in (-0.18, 0.0, 0.18):
            yield Part((130, 92, 56), box(-0.5, 0.5, 0.065, y))
    elif name == "arrow":
        corners = [(-0.7, -0.06), (0.2, -0.06), (0.2, -0.2), (0.6, 0), (0.2, 0.2), (0.2, 0.06), (-0.7, 0.06)]
        yield Part((228, 226, 212, 200), np.array(corners))
    else:  # a bush or a tree: leaves in shades of one green
        green = np.array((70, 110, 52)) * rng.uniform(0.75, 1.25) + rng.normal(0, 8, 3)
        yield Part((0, 0, 0, 60), _oval(0.95, 0.95, 12) + 0.2)
        for i in range(9):
            spot = rng.uniform(-0.45, 0.45, 2) if i else 0.0
            size = rng.uniform(0.3, 0.5) if i else 0.9
            leaf = tuple(np.clip(green * rng.uniform(0.8, 1.25), 0, 255).astype(int).tolist())
            shape = _oval(1, 1, 9) * rng.uniform(0.8, 1.1, (9, 1))
            yield Part(leaf, place(shape, spot, rng.uniform(0, 6), size))
