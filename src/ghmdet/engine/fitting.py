"""Settings that were left open, chosen from the training pictures: each rule a few lines, said aloud."""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from ghmdet.data import DetectionData
from ghmdet.data.records import Records
from ghmdet.engine.settings import TrainConfig
from ghmdet.models import ModelConfig
from ghmdet.words import many

STEPS = 1600
"""Optimizer steps of a run: playing cards want as many, blood cells half of them (docs/training.md)."""
FEWEST, MOST = 12, 300
"""Epochs, whatever the number of pictures."""
SMALL = 16
"""Pixels in training, of a box's side: two cells of the finest level; boxes below it gain most by larger pictures."""
LARGER, LARGEST = 5 / 3, 1333
"""How much larger than the preset's pictures may become (2.8 times the work), and their longest side in pixels."""


def fit_to_data(config: TrainConfig, train: DetectionData, say: Callable[[str], None] = print) -> TrainConfig:
    """The settings with a value for each that was left open; says which, and the option that overrides it.

    config: what was asked for. train: the training pictures. say: takes each line meant for the user.
    """
    if config.epochs is None and not config.budget:
        pictures = len(train.records)
        config = replace(config, epochs=epochs_for(pictures, config.batch_size * config.accumulate))
        say(
            f"{many(config.epochs or 0, 'epoch')}, for {many(pictures, 'training picture')} (--epochs gives another)"
        )
    if config.size is None and not config.budget:
        usual = config.network().max_size
        size = size_for(train.records, config.network())
        config = replace(config, size=size)
        if size > usual:
            say(
                f"pictures of {size} pixels, not {usual}, where a quarter of the boxes or more would have sides under"
                f" {SMALL} pixels: a step takes {(size / usual) ** 2:.1f} times as long (--size gives another)"
            )
    return config


def epochs_for(pictures: int, pictures_a_step: int) -> int:
    """The epochs that make `STEPS` optimizer steps, but at least `FEWEST` and at most `MOST`.

    >>> epochs_for(205, 8), epochs_for(521, 8), epochs_for(10**6, 8), epochs_for(3, 8)
    (64, 25, 12, 300)
    """
    steps = max(1, pictures // pictures_a_step)
    return min(MOST, max(FEWEST, math.ceil(STEPS / steps)))


def size_for(records: Records, network: ModelConfig) -> int:
    """Longest side in pixels at which three quarters of the boxes have sides of at least `SMALL` pixels.

    The side of a box is the square root of its area. The pictures become at most `LARGER` than the preset's, never
    larger than they are, and never smaller than the preset's.

    records: the training pictures. network: what the preset says.
    """
    short, long = records.sizes.min(1), records.sizes.max(1)
    scale = np.minimum(network.min_size / short, network.max_size / long)
    corners = records.boxes[~records.crowd].astype(np.float64)
    if not len(corners):
        return network.max_size
    sides = (
        np.sqrt((corners[:, 2:] - corners[:, :2]).prod(1))
        * np.repeat(scale, np.diff(records.offsets))[~records.crowd]
    )
    own = 1 / float(np.median(scale))
    size = network.max_size * min(SMALL / float(np.quantile(sides, 0.25)), own, LARGER)
    return max(network.max_size, min(LARGEST, 32 * int(size / 32)))
