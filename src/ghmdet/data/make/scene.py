"""One synthetic scene from above: textured ground, roads, clutter, vehicles, trees over them, light and noise."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from ghmdet.data.make.parts import (
    CLUTTER,
    LENGTHS,
    MATERIALS,
    Colour,
    Part,
    Points,
    box,
    clutter,
    place,
    vehicle,
)
from ghmdet.errors import Range, check_ranges

SCALE = 2  # drawn at twice the size and averaged down: smooth edges
GROUNDS = np.array([(104, 106, 110), (98, 126, 72), (168, 160, 148), (190, 172, 136)])  # from asphalt to sand
PAINTS = np.array(
    list(bytes.fromhex("c82d2a 2654a5 ebebe8 3c3e44 969ca2 2e7854 de7828 78aacd 693c78"))
).reshape(-1, 3)
GOLD = (232, 190, 58)
MOST_OVERLAP, LEAST_INSIDE, LEAST_SIDE = 0.3, 0.55, 4.0  # shares of a box's area, and pixels
TRIES = 20  # places that are tried for a vehicle

CLASSES = tuple(LENGTHS)

Place = tuple[Points, float, float]  # where a thing lies: its centre, its heading in radians, its length


@dataclass(frozen=True, kw_only=True)
class SynthConfig:
    """The dials of a synthetic data set.

    Raises:
        GhmdetError: a dial out of its range, named with the range.
    """

    images: Annotated[int, Range(2, 1_000_000)] = 240
    """Pictures in all, both splits."""
    seed: Annotated[int, Range(0, 2**63 - 1)] = 0
    """Picture i of a split depends on it, on i and on the dials of the scene, not on the count of pictures."""
    size: Annotated[tuple[int, int], Range(64, 4096)] = (320, 240)
    """Width and height of a picture in pixels."""
    classes: Annotated[int, Range(1, len(CLASSES))] = 3
    """The first so many of car, bus, bicycle, truck, tractor, helicopter."""
    class_imbalance: Annotated[float, Range(1.0, 100.0)] = 3.0
    """How many times rarer each class is than the one before it; 1 is balanced."""
    foreground: Annotated[float, Range(0.0, 200.0)] = 4.0
    """Mean count of objects in a picture (Poisson: some pictures have none)."""
    object_size: Annotated[float, Range(0.02, 0.45)] = 0.18
    """Mean length of a car, as a share of the picture's shorter side."""
    clutter: Annotated[float, Range(0.0, 1000.0)] = 12.0
    """Mean count of things in a picture that are no objects."""
    hard_share: Annotated[float, Range(0.0, 1.0)] = 0.1
    """Share of objects of unusual look: golden, striped or camouflaged, and oddly proportioned."""
    occluded_share: Annotated[float, Range(0.0, 1.0)] = 0.2
    """Share of objects with a tree over one corner."""
    wrong_label_share: Annotated[float, Range(0.0, 1.0)] = 0.0
    """Share of the train split's objects that are labelled wrongly, recorded in wrong_labels.json."""
    val_share: Annotated[float, Range(0.0, 0.9)] = 0.25
    """Share of the pictures that go to the val split; 0 makes none."""

    def __post_init__(self) -> None:
        check_ranges(self)

    def frequencies(self) -> dict[str, float]:
        """The share of each class among the objects; they sum to 1."""
        weights = {name: self.class_imbalance**-k for k, name in enumerate(CLASSES[: self.classes])}
        return {name: weight / math.fsum(weights.values()) for name, weight in weights.items()}


class Thing(NamedTuple):
    """An object as it lies in the picture: class name, box x1 y1 x2 y2 in pixels, whether its look is unusual."""

    name: str
    box: tuple[float, ...]
    hard: bool


def draw_scene(config: SynthConfig, rng: np.random.Generator) -> tuple[Image.Image, list[Thing]]:
    """A picture of the config's size and the objects in it, the whole decided by `rng`."""
    scene = _Scene(config, rng)
    scene.add_roads()
    for _ in range(rng.poisson(config.clutter)):
        scene.add_clutter()
    shares = config.frequencies()
    for _ in range(rng.poisson(config.foreground)):
        scene.add_vehicle(list(shares)[int(rng.choice(len(shares), p=list(shares.values())))])
    scene.add_trees()
    return _develop(scene.canvas, rng), scene.things


class _Scene:
    """A canvas and the objects on it so far; `unit` is a car's length in pixels, `heading` that of the roads."""

    def __init__(self, config: SynthConfig, rng: np.random.Generator) -> None:
        self.config, self.rng, self.size = config, rng, np.array(config.size)
        self.things: list[Thing] = []
        self.ground, self.canvas = _ground(config, rng)
        self.pencil = ImageDraw.Draw(self.canvas, "RGBA")
        self.unit = config.object_size * min(config.size) * rng.uniform(0.8, 1.25)
        self.heading = rng.uniform(0, 2 * np.pi)

    def _draw(self, parts: Iterable[Part], at: Place, colours: Mapping[str, Colour] = MATERIALS) -> None:
        for part in parts:
            colour = colours[part.colour] if isinstance(part.colour, str) else part.colour
            edge = _shade(colour, 0.65) if part.colour in ("paint", "stripe") else None
            corners = place(part.points, *at) * SCALE
            self.pencil.polygon(corners.ravel().tolist(), fill=colour, outline=edge)

    def add_roads(self) -> None:
        rng, unit, reach = self.rng, self.unit, float(sum(self.config.size))
        for turn in (0.0, np.pi / 2)[: int(rng.integers(0, 3))]:
            centre = rng.uniform((0.15, 0.15), (0.85, 0.85)) * self.size
            half, grey = unit * rng.uniform(0.6, 1.0), int(rng.integers(70, 105))
            kerb, asphalt = box(-reach, reach, half * 1.15), box(-reach, reach, half)
            dash = box(-unit * 0.25, unit * 0.25, unit * 0.03)
            road = [Part((196, 190, 178), kerb), Part((grey, grey, grey + 4), asphalt)]
            road += [
                Part((225, 222, 205, 220), dash + np.array((x, 0))) for x in np.arange(-reach, reach, unit)
            ]
            self._draw(road, (centre, self.heading + turn, 1))

    def add_clutter(self) -> None:
        rng = self.rng
        centre, size = rng.uniform((0, 0), self.size), self.unit * rng.uniform(0.25, 0.8)
        angle = self.heading + rng.choice((0.0, np.pi / 2)) + rng.normal(0, 0.2)
        paint = _shade(rng.choice(PAINTS), rng.uniform(0.75, 1.05))
        colours = {**MATERIALS, "cover": paint, "dark cover": _shade(paint, 0.8)}
        kind = rng.choice(CLUTTER)
        if kind == "bush":
            angle, size = 0.0, size * 0.5
        self._draw(clutter(kind, rng), (centre, angle, size), colours)

    def add_vehicle(self, name: str) -> None:
        """Draws a vehicle where it neither hides nor is hidden much; nothing where no such place is found."""
        rng, hard = self.rng, bool(self.rng.random() < self.config.hard_share)
        length = LENGTHS[name] * self.unit * rng.uniform(0.85, 1.15)
        parts = list(vehicle(name, rng))
        if hard:  # unusual proportions as well as paint
            stretch = np.array((1.0, rng.choice((0.78, 1.3))))
            parts = [part._replace(points=part.points * stretch) for part in parts]
        starts = np.concatenate([part.points for part in parts])
        ends = np.concatenate([np.roll(part.points, -1, axis=0) for part in parts])
        for _ in range(TRIES):
            aligned = self.heading + rng.choice((0, 0.5, 1, 1.5)) * np.pi + rng.normal(0, 0.1)
            angle = aligned if rng.random() < 0.6 else rng.uniform(0, 2 * np.pi)
            at = (rng.uniform((0, 0), self.size), angle, length)
            seen = _visible_box(place(starts, *at), place(ends, *at), self.size)
            if seen and all(_overlap(seen, other.box) <= MOST_OVERLAP for other in self.things):
                colours = _materials(rng, hard, self.ground)
                shadow = at[0] + 0.06 * self.unit * np.array((1.0, 0.8))
                self._draw((Part((0, 0, 0, 40), part.points) for part in parts), (shadow, *at[1:]))
                self._draw(parts, at, colours)
                self.things.append(Thing(name, seen, hard))
                return

    def add_trees(self) -> None:
        rng = self.rng
        for thing in self.things:  # a crown over one corner hides a fifth or so
            if rng.random() < self.config.occluded_share:
                x0, y0, x1, y1 = thing.box
                corner = np.array((rng.choice((x0, x1)), rng.choice((y0, y1))))
                radius = 0.42 * min(x1 - x0, y1 - y0) + 0.1 * self.unit
                self._draw(clutter("tree", rng), (corner, 0, radius))
        for _ in range(rng.poisson(self.config.clutter / 6)):
            centre, radius = rng.uniform((0, 0), self.size), self.unit * rng.uniform(0.3, 0.7)
            around = (*(centre - radius * 1.3), *(centre + radius * 1.3))
            if not any(_overlap(around, thing.box) > 0 for thing in self.things):
                self._draw(clutter("tree", rng), (centre, 0, radius))


def _ground(config: SynthConfig, rng: np.random.Generator) -> tuple[Colour, Image.Image]:
    """The ground's colour, and a canvas of it with patches of several sizes."""
    base, (width, height) = GROUNDS[int(rng.integers(len(GROUNDS)))], config.size
    total = np.zeros((height, width), dtype=np.float32)
    for cell, strength in ((48, 11.0), (9, 7.0), (3, 5.0)):
        grid = rng.normal(0, strength, (height // cell + 2, width // cell + 2)).astype(np.float32)
        total += np.asarray(Image.fromarray(grid).resize((width, height), Image.Resampling.BICUBIC))
    colour = np.clip(base + rng.normal(0, 8, 3) + rng.uniform(-18, 18), 0, 255).astype(int)
    pixels = np.clip(colour.astype(np.float32) + total[..., None], 0, 255).astype(np.uint8)
    canvas = Image.fromarray(pixels).resize((width * SCALE, height * SCALE), Image.Resampling.BILINEAR)
    return tuple(colour.tolist()), canvas


def _materials(rng: np.random.Generator, hard: bool, ground: Colour) -> dict[str, Colour]:
    """Each material's colour; an unusual vehicle's windows are painted over: golden, striped or the ground's own."""
    paint, second = (tuple(colour) for colour in PAINTS[rng.permutation(len(PAINTS))[:2]].tolist())
    paint = _shade(paint, rng.uniform(0.85, 1.1))
    if not hard:
        return {**MATERIALS, "paint": paint, "roof": _shade(paint, 1.12), "stripe": second}
    look = rng.choice(("golden", "golden", "striped", "camouflaged"))
    camouflage = _shade(ground, rng.uniform(0.85, 1.15))
    dress = {"golden": GOLD, "striped": paint, "camouflaged": camouflage}[look]
    other = second if look == "striped" else _shade(dress, 0.88)
    covered = {"paint": dress, "roof": _shade(dress, 1.1), "stripe": other, "glass": other, "metal": dress}
    return {**MATERIALS, **covered}


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


def _shade(colour: Colour, by: float) -> Colour:
    return tuple(min(255, int(c * by)) for c in colour)


def _visible_box(starts: Points, ends: Points, size: Points) -> tuple[float, ...] | None:
    """The box of what the picture shows of these edges [n, 2]; None where it shows too little of them."""
    # Liang and Barsky: the part t of each edge, in 0..1, that lies between both pairs of sides
    along = ends - starts
    along = np.where(np.abs(along) < 1e-9, 1e-9, along)
    t = np.sort(np.stack([-starts / along, (size - starts) / along]), axis=0)
    enter, leave = np.clip(t[0].max(axis=1), 0, None), np.clip(t[1].min(axis=1), None, 1)
    seen = enter < leave
    if not seen.any():
        return None
    cut = np.concatenate([(starts + w[:, None] * along)[seen] for w in (enter, leave)])
    low, high, whole = cut.min(axis=0), cut.max(axis=0), np.ptp(starts, axis=0).prod()
    sides = high - low
    if sides.min() < LEAST_SIDE or sides.prod() < LEAST_INSIDE * whole:
        return None
    return tuple(round(float(v), 1) for v in (*np.maximum(low, 0), *np.minimum(high, size)))


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    """The share of the smaller box that both cover."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    smaller = min((a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1]))
    return max(width, 0.0) * max(height, 0.0) / smaller
