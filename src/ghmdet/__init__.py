"""Gradient-harmonized one-stage object detection.

The losses are here at the price of importing torch; `Detector` brings the rest when it is asked for.
"""

from typing import TYPE_CHECKING, Any

from ghmdet import clock as clock  # before torch, whose import takes seconds
from ghmdet import functional
from ghmdet.losses import GHMC, GHMR
from ghmdet.spectrum import GradientSpectrum

if TYPE_CHECKING:
    from ghmdet.engine.predict import Detector

__all__ = ["GHMC", "GHMR", "Detector", "GradientSpectrum", "functional"]


def __getattr__(name: str) -> Any:
    if name == "Detector":
        from ghmdet.engine.predict import Detector

        return Detector
    raise AttributeError(f"module 'ghmdet' has no attribute '{name}'")
