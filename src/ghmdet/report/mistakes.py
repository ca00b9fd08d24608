"""What a detector gets wrong, in plain words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ghmdet.evaluation.findings import ErrorKind
from ghmdet.evaluation.hardest import NOTHING, OTHER, UNSEEN

_ERRORS = {
    "wrong class": "objects that are given a wrong class",
    "badly located": "badly located boxes",
    "wrong class and badly located": "boxes that are badly located and of a wrong class",
    "duplicate": "second detections of the same object",
    "background": "detections where there is no object",
    "missed": "missed objects",
}


def said_of_hardest(totals: Mapping[str, int], objects: int) -> list[str]:
    """On the hard examples, of which `totals` says how many there are by kind, among so many labelled objects."""
    said = [
        f"{totals[kind]:,} {'detections' if totals[kind] > 1 else 'detection'} with a score of .5 or more"
        f" {'lie' if totals[kind] > 1 else 'lies'} {where}."
        for kind, where in (
            (NOTHING, "where nothing is labelled: look for missing labels"),
            (OTHER, "on what is labelled as another class: it mistakes them, or the labels are wrong"),
        )
        if totals[kind]
    ]
    if not said:
        said.append("No detection with a score of .5 or more lies where nothing of its class is labelled.")
    if totals[UNSEEN]:
        said.append(
            f"Of {objects:,} labelled objects it does not see {totals[UNSEEN]:,}: their class scores at most .5 there."
        )
    elif objects:
        said.append(f"It sees all {objects:,} labelled objects, with a score above .5.")
    return said


def said_of_errors(AP50: float | None, errors: Sequence[ErrorKind]) -> list[str]:
    """On the kind of error that costs most of AP50; nothing where none costs a tenth of a point."""
    worst = max(errors, key=lambda one: one["AP50_lost"])
    if AP50 is None or worst["AP50_lost"] < 0.001:
        return []
    return [
        f"AP50 is {100 * AP50:.0f} of 100 points; the costliest mistakes are {_ERRORS[worst['kind']]}:"
        f" {100 * worst['AP50_lost']:.1f} points."
    ]
