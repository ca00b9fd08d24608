"""Data sets that are made: drawn from dials, thinned from another, or one part of another made two."""

from __future__ import annotations

from ghmdet.data.make.scene import SynthConfig
from ghmdet.data.make.split import split
from ghmdet.data.make.synth import synthesize
from ghmdet.data.make.thinning import thin

__all__ = ["SynthConfig", "split", "synthesize", "thin"]
