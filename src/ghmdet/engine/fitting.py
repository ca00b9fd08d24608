"""Settings that were left open, chosen from the training pictures: each rule a few lines, said aloud."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from ghmdet.data import DetectionData
from ghmdet.engine.settings import TrainConfig

STEPS = 800
"""Optimizer steps of a run: playing cards want as many, blood cells gain nothing after 500 (docs/training.md)."""
FEWEST, MOST = 12, 300
"""Epochs, whatever the number of pictures."""


def fit_to_data(config: TrainConfig, train: DetectionData, say: Callable[[str], None] = print) -> TrainConfig:
    """The settings with a value for each that was left open; says which, and the option that overrides it.

    config: what was asked for. train: the training pictures. say: takes each line meant for the user.
    """
    if config.epochs is None and not config.budget:
        pictures = len(train.records)
        config = replace(config, epochs=epochs_for(pictures, config.batch_size * config.accumulate))
        say(f"{config.epochs} epochs, for {pictures} training pictures (--epochs or --budget gives another)")
    return config


def epochs_for(pictures: int, pictures_a_step: int) -> int:
    """The epochs that make `STEPS` optimizer steps, but at least `FEWEST` and at most `MOST`.

    >>> epochs_for(205, 16), epochs_for(521, 16), epochs_for(10**6, 16), epochs_for(3, 16)
    (67, 25, 12, 300)
    """
    steps = max(1, pictures // pictures_a_step)
    return min(MOST, max(FEWEST, math.ceil(STEPS / steps)))
