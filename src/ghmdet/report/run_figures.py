"""Figures of a run's numbers: learning curves, precision over recall, calibration. Each gives a matplotlib Figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ghmdet.report.figures import CLASS_COLOURS, INK, KINDS, MUTED, finish
from ghmdet.spectrum_counts import OBJECTS, Floats

Curve = tuple[Sequence[float], Sequence[float]]  # x, y


def draw_learning(scores: Mapping[str, Curve], losses: Mapping[str, Curve]) -> Figure:
    """Validation scores in 0..1 and losses (log scale) over epochs, by name; what is not finite is left out."""
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for axes, curves, marker in ((left, scores, "o"), (right, losses, "")):
        for (name, (x, y)), colour in zip(curves.items(), CLASS_COLOURS * len(curves), strict=False):
            seen = np.where(np.isfinite(y), y, np.nan)
            axes.plot(x, seen, marker=marker, markersize=3, color=colour, label=name, linewidth=1.8)
        if curves:
            axes.legend(frameon=False)
        else:
            _none(axes)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    left.set(xlabel="epoch", ylim=(0, 1), title="Score on the validation pictures")
    right.set(xlabel="epoch", title="Loss on the training pictures")
    if any(y > 0 for _, values in losses.values() for y in values):
        right.set_yscale("log")
    return finish(figure)


def draw_precision_recall(
    curves: Mapping[str, Mapping[str, Sequence[float]] | None], most: int = 8
) -> Figure:
    """Precision over recall at IoU .50 of each class, and their mean; of many classes the best and worst by area.

    curves: by class name, `precision`: 101 numbers at recall 0, .01 … 1; None where there is no box to find.
    """
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    recall = np.linspace(0, 1, 101)
    known = {name: np.array(curve["precision"], float) for name, curve in curves.items() if curve is not None}
    order = sorted(known, key=lambda name: -known[name].mean())
    chosen = order if len(order) <= most else order[: most // 2] + order[-most // 2 :]
    for name, colour in zip(chosen, CLASS_COLOURS, strict=False):
        axes.plot(recall, known[name], color=colour, label=name, linewidth=1.8)
    if len(known) > 1:
        mean = np.mean(list(known.values()), axis=0)
        axes.plot(recall, mean, "--", color=INK, label=f"mean of {len(known)} classes", linewidth=1.8)
    axes.set(
        xlabel="recall: share of the objects found",
        ylabel="precision: share of detections that are right",
        title="Precision over recall, at IoU .50",
        xlim=(0, 1),
        ylim=(0, 1.02),
    )
    if known:
        axes.legend(frameon=False, loc="lower left")
    else:
        _none(axes)
    return finish(figure)


def draw_calibration(bins: Mapping[str, Sequence[Any]]) -> Figure:
    """The share of detections that hit over their score, and how many there are at each score.

    bins: `edges` [n + 1] of the scores, `share` [n] that hit (None where there are none), `detections` [n].
    """
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    edges = np.array(bins["edges"], float)
    places, widths = (edges[:-1] + edges[1:]) / 2, np.diff(edges)
    share: Floats = np.array(bins["share"], float)
    left.bar(places, np.nan_to_num(share), 0.9 * widths, color=KINDS[OBJECTS][1], label="share that hits")
    left.plot([0, 1], [0, 1], color=INK, linewidth=1, label="what scores promise")
    left.set(xlabel="score", title="Do scores mean what they say", xlim=(0, 1), ylim=(0, 1.02))
    left.legend(frameon=False, loc="upper left")
    counts = np.array(bins["detections"], float)
    right.bar(places, counts, 0.9 * widths, color=MUTED, label="detections")
    right.set(xlabel="score", title="How many detections have which score", xlim=(0, 1))
    if counts.sum():
        right.set(yscale="log", ylim=(0.7, 2 * counts.max()))
    else:
        _none(right)
    return finish(figure)


def _none(axes: Axes) -> None:
    axes.set_yticks([])
    axes.text(0.5, 0.5, "none", ha="center", color=MUTED, transform=axes.transAxes)
