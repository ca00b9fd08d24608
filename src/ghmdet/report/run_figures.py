"""Figures of a run's numbers: learning curves, precision over recall, calibration. Each gives a matplotlib Figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ghmdet.report.figures import CLASS_COLOURS, INK, KINDS, MUTED, finish
from ghmdet.spectrum import OBJECTS, Floats

Curve = tuple[Sequence[float], Sequence[float]]  # x, y


def draw_scores(curves: Mapping[str, Curve]) -> Figure:
    """Validation scores in 0..1 over epochs, by name."""
    figure, axes = _curves(curves, marker="o")
    axes.set(ylabel="score", ylim=(0, 1))
    return finish(figure)


def draw_losses(curves: Mapping[str, Curve]) -> Figure:
    """Losses over epochs, by name, on a log scale."""
    figure, axes = _curves(curves, marker="")
    axes.set(ylabel="loss")
    if any(value > 0 for _, values in curves.values() for value in values):
        axes.set_yscale("log")
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
        xlabel="recall: share of the objects found (IoU .50)",
        ylabel="precision: share of detections that are right",
        title="Precision over recall",
        xlim=(0, 1),
        ylim=(0, 1.02),
    )
    if known:
        axes.legend(frameon=False, loc="lower left")
    else:
        _none(axes)
    return finish(figure)


def draw_calibration(bins: Mapping[str, Sequence[Any]]) -> Figure:
    """The share of detections that hit over their score, and below it how many there are at each score (log scale).

    bins: `edges` [n + 1] of the scores, `share` [n] that hit (None where there are none), `detections` [n].
    """
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    edges = np.array(bins["edges"], float)
    places, widths = (edges[:-1] + edges[1:]) / 2, 0.94 * np.diff(edges)
    share: Floats = np.array(bins["share"], float)
    above.bar(places, np.nan_to_num(share), widths, color=KINDS[OBJECTS][1], label="share that hits")
    above.plot([0, 1], [0, 1], color=INK, linewidth=1, label="what scores promise")
    above.set(ylabel="share that hits", xlim=(0, 1), ylim=(0, 1.02))
    above.legend(frameon=False, loc="upper left")
    counts = np.array(bins["detections"], float)
    below.bar(places, counts, widths, color=MUTED, label="detections")
    below.set(xlabel="score", ylabel="detections")
    if counts.sum():
        below.set(yscale="log", ylim=(0.7, 2 * counts.max()))
    else:
        _none(below)
    return finish(figure)


def _curves(curves: Mapping[str, Curve], marker: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    for number, (name, (x, y)) in enumerate(curves.items()):
        colour = CLASS_COLOURS[number % len(CLASS_COLOURS)]
        axes.plot(x, y, marker=marker, markersize=3, color=colour, label=name, linewidth=1.8)
    axes.legend(frameon=False)
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure, axes


def _none(axes: Axes) -> None:
    axes.set_yticks([])
    axes.text(0.5, 0.5, "none", ha="center", color=MUTED, transform=axes.transAxes)
