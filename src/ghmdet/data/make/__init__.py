"""Data sets that are made: drawn from dials, or from another: thinned, with wrong labels, one part made two."""

from ghmdet.data.make.scene import SynthConfig
from ghmdet.data.make.split import split
from ghmdet.data.make.spoil import KINDS, spoil
from ghmdet.data.make.synth import synthesize
from ghmdet.data.make.thinning import thin

__all__ = ["KINDS", "SynthConfig", "split", "spoil", "synthesize", "thin"]
