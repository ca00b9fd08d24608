"""Six vehicles seen from above, composed of polygons: the objects of the synthetic scenes."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Points = npt.NDArray[np.float64]
Colour = tuple[int, int, int]


class Part(NamedTuple):
    """A polygon [n, 2] in units of the vehicle's length, x forwards, and what it is made of."""

    points: Points
    material: str


class Vehicle(NamedTuple):
    """A class of objects: its length in car lengths and the function that draws one of its kind."""

    length: float
    parts: Callable[[np.random.Generator], list[Part]]


MATERIALS: dict[str, Colour] = {
    "glass": (38, 48, 60),
    "tyre": (28, 28, 30),
    "light": (250, 240, 190),
    "brake": (190, 40, 35),
    "metal": (150, 155, 160),
    "skin": (214, 170, 135),
}
PAINTS: tuple[Colour, ...] = (
    (200, 45, 42),
    (38, 84, 165),
    (235, 235, 232),
    (60, 62, 68),
    (150, 156, 162),
    (46, 120, 84),
    (222, 120, 40),
    (120, 170, 205),
    (105, 60, 120),
)
GOLD: Colour = (232, 190, 58)


def _box(x0: float, x1: float, half: float, y: float = 0.0) -> Points:
    return np.array([(x0, y - half), (x1, y - half), (x1, y + half), (x0, y + half)])


def _rounded(x0: float, x1: float, half: float, corner: float, y: float = 0.0) -> Points:
    c, d = corner, corner * 0.3
    quarter = [(x1 - c, half), (x1 - d, half - d), (x1, half - c)]
    right = quarter + [(x, -v) for x, v in reversed(quarter)]
    left = [(x0 + x1 - x, -v) for x, v in right]
    outline: Points = np.array(right + left) + np.array((0, y))
    return outline


def _oval(x: float, y: float, a: float, b: float, corners: int = 14) -> Points:
    t = np.linspace(0, 2 * np.pi, corners, endpoint=False)
    return np.stack([x + a * np.cos(t), y + b * np.sin(t)], axis=1)


def _car(rng: np.random.Generator) -> list[Part]:
    half, front, back = rng.uniform(0.2, 0.24), rng.uniform(0.12, 0.22), rng.uniform(-0.36, -0.24)
    glass = half * 0.82
    parts = [Part(_box(x - 0.07, x + 0.07, 0.03, y * half), "tyre") for x in (0.3, -0.3) for y in (-1, 1)]
    parts += [
        Part(_rounded(-0.5, 0.5, half, 0.12), "paint"),
        Part(_rounded(back - 0.08, front + 0.1, glass, 0.06), "glass"),
        Part(_rounded(back, front, half * 0.74, 0.05), "roof"),
    ]
    if rng.random() < 0.3:
        parts.append(Part(_box(back + 0.08, back + 0.2, half * 0.5), "glass"))
    parts += [Part(_box(0.45, 0.49, 0.035, y * half * 0.7), "light") for y in (-1, 1)]
    return parts + [Part(_box(-0.5, -0.47, 0.04, y * half * 0.7), "brake") for y in (-1, 1)]


def _bus(rng: np.random.Generator) -> list[Part]:
    half = rng.uniform(0.125, 0.15)
    parts = [
        Part(_rounded(-0.5, 0.5, half, 0.04), "paint"),
        Part(_box(0.42, 0.47, half * 0.85), "glass"),
        Part(_box(-0.48, 0.4, half * 0.8), "roof"),
    ]
    hatches = np.linspace(-0.36, 0.28, int(rng.integers(2, 5)))
    parts += [Part(_box(x - 0.035, x + 0.035, half * 0.35), "metal") for x in hatches]
    if rng.random() < 0.5:
        parts.append(Part(_box(-0.48, 0.4, half * 0.08, half * 0.6), "stripe"))
    parts += [Part(_box(0.34, 0.4, 0.018, y * (half + 0.012)), "tyre") for y in (-1, 1)]
    return parts + [Part(_box(0.48, 0.5, 0.02, y * half * 0.7), "light") for y in (-1, 1)]


def _bicycle(rng: np.random.Generator) -> list[Part]:
    turn = rng.uniform(-0.06, 0.06)
    parts = [
        Part(_oval(-0.33, 0, 0.17, 0.03), "tyre"),
        Part(_oval(0.33, turn, 0.17, 0.03), "tyre"),
        Part(_box(-0.3, 0.3, 0.022), "paint"),
        Part(_box(0.17, 0.21, 0.2, turn), "metal"),
    ]
    if rng.random() < 0.7:  # a rider: arms, shoulders, head
        parts += [
            Part(np.array([(0.0, 0.13 * y), (0.2, 0.17 * y), (0.2, 0.12 * y), (0.02, 0.06 * y)]), "skin")
            for y in (-1, 1)
        ]
        parts += [Part(_oval(-0.02, 0, 0.09, 0.17), "stripe"), Part(_oval(0.03, 0, 0.075, 0.07), "roof")]
    else:
        parts.append(Part(_oval(-0.14, 0, 0.09, 0.045), "tyre"))
    return parts


def _truck(rng: np.random.Generator) -> list[Part]:
    half, gap = rng.uniform(0.14, 0.17), rng.uniform(0.2, 0.26)
    parts = [
        Part(_box(-0.46, 0.4, half * 0.4), "tyre"),
        Part(_rounded(gap + 0.03, 0.5, half * 0.92, 0.04), "paint"),
        Part(_box(0.4, 0.45, half * 0.78), "glass"),
    ]
    if rng.random() < 0.6:  # a closed box, ribbed
        parts.append(Part(_box(-0.5, gap, half), "stripe"))
        parts += [Part(_box(x, x + 0.015, half * 0.92), "metal") for x in np.linspace(-0.44, gap - 0.07, 6)]
    else:  # an open bed with its load
        parts += [Part(_box(-0.5, gap, half), "paint"), Part(_box(-0.47, gap - 0.03, half * 0.82), "tyre")]
        parts += [
            Part(_oval(x, rng.uniform(-0.04, 0.04), 0.1, half * 0.6, 9), "metal")
            for x in np.linspace(-0.35, gap - 0.14, 3)
        ]
    return parts + [Part(_box(0.48, 0.5, 0.025, y * half * 0.65), "light") for y in (-1, 1)]


def _tractor(rng: np.random.Generator) -> list[Part]:
    half = rng.uniform(0.26, 0.32)
    parts = [Part(_rounded(-0.5, -0.02, 0.075, 0.04, y * half), "tyre") for y in (-1, 1)]
    parts += [Part(_rounded(0.22, 0.46, 0.045, 0.02, y * half * 0.75), "tyre") for y in (-1, 1)]
    return [
        *parts,
        Part(_box(-0.3, -0.2, half), "metal"),
        Part(_box(0.31, 0.36, half * 0.7), "metal"),
        Part(_rounded(-0.1, 0.5, 0.12, 0.05), "paint"),
        Part(_rounded(-0.42, 0.04, half * 0.62, 0.05), "glass"),
        Part(_rounded(-0.38, -0.02, half * 0.52, 0.05), "roof"),
        Part(_oval(0.25, 0.07, 0.03, 0.03, 8), "tyre"),
    ]


def _helicopter(rng: np.random.Generator) -> list[Part]:
    parts = [
        Part(np.array([(-0.1, -0.06), (-0.5, -0.02), (-0.5, 0.02), (-0.1, 0.06)]), "paint"),
        Part(_box(-0.5, -0.43, 0.1), "stripe"),
        Part(_oval(0.1, 0, 0.26, 0.14), "paint"),
        Part(_oval(0.25, 0, 0.1, 0.1), "glass"),
    ]
    blades, start = int(rng.integers(2, 5)), rng.uniform(0, np.pi)
    for angle in start + np.arange(blades) * 2 * np.pi / blades:
        along = np.array((np.cos(angle), np.sin(angle)))
        across = 0.018 * np.array((-along[1], along[0]))
        blade = np.array([across, 0.4 * along + across, 0.4 * along - across, -across])
        parts.append(Part(blade + np.array((0.08, 0)), "tyre"))
    return [*parts, Part(_oval(0.08, 0, 0.045, 0.045, 8), "metal")]


VEHICLES: dict[str, Vehicle] = {
    "car": Vehicle(1.0, _car),
    "bus": Vehicle(2.1, _bus),
    "bicycle": Vehicle(0.72, _bicycle),
    "truck": Vehicle(1.7, _truck),
    "tractor": Vehicle(1.0, _tractor),
    "helicopter": Vehicle(1.7, _helicopter),
}
