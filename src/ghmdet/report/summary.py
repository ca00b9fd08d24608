"""What a spectrum and the findings say, in numbers and in sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ghmdet.evaluation.findings import ErrorKind
from ghmdet.evaluation.hardest import NOTHING, OTHER, UNSEEN
from ghmdet.evaluation.score import ScoreUse
from ghmdet.report.reweighting import GUARDED, PLAIN, PUBLISHED, gradient_shares
from ghmdet.spectrum import BACKGROUND, MU, OBJECTS, REGIONS, Floats, Ints, SpectrumCounts

WRONG = REGIONS - 1  # the last region of g, where the detector is nearly certain, and wrong
FAR_OFF = 27  # the region of gr from which a coordinate is off by twice μ or more


class Summary(NamedTuple):
    """Figures by name, ready for JSON, and what they mean, a sentence each."""

    figures: dict[str, Any]
    sentences: list[str]


def summarize(spectrum: SpectrumCounts, scores: ScoreUse | None = None) -> Summary:
    """The last epoch of a spectrum in figures and sentences; `scores`: those of the detections, if there are any."""
    examples, gradient = spectrum.examples[-1], spectrum.gradient[-1]  # [2, K, L, M]
    boxes = spectrum.boxes[-1].sum(axis=(0, 1))
    shares = {loss: float(rows[OBJECTS].sum()) for loss, rows in gradient_shares(spectrum).items()}
    figures = {
        "pictures": int(spectrum.pictures[-1]),
        "examples": _kinds(examples.sum(axis=(1, 2, 3))),
        "share_of_gradient": {
            "regions_of_g": _shares(gradient.sum(axis=(0, 1, 2))),
            "objects_by_loss": shares,
        },
        "few_with_most": few_with_most(spectrum),
        "all_but_certainly_wrong": _kinds(examples[..., WRONG].sum(axis=(1, 2))),
        "classes": _split(spectrum.classes, examples.sum(axis=(2, 3)), gradient.sum(axis=(0, 2, 3))),
        "levels": _split(spectrum.strides, examples.sum(axis=(1, 3)), gradient.sum(axis=(0, 1, 3))),
        "box_coordinates": int(boxes.sum()),
        "box_coordinates_far_off": int(boxes[FAR_OFF:].sum()),
        "scores": scores,
    }
    return Summary(figures, _sentences(figures, examples.sum(axis=(0, 1, 2))))


def few_with_most(spectrum: SpectrumCounts) -> dict[str, float] | None:
    """The hardest regions of g whose share of the gradient is furthest above their share of the examples.

    From which g on they are, and both shares; None where there is no gradient.
    """
    counts = (each[-1].sum(axis=(0, 1, 2)) for each in (spectrum.examples, spectrum.gradient))
    examples, gradient = (each[::-1].cumsum()[::-1] / max(each.sum(), 1e-300) for each in counts)
    start = int((gradient - examples).argmax())
    if not gradient[0]:
        return None
    return {
        "from": start / REGIONS,
        "examples": float(examples[start]),
        "gradient": float(gradient[start]),
    }


def _sentences(figures: Mapping[str, Any], by_region: Ints) -> list[str]:
    if not by_region.sum():
        return ["Nothing was measured: there are no pictures."]
    objects = figures["examples"]["objects"]
    said = [
        f"{figures['pictures']} pictures give {by_region.sum():,} examples (one anchor and one class each);"
        f" {objects:,} of them are objects."
    ]
    few = figures["few_with_most"]
    if few and few["from"]:
        said.append(
            f"{percent(few['gradient'])} of cross entropy's gradient comes from the {percent(few['examples'])} of the"
            f" examples whose g is {few['from']:.2f} or more. The rest are easy, and have"
            f" {percent(1 - few['gradient'])} because they are so many."
        )
    said.append(_said_of_wrong(figures["all_but_certainly_wrong"], int(by_region[1:WRONG].min())))
    if not objects:
        return [*said, "The pictures show no object, so nothing can be said of classes and boxes."]
    shares = figures["share_of_gradient"]["objects_by_loss"]
    said.append(
        f"Objects have {percent(shares[PLAIN])} of the gradient under cross entropy and {percent(shares[GUARDED])}"
        f" after harmonizing ({GUARDED}; as published {percent(shares[PUBLISHED])})."
    )
    said += _said_of_classes(figures["classes"])
    levels = figures["levels"]
    level = max(levels, key=lambda stride: levels[stride]["gradient"])
    said.append(
        f"The pyramid level of stride {level} has the largest share of the gradient,"
        f" {percent(levels[level]['gradient'])}."
    )
    far = figures["box_coordinates_far_off"] / figures["box_coordinates"]
    off = 0.9 / np.sqrt(1 - 0.9**2) * MU
    said.append(
        f"{percent(far)} of the objects' box coordinates are off by more than {percent(off)} of their anchor's"
        " side (gr of .9 or more)."
    )
    scores = figures["scores"]
    if scores and scores["ECE"] is not None:
        said.append(
            f"On average a detection's score is {scores['ECE']:.2f} away from the share of such detections that hit."
        )
    return said


def _said_of_wrong(wrong: Mapping[str, int], emptiest: int) -> str:
    """On the hardest region, and whether it holds more examples than the emptiest of the regions before it."""
    number = sum(wrong.values())
    if not number:
        return "No example is almost certainly wrong (g of .97 or more)."
    said = (
        f"{number:,} examples are almost certainly wrong (g of .97 or more): {wrong['background']:,} where nothing is"
        f" labelled (look for missing labels), {wrong['objects']:,} on objects that the detector does not see."
    )
    if number > emptiest:
        said += f" The emptiest region below has only {emptiest:,}, so these are outliers that training did not mend."
    return said


def _said_of_classes(classes: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """On the class whose share of the gradient is furthest above its share of the objects, and those without any."""
    total = sum(one["objects"] for one in classes.values())
    above = {name: one["gradient"] - one["objects"] / total for name, one in classes.items()}
    most = max(classes, key=above.__getitem__)
    said = []
    if above[most] > 0:
        said.append(
            f"Class '{most}' has {percent(classes[most]['objects'] / total)} of the objects' examples and"
            f" {percent(classes[most]['gradient'])} of the gradient."
        )
    if absent := [name for name, one in classes.items() if not one["objects"]]:
        said.append(f"No anchor was matched to an object of {', '.join(absent)}.")
    return said


def said_of_hardest(totals: Mapping[str, int], objects: int) -> list[str]:
    """On the hard examples, of which `totals` says how many there are by kind, among so many labelled objects."""
    sure = "Detections that score .5 or more"
    said = [
        f"{sure} where nothing is labelled: {totals[NOTHING]:,}."
        + " Look for missing labels." * (totals[NOTHING] > 0),
        f"{sure} on objects that are labelled as another class: {totals[OTHER]:,}."
        + " The detector takes one for the other, or the label is wrong." * (totals[OTHER] > 0),
    ]
    unseen = "Labelled objects that the detector does not see (their class scores at most .5 there)"
    return [*said, f"{unseen}: {totals[UNSEEN]:,} of {objects:,}."] if objects else said


def said_of_errors(AP50: float | None, errors: Sequence[ErrorKind]) -> list[str]:
    """On the kind of error that costs most of AP50; nothing where none costs a tenth of a point."""
    worst = max(errors, key=lambda one: one["AP50_lost"])
    if AP50 is None or worst["AP50_lost"] < 0.001:
        return []
    return [
        f"AP50 is {100 * AP50:.0f} of 100 points. The costliest kind of error is '{worst['kind']}':"
        f" {100 * worst['AP50_lost']:.1f} points."
    ]


def percent(share: float) -> str:
    """A share as a percentage with two figures.

    >>> percent(0.714), percent(0.0042), percent(1.0)
    ('71 %', '0.42 %', '100 %')
    """
    return f"{100 * share:.0f} %" if share >= 0.0995 or share == 0 else f"{100 * share:.2g} %"


def _split(names: Sequence[Any], examples: Ints, gradient: Floats) -> dict[str, dict[str, Any]]:
    """By name: examples of background and of objects [2, n], and the share of the gradient [n]."""
    shares = _shares(gradient)
    return {str(name): {**_kinds(examples[:, i]), "gradient": shares[i]} for i, name in enumerate(names)}


def _kinds(counts: Ints) -> dict[str, int]:
    return {"background": int(counts[BACKGROUND]), "objects": int(counts[OBJECTS])}


def _shares(values: Floats) -> list[float]:
    shares: list[float] = (values / (values.sum() or 1.0)).tolist()
    return shares
