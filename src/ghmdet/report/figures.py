"""The figures of a spectrum: each function takes counts and returns a matplotlib Figure (docs/spectrum.md reads them).

Every histogram, bar, line and map has a label, by which tests find what is drawn.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Mapping
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ghmdet.evaluation.matching import reliability
from ghmdet.files import write_atomic
from ghmdet.report.curves import (
    CENTRES,
    NAMES,
    box_gradients,
    class_gradients,
    class_weights,
    gradient_shares,
)
from ghmdet.spectrum import BACKGROUND, MU, OBJECTS, REGIONS, Floats, Ints, SpectrumCounts

INK, MUTED = "#30343b", "#7a8ca3"
KINDS = (("background", MUTED), ("objects", "#e4572e"))
LOSSES = {
    "cross entropy": INK,
    "focal": "#2e86ab",
    "OHEM": "#c99a1c",
    NAMES["published"]: "#8f5fbf",
    NAMES["guarded"]: "#e4572e",
    "smooth L1": "#2e86ab",
    "authentic smooth L1": INK,
    "GHM-R": "#e4572e",
}
CLASS_COLOURS = ("#e4572e", "#2e86ab", "#3a9d5d", "#c99a1c", "#b0416b", "#8f5fbf", "#1b998b", "#7a8ca3")
EDGES = np.linspace(0, 1, REGIONS + 1)
FARTHEST = 0.3  # |d| in the figure of the box losses
G = "gradient norm g: 0 right, 1 wrong"
GR = "gradient norm gr: 0 exact, 1 far off"


def draw_examples(spectrum: SpectrumCounts) -> Figure:
    """The article's first figure: the number of examples over g, background and objects apart, on a log scale."""
    figure = Figure(figsize=(7, 3.8), layout="constrained")
    axes = figure.subplots()
    counts = spectrum.examples[-1].sum(axis=(1, 2))  # [2, M]
    _histograms(axes, dict(zip(KINDS, counts, strict=True)))
    axes.set(xlabel=G, ylabel="examples", title="How many examples are how wrong")
    axes.legend(frameon=False)
    return finish(figure)


def draw_runs(spectra: Mapping[str, SpectrumCounts]) -> Figure:
    """The number of examples over g of several detectors, by name, on a log scale: background left, objects right."""
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    for kind, axes in enumerate(figure.subplots(1, 2)):
        counts = {
            (name, colour): spectrum.examples[-1, kind].sum(axis=(0, 1))
            for (name, spectrum), colour in zip(spectra.items(), itertools.cycle(CLASS_COLOURS), strict=False)
        }
        _histograms(axes, counts, filled=False)
        axes.set(xlabel="gradient norm g", title=f"examples: {KINDS[kind][0]}")
    figure.axes[0].set_ylabel("examples")
    figure.axes[0].legend(frameon=False)
    return finish(figure)


def draw_boxes(spectrum: SpectrumCounts) -> Figure:
    """The article's second: the number of coordinates of objects' boxes over gr, on a log scale."""
    figure = Figure(figsize=(7, 3.8), layout="constrained")
    axes = figure.subplots()
    counts = spectrum.boxes[-1].sum(axis=(0, 1))
    _histograms(axes, {KINDS[OBJECTS]: counts})
    axes.set(xlabel=GR, ylabel="box coordinates", title="How many box coordinates are how far off")
    return finish(figure)


def draw_class_gradients(spectrum: SpectrumCounts) -> Figure:
    """The article's third: what each class loss makes of an example's gradient norm, on a log scale.

    All losses have cross entropy's total gradient over the examples of the spectrum.
    """
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    for name, values in class_gradients(spectrum).items():
        seen = np.where(values > 0, values, np.nan)
        axes.plot(CENTRES, seen, color=LOSSES[name], label=name, linewidth=2, marker="o", markersize=2.5)
    axes.set(xlabel=G, ylabel="pull of one example", title="How strongly a loss lets an example pull")
    _log_axis(axes)
    axes.legend(frameon=False)
    return finish(figure)


def draw_box_gradients(spectrum: SpectrumCounts) -> Figure:
    """The article's fourth: what each box loss makes of a coordinate that is off by |d|.

    GHM-R has authentic smooth L1's total gradient over the coordinates of the spectrum.
    """
    figure = Figure(figsize=(7, 3.8), layout="constrained")
    axes = figure.subplots()
    difference = MU * np.tan(np.linspace(0, np.arctan(FARTHEST / MU), 301))  # dense where gr changes
    for name, values in box_gradients(spectrum, difference).items():
        axes.plot(difference, values, color=LOSSES[name], label=name, linewidth=2)
    axes.set(
        xlabel="|d|, in sides of the anchor",
        ylabel="pull of one coordinate",
        title="How strongly a loss lets a box coordinate pull",
        xlim=(0, FARTHEST),
        ylim=(0, None),
    )
    axes.legend(frameon=False)
    return finish(figure)


def draw_shares(spectrum: SpectrumCounts) -> Figure:
    """The share of the whole gradient by region of g, before and after harmonizing, background on top of objects."""
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    found = gradient_shares(spectrum)
    for axes, (name, shares) in zip(figure.subplots(1, len(found), sharey=True), found.items(), strict=True):
        floor = np.zeros(REGIONS)
        for kind in (OBJECTS, BACKGROUND):
            label, colour = KINDS[kind]
            values = 100 * shares[kind]
            axes.bar(CENTRES, values, 1 / REGIONS, bottom=floor, color=colour, label=label)
            floor = floor + values
        axes.set(xlabel="gradient norm g", title=f"{name}: objects {100 * shares[OBJECTS].sum():.0f} %")
    figure.axes[0].set_ylabel("share of the whole gradient, %")
    figure.axes[0].legend(frameon=False)
    return finish(figure)


def draw_epochs(spectrum: SpectrumCounts) -> Figure:
    """The number of examples over g in each epoch as a heat map, background and objects apart.

    White where there were none. A cell is a pixel of an image, so that the file does not grow with the epochs.
    """
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    counts = spectrum.examples.sum(axis=(2, 3)).astype(float)  # [E, 2, M]
    panels = figure.subplots(1, 2, sharey=True)
    for axes, (name, _), rows in zip(panels, KINDS, counts.transpose(1, 0, 2), strict=True):
        least = rows[rows > 0].min(initial=max(rows.max(), 1))
        cells = axes.imshow(
            np.ma.masked_equal(rows, 0),
            norm=LogNorm(least, max(rows.max(), 2 * least)),
            cmap="magma_r",
            origin="lower",
            extent=(0, 1, 0.5, len(rows) + 0.5),
            aspect="auto",
            interpolation="none",
            label=name,
        )
        axes.set(xlabel="gradient norm g", title=f"examples: {name}")
        axes.yaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        figure.colorbar(cells, ax=axes)
    figure.axes[0].set_ylabel("epoch")
    return finish(figure, grid=False)


def draw_weights(spectrum: SpectrumCounts) -> Figure:
    """The weight that GHM-C gives an example by region of g, on a log scale; 1 is its weight in cross entropy.

    The published form has one weight for all classes; of the guarded form's classes at most eight are drawn, the four
    with the most objects and the four with the least.
    """
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.axhline(1, color=INK, linewidth=1, label="cross entropy")
    published = class_weights(spectrum, "published").max(axis=0)
    _weight_line(axes, published, LOSSES[NAMES["published"]], NAMES["published"], "--")
    objects = spectrum.examples[-1, OBJECTS].sum(axis=(1, 2))
    order = np.argsort(-objects, kind="stable").tolist()
    chosen = order if len(order) <= 8 else order[:4] + order[-4:]
    guarded = class_weights(spectrum, "guarded")
    for k, colour in zip(chosen, CLASS_COLOURS, strict=False):
        _weight_line(axes, guarded[k], colour, f"guarded: {spectrum.classes[k]}", "-")
    axes.set(xlabel=G, ylabel="weight of one example", title="What harmonizing multiplies an example by")
    _log_axis(axes)
    axes.legend(frameon=False)
    return finish(figure)


def draw_reliability(scores: Floats, hit: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> Figure:
    """The share of detections that hit over their score, and how many detections there are at each score.

    scores: in 0..1, [n]. hit: which found a box, [n]; both as of `ghmdet.evaluation.findings.find`.
    """
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    bins = reliability(scores, hit)
    assert bins, "a score outside 0..1"
    shares = np.array(bins["share"], dtype=float)
    places = (np.arange(10) + 0.5) / 10
    left.bar(places, shares, 0.1, color=KINDS[OBJECTS][1], edgecolor="white", label="share that hits")
    left.plot([0, 1], [0, 1], color=INK, linewidth=1, label="what scores promise")
    left.set(xlabel="score", ylabel="share that hits", title="Do scores mean what they say", ylim=(0, 1))
    left.legend(frameon=False, loc="upper left")
    kinds = (("misses", ~hit, MUTED), ("hits", hit, KINDS[OBJECTS][1]))
    _histograms(
        right,
        {(name, colour): np.histogram(scores[mine], EDGES)[0] for name, mine, colour in kinds},
    )
    right.set(xlabel="score", ylabel="detections", title="How detections are scored")
    right.legend(frameon=False, loc="upper center")
    return finish(figure)


def save_figure(figure: Figure, path: Path) -> list[Path]:
    """Write a figure as PATH.svg and PATH.png, whole or not at all, the same bytes each time; the two paths."""
    written = []
    for kind, more in (("svg", {"metadata": {"Date": None}}), ("png", {"dpi": 120})):
        buffer = io.BytesIO()
        # Text stays text: small, and found by who searches or listens.
        with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "ghmdet"}):
            figure.savefig(buffer, format=kind, **more)
        written.append(write_atomic(path.with_suffix(f".{kind}"), buffer.getvalue()))
    return written


def _weight_line(axes: Axes, weights: Floats, colour: str, name: str, style: str) -> None:
    seen = np.where(weights > 0, weights, np.nan)
    axes.plot(CENTRES, seen, style, color=colour, label=name, linewidth=2, marker="o", markersize=2.5)


def _log_axis(axes: Axes) -> None:
    """A log scale, where there is anything to show on it."""
    if any(np.isfinite(np.asarray(line.get_ydata(), float)).any() for line in axes.lines):
        axes.set_yscale("log")


def _histograms(
    axes: Axes, counts: dict[tuple[str, str], Ints] | dict[tuple[str, str], Floats], *, filled: bool = True
) -> None:
    """Counts [M] by name and colour over 0..1, on a log scale from just below one; the first one `filled`."""
    axes.set_xlim(0, 1)
    most = max(row.max() for row in counts.values())
    for number, ((name, colour), row) in enumerate(counts.items()):
        axes.stairs(row, EDGES, color=colour, label=name, fill=filled and number == 0, linewidth=2)
    if most:
        axes.set(yscale="log", ylim=(0.7, 2 * most))
    else:
        axes.set_yticks([])
        axes.text(0.5, 0.5, "none", ha="center", color=MUTED, transform=axes.transAxes)


def finish(figure: Figure, grid: bool = True) -> Figure:
    """The figure without frames at top and right, and with a faint grid."""
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(colors=INK)
        if grid:
            axes.set_axisbelow(True)
            axes.grid(alpha=0.25)
    return figure
