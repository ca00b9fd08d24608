"""Data sets that are made: drawn from dials, or thinned from another."""

from __future__ import annotations

from ghmdet.data.make.scene import SynthConfig
from ghmdet.data.make.synth import synthesize
from ghmdet.data.make.thinning import thin

__all__ = ["SynthConfig", "synthesize", "thin"]
