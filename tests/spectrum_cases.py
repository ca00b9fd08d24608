"""Random predictions, each as a plain example for the naive formulas, and their spectrum."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

import naive
from ghmdet.spectrum import SpectrumCounts, SpectrumSums

CLASSES, STRIDES, LEVELS = ("a", "b", "c"), (8, 16), (90, 30)


def count_batch(
    logits, labels, differences, levels=LEVELS, classes=CLASSES, strides=STRIDES
) -> SpectrumCounts:
    """The spectrum of one batch."""
    sums = SpectrumSums(classes, strides, logits.device)
    sums.add(logits, labels, differences, levels)
    sums.check()
    return sums.counts()


class Example(NamedTuple):
    g: float
    kind: int
    label: int
    level: int
    logit: float


class Coordinate(NamedTuple):
    d: float
    gr: float
    label: int
    level: int


class Case(NamedTuple):
    spectrum: SpectrumCounts
    examples: list[Example]
    coordinates: list[Coordinate]


def make_case(seed: int = 0, pictures: int = 2, absent: tuple[int, ...] = (), ignored: bool = True) -> Case:
    """Mostly easy background; no object of the `absent` classes."""
    random = torch.Generator().manual_seed(seed)
    anchors, classes = sum(LEVELS), len(CLASSES)
    labels = torch.full((pictures, anchors), classes)
    drawn = torch.rand(labels.shape, generator=random)
    for k in range(classes):
        if k not in absent:
            labels[(drawn > 0.1 * k) & (drawn < 0.1 * k + 0.08 / (k + 1))] = k
    if ignored:
        labels[drawn > 0.97] = -1
    wanted = torch.nn.functional.one_hot(labels.clamp(min=0), classes + 1)[..., :-1]
    logits = torch.randn(pictures, anchors, classes, generator=random) * 2 - 3 + 3 * wanted
    differences = torch.randn(pictures, anchors, 4, generator=random) * 0.05
    examples, coordinates = [], []
    for b in range(pictures):
        for a in range(anchors):
            label, level = int(labels[b, a]), int(a >= LEVELS[0])
            if label < 0:
                continue
            for k in range(classes):
                logit, kind = float(logits[b, a, k]), int(label == k)
                g = naive.gradient_norm(1 / (1 + math.exp(-logit)), kind)
                examples.append(Example(g, kind, k, level, logit))
            if label < classes:
                coordinates += [
                    Coordinate(d, naive.asl1_gradient_norm(d, 0.02), label, level)
                    for d in differences[b, a].tolist()
                ]
    return Case(count_batch(logits, labels, differences), examples, coordinates)


def added(one: SpectrumCounts, other: SpectrumCounts) -> SpectrumCounts:
    """The counts of both."""
    names = ("pictures", "examples", "gradient", "boxes", "box_gradient")
    return SpectrumCounts(one.classes, one.strides, *(getattr(one, k) + getattr(other, k) for k in names))
