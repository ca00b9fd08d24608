"""Paired differences of average precision, with intervals over the judged images and the seeds of training."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from ghmdet.evaluation.matching import ClassMatches
from ghmdet.evaluation.tables import Floats

LEVEL = 0.95
RECALLS = np.linspace(0, 1, 101)  # where COCO reads precision
DRAWS_PER_RESAMPLE = 20  # Student's t has long tails: their quantiles need more draws than the images'
AT_ONCE = 4_000_000  # numbers in a table that is worked on


class Interval(NamedTuple):
    """A mean, its 95 % interval, and the probability that what it estimates is above zero."""

    mean: float
    low: float
    high: float
    probability_better: float


def resamples(images: int, times: int, seed: int = 0) -> Floats:
    """How often each image is there, [1 + times, images]: once, then as drawn with replacement."""
    random = np.random.default_rng(seed)
    drawn = random.multinomial(images, np.full(images, 1 / images), size=times)
    return np.concatenate([np.ones((1, images)), drawn])


def average_precision(matches: Mapping[str, ClassMatches], counts: Floats) -> Floats:
    """COCO's average precision of multisets of images, [R, classes, 10 IoU thresholds] in 0..1.

    Args:
        matches: what `ghmdet.evaluation.matching.matches` gives, of all images.
        counts: [R, images], how often each image is in each of R multisets; ones give COCO's own AP.

    Returns:
        NaN where a multiset has no box of a class to find.
    """
    found = []
    for one in matches.values():
        rows = max(1, AT_ONCE // max(1, len(one.image)))
        parts = [_class_precision(one, counts[i : i + rows]) for i in range(0, len(counts), rows)]
        found.append(np.concatenate(parts))
    return np.stack(found, axis=1)


def _class_precision(matches: ClassMatches, counts: Floats) -> Floats:
    """Average precision of one class, [R, 10]."""
    boxes = counts @ matches.boxes  # [R]
    weight = counts[:, matches.image]  # [R, n]
    any_ignored = bool(matches.ignored.any())
    found_so_far = weight.cumsum(axis=1)
    precisions = np.zeros((len(counts), len(matches.hit)))
    for place, (hit, ignored) in enumerate(zip(matches.hit, matches.ignored, strict=True)):
        if any_ignored:
            found_so_far = (weight * ~ignored).cumsum(axis=1)
        # Precision falls between hits and recall rises only there: the hits say everything.
        at = np.flatnonzero(hit & ~ignored)
        hits = weight[:, at].cumsum(axis=1)
        precision = hits / np.maximum(found_so_far[:, at], 1)
        envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        recall = hits / np.maximum(boxes, 1)[:, None]
        reached = np.searchsorted(RECALLS, recall, side="right")  # how many of the 101 recalls so far
        read_here = np.diff(reached, axis=1, prepend=0)
        precisions[:, place] = (read_here * envelope).sum(axis=1) / len(RECALLS)
    precisions[boxes == 0] = np.nan
    return precisions


def over_classes(by_class: Floats) -> Floats:
    """The mean over the last axis of what is defined there (not NaN); NaN where nothing is."""
    defined = ~np.isnan(by_class)
    total = np.where(defined, by_class, 0).sum(axis=-1)
    return np.where(defined.any(axis=-1), total / np.maximum(defined.sum(axis=-1), 1), np.nan)


def interval(numbers: Floats, seed: int = 0) -> Interval:
    """The mean over seeds with a 95 % interval for new images and new seeds.

    Two independent causes of error are added. The images': the bootstrap, the resampled numbers around their own mean.
    The seeds': of S seeds with standard deviation s, s/√S times Student's t with S - 1 degrees of freedom. A bootstrap
    over three seeds would be far too narrow: its variance is (S - 1)/S of the right one, and it does not know how
    uncertain s is. With one seed the second part is missing: the interval is over images only.

    Args:
        numbers: [1 + R, S], one of each seed, or the paired difference of two arms: on the images as they are, then
            on R resamples, the same ones for every seed and arm.
        seed: of the draws.
    """
    values, mean, seeds = numbers[0], float(numbers[0].mean()), numbers.shape[1]
    images = numbers[1:].mean(axis=1)
    images = images[~np.isnan(images)]
    draws = np.repeat(images - images.mean(), DRAWS_PER_RESAMPLE) + mean
    if seeds > 1:
        student = np.random.default_rng(seed).standard_t(seeds - 1, size=len(draws))
        draws = draws + values.std(ddof=1) / np.sqrt(seeds) * student
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    above = float((draws > 0).mean() + (draws == 0).mean() / 2)
    return Interval(mean, float(low), float(high), above)
