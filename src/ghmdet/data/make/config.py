"""The dials of a synthetic data set."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Any

from ghmdet.data.make.parts import LENGTHS
from ghmdet.errors import GhmdetError

CLASSES = tuple(LENGTHS)


def _dial(default: Any, low: float, high: float) -> Any:
    return field(default=default, metadata={"range": (low, high)})


@dataclass(frozen=True, kw_only=True)
class SynthConfig:
    """The dials of a synthetic data set.

    Raises:
        GhmdetError: a dial out of its range, named with the range.
    """

    images: int = _dial(240, 2, 1_000_000)
    """Pictures in all, both splits."""
    seed: int = _dial(0, 0, 2**63 - 1)
    """Picture i of a split depends on it, on i and on the dials of the scene, not on the count of pictures."""
    size: tuple[int, int] = (320, 240)
    """Width and height of a picture in pixels."""
    classes: int = _dial(3, 1, len(CLASSES))
    """The first so many of car, bus, bicycle, truck, tractor, helicopter."""
    class_imbalance: float = _dial(3.0, 1, 100)
    """How many times rarer each class is than the one before it; 1 is balanced."""
    foreground: float = _dial(4.0, 0, 200)
    """Mean count of objects in a picture (Poisson: some pictures have none)."""
    object_size: float = _dial(0.18, 0.02, 0.45)
    """Mean length of a car, as a share of the picture's shorter side."""
    clutter: float = _dial(12.0, 0, 1000)
    """Mean count of things in a picture that are no objects."""
    hard_share: float = _dial(0.1, 0, 1)
    """Share of objects of unusual look: golden, striped or camouflaged, and oddly proportioned."""
    occluded_share: float = _dial(0.2, 0, 1)
    """Share of objects with a tree over one corner."""
    wrong_label_share: float = _dial(0.0, 0, 1)
    """Share of the train split's objects that are labelled wrongly, recorded in wrong_labels.json."""
    val_share: float = _dial(0.25, 0, 0.9)
    """Share of the pictures that go to the val split; 0 makes none."""

    def __post_init__(self) -> None:
        for dial in (dial for dial in fields(self) if "range" in dial.metadata):
            value, (low, high) = getattr(self, dial.name), dial.metadata["range"]
            whole = isinstance(dial.default, int)
            if not (isinstance(value, int if whole else (int, float)) and low <= value <= high):  # NaN is not
                kind = "whole number" if whole else "number"
                raise GhmdetError(f"{dial.name} is {value!r}: give a {kind} from {low} to {high}")
        if len(self.size) != 2 or not all(isinstance(side, int) and 64 <= side <= 4096 for side in self.size):
            raise GhmdetError(f"size is {self.size!r}: give width and height in pixels, 64 to 4096 each")

    def frequencies(self) -> dict[str, float]:
        """The share of each class among the objects; they sum to 1."""
        weights = {name: self.class_imbalance**-k for k, name in enumerate(CLASSES[: self.classes])}
        return {name: weight / math.fsum(weights.values()) for name, weight in weights.items()}
