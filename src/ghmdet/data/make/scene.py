"""One synthetic scene from above: textured ground, clutter, vehicles, trees over them, light and noise."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from ghmdet.data.make.vehicles import GOLD, MATERIALS, PAINTS, VEHICLES, Colour, Points

SCALE = 2  # drawn at twice the size and averaged down: smooth edges
GROUNDS: dict[str, Colour] = {
    "asphalt": (104, 106, 110),
    "meadow": (98, 126, 72),
    "paving": (168, 160, 148),
    "sand": (190, 172, 136),
}
_MOST_OVERLAP, _LEAST_INSIDE, _LEAST_SIDE = 0.3, 0.55, 4.0
_TRIES = 20


class Thing(NamedTuple):
    """An object as it lies in the picture: class name, box xyxy in pixels, whether its look is unusual."""

    name: str
    box: tuple[float, float, float, float]
    hard: bool


class Dials(NamedTuple):
    """What a scene is drawn from: the classes' frequencies (summing to 1) and the mean counts and shares."""

    width: int
    height: int
    frequencies: dict[str, float]
    foreground: float
    object_size: float
    clutter: float
    hard_share: float
    occluded_share: float


def draw_scene(dials: Dials, rng: np.random.Generator) -> tuple[Image.Image, list[Thing]]:
    """A picture of dials.width × dials.height pixels and the objects in it, the whole decided by `rng`."""
    base, canvas = _ground(dials, rng)
    draw = ImageDraw.Draw(canvas, "RGBA")
    unit = dials.object_size * min(dials.width, dials.height) * rng.uniform(0.8, 1.25)
    heading = rng.uniform(0, 2 * np.pi)
    _roads(draw, dials, rng, unit, heading)
    for _ in range(rng.poisson(dials.clutter)):
        centre = rng.uniform((0, 0), (dials.width, dials.height))
        _clutter(draw, rng, centre, unit * rng.uniform(0.25, 0.8), heading)
    things: list[Thing] = []
    names, shares = list(dials.frequencies), list(dials.frequencies.values())
    for _ in range(rng.poisson(dials.foreground)):
        name = names[int(rng.choice(len(names), p=shares))]
        thing = _vehicle(draw, dials, rng, name, unit, heading, [t.box for t in things], base)
        if thing:
            things.append(thing)
    _trees(draw, dials, rng, things, unit)
    return _develop(canvas, rng), things


def _ground(dials: Dials, rng: np.random.Generator) -> tuple[Colour, Image.Image]:
    """The ground's colour, and a canvas of it with patches of several sizes."""
    base = GROUNDS[list(GROUNDS)[int(rng.integers(len(GROUNDS)))]]
    size = (dials.width * SCALE, dials.height * SCALE)
    total = np.zeros((dials.height, dials.width), dtype=np.float32)
    for cell, strength in ((48, 11.0), (9, 7.0), (3, 5.0)):
        grid = rng.normal(0, strength, (dials.height // cell + 2, dials.width // cell + 2)).astype(np.float32)
        total += np.asarray(
            Image.fromarray(grid).resize((dials.width, dials.height), Image.Resampling.BICUBIC)
        )
    r, g, b = (int(c) for c in np.clip(base + rng.normal(0, 8, 3) + rng.uniform(-18, 18), 0, 255))
    pixels = np.clip(np.array((r, g, b), dtype=np.float32) + total[..., None], 0, 255).astype(np.uint8)
    return (r, g, b), Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR)


def _roads(
    draw: ImageDraw.ImageDraw, dials: Dials, rng: np.random.Generator, unit: float, heading: float
) -> None:
    reach = float(dials.width + dials.height)
    for turn in (0.0, np.pi / 2)[: int(rng.integers(0, 3))]:
        centre = rng.uniform((0.15, 0.15), (0.85, 0.85)) * (dials.width, dials.height)
        half, grey = unit * rng.uniform(0.6, 1.0), int(rng.integers(70, 105))
        _polygon(draw, _strip(reach, half * 1.15), centre, heading + turn, 1, (196, 190, 178, 255))
        _polygon(draw, _strip(reach, half), centre, heading + turn, 1, (grey, grey, grey + 4, 255))
        for x in np.arange(-reach, reach, unit):
            dash = _strip(unit * 0.25, unit * 0.03) + np.array((x, 0))
            _polygon(draw, dash, centre, heading + turn, 1, (225, 222, 205, 220))


def _strip(half_length: float, half_width: float) -> Points:
    return np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * (half_length, half_width)


def _clutter(
    draw: ImageDraw.ImageDraw, rng: np.random.Generator, centre: Points, size: float, heading: float
) -> None:
    """Something that is no object: the closer to a vehicle it looks, the more a detector must know."""
    angle = heading + rng.choice((0.0, np.pi / 2)) + rng.normal(0, 0.2)
    paint = _shade(PAINTS[int(rng.integers(len(PAINTS)))], rng.uniform(0.75, 1.05))
    kind = rng.choice(("container", "crate", "umbrella", "manhole", "puddle", "bush", "bench", "arrow"))
    square = np.array([(-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5)])
    if kind == "container":  # as long and as coloured as a bus, without its windows
        shape = square * (rng.uniform(1.6, 2.6), 0.75)
        _polygon(draw, shape + 0.08, centre, angle, size, (0, 0, 0, 70))
        _polygon(draw, shape, centre, angle, size, (*paint, 255))
        for x in np.linspace(-0.8, 0.8, 7):
            _polygon(draw, square * (0.05, 0.7) + (x, 0), centre, angle, size, (*_shade(paint, 0.8), 255))
    elif kind == "crate":
        _polygon(draw, square + 0.06, centre, angle, size, (0, 0, 0, 70))
        for scale, wood in ((1.0, (140, 104, 62)), (0.8, (176, 136, 84))):
            _polygon(draw, square * scale, centre, angle, size, (*wood, 255))
        _polygon(draw, square * (1.1, 0.12), centre, angle + np.pi / 4, size, (140, 104, 62, 255))
    elif kind == "umbrella":
        rim = _circle(8)
        _polygon(draw, rim * 0.6 + 0.1, centre, angle, size, (0, 0, 0, 70))
        for i in range(8):
            wedge = np.array([(0.0, 0.0), rim[i] * 0.6, rim[(i + 1) % 8] * 0.6])
            _polygon(draw, wedge, centre, angle, size, (*(paint if i % 2 else (240, 236, 226)), 255))
    elif kind == "manhole":
        for radius, grey in ((0.32, 60), (0.26, 96), (0.1, 60)):
            _polygon(draw, _circle(14) * radius, centre, angle, size, (grey, grey, grey, 255))
    elif kind == "puddle":
        blob = _circle(16) * rng.uniform(0.5, 1.0, (16, 1))
        _polygon(draw, blob, centre, angle, size, (70, 90, 118, 130))
    elif kind == "bush":
        _crown(draw, rng, centre, size * 0.5)
    elif kind == "bench":
        for y in (-0.18, 0.0, 0.18):
            _polygon(draw, square * (1.0, 0.13) + (0, y), centre, angle, size, (130, 92, 56, 255))
    else:
        arrow = [(-0.7, -0.06), (0.2, -0.06), (0.2, -0.2), (0.6, 0), (0.2, 0.2), (0.2, 0.06), (-0.7, 0.06)]
        _polygon(draw, np.array(arrow), centre, angle, size, (228, 226, 212, 200))


def _vehicle(
    draw: ImageDraw.ImageDraw,
    dials: Dials,
    rng: np.random.Generator,
    name: str,
    unit: float,
    heading: float,
    taken: list[tuple[float, float, float, float]],
    ground: Colour,
) -> Thing | None:
    """Draws a vehicle where it neither hides nor is hidden much; None where no such place was found."""
    hard = bool(rng.random() < dials.hard_share)
    length = VEHICLES[name].length * unit * rng.uniform(0.85, 1.15)
    parts = VEHICLES[name].parts(rng)
    if hard:  # unusual proportions as well as paint
        stretch = np.array((1.0, rng.choice((0.78, 1.3))))
        parts = [part._replace(points=part.points * stretch) for part in parts]
    starts = np.concatenate([part.points for part in parts])
    ends = np.concatenate([np.roll(part.points, -1, axis=0) for part in parts])
    for _ in range(_TRIES):
        aligned = heading + rng.choice((0, 0.5, 1, 1.5)) * np.pi + rng.normal(0, 0.1)
        angle = aligned if rng.random() < 0.6 else rng.uniform(0, 2 * np.pi)
        centre = rng.uniform((0, 0), (dials.width, dials.height))
        at = (centre, angle, length)
        box = _visible_box(_place(starts, *at), _place(ends, *at), dials)
        if box and all(_overlap(box, other) <= _MOST_OVERLAP for other in taken):
            break
    else:
        return None
    colours = _materials(rng, hard, ground)
    shadow = 0.06 * unit * np.array((1.0, 0.8))
    for part in parts:
        _polygon(draw, part.points, centre + shadow, angle, length, (0, 0, 0, 40))
    for part in parts:
        colour = colours[part.material]
        edge = _shade(colour, 0.65) if part.material in ("paint", "stripe") else None
        _polygon(draw, part.points, centre, angle, length, (*colour, 255), edge)
    return Thing(name, box, hard)


def _materials(rng: np.random.Generator, hard: bool, ground: Colour) -> dict[str, Colour]:
    """Each material's colour; an unusual vehicle's windows are painted over: golden, striped or the ground's own."""
    paint, second = (PAINTS[i] for i in rng.permutation(len(PAINTS))[:2])
    paint = _shade(paint, rng.uniform(0.85, 1.1))
    colours = {**MATERIALS, "paint": paint, "roof": _shade(paint, 1.12), "stripe": second}
    if hard:
        look = rng.choice(("golden", "golden", "striped", "camouflaged"))
        dress = {"golden": GOLD, "striped": paint, "camouflaged": _shade(ground, rng.uniform(0.85, 1.15))}[
            look
        ]
        other = second if look == "striped" else _shade(dress, 0.88)
        colours |= {
            "paint": dress,
            "roof": _shade(dress, 1.1),
            "stripe": other,
            "glass": other,
            "metal": dress,
        }
    return colours


def _trees(
    draw: ImageDraw.ImageDraw, dials: Dials, rng: np.random.Generator, things: list[Thing], unit: float
) -> None:
    for thing in things:  # a crown over one corner hides a fifth or so
        if rng.random() < dials.occluded_share:
            x0, y0, x1, y1 = thing.box
            corner = np.array((rng.choice((x0, x1)), rng.choice((y0, y1))))
            _crown(draw, rng, corner, 0.42 * min(x1 - x0, y1 - y0) + 0.1 * unit)
    for _ in range(rng.poisson(dials.clutter / 6)):
        centre, radius = rng.uniform((0, 0), (dials.width, dials.height)), unit * rng.uniform(0.3, 0.7)
        around = (*(centre - radius * 1.3), *(centre + radius * 1.3))
        if not any(_overlap(around, thing.box) > 0 for thing in things):
            _crown(draw, rng, centre, radius)


def _crown(draw: ImageDraw.ImageDraw, rng: np.random.Generator, centre: Points, radius: float) -> None:
    green = np.array((70, 110, 52)) * rng.uniform(0.75, 1.25) + rng.normal(0, 8, 3)
    _polygon(draw, _circle(12) * 0.95, centre + radius * 0.2, 0, radius, (0, 0, 0, 60))
    for i in range(9):
        spot = centre + (rng.uniform(-0.45, 0.45, 2) * radius if i else 0)
        size = radius * (rng.uniform(0.3, 0.5) if i else 0.9)
        leaf = tuple(np.clip(green * rng.uniform(0.8, 1.25), 0, 255).astype(int).tolist())
        _polygon(
            draw, _circle(9) * rng.uniform(0.8, 1.1, (9, 1)), spot, rng.uniform(0, 6), size, (*leaf, 255)
        )


def _develop(canvas: Image.Image, rng: np.random.Generator) -> Image.Image:
    """The canvas averaged down, under uneven light, with a colour cast and the sensor's noise."""
    pixels = np.asarray(canvas.reduce(SCALE), dtype=np.float32)
    height, width, _ = pixels.shape
    slope = rng.uniform(-0.25, 0.25, 2)
    light = 1 + slope[0] * np.linspace(-1, 1, width)[None] + slope[1] * np.linspace(-1, 1, height)[:, None]
    cast = rng.uniform(0.65, 1.15) * rng.uniform(0.94, 1.06, 3)
    pixels = pixels * light[..., None].astype(np.float32) * cast.astype(np.float32)
    pixels += rng.standard_normal(pixels.shape, dtype=np.float32) * np.float32(rng.uniform(2, 9))
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def _place(points: Points, centre: Points, angle: float, scale: float) -> Points:
    c, s = np.cos(angle), np.sin(angle)
    return points @ np.array(((c, s), (-s, c))) * scale + centre


def _polygon(
    draw: ImageDraw.ImageDraw,
    points: Points,
    centre: Points,
    angle: float,
    scale: float,
    fill: tuple[int, ...],
    edge: Colour | None = None,
) -> None:
    draw.polygon((_place(points, centre, angle, scale) * SCALE).ravel().tolist(), fill=fill, outline=edge)


def _circle(corners: int) -> Points:
    t = np.linspace(0, 2 * np.pi, corners, endpoint=False)
    return np.stack([np.cos(t), np.sin(t)], axis=1)


def _shade(colour: Colour, by: float) -> Colour:
    r, g, b = (min(255, int(c * by)) for c in colour)
    return r, g, b


def _visible_box(starts: Points, ends: Points, dials: Dials) -> tuple[float, float, float, float] | None:
    """The box of what the picture shows of these edges [n, 2]; None where it shows too little of them."""
    size = np.array((dials.width, dials.height), dtype=float)
    low, high = starts.min(axis=0), starts.max(axis=0)
    whole = (high - low).prod()
    if (low < 0).any() or (high > size).any():
        # Liang and Barsky: the part t of each edge, in 0..1, that lies between both pairs of sides
        along = ends - starts
        along = np.where(np.abs(along) < 1e-9, 1e-9, along)
        t = np.sort(np.stack([-starts / along, (size - starts) / along]), axis=0)
        enter, leave = np.clip(t[0].max(axis=1), 0, None), np.clip(t[1].min(axis=1), None, 1)
        seen = enter < leave
        if not seen.any():
            return None
        cut = np.concatenate([(starts + w[:, None] * along)[seen] for w in (enter, leave)])
        low, high = cut.min(axis=0), cut.max(axis=0)
    sides = high - low
    if sides.min() < _LEAST_SIDE or sides.prod() < _LEAST_INSIDE * whole:
        return None
    x0, y0, x1, y1 = (round(float(v), 1) for v in (*np.maximum(low, 0), *np.minimum(high, size)))
    return x0, y0, x1, y1


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    """The share of the smaller box that both cover."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    smaller = min((a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1]))
    return max(width, 0.0) * max(height, 0.0) / smaller
