"""Gradient-harmonized one-stage object detection.

A name is imported when it is first used: the losses bring torch and nothing heavier, `Detector` the rest.
"""

import time
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ghmdet import functional as functional
    from ghmdet.engine.detect import Detector
    from ghmdet.functional import RegionCounts
    from ghmdet.losses import GHMC, GHMR, SoftmaxGHMC
    from ghmdet.spectrum import GradientSpectrum
    from ghmdet.watching import watch

STARTED_AT = time.monotonic()
"""When this process began, as near as Python can tell: what takes time is imported later."""
__all__ = [
    "GHMC",
    "GHMR",
    "Detector",
    "GradientSpectrum",
    "RegionCounts",
    "SoftmaxGHMC",
    "functional",
    "watch",
]

_HOMES = {
    "Detector": "engine.detect",
    "GHMC": "losses",
    "GHMR": "losses",
    "GradientSpectrum": "spectrum",
    "RegionCounts": "functional",
    "SoftmaxGHMC": "losses",
    "watch": "watching",
}


def __getattr__(name: str) -> Any:
    if name == "functional":
        return import_module("ghmdet.functional")
    if name in _HOMES:
        return getattr(import_module(f"ghmdet.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'ghmdet' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
