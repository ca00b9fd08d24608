"""Whether up and down mean anything in pictures, asked of a detector that has only seen them upright."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from accelerate.utils import broadcast_object_list, gather_object

from ghmdet.data import DetectionData
from ghmdet.evaluation.score import score

LEARNT = 0.3
"""AP50 from which a detector's answer counts."""
CHANCE = 0.5
"""Of a flip, where up and down look alike."""
ALIKE = 0.95
"""What is left upside down of the AP50 of upright pictures, at least, where up and down look alike."""
PICTURES, BOXES = 64, 50  # looked at: at most, and in them at least


class Answer(NamedTuple):
    """The AP50 of the same pictures upright and upside down."""

    upright: float
    upside_down: float

    @property
    def vflip(self) -> float:
        """The chance of an upside-down flip that follows for training pictures."""
        return CHANCE if self.upside_down >= ALIKE * self.upright else 0.0

    def __str__(self) -> str:
        said = (
            f"upside down, validation pictures have AP50 {self.upside_down:.3f}, upright {self.upright:.3f}: "
        )
        if self.vflip:
            return said + "from now on half of the training pictures are turned so (--vflip 0: none)"
        return said + f"training pictures stay upright (--vflip {CHANCE} turns half of them)"


def ask(
    data: DetectionData,
    upright: list[Any],
    turned: Callable[[DetectionData], list[Any]],
    *,
    main: bool = True,
) -> Answer | None:
    """The answer of a detector, from pictures taken evenly from all; None if they hold too few boxes for one.

    upright: COCO results for all pictures. turned: gives this rank's share of those for a part of them, of detection
    upside down. main: whether this is rank 0, which compares.
    """
    step = -(-len(data.records) // PICTURES)
    part = replace(data, records=data.records.take(np.arange(0, len(data.records), step)))
    if sum(part.boxes_per_class().values()) < BOXES:
        return None
    found = upright, gather_object(turned(part))
    ids, truth = set(part.records.image_ids.tolist()), part.to_coco()
    results = [[one for one in each if one["image_id"] in ids] for each in found if main]
    answer = Answer(*(score(truth, each).AP50 or 0.0 for each in results)) if main else None
    told: Answer = broadcast_object_list([answer])[0]
    return told
