"""What a spectrum says, in numbers and in plain words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ghmdet.evaluation.score import ScoreUse
from ghmdet.report.curves import NAMES, gradient_shares
from ghmdet.spectrum import BACKGROUND, MU, OBJECTS, REGIONS, Floats, Ints, SpectrumCounts

WRONG = REGIONS - 1  # the region of g in which the detector is all but certain, and wrong
FAR_OFF = 27  # the region of gr from which a coordinate is off by twice μ or more


@dataclass(frozen=True)
class Summary:
    """Figures by name, ready for JSON, and what they mean, a sentence each."""

    figures: dict[str, Any]
    sentences: list[str]


def summarize(spectrum: SpectrumCounts, scores: ScoreUse | None = None) -> Summary:
    """The last epoch of a spectrum in numbers and words; with what the detections' scores are worth, if given."""
    examples, gradient = spectrum.examples[-1], spectrum.gradient[-1]  # [2, K, L, M]
    by_region, pull_by_region = examples.sum(axis=(0, 1, 2)), gradient.sum(axis=(0, 1, 2))
    shares = {name: float(rows[OBJECTS].sum()) for name, rows in gradient_shares(spectrum).items()}
    few = _few_with_most(by_region, pull_by_region)
    boxes = spectrum.boxes[-1].sum(axis=(0, 1))
    figures = {
        "pictures": int(spectrum.pictures[-1]),
        "examples": _kinds(examples.sum(axis=(1, 2, 3))),
        "share_of_gradient": {"regions_of_g": _shares(pull_by_region), "objects_by_loss": shares},
        "few_with_most": few,
        "all_but_certainly_wrong": _kinds(examples[..., WRONG].sum(axis=(1, 2))),
        "classes": _split(spectrum.classes, examples.sum(axis=(2, 3)), gradient.sum(axis=(0, 2, 3))),
        "levels": _split(spectrum.strides, examples.sum(axis=(1, 3)), gradient.sum(axis=(0, 1, 3))),
        "box_coordinates": int(boxes.sum()),
        "box_coordinates_far_off": int(boxes[FAR_OFF:].sum()),
        "scores": scores,
    }
    return Summary(figures, _sentences(spectrum, figures))


def _sentences(spectrum: SpectrumCounts, figures: Mapping[str, Any]) -> list[str]:
    total = sum(figures["examples"].values())
    if not total:
        return ["Nothing was measured: there are no pictures."]
    objects = figures["examples"]["objects"]
    said = [
        f"{figures['pictures']} pictures give {total:,} examples (an anchor and a class each);"
        f" {objects:,} of them are objects."
    ]
    few = figures["few_with_most"]
    if few and few["from"]:
        said.append(
            f"{percent(few['gradient'])} of cross entropy's gradient comes from {percent(few['examples'])} of the"
            f" examples, those whose g is {few['from']:.2f} or more; the others are easy, and have"
            f" {percent(1 - few['gradient'])} by their number."
        )
    said += _said_of_wrong(spectrum.examples[-1].sum(axis=(0, 1, 2)), figures["all_but_certainly_wrong"])
    if not objects:
        return [*said, "There is no object in them, so nothing can be said of classes and boxes."]
    shares = figures["share_of_gradient"]["objects_by_loss"]
    guarded, published = NAMES["guarded"], NAMES["published"]
    said.append(
        f"Objects have {percent(shares['cross entropy'])} of cross entropy's gradient,"
        f" {percent(shares[guarded])} after harmonizing ({guarded}; {percent(shares[published])} as published)."
    )
    said += _said_of_classes(figures["classes"])
    level = max(figures["levels"], key=lambda name: figures["levels"][name]["gradient"])
    said.append(
        f"The pyramid level of stride {level} has the most of the gradient,"
        f" {percent(figures['levels'][level]['gradient'])}."
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
            f"A detection's score is off by {scores['ECE']:.2f} on average from how often such detections hit."
        )
    return said


def _said_of_wrong(by_region: Ints, wrong: Mapping[str, int]) -> list[str]:
    """On the hardest region: how many are there, and whether they are more than in the regions before it."""
    number = sum(wrong.values())
    if not number:
        return ["No example is all but certainly wrong (g of .97 or more)."]
    least = int(by_region[1:WRONG].min())
    bump = (
        f" More than the {least:,} of the emptiest region below: outliers that training did not teach."
        if number > least
        else ""
    )
    return [
        f"{number:,} examples are all but certainly wrong (g of .97 or more): {wrong['background']:,} where the"
        f" labels have nothing (look for missing labels), {wrong['objects']:,} on objects that it does not see.{bump}"
    ]


def _said_of_classes(classes: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """On the class whose share of the gradient is furthest above its share of the objects, and those without any."""
    said = []
    total = sum(one["objects"] for one in classes.values())
    most = max(classes, key=lambda name: classes[name]["gradient"] - classes[name]["objects"] / total)
    if classes[most]["gradient"] > classes[most]["objects"] / total:
        said.append(
            f"Class '{most}' has {percent(classes[most]['objects'] / total)} of the objects' examples and"
            f" {percent(classes[most]['gradient'])} of the gradient."
        )
    if absent := [name for name, one in classes.items() if not one["objects"]]:
        said.append(f"No anchor answers for an object of {', '.join(absent)}.")
    return said


def _few_with_most(examples: Ints, gradient: Floats) -> dict[str, float] | None:
    """The hardest regions that hold most more of the gradient than of the examples; None where there is nothing."""
    if not examples.sum() or not gradient.sum():
        return None
    of_examples = examples[::-1].cumsum()[::-1] / examples.sum()
    of_gradient = gradient[::-1].cumsum()[::-1] / gradient.sum()
    start = int((of_gradient - of_examples).argmax())
    return {
        "from": start / REGIONS,
        "examples": float(of_examples[start]),
        "gradient": float(of_gradient[start]),
    }


def _split(names: tuple[Any, ...], examples: Ints, gradient: Floats) -> dict[str, dict[str, Any]]:
    """By name: examples of background and of objects [2, n], and the share of the gradient [n]."""
    return {
        str(name): {**_kinds(examples[:, i]), "gradient": share}
        for i, (name, share) in enumerate(zip(names, _shares(gradient), strict=True))
    }


def _kinds(counts: Ints) -> dict[str, int]:
    return {"background": int(counts[BACKGROUND]), "objects": int(counts[OBJECTS])}


def _shares(values: Floats) -> list[float]:
    total = values.sum()
    return (values / total).tolist() if total else [0.0] * len(values)


def percent(share: float) -> str:
    """A share as a percentage with two figures.

    >>> percent(0.714), percent(0.0042), percent(1.0)
    ('71 %', '0.42 %', '100 %')
    """
    return f"{100 * share:.0f} %" if share >= 0.0995 or share == 0 else f"{100 * share:.2g} %"
