"""Gradient-harmonized one-stage object detection."""

from ghmdet import functional
from ghmdet.losses import GHMC, GHMR
from ghmdet.spectrum import GradientSpectrum

__all__ = ["GHMC", "GHMR", "GradientSpectrum", "functional"]
